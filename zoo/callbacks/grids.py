"""Pictures of what a model does with some validation images, and of how its losses went."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from zoo.callbacks.pictures import image_rows, line_plots, log_picture
from zoo.callbacks.validations import EveryFewValidations
from zoo.files.atomic import write_picture_whole
from zoo.metrics.reconstruction import reconstruct_batch
from zoo.runs.folder import log_folder
from zoo.runs.loggers import read_rows
from zoo.tokens import as_pixels


class ImageGrids(EveryFewValidations, Callback):
    """Write ``images/step_NNNNNN.png`` into the log folder, and to every logger that shows images.

    The images are spread evenly over the validation set (data sets are often sorted) and the same each time, so that
    pictures line up over a run. The rows are the
    original and its reconstruction, or what the model's ``picture_rows(images, batch) -> {name: images}`` returns. The
    weights are those of validation, so the averaged ones with EMA. At the end of ``fit``, ``curves.png`` shows every
    logged quantity (where a CSV logger is used).

    Args:
        num_images: columns of the picture.
        every_n_validations: draw in every n-th validation.
    """

    def __init__(self, num_images: int = 8, every_n_validations: int = 1):
        if num_images < 1 or every_n_validations < 1:
            raise ValueError(
                f"num_images and every_n_validations must be at least 1, got {num_images}, {every_n_validations}"
            )
        self.num_images, self.every_n_validations = num_images, every_n_validations
        self.folder: Path | None = None
        self._rows: dict[str, list[Tensor]] = {}
        self._wanted = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = log_folder(trainer) / "images"

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows = {}
        self._wanted = self.num_images if trainer.is_global_zero and self.is_due(trainer) else 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not self._wanted or dataloader_idx > 0 or "image" not in batch:
            return
        batches = trainer.num_val_batches[0]
        if batches == float("inf"):
            chosen = list(range(min(self._wanted, len(batch["image"]))))  # a stream: the first ones
        else:
            share = self.num_images * (batch_idx + 1) // batches - self.num_images * batch_idx // batches
            share = min(share, len(batch["image"]))
            chosen = [len(batch["image"]) * (2 * i + 1) // (2 * share) for i in range(share)]
        if not chosen:
            return
        some = {k: pick(v, chosen) for k, v in batch.items()}
        with trainer.precision_plugin.forward_context():
            rows = self._draw(pl_module, some)
        for name, images in rows.items():
            self._rows.setdefault(name, []).append(images.detach().float().clamp(0, 1).cpu())
        self._wanted -= len(chosen)

    def _draw(self, model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        if hasattr(model, "picture_rows"):
            return model.picture_rows(as_pixels(batch["image"]), batch)
        if getattr(model, "spec", None) is None or model.spec.decodes != "pixels":
            return {}
        originals, reconstructions, _ = reconstruct_batch(model, batch)
        return {"original": as_pixels(originals), "reconstruction": reconstructions}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        if not self._rows or self.folder is None:
            return
        picture = image_rows({name: torch.cat(parts) for name, parts in self._rows.items()})
        self._rows = {}
        write_picture_whole(self.folder / f"step_{trainer.global_step:06d}.png", picture)
        log_picture(trainer, "val/images", picture)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or self.folder is None:
            return
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()
                series = read_metrics(Path(logger.log_dir) / "metrics.csv")
                if series:
                    write_picture_whole(self.folder / "curves.png", line_plots(series))


def pick(values: Any, chosen: list[int]) -> Any:
    """The chosen entries of a batched value."""
    if isinstance(values, Tensor):
        return values[chosen]
    return [values[i] for i in chosen] if isinstance(values, list) else values


def read_metrics(path: Path) -> dict[str, list[tuple[float, float]]]:
    """The finite values in a CSV logger's file: quantity -> (step, value) pairs."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in read_rows(path):
        for name, value in row.items():
            if name not in ("step", "epoch") and math.isfinite(float(value)):
                series.setdefault(name, []).append((float(row["step"]), float(value)))
    return series
