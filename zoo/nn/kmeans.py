"""Codebook initialisation from data."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


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
        nearest = (pool @ centres.t() - centres.square().sum(1) / 2).argmax(1)
        count = torch.bincount(nearest, minlength=k)
        total = torch.zeros_like(centres).index_add_(0, nearest, pool)
        random = pool[torch.randint(len(pool), (k,), device=pool.device)]
        centres = torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], random)
    nearest = (pool @ centres.t() - centres.square().sum(1) / 2).argmax(1)
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
