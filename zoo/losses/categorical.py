"""Terms on categorical posteriors over a codebook."""

import math

from jaxtyping import Float
from torch import Tensor


def kl_to_uniform(logits: Float[Tensor, "b k *n"]) -> Float[Tensor, "b *n"]:
    """KL(q || uniform) of each position in nats: ln K - H(q), between 0 and ln K."""
    log_q = logits.float().log_softmax(1)
    return math.log(logits.shape[1]) + (log_q.exp() * log_q).sum(1)


def marginal_entropy_gap(logits: Float[Tensor, "b k *n"]) -> Float[Tensor, ""]:
    """Gap ln K - H(mean of q over the batch and all positions), in nats: 0 when all codes are used equally often."""
    mean_q = logits.float().softmax(1).transpose(0, 1).flatten(1).mean(1)
    # clamped: a code of probability 0 adds nothing, but the derivative of p ln p has no value there
    return math.log(logits.shape[1]) + (mean_q * mean_q.clamp_min(1e-10).log()).sum()
