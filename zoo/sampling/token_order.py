"""Orders in which the cells of a token grid can be read.

Source: CompVis/taming-transformers ``taming/modules/transformer/permuter.py`` (MIT). An order is the list of raster
indices in the order of reading.
"""

import math
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

Order = Literal["raster", "subsample", "z_curve", "spiral_in", "spiral_out", "random", "alternate_parsing"]
ORDERS: tuple[str, ...] = get_args(Order)
RANDOM_SEED = 1  # of the one permutation that the published class draws


def token_order(order: str, grid: tuple[int, int]) -> Int[Tensor, " n"]:
    """Raster index of the cell that is read first, second, and so on.

    Args:
        order: ``raster`` (row by row), ``subsample`` (coarse grids before the cells between them), ``z_curve``
            (Morton's), ``spiral_in`` and ``spiral_out``, ``random`` (one fixed permutation) or ``alternate_parsing``
            (every second row backwards).
        grid: rows and columns.

    Raises:
        ValueError: for an unknown order, or a grid that it does not fit.
    """
    rows, columns = grid
    cells = np.arange(rows * columns).reshape(rows, columns)
    match order:
        case "raster":
            found = cells
        case "alternate_parsing":
            found = np.where(np.arange(rows)[:, None] % 2, cells[:, ::-1], cells)
        case "random":
            found = np.random.RandomState(RANDOM_SEED).permutation(rows * columns)
        case "subsample" | "z_curve":
            bits = int(math.log2(rows))
            if rows != columns or 2**bits != rows:
                raise ValueError(f"the order {order} needs a square grid of 2, 4, 8, ... cells, not {rows}x{columns}")
            digits = [(cells // columns >> i & 1, cells % columns >> i & 1) for i in range(bits)]
            coarse_first = digits if order == "subsample" else reversed(digits)
            key = sum((2 * row + column) * 4 ** (bits - 1 - place) for place, (row, column) in enumerate(coarse_first))
            found = np.argsort(np.asarray(key).ravel())
        case "spiral_out" | "spiral_in":
            if rows != columns or rows % 2:
                raise ValueError(f"the order {order} needs a square grid with an even side, not {rows}x{columns}")
            outwards = _spiral(rows)
            found = np.array(outwards if order == "spiral_out" else outwards[::-1])
        case _:
            raise ValueError(f"order is one of {', '.join(ORDERS)}, not {order!r}")
    return torch.from_numpy(np.ascontiguousarray(found).ravel().astype(np.int64))


def _spiral(side: int) -> list[int]:
    """From the middle up, right, down, left, with runs of 1, 1, 2, 2, 3, 3, ... steps."""
    row, column = side // 2, side // 2 - 1
    found, turn = [row * side + column], 0
    while True:
        for _ in range(turn // 2 + 1):
            if len(found) == side * side:
                return found
            down, right = ((-1, 0), (0, 1), (1, 0), (0, -1))[turn % 4]
            row, column = row + down, column + right
            found.append(row * side + column)
        turn += 1
