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


def resized(images: Float[Tensor, "b 3 h w"], size: tuple[int, int]) -> Float[Tensor, "b 3 h2 w2"]:
    """The images in another size, by antialiased bicubic interpolation; unchanged where they have it."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)


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


def paste(
    new: Float[Tensor, "b 3 h2 w2"], old: Float[Tensor, "b 3 h w"], hidden: Bool[Tensor, "b n"], spec: TokenSpec
) -> Float[Tensor, "b 3 h w"]:
    """New pixels at hidden tokens, old ones elsewhere, with soft edges: a Gaussian blur of ``height // 16 - 1`` pixels.

    New ones of another size are resized: some tokenizers decode to less or more pixels than they encode.

    Source: the class-conditional editing of google-research/maskgit; its PIL blur is approximated there by box filters.
    """
    grid, new = spec.grid_shape, resized(new, (old.shape[-2], old.shape[-1]))
    if grid is None:
        return new
    cells = hidden.unflatten(1, grid).unsqueeze(1).float()
    alpha = F.interpolate(cells, old.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
    if (sigma := old.shape[-2] // 16 - 1) > 0:
        reach = torch.arange(-3 * sigma, 3 * sigma + 1, device=old.device).float()
        weights = (-(reach**2) / (2 * sigma**2)).exp()
        weights = (weights / weights.sum()).view(1, 1, 1, -1)
        pad = 3 * sigma
        alpha = F.conv2d(F.pad(alpha, (pad, pad, 0, 0), mode="replicate"), weights)
        alpha = F.conv2d(F.pad(alpha, (0, 0, pad, pad), mode="replicate"), weights.transpose(2, 3))
    return alpha * new + (1 - alpha) * old


def next_window(
    images: Float[Tensor, "b 3 h w"], side: str, pixels: int, size: int
) -> tuple[Float[Tensor, "b 3 h2 w2"], Bool[Tensor, "h2 w2"]]:
    """The square window at one side that looks ``pixels`` beyond the images, and where it looks at nothing.

    Args:
        images: ``size`` pixels across, and at least as long.
        side: ``left``, ``right``, ``up`` or ``down``.
        pixels: to be added; unknown ones repeat the edge.
        size: side of the window.

    Raises:
        ValueError: for too many pixels, or images of another size.
    """
    axis = 2 if side in ("up", "down") else 3
    if not 0 < pixels < size:
        raise ValueError(
            f"pixels must lie in 1..{size - 1}, as the window of {size} must see some of the image: {pixels}"
        )
    if images.shape[5 - axis] != size or images.shape[axis] < size:
        raise ValueError(
            f"images are {images.shape[2]}x{images.shape[3]}, outpainting to the {side} needs {size} pixels across and "
            "at least as many along: resize or crop them"
        )
    before = side in ("left", "up")
    length = images.shape[axis]
    known = images.narrow(axis, 0 if before else length - (size - pixels), size - pixels)
    edge = images.narrow(axis, 0 if before else length - 1, 1).repeat_interleave(pixels, axis)
    hidden = torch.zeros(size, size, dtype=torch.bool, device=images.device)
    hidden.narrow(axis - 2, 0 if before else size - pixels, pixels).fill_(True)
    return torch.cat([edge, known] if before else [known, edge], axis), hidden
