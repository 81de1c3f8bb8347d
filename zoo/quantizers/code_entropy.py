"""Entropies of soft assignments to a codebook: MaskGIT's entropy loss (Chang et al., arXiv:2202.04200)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from zoo.distributed import mean_over_ranks

EPSILON = 1e-5  # inside both logarithms, google-research/maskgit losses.py
CHUNK_NUMBERS = 2**24  # probabilities with gradient at once: 64 MiB each


def affinity_entropy(
    affinity: Float[Tensor, "n k"], temperature: float
) -> tuple[Float[Tensor, ""], Float[Tensor, "k"]]:
    """Sum over the rows of H(p), p = softmax(affinity / temperature), and sum of p."""
    scaled = affinity.float() / temperature
    p = scaled.softmax(1)
    return -(p * (scaled + EPSILON).log_softmax(1)).sum(), p.sum(0)


def mixture_entropy(p: Float[Tensor, "k"]) -> Float[Tensor, ""]:
    """H(p) of mean probabilities."""
    return -(p * (p + EPSILON).log()).sum()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def code_entropy(
    z: Float[Tensor, "n d"], codebook: Float[Tensor, "k d"], temperature: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """E[H(p)] and H(E[p]) of p = softmax(-|z - e|^2 / temperature) with gradients, in nats.

    The mean of p is taken over all ranks. Scores are computed again in the backward pass and never kept.
    """
    entropy, mass = z.new_zeros(()), z.new_zeros(len(codebook))
    for rows in z.split(max(1, CHUNK_NUMBERS // len(codebook))):
        some_entropy, some_mass = checkpoint(_chunk, rows, codebook, temperature, use_reentrant=False)
        entropy, mass = entropy + some_entropy, mass + some_mass
    return entropy / len(z), mixture_entropy(mean_over_ranks(mass / len(z)))


def _chunk(
    rows: Float[Tensor, "m d"], codebook: Float[Tensor, "k d"], temperature: float
) -> tuple[Float[Tensor, ""], Float[Tensor, "k"]]:
    # without |z|^2, which softmax does not see
    return affinity_entropy(2 * rows @ codebook.t() - codebook.square().sum(1), temperature)
