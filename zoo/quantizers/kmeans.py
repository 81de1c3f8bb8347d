"""Codebook initialisation from data."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.distributed import broadcast_from_first_rank, sample_rows_over_ranks, sum_over_ranks
from zoo.quantizers.base import count_codes
from zoo.quantizers.nearest_code import nearest_code


def kmeans(
    features: Float[Tensor, "n d"], k: int, iterations: int = 15
) -> tuple[Float[Tensor, "k d"], Float[Tensor, ""]]:
    """Lloyd's algorithm from ``k`` distinct random rows; empty clusters move to random rows.

    Returns:
        Centres, and the mean squared distance of a feature to its centre.
    """
    pool = torch.unique((features * 1e4).round(), dim=0) / 1e4  # flat image regions give the same feature many times
    if len(pool) < k:
        pool = torch.cat([pool, features[torch.randint(len(features), (k - len(pool),), device=features.device)]])
    centres = pool[torch.randperm(len(pool), device=pool.device)[:k]]
    for _ in range(iterations):
        nearest = nearest_code(pool, centres)
        count = torch.bincount(nearest, minlength=k)
        total = torch.zeros_like(centres).index_add_(0, nearest, pool)
        random = pool[torch.randint(len(pool), (k,), device=pool.device)]
        centres = torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], random)
    nearest = nearest_code(pool, centres)
    return centres, (pool - centres[nearest]).square().sum(1).mean()


def codebook_from_features(
    features: Float[Tensor, "n d"], k: int, code_width: int, sharpness: float = 12.0
) -> tuple[Float[Tensor, "k d"], Float[Tensor, "k"], Float[Tensor, "k e"]]:
    """A linear classifier that assigns features softly to k-means centres, and an embedding per centre.

    Args:
        features: one row per position.
        k: codes.
        code_width: width of the embeddings.
        sharpness: logits are -sharpness |f - c|^2 / (mean squared distance), up to a constant per row.

    Returns:
        Weight and bias of the classifier, and the embeddings: centred centres of unit variance, randomly projected.
    """
    centres, distance = kmeans(features, k)
    scale = sharpness / distance.clamp(min=1e-12)
    centred = centres - centres.mean(0)
    centred = centred / centred.square().mean().sqrt().clamp(min=1e-12)
    projection = torch.randn(centres.shape[1], code_width, device=centres.device) / math.sqrt(centres.shape[1])
    return 2 * scale * centres, -scale * centres.square().sum(1), centred @ projection


def shared_kmeans(
    features: Float[Tensor, "n d"], k: int, rows_per_centre: int = 64, iterations: int = 10
) -> tuple[Float[Tensor, "k d"], Float[Tensor, "k"]]:
    """K-means on the features of all ranks, with the same result on every rank.

    Args:
        features: of this rank.
        k: centres.
        rows_per_centre: at most this many features per centre are looked at.
        iterations: of Lloyd's algorithm.

    Returns:
        Centres, and how many of the features looked at are nearest to each.
    """
    total = int(sum_over_ranks(torch.tensor(len(features), device=features.device)))
    rows = sample_rows_over_ranks(features.float(), min(total, rows_per_centre * k), seed=0)
    devices = [features.device] if features.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.autocast(features.device.type, enabled=False):
        torch.manual_seed(0)  # ranks have noise of their own
        centres, _ = kmeans(rows, k, iterations)
    centres = broadcast_from_first_rank(centres)
    return centres, count_codes(nearest_code(rows, centres), k)
