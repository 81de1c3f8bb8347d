"""Pictures of what a model does with some validation images, and of how its losses went."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from zoo.callbacks.pictures import image_rows, line_plots
from zoo.callbacks.scored_set import ScoredSet, Stage
from zoo.files.atomic import write_picture_whole
from zoo.metrics.entries import chosen_entries
from zoo.metrics.reconstruction import reconstruct_batch
from zoo.runs.loggers import read_rows
from zoo.tokens import Tokenizer, as_pixels
from zoo.tokens.abilities import PictureRows
from zoo.tokens.batch import Batch


class ImageGrids(ScoredSet):
    """Write ``images/step_NNNNNN.png`` into the log folder, and to every logger that shows images.

    The images are spread evenly over the validation set (data sets are often sorted) and the same each time, so that
    pictures line up over a run. The rows are the original and its reconstruction, or what the model's
    ``picture_rows(images, batch) -> {name: images}`` returns. The weights are those of validation, so the averaged ones
    with EMA. At the end of ``fit``, ``curves.png`` shows every logged quantity (where a CSV logger is used).

    Args:
        num_images: columns of the picture.
        every_n_validations: draw in every n-th validation.
    """

    subfolder = "images"

    def __init__(self, num_images: int = 8, every_n_validations: int = 1):
        if num_images < 1 or every_n_validations < 1:
            raise ValueError(
                f"num_images and every_n_validations must be at least 1, got {num_images}, {every_n_validations}"
            )
        self.num_images, self.every_n_validations = num_images, every_n_validations
        self._rows: dict[str, list[Tensor]] = {}
        self._wanted = self._batches = 0

    def begin(self, stage: Stage, trainer: Trainer, model: Any) -> bool:
        self._rows, self._wanted, self._batches = {}, self.num_images, 0
        return stage == "val" and trainer.is_global_zero

    def take(self, stage: Stage, trainer: Trainer, model: Any, batch: Batch) -> None:
        number, self._batches = self._batches, self._batches + 1
        if not self._wanted or "image" not in batch:
            return
        batches, size = trainer.num_val_batches[0], len(batch["image"])
        if batches == float("inf"):
            chosen = list(range(min(self._wanted, size)))  # a stream: the first ones
        else:
            share = int(self.num_images * (number + 1) // batches - self.num_images * number // batches)
            share = min(share, size)
            chosen = [size * (2 * i + 1) // (2 * share) for i in range(share)]
        if not chosen:
            return
        for name, images in self._draw(model, chosen_entries(batch, chosen)).items():
            self._rows.setdefault(name, []).append(images.detach().float().clamp(0, 1).cpu())
        self._wanted -= len(chosen)

    def _draw(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        if isinstance(model, PictureRows):
            return model.picture_rows(as_pixels(batch["image"]), batch)
        if not isinstance(model, Tokenizer) or model.spec is None or model.spec.decodes != "pixels":
            return {}
        originals, reconstructions, _ = reconstruct_batch(model, batch)
        return {"original": as_pixels(originals), "reconstruction": reconstructions}

    def finish(self, stage: Stage, trainer: Trainer, model: Any) -> dict[str, float]:
        if self._rows:
            picture = image_rows({name: torch.cat(parts) for name, parts in self._rows.items()})
            self.write_picture(trainer, "val/images", picture)
            self._rows = {}
        return {}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or self.folder is None:
            return
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()
                series = read_metrics(Path(logger.log_dir) / "metrics.csv")
                if series:
                    write_picture_whole(self.folder / "curves.png", line_plots(series))


def read_metrics(path: Path) -> dict[str, list[tuple[float, float]]]:
    """The finite values in a CSV logger's file: quantity -> (step, value) pairs."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in read_rows(path):
        for name, value in row.items():
            if name not in ("step", "epoch") and math.isfinite(float(value)):
                series.setdefault(name, []).append((float(row["step"]), float(value)))
    return series
