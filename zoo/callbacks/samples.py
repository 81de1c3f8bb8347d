"""Samples of a generator: pictures in validation, and their distance to the test images in a test."""

from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from zoo.callbacks.pictures import image_rows
from zoo.callbacks.scored_set import ScoredSet, Stage, precision_of
from zoo.metrics.entries import entries_of_all_ranks
from zoo.metrics.generation import measure_samples, reference_facts
from zoo.metrics.generation_report import NEIGHBOURS, FeatureSet, GenerationReport
from zoo.tokens import as_pixels
from zoo.tokens.abilities import ConditionalGenerator, Generator, Inpainter, NamesClasses, StepwiseGenerator
from zoo.tokens.batch import Batch

STRIPS = 3  # images whose decoding is shown


class Samples(ScoredSet):
    """Write ``samples/step_NNNNNN_{classes,completion,steps}.png`` in validation, and measure samples in a test.

    For models that are a :class:`~zoo.tokens.abilities.Generator`. The pictures go into the log folder and to loggers
    of images. ``classes`` has one row of samples per class. ``completion`` (of an Inpainter) shows validation images
    whose right half is hidden and filled in. ``steps`` (of a StepwiseGenerator) shows what each step of decoding
    believed; grey are the tokens still hidden. The noise is the same each time, so that pictures line up over a run;
    the weights are those of validation, so the averaged ones with EMA.

    A test compares samples with all test images by the report of ``benchmarks/generation.py``, and logs
    ``test/fd_lite0`` and others or, with Inception weights, ``test/fid`` and others; ``generation.json`` in the log
    folder has them with their protocol. With the same seed and batch size they are those of the benchmark to the last
    digit. A test takes as long as its images take to generate; several ranks share them. Left out, which is said once,
    are models whose tokens do not decode to pixels or that continue a condition, and data without images.

    Args:
        per_class: columns of ``classes``; an unconditional model makes one row.
        max_classes: rows of ``classes``, evenly spread over the classes.
        completions: columns of ``completion``; 0 leaves it out.
        steps: decoding steps of a masked model; None takes its default.
        guidance: weight of classifier-free guidance; 0 switches it off. Models that know no images without a class
            sample without it, which is said once.
        every_n_validations: draw in every n-th validation.
        seed: of the noise, and of the labels in a test.
        num_images: to generate in a test; None takes as many as there are test images, 0 measures nothing.
        batch_size: images that a test generates at a time; with the seed it decides which noise an image gets.
        inception_weights: local file for FID; None takes the one in torch's hub folder if it is there, and otherwise
            reports ``fd_lite0``.
    """

    subfolder = "samples"
    asks_model_at_end = True

    def __init__(
        self,
        per_class: int = 6,
        max_classes: int = 10,
        completions: int = 6,
        steps: int | None = None,
        guidance: float = 0.0,
        every_n_validations: int = 1,
        seed: int = 0,
        num_images: int | None = None,
        batch_size: int = 32,
        inception_weights: str | None = None,
    ):
        if min(per_class, max_classes, every_n_validations, batch_size) < 1 or completions < 0:
            raise ValueError(
                "per_class, max_classes, every_n_validations and batch_size must be at least 1 and completions not "
                f"negative, got {per_class}, {max_classes}, {every_n_validations}, {batch_size}, {completions}"
            )
        if num_images is not None and num_images and num_images <= NEIGHBOURS:
            raise ValueError(
                f"num_images must be more than {NEIGHBOURS}, or 0 to measure nothing in a test, got {num_images}"
            )
        self.per_class, self.max_classes, self.completions = per_class, max_classes, completions
        self.every_n_validations, self.seed = every_n_validations, seed
        self.sampling: dict[str, Any] = {} if steps is None else {"steps": steps}
        if guidance:
            self.sampling["guidance"] = guidance
        self.num_images, self.batch_size, self.inception_weights = num_images, batch_size, inception_weights
        self.report: GenerationReport | None = None
        self._reference: FeatureSet | None = None
        self._labels: list[int | None] = []
        self._places: list[int | None] = []

    def check_model(self, model: LightningModule, stage: str) -> None:
        if not isinstance(model, Generator):
            raise ValueError(f"{type(model).__name__} generates nothing: leave the callback Samples out")
        if "guidance" in self.sampling and not model.has_null:
            weight = self.sampling.pop("guidance")  # otherwise the first validation would end the run
            rank_zero_info(
                f"Samples draws without guidance {weight}: this {type(model).__name__} is not trained both with "
                "classes and without them (class_dropout > 0)"
            )
        if stage == "test":
            self.report = None if self.num_images == 0 else self._make_report(model)

    def _make_report(self, model: Any) -> GenerationReport | None:
        """The report of a test; None, with a word about it, where samples cannot be compared with images."""
        name = type(model).__name__
        if model.spec.decodes != "pixels":
            rank_zero_info(f"Samples measures nothing: the tokens of this {name} do not decode to pixels")
        elif isinstance(model, ConditionalGenerator) and model.condition_tokens:
            rank_zero_info(f"Samples measures nothing: this {name} continues a condition")
        else:
            try:
                return GenerationReport(self.inception_weights)
            except ModuleNotFoundError as error:  # a test without it is worth having
                rank_zero_warn(f"Samples measures nothing: {error}", stacklevel=2)
        return None

    def begin(self, stage: Stage, trainer: Trainer, model: Any) -> bool:
        self._labels, self._places, self._reference = [], [], None
        if stage == "val":
            return trainer.is_global_zero
        if self.report is not None:
            self._reference = self.report.to(model.device).new_set()
        return self.report is not None

    def take(self, stage: Stage, trainer: Trainer, model: Any, batch: Batch) -> None:
        if stage == "val":
            self._stop()  # the first batch is enough
            data: Any = trainer.datamodule
            names = data.class_names if isinstance(data, NamesClasses) else None
            for name, rows in self.draw(model, batch, names).items():
                self.write_picture(trainer, f"val/{name}", image_rows(rows), name)
        elif self._reference is not None and "image" in batch:
            count = len(batch["image"])
            places = self.places(batch, count)
            self._reference.update(as_pixels(batch["image"]), places)
            self._labels += batch["label"].tolist() if "label" in batch else [None] * count
            self._places += places

    def finish(self, stage: Stage, trainer: Trainer, model: Any) -> dict[str, float]:
        if self.report is None or self._reference is None:
            return {}
        reference, self._reference = self._reference, None
        labels = entries_of_all_ranks(self._labels, self._places)
        asked = len(labels) if self.num_images is None else self.num_images
        if min(len(labels), asked) <= NEIGHBOURS:
            rank_zero_info(
                f"Samples measures nothing: it needs more than {NEIGHBOURS} images on each side, and there are "
                f"{len(labels)} in the test set, {asked} to be generated"
            )
            return {}
        self.report.set_reference(reference)
        known = [label for label in labels if label is not None]
        metrics, generated = measure_samples(
            self.report, model, torch.tensor(known) if len(known) == len(labels) else None, self.num_images,
            self.sampling, self.seed, self.batch_size, precision_of(trainer), nullcontext(),
        )  # fmt: skip
        protocol = self.report.protocol()
        protocol |= {"reference": reference_facts(self.report, "test"), "generated": generated, "baselines": {}}
        size = tuple(self.report.reference_facts["image_shape"])
        self.write_record(
            trainer, model, "generation", "generation.json", metrics, generated["num_images"], protocol, size
        )
        return metrics

    def draw(
        self, model: Any, batch: dict[str, Any], class_names: list[str] | None = None
    ) -> dict[str, dict[str, Float[Tensor, "b 3 h w"]]]:
        """Draw the rows of each picture.

        Args:
            model: a generator; without pixels of its tokens there are no pictures.
            batch: of validation.
            class_names: of the model's classes.
        """
        if model.spec.decodes != "pixels":
            return {}
        if isinstance(model, ConditionalGenerator) and model.condition_tokens:
            return {"conditions": self._after_conditions(model, batch)}
        count = model.num_classes
        classes = [count * i // min(count, self.max_classes) for i in range(min(count, self.max_classes))] or [None]
        names = [f"class {c}" if class_names is None else class_names[c] for c in classes] if count else ["samples"]
        labels = [c for c in classes for _ in range(self.per_class)] if count else None
        images = model.generate(labels, len(classes) * self.per_class, seed=self.seed, **self.sampling)
        pictures = {"classes": dict(zip(names, images.split(self.per_class), strict=True))}
        if isinstance(model, Inpainter) and self.completions and "image" in batch:
            pictures["completion"] = self._completion(model, batch)
        if isinstance(model, StepwiseGenerator):
            shown = classes[:STRIPS] if count else None
            pictures["steps"] = model.decoding_steps(
                shown, STRIPS if shown is None else None, seed=self.seed, **self.sampling
            )
        return pictures

    def _after_conditions(self, model: Any, batch: dict[str, Any]) -> dict[str, Float[Tensor, "b 3 h w"]]:
        """Samples behind the first conditions of a batch, below these where they are images."""
        name = "condition_ids" if "condition_ids" in batch else "condition"
        if name not in batch:
            raise ValueError(f"the batch has no condition, but {', '.join(batch)}: leave the callback Samples out")
        given = batch[name][: self.per_class]
        samples = model.generate(condition=given, seed=self.seed, **self.sampling)
        shown = as_pixels(given).float() if name == "condition" else None
        if shown is None or shown.shape != samples.shape:
            return {"samples": samples}
        return {"condition": shown, "samples": samples}

    def _completion(self, model: Any, batch: dict[str, Any]) -> dict[str, Float[Tensor, "b 3 h w"]]:
        images = as_pixels(batch["image"][: self.completions]).float()
        labels = batch["label"][: len(images)] if model.num_classes else None
        hidden = torch.zeros(images.shape[-2:], dtype=torch.bool, device=images.device)
        hidden[:, images.shape[-1] // 2 :] = True
        rows = {
            "original": images,
            "tokenizer": model.decode(model.encode(images)),
            "half hidden": images.masked_fill(hidden, 0.5),
        }
        for i in range(2):
            rows[f"completion {i + 1}"] = model.inpaint(images, hidden, labels, seed=self.seed + i, **self.sampling)
        return rows
