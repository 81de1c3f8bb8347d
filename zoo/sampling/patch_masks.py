"""Masks over patches for BEiT: blockwise ones (arXiv:2106.08254, Algorithm 1) and uniform ones (Table 4)."""

import math
import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

Random = random.Random | ModuleType  # an object of its own, or Python's global generator
ATTEMPTS = 10  # per block, as microsoft/unilm beit/masking_generator.py


class BlockwiseMask:
    """Draws masks that hide rectangular blocks until enough patches are hidden.

    Draw-for-draw equal to the published code, which is authoritative: Algorithm 1 as printed may hide more than the
    target and does not look at overlaps. Here a mask never hides more than ``num_masked`` patches and often fewer,
    because it stops when ten blocks in a row do not fit (14x14, 75 patches: mean 74.5, exactly 75 in two of three).

    Args:
        grid: rows and columns of patches.
        num_masked: how many patches to hide, 75 of 14x14 in the paper.
        min_block: smallest area of a block, in patches.
        max_block: largest area; None allows ``num_masked``.
        min_aspect: blocks have a height to width ratio between this and its inverse, uniform in the logarithm.
        rng: source of randomness with ``uniform`` and ``randint``; None takes Python's global generator.

    Raises:
        ValueError: when more patches are to be hidden than there are, or for blocks that cannot be.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        num_masked: int,
        min_block: int = 16,
        max_block: int | None = None,
        min_aspect: float = 0.3,
        rng: Random | None = None,
    ):
        check_count(grid, num_masked)
        if min_block < 1 or not 0 < min_aspect <= 1:
            raise ValueError(f"min_block must be >= 1 and min_aspect in (0, 1], got {min_block} and {min_aspect}")
        if max_block is not None and max_block < min_block:
            raise ValueError(f"max_block must not be below min_block, got {max_block} and {min_block}")
        self.grid = tuple(grid)
        self.num_masked = num_masked
        self.min_block = min_block
        self.max_block = num_masked if max_block is None else max_block
        self.log_aspect = (math.log(min_aspect), math.log(1 / min_aspect))
        self.rng = rng

    def __call__(self, rng: Random | None = None) -> Bool[Tensor, "gh gw"]:
        """Draw one mask on the CPU, True where the patch is hidden.

        Args:
            rng: used instead of the generator given to the constructor.
        """
        rng = rng or self.rng or random
        rows, columns = self.grid
        hidden = [[False] * columns for _ in range(rows)]
        count = 0
        while count < self.num_masked:
            added = self._paint_block(hidden, min(self.num_masked - count, self.max_block), rng)
            if not added:
                break
            count += added
        return torch.tensor(hidden, device="cpu")

    # rows are Any: to look into a list, type checks at run time draw a place of it from Python's global generator
    def _paint_block(self, hidden: list[Any], budget: int, rng: Random) -> int:
        """Hide one block that adds between 1 and ``budget`` patches; returns how many it added, 0 after ten misfits."""
        rows, columns = self.grid
        for _ in range(ATTEMPTS):
            area = rng.uniform(self.min_block, budget)  # reversed bounds near the end are meant
            aspect = math.exp(rng.uniform(*self.log_aspect))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= rows or width >= columns:  # a block never spans the whole side
                continue
            top, left = rng.randint(0, rows - height), rng.randint(0, columns - width)
            added = height * width - sum(sum(row[left : left + width]) for row in hidden[top : top + height])
            if 0 < added <= budget:
                for row in hidden[top : top + height]:
                    row[left : left + width] = [True] * width
                return added
        return 0


def random_mask(grid: tuple[int, int], num_masked: int, rng: Random | None = None) -> Bool[Tensor, "gh gw"]:
    """Hide exactly ``num_masked`` patches, all equally likely: BEiT without blockwise masking (Table 4).

    Raises:
        ValueError: when more patches are to be hidden than there are.
    """
    check_count(grid, num_masked)
    rows, columns = grid
    mask = torch.zeros(rows * columns, dtype=torch.bool, device="cpu")
    mask[(rng or random).sample(range(rows * columns), num_masked)] = True
    return mask.unflatten(0, (rows, columns))


def nonempty(draw: Callable[[Random], Bool[Tensor, "gh gw"]], rng: Random) -> Bool[Tensor, "gh gw"]:
    """The first drawn mask that hides something.

    Raises:
        ValueError: after a hundred that hide nothing.
    """
    for _ in range(100):
        if (mask := draw(rng)).any():
            return mask
    raise ValueError(
        "no block of min_block patches fits into the grid without spanning a side: lower min_block, or set masking to "
        "'random'"
    )


def flat_mask(mask: Bool[Tensor, "b gh gw"], shape: tuple[int, int, int]) -> Bool[Tensor, "b n"]:
    """Masks in raster order.

    Raises:
        ValueError: for another type or shape than so many images on this grid.
    """
    if mask.shape != shape or mask.dtype != torch.bool:
        raise ValueError(f"masks must be bool of shape {shape}, got {mask.dtype} {tuple(mask.shape)}")
    return mask.flatten(1)


def check_count(grid: tuple[int, int], num_masked: int) -> None:
    """Refuse to hide nothing, or more patches than there are."""
    rows, columns = grid
    if not 0 < num_masked <= rows * columns:
        raise ValueError(f"num_masked must lie in 1..{rows * columns} on a {rows}x{columns} grid, got {num_masked}")
