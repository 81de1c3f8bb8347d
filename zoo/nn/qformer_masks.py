"""Who sees whom in a Q-Former's self-attention: one function per objective of BLIP-2's first stage.

A sequence is [queries ; text]. Masks are floats that are added to the attention scores, 0 where a row may look at a
column and -10000 where not, as in LAVIS: boolean masks of four dimensions are added as 0 and 1 by some attention
code, without a word. -10000 instead of minus infinity keeps rows without any visible column free of NaN.

Sources: BLIP-2 (arXiv:2301.12597), Figure 2; ``lavis/models/blip2_models/Qformer.py`` for the constant; SEED
(arXiv:2307.08041), Section 3.2.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

HIDDEN = -10000.0


def itc_mask(text_mask: Int[Tensor, "b t"], num_queries: int) -> Float[Tensor, "b 1 s s"]:
    """Uni-modal (contrastive): queries see queries, text sees the text that is not padding, neither sees the other.

    Rows and columns ``num_queries:`` are the mask of a pass over text alone; queries alone need none.

    Args:
        text_mask: 1 for tokens, 0 for padding.
        num_queries: queries in front of the text.
    """
    visible = _blocks(text_mask, num_queries)
    visible[:, :num_queries, num_queries:] = 0
    visible[:, num_queries:, :num_queries] = 0
    return to_additive_mask(visible)


def itm_mask(text_mask: Int[Tensor, "b t"], num_queries: int) -> Float[Tensor, "b 1 s s"]:
    """Bi-directional (matching): everything sees all queries and the text that is not padding.

    Args:
        text_mask: 1 for tokens, 0 for padding.
        num_queries: queries in front of the text.
    """
    return to_additive_mask(_blocks(text_mask, num_queries))


def itg_mask(text_mask: Int[Tensor, "b t"], num_queries: int) -> Float[Tensor, "b 1 s s"]:
    """Multimodal causal (generation): queries see queries; text sees all queries and the text up to itself.

    Queries see no text, so their keys and values can be computed without it: rows ``num_queries:`` are the mask of a
    pass over text alone that is given the keys and values of a pass over queries alone.

    Args:
        text_mask: 1 for tokens, 0 for padding.
        num_queries: queries in front of the text.
    """
    visible = _blocks(text_mask, num_queries)
    visible[:, :num_queries, num_queries:] = 0
    visible[:, num_queries:, num_queries:] = visible[:, num_queries:, num_queries:].tril()
    return to_additive_mask(visible)


def causal_mask(num_queries: int, text_mask: Int[Tensor, "b t"] | None = None) -> Float[Tensor, "#b 1 s s"]:
    """Causal queries (SEED): query k sees queries up to k, and all text; text sees everything that is no padding.

    Args:
        num_queries: queries in front of the text.
        text_mask: 1 for tokens, 0 for padding; None for a pass over queries alone.
    """
    if text_mask is None:
        return to_additive_mask(torch.ones(1, num_queries, num_queries, dtype=torch.int64).tril())
    visible = _blocks(text_mask, num_queries)
    visible[:, :num_queries, :num_queries] = visible[:, :num_queries, :num_queries].tril()
    return to_additive_mask(visible)


def to_additive_mask(visible: Int[Tensor, "b r c"]) -> Float[Tensor, "b 1 r c"]:
    """1 and 0 as what is added to attention scores: 0 and -10000."""
    return ((1 - visible) * HIDDEN).unsqueeze(1)


def _blocks(text_mask: Int[Tensor, "b t"], num_queries: int) -> Int[Tensor, "b s s"]:
    """All columns visible but padding."""
    batch, length = text_mask.shape
    columns = torch.cat([text_mask.new_ones(batch, num_queries), text_mask], dim=1)
    return columns[:, None, :].expand(batch, num_queries + length, -1).clone()
