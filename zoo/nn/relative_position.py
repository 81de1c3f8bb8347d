"""Relative position bias of BEiT, and its resizing to other grids (arXiv:2106.08254, Appendix A).

A table holds one row per offset between two patches and three more: class token to any, any to class token, class
token to itself. Names are those of microsoft/unilm checkpoints.
"""

from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

ResizeMethod = Literal["unilm-cubic", "timm-linear", "bilinear"]
EXTRA = 3  # rows for the class token


def table_rows(grid: tuple[int, int]) -> int:
    """Rows of a table: the offsets between patches, and three for the class token."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + EXTRA


def relative_position_index(grid: tuple[int, int]) -> Int[Tensor, "n n"]:
    """The table row of every (query, key) pair; position 0 is the class token, then patches in raster order."""
    rows, columns = grid
    y = torch.arange(rows).repeat_interleave(columns)
    x = torch.arange(columns).repeat(rows)
    offset_y = y[:, None] - y[None, :] + rows - 1
    offset_x = x[:, None] - x[None, :] + columns - 1
    index = F.pad(offset_y * (2 * columns - 1) + offset_x, (1, 0, 1, 0))
    index[0, :] = table_rows(grid) - 3  # class token looks at any
    index[:, 0] = table_rows(grid) - 2  # any looks at the class token
    index[0, 0] = table_rows(grid) - 1
    return index


def position_bias(table: Float[Tensor, "r heads"], index: Int[Tensor, "n n"]) -> Float[Tensor, "1 heads n n"]:
    """Look up the bias that is added to the attention logits of every image."""
    return rearrange(F.embedding(index, table), "query key heads -> 1 heads query key").contiguous()


class RelativePositionBias(nn.Module):
    """One table shared by all blocks (pre-training), starting at zero.

    Args:
        grid: rows and columns of patches.
        heads: of the attention.
    """

    relative_position_index: Int[Tensor, "n n"]

    def __init__(self, grid: tuple[int, int], heads: int):
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros(table_rows(grid), heads))
        # unilm stores the index in its checkpoints; it follows from the grid, so it is not stored here
        self.register_buffer("relative_position_index", relative_position_index(grid), persistent=False)

    def forward(self) -> Float[Tensor, "1 heads n n"]:
        return position_bias(self.relative_position_bias_table, self.relative_position_index)


def resize_table(
    table: Float[Tensor, "r heads"],
    src_grid: tuple[int, int],
    dst_grid: tuple[int, int],
    method: str = "unilm-cubic",
) -> Float[Tensor, "r2 heads"]:
    """Carry a bias table to another grid, each axis by itself; the rows of the class token are kept.

    Args:
        table: offsets in raster order, then three rows for the class token.
        src_grid: grid of the table.
        dst_grid: grid that is wanted.
        method: ``unilm-cubic`` puts the offsets at geometrically growing distances, so that near offsets keep their
            resolution, and lays an interpolating cubic spline through them (the published fine-tuning code);
            ``timm-linear`` interpolates linearly between the same positions (timm's default); ``bilinear`` spaces them
            uniformly (transformers).

    Raises:
        ValueError: when the table does not belong to the grid, or the method is unknown or needs a larger grid.
    """
    if len(table) != table_rows(src_grid):
        raise ValueError(
            f"a {src_grid[0]}x{src_grid[1]} grid has a position table of {table_rows(src_grid)} rows, got {len(table)}"
        )
    if tuple(src_grid) == tuple(dst_grid):
        return table
    if table.is_meta:
        return table.new_empty(table_rows(dst_grid), table.shape[1])
    height, width = (_axis_operator(2 * s - 1, 2 * d - 1, method) for s, d in zip(src_grid, dst_grid, strict=True))
    offsets = rearrange(table[:-EXTRA].double(), "(dy dx) heads -> heads dy dx", dy=2 * src_grid[0] - 1)
    resized = height.to(table.device) @ offsets @ width.to(table.device).T
    return torch.cat([rearrange(resized, "heads dy dx -> (dy dx) heads").to(table.dtype), table[-EXTRA:]])


def geometric_positions(src: int, dst: int) -> np.ndarray:
    """Places of a small table's ``src`` offsets on the axis of a large one: 0, +-1, +-(1 + q), +-(1 + q + q^2), ...

    The ratio q is found by bisection in [1.01, 1.5] such that the outermost offsets meet ``+-(dst // 2)``
    (microsoft/unilm ``beit/run_class_finetuning.py``; 1.090307 from 14 to 24 patches).
    """
    reach, low, high = dst // 2, 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio ** (src // 2)) / (1 - ratio) > reach:
            high = ratio
        else:
            low = ratio
    positive = np.cumsum(ratio ** np.arange(src // 2, dtype=np.float64))
    return np.concatenate([-positive[::-1], [0.0], positive])


def cubic_spline_operator(positions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The matrix that takes values at ``positions`` to the interpolating cubic spline at ``targets``.

    Not-a-knot ends, as FITPACK's spline without smoothing; targets outside are moved to the nearest end.
    """
    if len(positions) < 4:
        raise ValueError(f"a cubic spline needs at least 4 offsets per axis, got {len(positions)}: use 'timm-linear'")
    knots = np.concatenate([[positions[0]] * 4, positions[2:-2], [positions[-1]] * 4])
    at_targets = _cubic_basis(knots, np.clip(targets, positions[0], positions[-1]))
    return np.linalg.solve(_cubic_basis(knots, positions).T, at_targets.T).T


def linear_operator(positions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The matrix that takes values at ``positions`` to straight lines between them at ``targets``."""
    return np.stack([np.interp(targets, positions, unit) for unit in np.eye(len(positions))], axis=1)


def _cubic_basis(knots: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Values of the cubic B-splines on ``knots``, one row per x, by the recursion of Cox and de Boor."""
    spans = len(knots) - 1
    last = np.flatnonzero(np.diff(knots) > 0)[-1]
    inside = np.clip(np.searchsorted(knots, x, side="right") - 1, None, last)  # the last span is closed on the right
    basis = np.eye(spans)[inside]
    for degree in range(1, 4):
        left, right = knots[: spans - degree], knots[degree + 1 :]
        rise, fall = knots[degree:-1] - left, right - knots[1 : spans - degree + 1]
        up = np.divide(x[:, None] - left, rise, out=np.zeros((len(x), len(rise))), where=rise > 0)
        down = np.divide(right - x[:, None], fall, out=np.zeros((len(x), len(fall))), where=fall > 0)
        basis = up * basis[:, :-1] + down * basis[:, 1:]
    return basis


def _axis_operator(src: int, dst: int, method: str) -> Float[Tensor, "dst src"]:
    if method not in get_args(ResizeMethod):
        raise ValueError(f"position tables are resized by unilm-cubic, timm-linear or bilinear, not {method!r}")
    if src == dst:
        return torch.eye(src, dtype=torch.float64, device="cpu")
    if method == "bilinear":
        unit = torch.eye(src, dtype=torch.float64, device="cpu")
        return F.interpolate(unit[None], size=dst, mode="linear")[0].T
    operator = cubic_spline_operator if method == "unilm-cubic" else linear_operator
    targets = np.arange(-(dst // 2), dst // 2 + 1, dtype=np.float64)
    return torch.from_numpy(operator(geometric_positions(src, dst), targets))
