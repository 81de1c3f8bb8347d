"""The base class of quantizers, and their result."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Quantized:
    """The result of quantizing vectors.

    Args:
        vectors: what the decoder gets; in training the gradient passes straight through to the input.
        ids: of the codes.
        loss: to be added to the objective.
        terms: values to look at, without gradients.
        likely: ids without noise, where ``ids`` are sampled: what :meth:`Quantizer.encode` gives.
    """

    vectors: Float[Tensor, "b *n e"]
    ids: Int[Tensor, "b *n"]
    loss: Float[Tensor, ""]
    terms: dict[str, Tensor] = field(default_factory=dict)
    likely: Int[Tensor, "b *n"] | None = None


class Quantizer(nn.Module):
    """Base of all quantizers; channels are last.

    ``forward`` gives a :class:`Quantized`. Quantizers that change their codebook by themselves (running means,
    restarts) collect what they need in the backward pass and change it in :meth:`update`, which has to be called once
    after every optimizer step: see :func:`update_codebooks`. In this way a forward pass that is repeated (activation
    checkpointing, a second pass for a discriminator) or has no backward pass counts nothing, accumulated batches count
    together, and processes meet once per step.

    Args:
        vocab_size: codes.
        dim: width of ``vectors``.
    """

    #: vectors ``*n dim`` of ids ``*n``; a method, or a layer where the published name of the table is ``embed.weight``
    embed: Callable[[Tensor], Tensor]

    def __init__(self, vocab_size: int, dim: int):
        super().__init__()
        if vocab_size < 1 or dim < 1:
            raise ValueError(f"a codebook needs at least one code of width 1, got {vocab_size} of width {dim}")
        self.vocab_size, self.dim = vocab_size, dim

    def encode(self, z: Float[Tensor, "b *n d"]) -> Int[Tensor, "b *n"]:
        """Ids without noise."""
        raise NotImplementedError

    def update(self) -> None:
        """Change the codebook by what the backward passes since the last call have seen; every rank calls this."""


def check_restarts(threshold: float) -> None:
    """Refuse what would restart nothing.

    Raises:
        ValueError: for a negative threshold.
    """
    if threshold < 0:
        raise ValueError(f"restart_threshold counts vectors per step and must not be negative, got {threshold}")


def update_codebooks(model: nn.Module) -> None:
    """Update all quantizers of a model; a LightningModule calls this at the end of its ``optimizer_step``."""
    for module in model.modules():
        if isinstance(module, Quantizer):
            module.update()


def straight_through(z: Float[Tensor, "..."], codes: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The codes, with the gradient of z; equal to the codes up to rounding, and exactly where z needs no gradient."""
    return z + (codes - z).detach() if z.requires_grad and torch.is_grad_enabled() else codes


@torch.no_grad()
def perplexity(counts: Float[Tensor, "k"]) -> Float[Tensor, ""]:
    """Exp of the entropy of the codes' frequencies: between 1 and the number of codes."""
    p = counts / counts.sum().clamp(min=1)
    return torch.special.entr(p).sum().exp()


@torch.no_grad()
def count_codes(ids: Int[Tensor, "..."], vocab_size: int) -> Float[Tensor, "k"]:
    """Number of occurrences of each code."""
    ids = ids.flatten()
    # not bincount, for which a GPU waits
    return torch.zeros(vocab_size, device=ids.device).index_add_(0, ids, torch.ones_like(ids, dtype=torch.float32))
