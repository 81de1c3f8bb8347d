"""Which ids may stand at which position."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zoo.tokens import TokenSpec


def allowed_ids(spec: TokenSpec) -> Bool[Tensor, "n k"] | None:
    """Which ids may stand at each position, or None where all may: every segment has a range of its own."""
    ranges = {(s.offset, s.size) for s in spec.segments}
    if ranges == {(0, spec.vocab_size)}:
        return None
    ids = torch.arange(spec.vocab_size)
    rows = [((ids >= s.offset) & (ids < s.offset + s.size)).expand(s.num_tokens, -1) for s in spec.segments]
    return torch.cat(rows)


def keep_allowed(logits: Float[Tensor, "*b n k"], allowed: Bool[Tensor, "n k"] | None) -> Float[Tensor, "*b n k"]:
    """Logits of all positions, without the ids that may not stand there; ``allowed`` is of :func:`allowed_ids`."""
    return logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)
