"""Evaluation of generated images: the library behind ``benchmarks/generation.py``.

Nothing here is a property of a model alone. The numbers depend on the reference images, on how many images there are on
both sides, on the sampler and on the extractor; the protocol says all of them.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.distributed import rank, world_size
from zoo.init_args import to_plain_data
from zoo.metrics.evaluate import DTYPES, data_facts, set_up
from zoo.metrics.extractors import Extractor
from zoo.metrics.generation_report import Batches, GenerationReport
from zoo.tokens import NotInvertible, Tokens, TokenSpec, as_pixels
from zoo.tokens.abilities import BuiltOnTokenizer, Generator

# ---------------------------------------------------------------- what is compared


def labels_like(labels: Int[Tensor, " n"], count: int, seed: int = 0) -> Int[Tensor, " m"]:
    """``count`` labels in the proportions of the given ones (largest remainders), shuffled."""
    classes, numbers = torch.unique(labels, return_counts=True)
    share = numbers.double() * count / len(labels)
    whole = share.floor().long()
    rest = (share - whole).argsort(descending=True, stable=True)[: count - int(whole.sum())]
    whole[rest] += 1
    every = classes.repeat_interleave(whole)
    return every[torch.randperm(count, generator=torch.Generator().manual_seed(seed))]


def token_frequencies(ids: Int[Tensor, "b n"], spec: TokenSpec) -> dict[str, Float[Tensor, " k"]]:
    """Count how often each id of each segment occurs, in any position of that segment."""
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


def sampler_settings(model: Generator, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of ``generate`` with their defaults, and what is given.

    Raises:
        ValueError: naming a setting that the model does not have.
    """
    known = model.sampling_settings()
    if wrong := sorted(set(given) - set(known)):
        raise ValueError(f"{type(model).__name__}.generate takes no {', '.join(wrong)}: it takes {', '.join(known)}")
    return known | given


def check_generator(model: Any) -> None:
    """Refuse a model whose samples cannot be compared with images.

    Raises:
        ValueError: for one that generates nothing.
        NotInvertible: where the tokens do not decode to pixels.
    """
    if not isinstance(model, Generator):
        raise ValueError(f"{type(model).__name__} generates nothing: take a second stage, such as MaskGIT")
    if model.spec.decodes != "pixels":
        raise NotInvertible(f"{type(model).__name__} does not decode to pixels, so there is nothing to compare")


def generated_images(
    model: Any, labels: Int[Tensor, " n"] | None, count: int, batch_size: int, seed: int, sampling: dict[str, Any]
) -> Iterator[Float[Tensor, "b 3 h w"]]:
    """Images of ``model.generate``, in batches; all batches draw from one generator.

    Of several ranks each makes its part of the images, from noise of its own: ``seed`` plus its rank.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed + rank())
    first, last = count * rank() // world_size(), count * (rank() + 1) // world_size()
    for start in range(first, last, batch_size):
        size = min(batch_size, last - start)
        chosen = None if labels is None else labels[start : start + size].to(device)
        yield model.generate(labels=chosen, num_images=size, **sampling, generator=generator)


def measure_samples(
    report: GenerationReport,
    model: Any,
    labels: Int[Tensor, " n"] | None,
    num_images: int | None,
    sampling: dict[str, Any],
    seed: int,
    batch_size: int,
    precision: str,
    context: AbstractContextManager[Any],
) -> tuple[dict[str, float], dict[str, Any]]:
    """Generate images and compare them with the reference of a report.

    Args:
        report: whose reference is set.
        model: with ``generate``.
        labels: of the reference, where it has any; those of the samples are drawn in their proportions.
        num_images: to generate; None takes as many as the reference has.
        sampling: settings of ``generate``.
        seed: of labels and noise.
        batch_size: images at a time; with the seed it decides which noise an image gets.
        precision: of the model, for the protocol.
        context: under which images are made, such as autocast.

    Returns:
        Metrics, and the facts of the generated images for the protocol.

    Raises:
        ValueError: where labels, settings or image sizes do not fit.
    """
    settings = sampler_settings(model, sampling)
    count = report.reference_facts["num_images"] if num_images is None else num_images
    chosen = _labels(model, labels, count, seed)
    with torch.inference_mode(), context:
        metrics, facts = compare_set(
            report, "model", generated_images(model, chosen, count, batch_size, seed, sampling)
        )
    return metrics, facts | {
        "sampler": to_plain_data(settings),
        "labels": "none" if chosen is None else "in the proportions of the reference",
        "seed": seed,
        "batch_size": batch_size,
        "precision": precision,
    }


def compare_set(report: GenerationReport, name: str, images: Batches) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics of a set of images against the reference of a report, and its facts.

    Raises:
        ValueError: for images of another size than the reference, naming the set.
    """
    features, facts = report.features(images)
    if facts["image_shape"] != report.reference_facts["image_shape"]:
        size, other = facts["image_shape"], report.reference_facts["image_shape"]
        raise ValueError(f"{name} has images of {size}, the reference of {other}: set the image size of the data")
    return report.compare(features), facts


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
        model: a :class:`~zoo.tokens.abilities.Generator` whose tokens decode to pixels.
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
    check_generator(model)
    if precision not in DTYPES:
        raise ValueError(f"precision must be one of {', '.join(DTYPES)}, got {precision!r}")
    if num_images is not None and num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {num_images}")
    sampler_settings(model, sampling or {})  # refuses a setting that there is not before any work is done
    real = _split(datamodule, reference)
    report = GenerationReport(inception_weights, extractor, device)
    model = model.to(device).eval()
    start = time.perf_counter()
    say(f"reference: {len(real)} images of {reference}")
    seen: list[Tensor] = []
    workers = getattr(datamodule, "num_workers", 0)
    report.set_reference(_images(real, batch_size, workers, seen))

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(report.device.type, dtype=DTYPES[precision], enabled=DTYPES[precision] is not None)

    say("model")
    metrics, generated = measure_samples(
        report, model, torch.cat(seen) if seen else None, num_images, sampling or {}, seed, batch_size, precision,
        autocast(),
    )  # fmt: skip
    rows: dict[str, dict[str, float]] = {}
    facts: dict[str, Any] = {}
    if baselines:
        train = _split(datamodule, "train")
        sets = _baselines(model, train, real, generated["num_images"], batch_size, workers, seed)
        for name, images in sets.items():
            say(name)
            with torch.inference_mode(), autocast():
                rows[name], facts[name] = compare_set(report, name, images)
    protocol = report.protocol()
    protocol["reference"] = reference_facts(report, reference)
    protocol["generated"] = generated
    protocol["baselines"] = facts
    protocol["data"] = data_facts(datamodule)
    return {"metrics": metrics, "baselines": rows, "protocol": protocol, "seconds": time.perf_counter() - start}


def reference_facts(report: GenerationReport, split: str) -> dict[str, Any]:
    """The reference as the protocol says it: which images, and how many."""
    view = "crop and resize of the data module, no augmentation"
    return {"split": split, "view": view} | report.reference_facts


def _baselines(
    model: Any, train: Any, real: Any, count: int, batch_size: int, workers: int, seed: int
) -> dict[str, Batches]:
    """Sets to compare the model with; lazily made."""
    tokenizer = model.tokenizer if isinstance(model, BuiltOnTokenizer) else model
    device = next(model.parameters()).device
    few = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count].tolist()

    def decoded(ids: Int[Tensor, "b n"]) -> Tensor:
        return model.decode(Tokens(ids.to(device), None, model.spec))

    def encoded(images: Any) -> Iterator[Tensor]:
        for batch in _images(images, batch_size, workers):
            ids = tokenizer.encode(batch.to(device)).ids
            assert ids is not None
            yield ids

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


def _labels(model: Generator, seen: Int[Tensor, " n"] | None, count: int, seed: int) -> Int[Tensor, " m"] | None:
    if not model.num_classes:
        return None
    if seen is None:
        raise ValueError(f"the data has no labels, but the model has {model.num_classes} classes: take labelled data")
    if (highest := int(seen.max())) >= model.num_classes:
        raise ValueError(f"labels of the reference reach {highest}, but the model has {model.num_classes} classes")
    return labels_like(seen, count, seed)


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
