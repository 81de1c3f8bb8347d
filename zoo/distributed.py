"""Sums and rows over the processes of a distributed run, and the random number generators of each.

Without a distributed run, sums and rows are those of the one process.
"""

import atexit
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together; 1 without a distributed run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum a tensor over all ranks, without gradients; every rank must call this."""
    if world_size() > 1:
        # memory is summed as it lies, so all ranks need the same layout
        values = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values)
    return values


def mean_over_ranks(values: Tensor) -> Tensor:
    """Average a tensor over all ranks, with gradients; every rank must call this, and run backward."""
    return _AllReduceSum.apply(values) / world_size() if world_size() > 1 else values


@torch.no_grad()
def broadcast_from_first_rank(values: Tensor) -> Tensor:
    """Give every rank the tensor of rank 0; every rank must call this, with the same shape."""
    if world_size() > 1:
        values = values.clone(memory_format=torch.contiguous_format)
        dist.broadcast(values, src=0)
    return values


@torch.no_grad()
def sample_rows_over_ranks(rows: Tensor, count: int, seed: int) -> Tensor:
    """Draw random rows out of those of all ranks, joined in their order; the same on every rank.

    Rows repeat only where there are fewer than are drawn.


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


class _AllReduceSum(torch.autograd.Function):
    """All-reduce whose gradient is all-reduced too, because every rank's loss depends on every rank's input."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return sum_over_ranks(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient.contiguous())


@cache
def leave_group_at_exit() -> None:
    """Have the process group destroyed when Python ends, however often this is called.

    Lightning does so for NCCL alone. The threads of a gloo group that Python's end finds running abort the process, so
    that a run which has saved everything ends with another exit code than 0, once in some ten times.
    """
    atexit.register(leave_group)


def leave_group() -> None:
    """Destroy the process group, where there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process among those that train together, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_rows(rows: Tensor, gradient: bool = True) -> Tensor:
    """Join the rows of all ranks in their order; every rank must call this, with as many rows.

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
    return _AllGatherRows.apply(rows) if gradient else _all_gather(rows.detach())


def gather_objects(value: Any) -> list[Any]:
    """Plain data of every rank, in the order of the ranks; every rank must call this.

    Args:
        value: this rank's; it travels pickled, between the processes of this run alone.
    """
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def _all_gather(rows: Tensor) -> Tensor:
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


class _AllGatherRows(torch.autograd.Function):
    """Gather whose backward sums the gradients of all ranks, because every rank's loss depends on every rank's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.size = len(rows)
        return _all_gather(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        start = rank() * ctx.size
        return sum_over_ranks(gradient.contiguous())[start : start + ctx.size]


def seed_generators(*entropy: int) -> None:
    """Seed torch, NumPy and ``random`` from several numbers at once."""
    state = np.random.SeedSequence([n % 2**63 for n in entropy]).generate_state(3)
    torch.manual_seed(int(state[0]))
    np.random.seed(int(state[1]))  # noqa: NPY002 - timm's Mixup draws from the global generator
    random.seed(int(state[2]))


@contextmanager
def keep_rng_states() -> Iterator[None]:
    """Leave the random number generators of the CPU as they were found, whatever is drawn or seeded inside."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


def get_rng_states() -> dict[str, Any]:
    """Read the states of all random number generators, as tensors and plain data; of GPUs only where one is in use."""
    _, key, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    version, words, next_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": {
            "key": torch.tensor(np.asarray(key, dtype=np.int64)),
            "position": int(position),
            "gauss": [int(has_gauss), float(gauss)],
        },
        "python": {"version": version, "words": torch.tensor(words), "gauss": next_gauss},
    }


def set_rng_states(states: dict[str, Any]) -> None:
    """Set all generators to states of :func:`get_rng_states`; those of GPUs only where there are as many."""
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.is_available() and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    found, (has_gauss, gauss) = states["numpy"], states["numpy"]["gauss"]
    key = found["key"].cpu().numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, found["position"], has_gauss, gauss))  # noqa: NPY002
    found = states["python"]
    random.setstate((found["version"], tuple(found["words"].tolist()), found["gauss"]))


def exit_code_of_rank(trainer: Any, code: int) -> int:
    """Choose the exit code of a process that ends together with the others: 0 for those that Lightning has launched.

    When one of them ends with another code, Lightning kills all the others, the first one included.
    """
    environment = trainer._accelerator_connector.cluster_environment
    launched = environment is not None and not environment.creates_processes_externally
    return 0 if launched and trainer.local_rank else code
