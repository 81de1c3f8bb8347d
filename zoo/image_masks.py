"""Masks and boxes of pixels, and the tokens that they touch."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from zoo.tokens import TokenSpec


def token_mask(spec: TokenSpec, mask: Bool[Tensor, "*b h w"], count: int, size: tuple[int, int]) -> Bool[Tensor, "b n"]:
    """Which tokens have a hidden pixel, in the flat order of the tokens.

    In each grid of the tokenizer, cells are equal shares of the image. Tokens of segments that are no grid may stand
    for anything in the image, so they are hidden where any pixel is.

    Args:
        spec: of the tokenizer.
        mask: True where hidden, for one image or for ``count`` images.
        count: of the images.
        size: ``(height, width)`` of the images.

    Raises:
        ValueError: for a mask of another shape or type, or a tokenizer without a grid.
    """
    if mask.dtype != torch.bool or tuple(mask.shape) not in (size, (count, *size)):
        raise ValueError(
            f"the mask is {mask.dtype} of shape {tuple(mask.shape)}, the images are {count} of {size[0]}x{size[1]}: "
            f"give a bool mask of shape {size} or {(count, *size)}, True where hidden"
        )
    if not any(len(s.shape) == 2 for s in spec.segments):
        raise ValueError(
            "this tokenizer's tokens have no place in the image, so a part of it cannot be hidden: "
            "take a tokenizer with a grid, or generate the whole image"
        )
    pixels = mask.expand(count, *size).unsqueeze(1).float()
    parts = [
        F.adaptive_max_pool2d(pixels, s.shape).flatten(1).bool()
        if len(s.shape) == 2
        else mask.expand(count, *size).flatten(1).any(1, keepdim=True).expand(-1, s.num_tokens)
        for s in spec.segments
    ]
    return torch.cat(parts, 1)


def grey_out(
    images: Float[Tensor, "b 3 h w"], hidden: Bool[Tensor, "b n"], spec: TokenSpec
) -> Float[Tensor, "b 3 h w"]:
    """The images with grey cells where tokens are hidden; unchanged for tokenizers with more than one grid."""
    if spec.grid_shape is None:
        return images
    cells = hidden.unflatten(1, spec.grid_shape).unsqueeze(1).float()
    return images.masked_fill(F.interpolate(cells, images.shape[-2:], mode="nearest").bool(), 0.5)
