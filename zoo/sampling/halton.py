"""Halton order: positions of a grid from a low-discrepancy sequence, so that any first few are spread evenly.

Source: valeoai/Halton-MaskGIT (arXiv:2503.17076): base 2 for rows, base 3 for columns, each cell at its first visit.
"""

import torch
from jaxtyping import Int
from torch import Tensor


def halton(index: int, base: int) -> float:
    """The radical inverse: digits of ``index`` mirrored at the point."""
    value, fraction = 0.0, 1.0
    while index:
        fraction /= base
        index, digit = divmod(index, base)
        value += digit * fraction
    return value


def halton_order(shape: tuple[int, ...]) -> Int[Tensor, " n"]:
    """Raster indices of all cells in the order in which the Halton sequence first visits them.

    Args:
        shape: ``(gh, gw)``, or ``(n,)`` for a sequence, where base 2 alone is used.
    """
    rows, columns = (shape[0], 1) if len(shape) == 1 else shape
    order: dict[int, None] = {}
    index = 1
    while len(order) < rows * columns:
        order[int(halton(index, 2) * rows) * columns + int(halton(index, 3) * columns)] = None
        index += 1
    return torch.tensor(list(order))


def spread_order(shapes: list[tuple[int, ...]]) -> Int[Tensor, " n"]:
    """One order for the segments of a flat sequence: each in its Halton order, all at the same relative pace."""
    places, start = [], 0
    for shape in shapes:
        order = halton_order(shape)
        places += [((i + 0.5) / len(order), start + int(p)) for i, p in enumerate(order)]
        start += len(order)
    return torch.tensor([p for _, p in sorted(places)])
