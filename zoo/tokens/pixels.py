"""Images as every model takes them: ``b 3 h w``, floats in [0, 1] or uint8; each model owns its normalisation."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def sides_of(image_size: int | tuple[Any, ...] | list[Any]) -> tuple[int, int]:
    """Height and width of images, of which one number means both.

    Raises:
        ValueError: for anything but one or two whole numbers from 1.
    """
    # annotated without the kind of the elements: to look at one, run-time checks would draw from Python's generator
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"an image size is a side in pixels, or (height, width), got {image_size}")
    return sides[0], sides[1]


def as_pixels(
    images: Shaped[Tensor, "b c h w"], multiple_of: int = 1, size: int | Sequence[int] | None = None
) -> Float[Tensor, "b c h w"]:
    """Check a batch of images and return it as floats in [0, 1].

    Args:
        images: uint8, or any float type in [0, 1]; float32 is returned as it is, without a copy.
        multiple_of: both sides must be divisible by this.
        size: both sides must equal this, or this ``(height, width)``.

    Raises:
        ValueError: naming the value that is wrong and what to do.
    """
    if not isinstance(images, Tensor):
        kind = type(images).__name__
        raise ValueError(
            f"images must be a tensor, got {kind}: torch.from_numpy(...) or torch.as_tensor(...) makes one"
        )
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape (batch, 3, height, width), got {tuple(images.shape)}")
    height, width = images.shape[-2:]
    if not (height and width):
        raise ValueError(f"images of {height}x{width} have no pixels")
    if size is not None and (height, width) != (expected := sides_of(size if isinstance(size, int) else tuple(size))):
        raise ValueError(f"images are {height}x{width}, this model needs {expected[0]}x{expected[1]}: resize them")
    if height % multiple_of or width % multiple_of:
        raise ValueError(f"image size {height}x{width} is not divisible by {multiple_of}: resize or crop the images")
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise ValueError(f"images must be uint8 or float in [0, 1], got {images.dtype}")
    images = images.float()  # networks are float32; autocast casts by itself
    if not torch.compiler.is_compiling():
        low, high = (x.item() for x in images.detach().aminmax()) if images.numel() else (0.0, 0.0)
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also catches nan
            normalised = "undo any mean/std normalisation; each model normalises by itself"
            hint = "divide by 255" if high > 2 and low >= 0 else normalised
            raise ValueError(f"float images must lie in [0, 1], got [{low:.3g}, {high:.3g}]: {hint}")
    return images
