"""Sums over the processes of a distributed run; without one they change nothing."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, without gradients; every rank must call this."""
    if world_size() > 1:
        # memory is summed as it lies, so all ranks need the same layout
        values = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values)
    return values


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of a tensor over all ranks, with gradients; every rank must call this, and run backward."""
    return _Sum.apply(values) / world_size() if world_size() > 1 else values


@torch.no_grad()
def same_on_every_rank(values: Tensor) -> Tensor:
    """The tensor of rank 0."""
    if world_size() > 1:
        values = values.clone(memory_format=torch.contiguous_format)
        dist.broadcast(values, src=0)
    return values


@torch.no_grad()
def joint_rows(rows: Tensor, count: int, seed: int) -> Tensor:
    """Random rows, with repetition, of all ranks' rows joined in the order of the ranks; the same on every rank.

    Only the chosen rows travel. The choice depends on nothing but the seed and the joint number of rows.
    """
    ranks, rank = world_size(), dist.get_rank() if world_size() > 1 else 0
    sizes = torch.zeros(ranks, dtype=torch.int64, device=rows.device)
    sizes[rank] = len(rows)
    ends = sum_over_ranks(sizes).cumsum(0).tolist()
    start, total = ends[rank] - len(rows), ends[-1]
    generator = torch.Generator().manual_seed(seed)
    if count <= total:  # distinct rows where there are enough
        chosen = torch.randperm(total, generator=generator)[:count]
    else:
        chosen = torch.randint(total, (count,), generator=generator)
    chosen = chosen.to(rows.device) - start
    mine = (chosen >= 0) & (chosen < len(rows))
    found = rows.new_zeros(len(chosen), rows.shape[1])
    if len(rows):  # a rank may have had no batch
        found = torch.where(mine[:, None], rows[chosen.clamp(0, len(rows) - 1)], 0.0)
    return sum_over_ranks(found)


class _Sum(torch.autograd.Function):
    """All-reduce whose gradient is all-reduced too, because every rank's loss depends on every rank's input."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return sum_over_ranks(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return sum_over_ranks(gradient.contiguous())
