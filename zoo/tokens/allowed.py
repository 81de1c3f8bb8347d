"""The ids that each position of a sequence may hold."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zoo.tokens import TokenSpec


def allowed_ids(spec: TokenSpec) -> Bool[Tensor, "n k"] | None:
    """True for the ids that a position may hold, those of its segment; None where every position may hold all ids."""
    ranges = {(s.offset, s.size) for s in spec.segments}
    if ranges == {(0, spec.vocab_size)}:
        return None
    ids = torch.arange(spec.vocab_size)
    rows = [((ids >= s.offset) & (ids < s.offset + s.size)).expand(s.num_tokens, -1) for s in spec.segments]
    return torch.cat(rows)


def keep_allowed(logits: Float[Tensor, "*b n k"], allowed: Bool[Tensor, "n k"] | None) -> Float[Tensor, "*b n k"]:
    """Set the logits of ids that a position may not hold to minus infinity.

    Args:
        logits: of all positions.
        allowed: of :func:`allowed_ids`; None changes nothing.
    """
    return logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)
