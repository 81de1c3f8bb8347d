"""Masks and boxes of pixels, and the tokens that they touch."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from zoo.tokens import TokenSpec


def token_mask(spec: TokenSpec, mask: Bool[Tensor, "..."], count: int, size: tuple[int, int]) -> Bool[Tensor, "b n"]:
    """Mark the tokens that have a hidden pixel, in the flat order of the tokens.

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
    """Paint cells grey where tokens are hidden; images are unchanged for tokenizers with more than one grid."""
    if spec.grid_shape is None:
        return images
    cells = hidden.unflatten(1, spec.grid_shape).unsqueeze(1).float()
    return images.masked_fill(F.interpolate(cells, list(images.shape[-2:]), mode="nearest").bool(), 0.5)


def box_mask(spec: TokenSpec, box: Sequence[Any], size: tuple[int, int]) -> Bool[Tensor, " n"]:
    """Tokens of a box: rows from ``max(0, t // f - 1)`` and before ``min(gh, h // f + t // f + 1)``, columns alike.

    That is one token more on each side of a box of whole tokens. The floors are those of the reference: where a box
    begins or ends inside of a token there may be no margin at its end, or the last row of pixels may be left out.
    Source: the class-conditional editing of google-research/maskgit, f = 16 pixels per token there.

    Args:
        spec: of a tokenizer with one grid.
        box: ``(top, left, height, width)`` in pixels.
        size: ``(height, width)`` of the image.

    Raises:
        ValueError: for a box that is not four whole numbers or not in the image, or a tokenizer without a grid.
    """
    if spec.grid_shape is None:
        raise ValueError("a box needs a tokenizer with exactly one grid: give a mask of pixels instead")
    if len(box) != 4 or not all(isinstance(number, Integral) for number in box):
        raise ValueError(f"a box is four whole numbers of pixels, (top, left, height, width), got {tuple(box)}")
    (top, left, height, width), hidden = box, torch.zeros(spec.grid_shape, dtype=torch.bool)
    if min(top, left) < 0 or min(height, width) < 1 or top + height > size[0] or left + width > size[1]:
        raise ValueError(
            f"the box (top, left, height, width) = {tuple(box)} is not inside an image of {size[0]}x{size[1]}: "
            "give pixels of a part of the image"
        )
    spans = []
    for start, length, cells, side in zip((top, left), (height, width), spec.grid_shape, size, strict=True):
        factor = side // cells
        first = start // factor
        spans.append(slice(max(0, first - 1), min(cells, length // factor + first + 1)))
    hidden[spans[0], spans[1]] = True
    return hidden.flatten()
