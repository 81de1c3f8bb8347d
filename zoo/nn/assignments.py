"""Which vectors chose which code since the last optimizer step."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.nn.quantized import count_codes
from zoo.nn.ranks import joint_rows, sum_over_ranks


class Assignments:
    """Counts and sums of the vectors per code, collected over the backward passes between two optimizer steps.

    These are plain tensors and no buffers: DistributedDataParallel overwrites buffers with those of rank 0.

    Args:
        vocab_size: codes.
        sums: also sum the vectors of each code.
        rows: also keep the vectors of the last backward pass, for :meth:`sample`.
    """

    def __init__(self, vocab_size: int, sums: bool, rows: bool):
        self.vocab_size, self.with_sums, self.with_rows = vocab_size, sums, rows
        self.counts: Tensor | None = None
        self.sums: Tensor | None = None
        self.rows: Tensor | None = None

    @torch.compiler.disable
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

    def take(self) -> tuple[Float[Tensor, "k"], Float[Tensor, "k d"] | None] | None:
        """Counts and sums over all ranks, and start anew; None where nothing was collected."""
        counts, sums, self.counts, self.sums = self.counts, self.sums, None, None
        if counts is None:
            return None
        return sum_over_ranks(counts), None if sums is None else sum_over_ranks(sums)

    def sample(self, count: int, seed: int) -> Float[Tensor, "m d"]:
        """Random vectors of the last backward pass of all ranks, the same on every rank."""
        assert self.rows is not None
        return joint_rows(self.rows, count, seed)
