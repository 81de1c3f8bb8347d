"""The generation report: distances of sets of images to one reference set, in one object.

The callback ``Samples`` and the benchmark hold the same object, so that ``lightning test`` and
``benchmarks/generation.py`` agree to the last digit.
"""

import hashlib
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from zoo.distributed import gather_objects, world_size
from zoo.metrics.entries import places_in_set
from zoo.metrics.extractors import Extractor, InceptionFeatures, Lite0Features, has_inception_weights, quantise
from zoo.metrics.feature_distances import (
    FULL,
    SUBSET_SIZE,
    SUBSETS,
    inception_score,
    kernel_distance,
    precision_recall,
    refuse_not_finite,
)
from zoo.metrics.frechet import frechet_distance

NEIGHBOURS = 3
#: name of the extractor -> names of Frechet distance, kernel distance, precision and recall
NAMES = {
    "rfid": ("fid", "kid", "precision_inception", "recall_inception"),
    "fd_lite0": ("fd_lite0", "kd_lite0", "precision_lite0", "recall_lite0"),
}
Batches = Iterable[Shaped[Tensor, "b 3 h w"]]


class FeatureSet:
    """Features of images that come in batches, with their number, size and digest.

    Args:
        extractor: in eval mode.
        device: where it runs.
    """

    def __init__(self, extractor: Any, device: torch.device):
        self.extractor, self.device = extractor, device
        self.image_shape: tuple[int, ...] | None = None
        self._parts: list[Tensor] = []
        self._places: list[int | None] = []
        self._digest = hashlib.sha256()

    def __len__(self) -> int:
        """Images of this rank."""
        return len(self._places)

    def update(self, images: Shaped[Tensor, "b 3 h w"], places: Sequence[int | None] | None = None) -> None:
        """Add a batch.

        Args:
            images: in [0, 1] or uint8, quantised to uint8 once.
            places: of the images in the data set, which several ranks need to take each of them once.

        Raises:
            ValueError: for images of another size than the first ones.
        """
        shape = tuple(images.shape[-2:])
        if self.image_shape not in (None, shape):
            raise ValueError(f"images of one set have one size, got {self.image_shape} and {shape}")
        self.image_shape = shape
        pixels = quantise(images)
        self._digest.update(pixels.cpu().numpy().tobytes())
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            self._parts.append(self.extractor(pixels.to(self.device)).float().cpu())
        self._places += [None] * len(images) if places is None else list(places)

    def joined(self) -> tuple[Float[Tensor, "n d"], dict[str, Any]]:
        """Features and facts of the images of all ranks, each image once; every rank must call this.

        Raises:
            ValueError: without images, or for features that are not finite.
        """
        mine = torch.cat(self._parts) if self._parts else None
        facts: dict[str, Any] = {"image_shape": list(self.image_shape or ()), "images_sha256": self._digest.hexdigest()}
        if world_size() == 1:
            features = mine
        else:
            every = [p for p in gather_objects((mine, self._places, facts)) if p[0] is not None]
            order = places_in_set([place for _, places, _ in every for place in places])
            features = torch.cat([part for part, _, _ in every])[order] if every else None
            digests = "".join(rank["images_sha256"] for _, _, rank in every)
            facts = {
                "image_shape": every[0][2]["image_shape"] if every else [],
                "images_sha256": hashlib.sha256(digests.encode()).hexdigest(),  # of the digests of the ranks
                "ranks": world_size(),
            }
        if features is None:
            raise ValueError("there are no images to measure")
        refuse_not_finite(features)
        return features, {"num_images": len(features)} | facts


class GenerationReport:
    """Distances of sets of images to one reference set.

    With Inception weights: ``fid``, ``kid``, ``inception_score``, ``precision_inception``, ``recall_inception``;
    without: ``fd_lite0``, ``kd_lite0``, ``precision_lite0``, ``recall_lite0``, never under the others' names. All
    images are quantised to uint8 once; features are kept, in float32 on the CPU, and everything else is float64.

    Args:
        inception_weights: local file; None takes the one in torch's hub folder, if it is there, else Lite0.
        extractor: instead, any extractor; its metrics are named after it.
        device: where the extractor runs.
    """

    def __init__(
        self,
        inception_weights: str | None = None,
        extractor: Extractor | None = None,
        device: torch.device | str = "cpu",
    ):
        if extractor is None:
            inception = inception_weights is not None or has_inception_weights()
            extractor = InceptionFeatures(inception_weights) if inception else Lite0Features()
        network: Any = extractor
        self.extractor: Extractor = network.to(device).eval()
        self.device = torch.device(device)
        name = extractor.name
        self.names = NAMES.get(name, (name, f"kd_{name}", f"precision_{name}", f"recall_{name}"))
        self.reference: Float[Tensor, "n d"] | None = None
        self.reference_facts: dict[str, Any] = {}

    def to(self, device: torch.device | str) -> "GenerationReport":
        """Move the extractor; to the CPU instead of devices without float64."""
        self.device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        network: Any = self.extractor
        network.to(self.device)
        return self

    def new_set(self) -> FeatureSet:
        """An empty set of images, to be filled batch by batch."""
        return FeatureSet(self.extractor, self.device)

    def set_reference(self, images: Batches | FeatureSet) -> None:
        """Take the images that all others are compared with."""
        self.reference, self.reference_facts = self.features(images)

    def features(self, images: Batches | FeatureSet) -> tuple[Float[Tensor, "n d"], dict[str, Any]]:
        """Features of a set of images, in [0, 1] or uint8, with their number, size and digest."""
        if isinstance(images, FeatureSet):
            return images.joined()
        found = self.new_set()
        for batch in images:
            found.update(batch)
        return found.joined()

    def compare(self, features: Float[Tensor, "n d"]) -> dict[str, float]:
        """All metrics of a set against the reference.

        Raises:
            ValueError: without a reference, or for too few images.
        """
        if self.reference is None:
            raise ValueError("set_reference comes first")
        if min(len(features), len(self.reference)) <= NEIGHBOURS:
            raise ValueError(
                f"generation metrics need more than {NEIGHBOURS} images on each side, got {len(features)} and "
                f"{len(self.reference)} in the reference"
            )
        distance = frechet_distance(*gaussian(features), *gaussian(self.reference))
        values = [distance, kernel_distance(features, self.reference)]
        values += precision_recall(features, self.reference, NEIGHBOURS)
        metrics = {name: value.item() for name, value in zip(self.names, values, strict=True)}
        if isinstance(self.extractor, InceptionFeatures):
            with torch.no_grad():
                metrics["inception_score"] = inception_score(self.extractor.logits(features.to(self.device))).item()
        return metrics

    def protocol(self) -> dict[str, Any]:
        """Say what the values depend on besides the images that are compared."""
        from zoo.version import __version__

        frechet, kernel, precision, recall = self.names
        facts: dict[str, Any] = {
            "reference": self.reference_facts,
            "quantisation": "uint8 once, clamped and rounded, both sides",
            frechet: "Gaussians with unbiased covariance, float64",
            kernel: "unbiased MMD^2, kernel (a.b / d + 1)^3, float64; whole sets of up to "
            f"{FULL:,} images, else the mean over {SUBSETS} random subsets of {SUBSET_SIZE:,}",
            f"{precision}, {recall}": f"balls to the {NEIGHBOURS}rd nearest neighbour, float64",
            "extractor": self.extractor.protocol(),
            "packages": {p: version(p) for p in ("torch", "torchmetrics")} | {"tokenzoo": __version__},
        }
        if isinstance(self.extractor, InceptionFeatures):
            facts["inception_score"] = "logits without bias, mean over 10 splits after a shuffle with seed 0"
        return facts


def gaussian(features: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Mean and unbiased covariance in float64."""
    features = features.double()
    return features.mean(dim=0), features.T.cov()
