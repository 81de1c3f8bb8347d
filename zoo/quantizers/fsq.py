"""Finite scalar quantization: rounding a few bounded channels."""

from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.quantizers.base import Quantized, Quantizer, count_codes, perplexity, straight_through


class FSQ(Quantizer):
    """Each channel is bounded by tanh and rounded to one of a few levels; there is no codebook and no loss.

    Mentzer et al., arXiv:2309.15505, Section 3 and appendix A.1. Ids are those of the official code: the first channel
    is the least significant digit.

    Args:
        levels: per channel, e.g. (8, 5, 5, 5) for 1,000 codes; the input has as many channels.
    """

    steps: Tensor
    centre: Tensor
    basis: Tensor

    def __init__(self, levels: tuple[int, ...]):
        if not levels or min(levels) < 2:
            raise ValueError(f"levels must be at least 2 in each channel, got {tuple(levels)}")
        super().__init__(prod(levels), len(levels))
        self.levels = tuple(levels)
        steps = torch.tensor(levels)
        self.register_buffer("steps", steps, persistent=False)
        self.register_buffer("centre", steps // 2, persistent=False)
        self.register_buffer("basis", torch.tensor([prod(levels[:i]) for i in range(len(levels))]), persistent=False)

    def forward(self, z: Float[Tensor, "b *n d"]) -> Quantized:
        """Quantize; vectors lie in [-1, 1]."""
        with torch.autocast(z.device.type, enabled=False):
            bounded = self.bound(z.float())
            whole = bounded.round()
            ids = self._ids(whole)
            vectors = straight_through(bounded, whole) / self.centre
        terms = {"perplexity": perplexity(count_codes(ids, self.vocab_size))}
        return Quantized(vectors, ids, vectors.new_zeros(()), terms)

    def encode(self, z: Float[Tensor, "b *n d"]) -> Int[Tensor, "b *n"]:
        return self._ids(self.bound(z.float()).round())

    def embed(self, ids: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        return (ids[..., None] // self.basis % self.steps - self.centre) / self.centre

    def bound(self, z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Into an interval that holds ``levels`` whole numbers; an even count is shifted by one half."""
        half = (self.steps - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.steps % 2 == 0, 0.5, 0.0)
        return (z + (offset / half).atanh()).tanh() * half - offset

    def _ids(self, whole: Float[Tensor, "*b d"]) -> Int[Tensor, "*b"]:
        # whole numbers: half precision holds none above 2,048
        return ((whole.long() + self.centre) * self.basis).sum(-1)
