"""Stochastic depth (Huang et al. 2016, arXiv:1603.09382) that computes a residual branch only where it is kept."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def draw_depth(
    batch: int, rate: float, device: torch.device
) -> tuple[Int[Tensor, " k"] | None, float | Float[Tensor, " b"]]:
    """Draw which samples keep a residual branch.

    Where no sample keeps it, the first one is computed with weight 0: every parameter still gets a gradient, which
    DDP waits for. The draw is made on the CPU, so that no device is waited for.

    Args:
        batch: number of samples.
        rate: probability to skip the branch, per sample.
        device: where the answer is needed.

    Returns:
        The samples whose branch is to be computed, None for all, and the weight of the branch: ``1 / (1 - rate)`` for
        these samples. In compiled code, whose shapes must not depend on a draw, all samples and one weight for each.
    """
    if not rate:
        return None, 1.0
    if torch.compiler.is_compiling():
        return None, torch.empty(batch, device=device).bernoulli_(1 - rate) / (1 - rate)
    kept = torch.empty(batch).bernoulli_(1 - rate).nonzero()[:, 0]
    if len(kept) == batch:
        return None, 1 / (1 - rate)
    if not len(kept):
        return torch.zeros(1, dtype=torch.int64, device=device), 0.0
    return kept.to(device), 1 / (1 - rate)


def add_branch(
    x: Float[Tensor, "r *n d"],
    branch: Float[Tensor, "k *n d"],
    gamma: Float[Tensor, " d"] | None,
    samples: Int[Tensor, " k"] | None = None,
    weight: float | Float[Tensor, " r"] = 1.0,
) -> Float[Tensor, "r *n d"]:
    """``x + weight * gamma * branch``, where ``branch`` has all samples or only ``samples``."""
    if samples is not None:
        assert not isinstance(weight, Tensor)
        return x.index_add(0, samples, (branch if gamma is None else branch * gamma).to(x.dtype), alpha=weight)
    if isinstance(weight, Tensor):
        scale = weight.reshape(-1, *[1] * (x.ndim - 1))
        return torch.addcmul(x, branch, scale if gamma is None else scale * gamma)
    if gamma is None:
        return torch.add(x, branch, alpha=weight)
    return torch.addcmul(x, branch, gamma, value=weight)
