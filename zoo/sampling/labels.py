"""Labels of the images that are to be made."""

import textwrap
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from zoo.tokens.batch import in_range

NO_CLASS = -1  # label of an image that is to be made without a class


def wanted_labels(
    labels: Any, num_images: int | None, num_classes: int, has_null: bool, device: torch.device
) -> tuple[Int[Tensor, " b"] | None, int]:
    """Labels of the images to be made, and their number.

    Args:
        labels: a number, a list or a tensor of numbers, or None.
        num_images: how many; with one label, that many of it.
        num_classes: of the model.
        has_null: whether -1 (no class) is one of its labels.
        device: of the result.

    Raises:
        ValueError: where they are missing, no whole numbers, too many, out of range, or not as many as images.
    """
    if num_images is not None and num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {num_images}")
    if not num_classes:
        if labels is not None:
            raise ValueError("this model is unconditional (num_classes is 0): leave labels out")
        return None, 1 if num_images is None else num_images
    if labels is None:
        without = ", or -1 for no class" if has_null else ""
        raise ValueError(f"this model is class-conditional: give labels in 0..{num_classes - 1}{without}")
    try:
        given = torch.as_tensor(labels, device=device).reshape(-1)
    except (TypeError, ValueError, RuntimeError):  # words, lists of unequal length
        given = torch.zeros(0)
    if given.dtype == torch.bool or given.is_floating_point() or given.is_complex():
        said = textwrap.shorten(repr(labels), 60)
        raise ValueError(f"labels are whole numbers, a class in 0..{num_classes - 1} for each image, got {said}")
    given = given.long()
    if num_images is not None and len(given) == 1:
        given = given.expand(num_images)
    if num_images not in (None, len(given)):
        raise ValueError(f"there are {len(given)} labels for {num_images} images: give one label, or one per image")
    return in_range(given, num_classes, NO_CLASS if has_null else 0), len(given)
