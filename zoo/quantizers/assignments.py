"""Counts and sums of the vectors that chose each code since the last optimizer step."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.distributed import sample_rows_over_ranks, sum_over_ranks, world_size
from zoo.quantizers.base import count_codes


class Assignments:
    """Counts and sums of the vectors per code, collected over the backward passes between two optimizer steps.

    These are plain tensors and no buffers: DistributedDataParallel overwrites buffers with those of rank 0.

    Args:
        vocab_size: codes.
        sums: also sum the vectors of each code.
        rows: also keep the vectors of the last backward pass, for :meth:`Taken.sample`.
    """

    def __init__(self, vocab_size: int, sums: bool, rows: bool):
        self.vocab_size, self.with_sums, self.with_rows = vocab_size, sums, rows
        self.counts: Tensor | None = None
        self.sums: Tensor | None = None
        self.rows: Tensor | None = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def watch(self, z: Float[Tensor, "n d"], ids: Int[Tensor, "n"]) -> None:
        """Collect these when the gradient of z arrives, once; at once where only the codebook is trained."""
        if not torch.is_grad_enabled():
            return
        vectors, seen = z.detach(), False

        def collect(_: Tensor) -> None:
            nonlocal seen
            if not seen:
                seen = True
                self.add(vectors, ids)

        if z.requires_grad:
            z.register_hook(collect)
        else:
            self.add(vectors, ids)

    @torch.no_grad()
    def add(self, vectors: Float[Tensor, "n d"], ids: Int[Tensor, "n"]) -> None:
        """Collect these now."""
        counts = count_codes(ids, self.vocab_size)
        self.counts = counts if self.counts is None else self.counts + counts
        if self.with_sums:
            if self.sums is None:
                self.sums = vectors.new_zeros(self.vocab_size, vectors.shape[1])
            self.sums.index_add_(0, ids, vectors)
        if self.with_rows:
            self.rows = vectors

    def take(self, codebook: Float[Tensor, "k d"]) -> "Taken | None":
        """Take what all ranks have collected, and start anew; None where no rank has collected anything.

        Every rank calls this, also one that has had no batch.

        Args:
            codebook: for the sizes and the device where this rank has had none.
        """
        counts, sums, rows, self.counts, self.sums, self.rows = self.counts, self.sums, self.rows, None, None, None
        mine = counts is not None
        if not mine and world_size() == 1:
            return None
        counts = sum_over_ranks(codebook.new_zeros(len(codebook)) if counts is None else counts)
        if self.with_sums:
            sums = sum_over_ranks(torch.zeros_like(codebook) if sums is None else sums)
        if not mine and not counts.any():
            return None
        return Taken(counts, codebook[:0] if sums is None else sums, codebook[:0] if rows is None else rows)


@dataclass(frozen=True)
class Taken:
    """Sums over all ranks, and vectors of this one.

    Args:
        counts: vectors per code.
        sums: of the vectors of each code; empty where they were not asked for.
        rows: vectors of this rank's last backward pass; none where they were not asked for.
    """

    counts: Float[Tensor, "k"]
    sums: Float[Tensor, "s d"]
    rows: Float[Tensor, "n d"]

    def sample(self, count: int, seed: int) -> Float[Tensor, "m d"]:
        """Random vectors of all ranks, the same on every rank."""
        return sample_rows_over_ranks(self.rows, count, seed)
