"""The entropy loss on soft assignments to codes."""

from jaxtyping import Float
from torch import Tensor

from zoo.distributed import mean_over_ranks
from zoo.quantizers.code_entropy import affinity_entropy, mixture_entropy


def entropy_loss(affinity: Float[Tensor, "n k"], temperature: float = 0.01) -> Float[Tensor, ""]:
    """E[H(p)] - H(E[p]) in nats, p = softmax(affinity / temperature): decided for each row, even over all rows.

    Chang et al., arXiv:2202.04200; google-research/maskgit losses.py, with 1e-5 inside both logarithms. The mean of p
    is taken over all ranks.

    Args:
        affinity: of each vector to each code, e.g. minus the squared distance.
        temperature: 0.01 there.
    """
    entropy, mass = affinity_entropy(affinity, temperature)
    return entropy / len(affinity) - mixture_entropy(mean_over_ranks(mass / len(affinity)))
