"""Frechet distance between two sets of images, over any feature extractor."""

from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torchmetrics import Metric

from zoo.metrics.extractors import Extractor, quantise
from zoo.metrics.feature_distances import refuse_not_finite


class FrechetDistance(Metric):
    """``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` of the Gaussians fitted to two sets of features.

    Heusel et al. 2017 (arXiv:1706.08500), Eq. 6. What travels between batches and ranks are sums in float64 (count,
    sum x, sum x x^T), never features. Images are quantised to uint8 once, rounded and clamped, on both sides.

    Args:
        extractor: see :mod:`zoo.metrics.extractors`; its ``name`` is the name of this metric.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    count: Tensor
    total: Tensor
    outer: Tensor

    def __init__(self, extractor: Extractor):
        super().__init__()
        if not isinstance(extractor, nn.Module):
            raise TypeError(f"the extractor must be an nn.Module, got {type(extractor).__name__}")
        self.extractor = extractor.eval()
        d = extractor.num_features
        # Rows: reconstructions, then the real images at even and at odd positions (their distance is the floor).
        self.add_state("count", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(3, d, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("outer", torch.zeros(3, d, d, dtype=torch.float64), dist_reduce_fx="sum")

    @property
    def name(self) -> str:
        """Name of the metric: ``rfid`` or ``fd_lite0``."""
        return self.extractor.name

    def train(self, mode: bool = True) -> "FrechetDistance":
        """Stays in eval mode."""
        return super().train(False)

    def update(self, images: Shaped[Tensor, "b 3 h w"], real: bool) -> None:
        """Add images, uint8 or in [0, 1] (values beyond are clamped)."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            features = self.extractor(quantise(images)).double()
        if not real:
            self._add(0, features)
            return
        first = int(self.count[1:].sum()) % 2
        self._add(1 + first, features[::2])
        self._add(2 - first, features[1::2])

    def _add(self, row: int, features: Float[Tensor, "b d"]) -> None:
        self.count[row] += len(features)
        self.total[row] += features.sum(dim=0)
        self.outer[row] += features.T @ features

    def compute(self) -> Float[Tensor, ""]:
        """The distance between the reconstructions and the real images."""
        return self._distance([0], [1, 2])

    def floor(self) -> Float[Tensor, ""]:
        """The distance between the two halves of the real images.

        It is not 0, because few images determine a covariance badly: what the metric reports for equal distributions
        at half the sample size.
        """
        with self.sync_context(should_sync=self._to_sync):
            return self._distance([1], [2])

    def _distance(self, rows: list[int], others: list[int]) -> Float[Tensor, ""]:
        return frechet_distance(*self._gaussian(rows), *self._gaussian(others))

    def _gaussian(self, rows: list[int]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
        n = self.count[rows].sum()
        if n < 2:
            raise ValueError(f"{self.name} needs at least two images on each side, got {int(n)}")
        mean = self.total[rows].sum(dim=0) / n
        covariance = (self.outer[rows].sum(dim=0) - n * torch.outer(mean, mean)) / (n - 1)
        return mean, covariance

    def protocol(self) -> dict[str, Any]:
        """Say what the number depends on besides the images."""
        return {"statistics": "float64, unbiased covariance", **self.extractor.protocol()}


def frechet_distance(
    mean1: Float[Tensor, " d"],
    covariance1: Float[Tensor, "d d"],
    mean2: Float[Tensor, " d"],
    covariance2: Float[Tensor, "d d"],
) -> Float[Tensor, ""]:
    """Squared Frechet distance between two Gaussians, by two symmetric eigendecompositions.

    ``tr (C1 C2)^(1/2)`` is the sum of the roots of the eigenvalues of ``C1^(1/2) C2 C1^(1/2)``, which is symmetric, so
    that no root of a negative or complex number can appear but for rounding, which is clamped.

    Raises:
        ValueError: for statistics that are not finite.
    """
    refuse_not_finite(mean1, covariance1, mean2, covariance2, what="statistics of the features")
    values, vectors = torch.linalg.eigh(covariance1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ covariance2 @ root
    trace = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + covariance1.trace() + covariance2.trace() - 2 * trace
    return distance.clamp(min=0)  # rounding makes it about -1e-5 for equal sets
