"""Pictures of what a generator makes: samples per class, a completed image, the steps of decoding."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from zoo.callbacks.pictures import image_rows, log_picture
from zoo.callbacks.validations import EveryFewValidations
from zoo.files.atomic import write_picture_whole
from zoo.runs.folder import log_folder
from zoo.tokens import as_pixels

STRIPS = 3  # images whose decoding is shown


class Samples(EveryFewValidations, Callback):
    """Write ``samples/step_NNNNNN_{classes,completion,steps}.png`` into the log folder, and to loggers of images.

    ``classes`` has one row of samples per class. ``completion`` (of models with ``inpaint``) shows validation images
    whose right half is hidden and filled in. ``steps`` (of models with ``decoding_steps``) shows what
    each step of decoding believed; grey are the tokens still hidden. The noise is the same each time, so that pictures
    line up over a run; the weights are those of validation, so the averaged ones with EMA.

    Args:
        per_class: columns of ``classes``; an unconditional model makes one row.
        max_classes: rows of ``classes``, evenly spread over the classes.
        completions: columns of ``completion``; 0 leaves it out.
        steps: decoding steps of a masked model; None takes its default.
        guidance: weight of classifier-free guidance; 0 switches it off. Models that know no images without a class
            sample without it, which is said once.
        every_n_validations: draw in every n-th validation.
        seed: of the noise.
    """

    def __init__(
        self,
        per_class: int = 6,
        max_classes: int = 10,
        completions: int = 6,
        steps: int | None = None,
        guidance: float = 0.0,
        every_n_validations: int = 1,
        seed: int = 0,
    ):
        if min(per_class, max_classes, every_n_validations) < 1 or completions < 0:
            raise ValueError(
                "per_class, max_classes and every_n_validations must be at least 1 and completions not negative, got "
                f"{per_class}, {max_classes}, {every_n_validations}, {completions}"
            )
        self.per_class, self.max_classes, self.completions = per_class, max_classes, completions
        self.every_n_validations, self.seed = every_n_validations, seed
        self.sampling: dict[str, Any] = {} if steps is None else {"steps": steps}
        if guidance:
            self.sampling["guidance"] = guidance
        self.folder: Path | None = None
        self._wanted = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not hasattr(pl_module, "generate"):
            raise ValueError(f"{type(pl_module).__name__} generates nothing: leave the callback Samples out")
        if "guidance" in self.sampling and not getattr(pl_module, "has_null", False):
            weight = self.sampling.pop("guidance")  # otherwise the first validation would end the run
            rank_zero_info(
                f"Samples draws without guidance {weight}: this {type(pl_module).__name__} is not trained both with "
                "classes and without them (class_dropout > 0)"
            )
        self.folder = log_folder(trainer) / "samples"

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._wanted = trainer.is_global_zero and self.is_due(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # Not at the end of the epoch: there the EMA callback may have put the raw weights back already.
        if not self._wanted or dataloader_idx > 0:
            return
        self._wanted = False
        with trainer.precision_plugin.forward_context():
            pictures = self.draw(pl_module, batch, getattr(trainer.datamodule, "class_names", None))
        assert self.folder is not None
        for name, rows in pictures.items():
            picture = image_rows(rows)
            write_picture_whole(self.folder / f"step_{trainer.global_step:06d}_{name}.png", picture)
            log_picture(trainer, f"val/{name}", picture)

    def draw(
        self, model: Any, batch: dict[str, Any], class_names: list[str] | None = None
    ) -> dict[str, dict[str, Float[Tensor, "b 3 h w"]]]:
        """The rows of each picture.

        Args:
            model: with ``generate``; its tokens decode to pixels.
            batch: of validation.
            class_names: of the model's classes.
        """
        if model.spec.decodes != "pixels":
            return {}
        if getattr(model, "condition_tokens", 0):
            return {"conditions": self._after_conditions(model, batch)}
        count = model.num_classes
        classes = [count * i // min(count, self.max_classes) for i in range(min(count, self.max_classes))] or [None]
        names = [f"class {c}" if class_names is None else class_names[c] for c in classes] if count else ["samples"]
        labels = [c for c in classes for _ in range(self.per_class)] if count else None
        images = model.generate(labels, len(classes) * self.per_class, seed=self.seed, **self.sampling)
        pictures = {"classes": dict(zip(names, images.split(self.per_class), strict=True))}
        if hasattr(model, "inpaint") and self.completions and "image" in batch:
            pictures["completion"] = self._completion(model, batch)
        if hasattr(model, "decoding_steps"):
            shown = classes[:STRIPS] if count else None
            pictures["steps"] = model.decoding_steps(
                shown, STRIPS if shown is None else None, seed=self.seed, **self.sampling
            )
        return pictures

    def _after_conditions(self, model: Any, batch: dict[str, Any]) -> dict[str, Float[Tensor, "b 3 h w"]]:
        """What follows the batch's first conditions, below these where they are images."""
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
