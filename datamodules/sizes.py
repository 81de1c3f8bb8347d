"""Sizes of images: one side of a square, or height and width."""

from zoo.tokens import sides_of

Size = int | tuple[int, int]  # pixels


def square_side(size: Size, who: str) -> int:
    """The side of a square.

    Args:
        size: one number, or two that are equal.
        who: what makes squares alone, for the message.

    Raises:
        ValueError: for other images.
    """
    height, width = sides_of(size)
    if height != width:
        raise ValueError(f"{who} makes square images, and {height}x{width} are asked for: give one number")
    return height


def crop_ratios(ratio: tuple[float, float], size: Size) -> tuple[float, float]:
    """Range of width to height of a crop that is then resized, around the proportions of the result.

    Args:
        ratio: range for a square.
        size: of the result.
    """
    height, width = sides_of(size)
    return ratio if height == width else (ratio[0] * width / height, ratio[1] * width / height)
