"""How good generated images are: the library behind ``benchmarks/generation.py``.

Nothing here is a property of a model alone. The numbers depend on the reference images, on how many images there are on
both sides, on the sampler and on the extractor; the protocol says all of them.
"""

import hashlib
import inspect
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.init_args import plain
from zoo.metrics.evaluate import DTYPES, set_up
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
from zoo.tokens import NotInvertible, Tokens, TokenSpec, as_pixels

NEIGHBOURS = 3
#: name of the extractor -> names of Frechet distance, kernel distance, precision and recall
NAMES = {
    "rfid": ("fid", "kid", "precision_inception", "recall_inception"),
    "fd_lite0": ("fd_lite0", "kd_lite0", "precision_lite0", "recall_lite0"),
}
Batches = Iterator[Float[Tensor, "b 3 h w"]]


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
        self.extractor, self.device = extractor.to(device).eval(), torch.device(device)  # type: ignore[attr-defined]
        name = extractor.name
        self.names = NAMES.get(name, (name, f"kd_{name}", f"precision_{name}", f"recall_{name}"))
        self.reference: Float[Tensor, "n d"] | None = None
        self.reference_facts: dict[str, Any] = {}

    def set_reference(self, images: Batches) -> None:
        """Take the images that all others are compared with."""
        self.reference, self.reference_facts = self.features(images)

    def features(self, images: Batches) -> tuple[Float[Tensor, "n d"], dict[str, Any]]:
        """Features of images in [0, 1] or uint8, with their number, size and digest."""
        found, digest, shape = [], hashlib.sha256(), None
        for batch in images:
            if shape not in (None, tuple(batch.shape[-2:])):
                raise ValueError(f"images of one set have one size, got {shape} and {tuple(batch.shape[-2:])}")
            shape = tuple(batch.shape[-2:])
            pixels = quantise(batch)
            digest.update(pixels.cpu().numpy().tobytes())
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                found.append(self.extractor(pixels.to(self.device)).float().cpu())
        if not found:
            raise ValueError("there are no images to measure")
        features = torch.cat(found)
        refuse_not_finite(features)
        return features, {
            "num_images": len(features),
            "image_shape": list(shape or ()),
            "images_sha256": digest.hexdigest(),
        }

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
        """What the values depend on besides the images that are compared."""
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


# ---------------------------------------------------------------- what is compared


def labels_like(labels: Int[Tensor, " n"], count: int, seed: int = 0) -> Int[Tensor, " m"]:
    """``count`` labels in the proportions of the given ones (largest remainders), shuffled."""
    classes, numbers = labels.unique(return_counts=True)
    share = numbers.double() * count / len(labels)
    whole = share.floor().long()
    rest = (share - whole).argsort(descending=True, stable=True)[: count - int(whole.sum())]
    whole[rest] += 1
    every = classes.repeat_interleave(whole)
    return every[torch.randperm(count, generator=torch.Generator().manual_seed(seed))]


def token_frequencies(ids: Int[Tensor, "b n"], spec: TokenSpec) -> dict[str, Float[Tensor, " k"]]:
    """How often each id of each segment occurs, in any position of that segment."""
    return {
        s.name: torch.bincount(ids[:, spec.span(s.name)].flatten() - s.offset, minlength=s.size).double()
        for s in spec.segments
    }


def random_tokens(
    spec: TokenSpec, count: int, weights: dict[str, Float[Tensor, " k"]] | None, generator: torch.Generator
) -> Int[Tensor, "count n"]:
    """Ids drawn independently: uniformly within each segment, or with these weights."""
    parts = []
    for s in spec.segments:
        weight = torch.ones(s.size, dtype=torch.float64) if weights is None else weights[s.name]
        drawn = torch.multinomial(weight, count * s.num_tokens, replacement=True, generator=generator)
        parts.append(drawn.view(count, s.num_tokens) + s.offset)
    return torch.cat(parts, dim=1)


def sampler_settings(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of ``generate`` with their defaults, and what is given.

    Where ``generate`` hands further settings on, they are those of ``complete``.

    Raises:
        ValueError: naming a setting that the model does not have.
    """
    parameters = dict(inspect.signature(model.generate).parameters)
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if open_ended and hasattr(model, "complete"):
        parameters |= inspect.signature(model.complete).parameters
    managed = ("labels", "num_images", "as_tokens", "return_steps", "seed", "generator", "noise", "ids")
    known = {
        name: p.default
        for name, p in parameters.items()
        if name not in managed and isinstance(p.default, bool | int | float | str | None)
    }
    if wrong := sorted(set(given) - set(known)):
        raise ValueError(f"{type(model).__name__}.generate takes no {', '.join(wrong)}: it takes {', '.join(known)}")
    return known | given


def generated_images(
    model: Any, labels: Int[Tensor, " n"] | None, count: int, batch_size: int, seed: int, sampling: dict[str, Any]
) -> Batches:
    """Images of ``model.generate``, in batches; all batches draw from one generator."""
    device = next(model.parameters()).device
    takes = inspect.signature(model.generate).parameters
    seeded = "generator" in takes or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values())
    generator = torch.Generator(device).manual_seed(seed)
    if not seeded:
        torch.manual_seed(seed)
    for start in range(0, count, batch_size):
        size = min(batch_size, count - start)
        chosen = None if labels is None else labels[start : start + size].to(device)
        yield model.generate(labels=chosen, num_images=size, **sampling, **({"generator": generator} if seeded else {}))


# ---------------------------------------------------------------- all together


def evaluate_generation(
    model: Any,
    datamodule: Any,
    reference: str = "test",
    num_images: int | None = None,
    sampling: dict[str, Any] | None = None,
    seed: int = 0,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    precision: str = "32",
    baselines: bool = True,
    inception_weights: str | None = None,
    extractor: Extractor | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Generate images and compare them, and baselines, with one split of a data module.

    Labels are drawn in the proportions of the reference. The baselines are tokens drawn uniformly and tokens drawn with
    their frequencies in the training split, both decoded by the same tokenizer; the reference through the tokenizer,
    which no model on these tokens can be expected to beat; and images of the training split, the floor of the metric.

    Args:
        model: has ``generate(labels=..., num_images=...)`` and decodes its tokens to pixels.
        datamodule: has ``view(split)``: images without augmentation, cropped as in training.
        reference: ``train``, ``val`` or ``test``.
        num_images: to generate; None takes as many as the reference has.
        sampling: settings of ``generate``.
        seed: of labels, noise and baselines.
        batch_size: images at a time; with the seed it decides which noise an image gets.
        device: where to run.
        precision: of the generator; the metrics always run in float32 and float64.
        baselines: measure them too.
        inception_weights: as in :class:`GenerationReport`.
        extractor: as in :class:`GenerationReport`.
        say: called with one line before each set.

    Returns:
        ``metrics`` (of the model), ``baselines`` (name -> metrics), ``protocol`` and ``seconds``.

    Raises:
        NotInvertible: where the tokens do not decode to pixels.
        ValueError: where labels, settings or images do not fit.
    """
    if not callable(getattr(model, "generate", None)):
        raise ValueError(f"{type(model).__name__} generates nothing: take a second stage, such as MaskGIT")
    if model.spec is None or model.spec.decodes != "pixels":
        raise NotInvertible(f"{type(model).__name__} does not decode to pixels, so there is nothing to compare")
    if precision not in DTYPES:
        raise ValueError(f"precision must be one of {', '.join(DTYPES)}, got {precision!r}")
    if num_images is not None and num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {num_images}")
    settings = sampler_settings(model, sampling or {})
    real = _split(datamodule, reference)
    report = GenerationReport(inception_weights, extractor, device)
    model = model.to(device).eval()
    start = time.perf_counter()
    say(f"reference: {len(real)} images of {reference}")
    seen: list[Tensor] = []
    workers = getattr(datamodule, "num_workers", 0)
    report.set_reference(_images(real, batch_size, workers, seen))
    count = report.reference_facts["num_images"] if num_images is None else num_images
    labels = _labels(model, seen, count, seed)
    sets: dict[str, Batches] = {"model": generated_images(model, labels, count, batch_size, seed, sampling or {})}
    if baselines:
        sets |= _baselines(model, _split(datamodule, "train"), real, count, batch_size, workers, seed)
    rows: dict[str, dict[str, float]] = {}
    facts: dict[str, Any] = {}
    for name, images in sets.items():
        say(name)
        rough = torch.autocast(report.device.type, dtype=DTYPES[precision], enabled=DTYPES[precision] is not None)
        with torch.inference_mode(), rough:
            features, facts[name] = report.features(images)
        if facts[name]["image_shape"] != report.reference_facts["image_shape"]:
            size, other = facts[name]["image_shape"], report.reference_facts["image_shape"]
            raise ValueError(f"{name} has images of {size}, the reference of {other}: set the image size of the data")
        rows[name] = report.compare(features)
    protocol = report.protocol()
    protocol["reference"] = {"split": reference, "view": "crop and resize of the data module, no augmentation"} | (
        protocol["reference"]
    )
    protocol["generated"] = facts.pop("model") | {
        "sampler": plain(settings),
        "labels": "none" if labels is None else "in the proportions of the reference",
        "seed": seed,
        "batch_size": batch_size,
        "precision": precision,
    }
    protocol["baselines"] = facts
    protocol["data"] = {"class": type(datamodule).__name__, **plain(dict(getattr(datamodule, "hparams", {})))}
    seconds = time.perf_counter() - start
    metrics = rows.pop("model")
    return {"metrics": metrics, "baselines": rows, "protocol": protocol, "seconds": seconds}


def _baselines(
    model: Any, train: Any, real: Any, count: int, batch_size: int, workers: int, seed: int
) -> dict[str, Batches]:
    """Sets to compare the model with; lazily made."""
    tokenizer = getattr(model, "tokenizer", model)
    device = next(model.parameters()).device
    few = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count].tolist()

    def decoded(ids: Int[Tensor, "b n"]) -> Tensor:
        return model.decode(Tokens(ids.to(device), None, model.spec))

    def encoded(images: Any) -> Iterator[Tensor]:
        for batch in _images(images, batch_size, workers):
            yield tokenizer.encode(batch.to(device)).ids

    def drawn(unigram: bool) -> Batches:
        generator = torch.Generator().manual_seed(seed)
        weights = token_frequencies(torch.cat([ids.cpu() for ids in encoded(train)]), model.spec) if unigram else None
        for begin in range(0, count, batch_size):
            yield decoded(random_tokens(model.spec, min(batch_size, count - begin), weights, generator))

    return {
        "uniform_tokens": drawn(unigram=False),
        "unigram_tokens": drawn(unigram=True),
        "reconstructions": (decoded(ids) for ids in encoded(real)),
        "train_images": _images(torch.utils.data.Subset(train, few), batch_size, workers),
    }


def _labels(model: Any, seen: list[Tensor], count: int, seed: int) -> Int[Tensor, " n"] | None:
    if not getattr(model, "num_classes", 0):
        return None
    if not seen:
        raise ValueError(f"the data has no labels, but the model has {model.num_classes} classes: take labelled data")
    labels = torch.cat(seen)
    if (highest := int(labels.max())) >= model.num_classes:
        raise ValueError(f"labels of the reference reach {highest}, but the model has {model.num_classes} classes")
    return labels_like(labels, count, seed)


def _split(datamodule: Any, split: str) -> Any:
    set_up(datamodule, split, "the reference")
    return datamodule.view(split)


def _images(
    dataset: Any, batch_size: int, num_workers: int, labels: list[Tensor] | None = None
) -> Iterator[Float[Tensor, "b 3 h w"]]:
    """Images in their order; what labels they have is added to ``labels``. Broken ones are left out."""

    def collate(samples: list[dict[str, Any] | None]) -> dict[str, Tensor]:
        found = [s for s in samples if s is not None]
        keys = [key for key in ("image", "label") if found and key in found[0]]
        return {key: torch.stack([torch.as_tensor(s[key]) for s in found]) for key in keys}

    for batch in torch.utils.data.DataLoader(dataset, batch_size, collate_fn=collate, num_workers=num_workers):
        if labels is not None and "label" in batch:
            labels.append(batch["label"])
        if batch:
            yield as_pixels(batch["image"])
