"""Rows of all processes of a distributed run, joined in the order of the ranks; without one, the rows themselves."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from zoo.nn.ranks import sum_over_ranks, world_size


def rank() -> int:
    """Which of the processes that train together this is."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_rows(rows: Tensor, gradient: bool = True) -> Tensor:
    """Rows of all ranks; every rank must call this, with as many rows.

    Args:
        rows: this rank's.
        gradient: whether gradients flow back to the ranks that the rows are from. Without, this rank's own rows carry
            none either, as in LAVIS.

    Raises:
        ValueError: where the ranks have different numbers of rows.
    """
    if world_size() == 1:
        return rows if gradient else rows.detach()
    sizes = torch.zeros(world_size(), dtype=torch.int64, device=rows.device)
    sizes[rank()] = len(rows)
    found = sum_over_ranks(sizes).tolist()
    if len(set(found)) > 1:
        raise ValueError(f"the ranks have batches of {found} images: drop the last, smaller batch")
    return _Gather.apply(rows) if gradient else _gathered(rows.detach())


def _gathered(rows: Tensor) -> Tensor:
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """Every rank's loss depends on every rank's rows, so the gradients of all ranks are summed."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.size = len(rows)
        return _gathered(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        start = rank() * ctx.size
        return sum_over_ranks(gradient.contiguous())[start : start + ctx.size]
