"""Drawing the next token: temperature, the k most likely, the nucleus."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Refuse settings of :func:`draw_next` that draw nothing.

    Raises:
        ValueError: naming all three.
    """
    if (
        not 0 <= temperature < float("inf")
        or (top_k is not None and top_k < 1)
        or (top_p is not None and not 0 < top_p <= 1)
    ):
        raise ValueError(
            f"temperature must not be negative, and finite, top_k at least 1 and top_p in (0, 1], got "
            f"{temperature}, {top_k}, {top_p}"
        )


def keep_top_k(logits: Float[Tensor, "b v"], k: int) -> Float[Tensor, "b v"]:
    """``-inf`` below the k-th largest logit of each row."""
    least = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def keep_top_p(logits: Float[Tensor, "b v"], p: float) -> Float[Tensor, "b v"]:
    """``-inf`` outside of the nucleus: the fewest most likely ids whose probabilities reach p (arXiv:1904.09751)."""
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    outside = probabilities.cumsum(-1) - probabilities >= p  # what came before is enough
    return logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)


def draw_next(
    logits: Float[Tensor, "b v"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " b"]:
    """One id per row; the k most likely are chosen first, the nucleus among them.

    Args:
        logits: of all ids.
        temperature: divides the logits; 0 takes the most likely id.
        top_k: how many ids are kept; None keeps all.
        top_p: probability of the nucleus; None keeps all.
        generator: of the noise.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    noise = torch.empty_like(logits).exponential_(generator=generator).clamp_min(torch.finfo(logits.dtype).tiny)
    return (logits.softmax(-1) / noise).argmax(-1)  # the Gumbel trick without logarithms
