"""Image-text matching and image-grounded text generation.

Source: BLIP-2 (arXiv:2301.12597), Section 3.1; details from salesforce/LAVIS ``blip2_qformer.py`` (commit 506965b).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

IGNORED = -100


def matching_loss(logits: Float[Tensor, "n 2"], num_pairs: int) -> Float[Tensor, ""]:
    """Cross entropy of (no match, match); the first ``num_pairs`` rows match, the others do not. No smoothing."""
    target = (torch.arange(len(logits), device=logits.device) < num_pairs).long()
    return F.cross_entropy(logits, target)


def generation_loss(
    logits: Float[Tensor, "b t v"],
    ids: Int[Tensor, "b t"],
    mask: Int[Tensor, "b t"],
    label_smoothing: float = 0.1,
) -> Float[Tensor, ""]:
    """Cross entropy of each next token, in nats: mean over all tokens of the batch that are not padding.

    Args:
        logits: at position t, of token t + 1.
        ids: the text; its first token is never a target.
        mask: 1 for tokens, 0 for padding.
        label_smoothing: probability that is spread over the vocabulary.
    """
    labels = ids.masked_fill(mask == 0, IGNORED)[:, 1:]
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=IGNORED, label_smoothing=label_smoothing
    )
