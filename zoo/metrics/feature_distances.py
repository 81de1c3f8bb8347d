"""Distances between two sets of features beyond the Frechet distance, all in float64."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

FULL = 5000  # above this many features the kernel distance is averaged over random subsets
SUBSETS, SUBSET_SIZE = 100, 1000  # the published settings of KID
CHUNK = 2**24  # entries of a block of a distance matrix, 128 MiB in float64


def refuse_not_finite(*sets: Float[Tensor, "..."], what: str = "features") -> None:
    """Refuse infinite numbers and NaN, whose distances would mean nothing.

    Raises:
        ValueError: saying how many there are.
    """
    for values in sets:
        if bad := int((~values.isfinite()).sum()):
            raise ValueError(
                f"{bad} of {values.numel()} numbers in the {what} are not finite, so there is nothing to compare: look "
                "at the images, or take an earlier checkpoint"
            )


def kernel_distance(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], full: int = FULL, seed: int = 0
) -> Float[Tensor, ""]:
    """Unbiased estimate of the squared maximum mean discrepancy with the kernel ``(a.b / d + 1)^3``.

    Binkowski et al. 2018 (arXiv:1801.01401), Section 4; on Inception features it is KID. Sets of at most ``full``
    features are compared whole; of larger ones, the mean over 100 random subsets of 1,000 is taken, as published, which
    has the same expectation.

    Args:
        x: one set.
        y: the other.
        full: largest set that is compared whole.
        seed: of the subsets.

    Raises:
        ValueError: for fewer than two features on a side, or some that are not finite.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"the kernel distance needs at least two images on each side, got {len(x)} and {len(y)}")
    refuse_not_finite(x, y)
    if max(len(x), len(y)) <= full:
        return _mmd(x.double(), y.double())
    generator = torch.Generator().manual_seed(seed)
    size = min(SUBSET_SIZE, len(x), len(y))
    values = []
    for _ in range(SUBSETS):
        chosen = [z[torch.randperm(len(z), generator=generator)[:size].to(z.device)] for z in (x, y)]
        values.append(_mmd(chosen[0].double(), chosen[1].double()))
    return torch.stack(values).mean()


def _mmd(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    n, m = len(x), len(y)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    xx, yy = kernel(x, x), kernel(y, y)
    within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return within - 2 * kernel(x, y).mean()


def precision_recall(
    generated: Float[Tensor, "n d"], real: Float[Tensor, "m d"], neighbours: int = 3
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Precision and recall of generated images (Kynkaanniemi et al. 2019, arXiv:1904.06991, Eq. 1 and 2).

    A set stands for the union of the balls around its features that reach to their k-th nearest neighbour in the set.
    Precision is the share of generated features in the balls of the real ones, recall the share of the real features
    in the balls of the generated ones.

    Args:
        generated: features of generated images.
        real: features of real images.
        neighbours: k, 3 in the paper.

    Raises:
        ValueError: where a set has too few features, or some that are not finite.
    """
    if neighbours < 1 or min(len(generated), len(real)) <= neighbours:
        raise ValueError(
            f"precision and recall with {neighbours} neighbours need more images than that on each side, got "
            f"{len(generated)} generated and {len(real)} real ones"
        )
    refuse_not_finite(generated, real)
    generated, real = generated.double(), real.double()
    precision = _inside(generated, real, _radii(real, neighbours))
    recall = _inside(real, generated, _radii(generated, neighbours))
    return precision.double().mean(), recall.double().mean()


def _radii(x: Float[Tensor, "n d"], neighbours: int) -> Float[Tensor, " n"]:
    """Distance of each feature to its k-th nearest neighbour, itself not counted."""
    radii = [_distances(rows, x).kthvalue(neighbours + 1).values for rows in x.split(max(1, CHUNK // len(x)))]
    return torch.cat(radii)


def _inside(x: Float[Tensor, "n d"], centres: Float[Tensor, "m d"], radii: Float[Tensor, " m"]) -> Bool[Tensor, " n"]:
    rows = x.split(max(1, CHUNK // len(centres)))
    return torch.cat([(_distances(part, centres) <= radii).any(dim=1) for part in rows])


def _distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    # Not by a matrix product: equal features must have distance 0, or copies would miss balls of radius 0.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def inception_score(logits: Float[Tensor, "n c"], splits: int = 10, seed: int = 0) -> Float[Tensor, ""]:
    """``exp E KL(p(c|x) || p(c))``, mean over splits (Salimans et al. 2016, arXiv:1606.03498, Section 4).

    Args:
        logits: of generated images, in any order; they are shuffled first, or splits of sorted classes would differ.
        splits: the published number is 10.
        seed: of the order.

    Raises:
        ValueError: for fewer images than splits, or logits that are not finite.
    """
    if len(logits) < splits:
        raise ValueError(f"the Inception score needs at least {splits} images, got {len(logits)}")
    refuse_not_finite(logits, what="logits")
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed)).to(logits.device)
    scores = []
    for part in logits[order].double().tensor_split(splits):
        log_p = part.log_softmax(dim=1)
        marginal = log_p.logsumexp(dim=0) - math.log(len(part))
        scores.append((log_p.exp() * (log_p - marginal)).sum(dim=1).mean().exp())
    return torch.stack(scores).mean()
