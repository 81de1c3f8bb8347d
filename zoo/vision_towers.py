"""Frozen image encoders by name, for the models that put continuous tokens of them into a language model."""

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from zoo.checkpoints.files import read
from zoo.nn.efficientnet_lite0 import TAP_CHANNELS, TAP_STRIDES, Lite0Taps
from zoo.nn.eva_vit import EvaViT, resize_positions

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
EVA_ORIGIN = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/eva_vit_g.pth"
TOWERS = ("eva_vit_g:PATH", "eva_vit_g:random", "lite0", "tiny_random", "tiny_random:WIDTH")
TINY_PATCH = 8


class VisionTower(nn.Module):
    """Tokens of images in [0, 1].

    Args:
        network: from normalised images to tokens; None on the meta device, where no weights are read.
        width: of the tokens.
        num_tokens: per image.
        mean: subtracted from the pixels.
        std: divides them.
    """

    def __init__(self, network: nn.Module | None, width: int, num_tokens: int, mean: tuple, std: tuple):
        super().__init__()
        self.network, self.width, self.num_tokens = network, width, num_tokens
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        """Tokens, in raster order where they are cells of a grid."""
        return self.network((images - self.mean) / self.std)


def vision_tower(reference: str, image_size: int) -> VisionTower:
    """The image encoder that a recipe names.

    Args:
        reference: ``eva_vit_g:PATH`` (BLIP-2's; ``eva_vit_g:random`` for random weights), ``lite0`` (the last feature
            map of EfficientNet-Lite0, stride 32, weights from a pip package) or ``tiny_random[:WIDTH]`` (for tests).
        image_size: side of the images in pixels.

    Raises:
        ValueError: for an unknown name or an image size that does not fit.
        FileNotFoundError: for weights that are not there.
    """
    name, _, source = reference.partition(":")
    on_meta = torch.get_default_device().type == "meta"
    if name == "eva_vit_g":
        network: Any = EvaViT(image_size)
        if not on_meta and source != "random":
            network.load_state_dict(_eva_weights(source, network))
        return VisionTower(network, network.width, network.num_tokens, CLIP_MEAN, CLIP_STD)
    stride = TAP_STRIDES[-1] if name == "lite0" else TINY_PATCH
    if name not in ("lite0", "tiny_random") or (name == "lite0" and source):
        raise ValueError(f"there is no image encoder {reference!r}: it is one of {', '.join(TOWERS)}")
    if image_size % stride:
        raise ValueError(f"image_size {image_size} is not divisible by {stride}, which {name} needs")
    cells = (image_size // stride) ** 2
    if name == "lite0":
        network = None if on_meta else _LastMap()
        return VisionTower(network, TAP_CHANNELS[-1], cells, (0.0,), (1.0,))
    width = int(source or 32)
    return VisionTower(_RandomPatches(width), width, cells, (0.5,), (0.5,))


def _eva_weights(source: str, network: EvaViT) -> dict[str, Tensor]:
    if not source:
        raise FileNotFoundError(
            f"the weights of eva_vit_g are not in the package and are never downloaded by themselves: get "
            f"{EVA_ORIGIN} and write 'eva_vit_g:PATH', or 'eva_vit_g:random' to use it untrained"
        )
    own = network.state_dict()
    state = {name.removeprefix("visual_encoder."): value.float() for name, value in read(Path(source)).state.items()}
    state = {name: value for name, value in state.items() if name in own}  # the file holds block 40 and a head too
    if missing := [name for name in own if name not in state]:
        raise ValueError(f"{source} is no eva_vit_g: it lacks {', '.join(missing[:5])}")
    state["pos_embed"] = resize_positions(state["pos_embed"], network.num_tokens)
    return state


class _LastMap(nn.Module):
    """Cells of EfficientNet-Lite0's last feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.taps = Lite0Taps()

    def forward(self, images: Tensor) -> Tensor:
        return rearrange(self.taps(images)[-1], "b d gh gw -> b (gh gw) d")


class _RandomPatches(nn.Module):
    """A random linear map of patches, always the same."""

    def __init__(self, width: int):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        size = (width, 3 * TINY_PATCH**2)
        weight = torch.randn(size, generator=generator, device="cpu") / size[1] ** 0.5
        self.weight = nn.Parameter(weight.to(torch.get_default_device()))

    def forward(self, images: Tensor) -> Tensor:
        patches = rearrange(images, "b c (gh p1) (gw p2) -> b (gh gw) (c p1 p2)", p1=TINY_PATCH, p2=TINY_PATCH)
        return patches @ self.weight.t()
