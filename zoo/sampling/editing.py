"""Editing images with a model that fills in hidden tokens: what is hidden, and how new pixels join old ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from zoo.choices import one_of
from zoo.sampling.image_masks import box_mask, token_mask
from zoo.tokens import TokenSpec

SIDES = ("left", "right", "up", "down")


def refuse_tokens(method: str, options: Mapping[str, Any]) -> None:
    """Refuse to return tokens where the result is put together of pixels.

    Args:
        method: that was called, for the message.
        options: that it was given.

    Raises:
        ValueError: naming the option.
    """
    for name in ("as_tokens", "return_steps"):
        if options.get(name):
            raise ValueError(
                f"{method} puts pixels together and has no tokens to return: leave {name} out, or take inpaint"
            )


def tokens_to_replace(
    spec: TokenSpec,
    images: Shaped[Tensor, "b 3 h w"],
    box: Sequence[Any] | None,
    mask: Bool[Tensor, "..."] | None,
) -> Bool[Tensor, "b n"]:
    """Tokens of a box of pixels, see :func:`zoo.sampling.image_masks.box_mask`, or of a mask of them.

    Args:
        spec: of the tokenizer.
        images: that are edited.
        box: ``(top, left, height, width)`` in pixels, the same for all images.
        mask: True where something new is to be, for one image or for each.

    Raises:
        ValueError: for neither or both of box and mask, or one that does not fit the images.
    """
    size = (images.shape[-2], images.shape[-1])
    if box is not None and mask is None:
        return box_mask(spec, box, size).expand(len(images), -1).to(images.device)
    if mask is not None and box is None:
        return token_mask(spec, mask, len(images), size).to(images.device)
    raise ValueError("give either a box or a mask, which says where to edit")


def resize_to(images: Float[Tensor, "b 3 h w"], size: tuple[int, int]) -> Float[Tensor, "b 3 h2 w2"]:
    """Resize images by antialiased bicubic interpolation; those of that size are unchanged."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)


def paste(
    new: Float[Tensor, "b 3 h2 w2"], old: Float[Tensor, "b 3 h w"], hidden: Bool[Tensor, "b n"], spec: TokenSpec
) -> Float[Tensor, "b 3 h w"]:
    """New pixels at hidden tokens, old ones elsewhere, with soft edges: a Gaussian blur of ``height // 16 - 1`` pixels.

    New ones of another size are resized: some tokenizers decode to fewer or more pixels than they encode.

    Source: the class-conditional editing of google-research/maskgit; its PIL blur is approximated there by box filters.
    """
    grid, new = spec.grid_shape, resize_to(new, (old.shape[-2], old.shape[-1]))
    if grid is None:
        return new
    cells = hidden.unflatten(1, grid).unsqueeze(1).float()
    alpha = F.interpolate(cells, list(old.shape[-2:]), mode="bicubic", align_corners=False).clamp(0, 1)
    if (sigma := old.shape[-2] // 16 - 1) > 0:
        reach = torch.arange(-3 * sigma, 3 * sigma + 1, device=old.device).float()
        weights = (-(reach**2) / (2 * sigma**2)).exp()
        weights = (weights / weights.sum()).view(1, 1, 1, -1)
        pad = 3 * sigma
        alpha = F.conv2d(F.pad(alpha, (pad, pad, 0, 0), mode="replicate"), weights)
        alpha = F.conv2d(F.pad(alpha, (0, 0, pad, pad), mode="replicate"), weights.transpose(2, 3))
    return alpha * new + (1 - alpha) * old


def cut_next_window(
    images: Float[Tensor, "b 3 h w"], side: str, pixels: int, size: int
) -> tuple[Float[Tensor, "b 3 h2 w2"], Bool[Tensor, "h2 w2"]]:
    """Cut out the square window at one side that looks ``pixels`` beyond the images, and say where it sees nothing.

    Args:
        images: ``size`` pixels across, and at least as long.
        side: ``left``, ``right``, ``up`` or ``down``.
        pixels: to be added; unknown ones repeat the edge.
        size: side of the window.

    Raises:
        ValueError: for an unknown side, too many pixels, or images of another size.
    """
    one_of("side", side, SIDES)
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


def extend(
    images: Float[Tensor, "b 3 h w"], window: Float[Tensor, "b 3 s s"], side: str, pixels: int
) -> Float[Tensor, "b 3 h2 w2"]:
    """Images with the outer ``pixels`` of a window of :func:`cut_next_window` put to one side of them.

    Args:
        images: to be extended.
        window: filled in, of the size that was cut out.
        side: as there.
        pixels: as there.
    """
    axis, size = (2 if side in ("up", "down") else 3), window.shape[-1]
    if side in ("left", "up"):
        return torch.cat([window.narrow(axis, 0, pixels), images], axis)
    return torch.cat([images, window.narrow(axis, size - pixels, pixels)], axis)
