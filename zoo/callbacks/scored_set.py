"""The base of callbacks that go through a validation or test set with the model and measure it.

What they share is here: which validations and batches they take part in, under which weights and precision, what each
rank does, where files go, and the record of a test. A callback holds its measure alone.
"""

import time
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from zoo.callbacks.ema import weights_of_validation
from zoo.callbacks.pictures import log_picture
from zoo.callbacks.validations import EveryFewValidations
from zoo.files.atomic import write_picture_whole
from zoo.init_args import to_plain_data
from zoo.metrics.entries import places_of
from zoo.metrics.evaluate import data_facts
from zoo.metrics.record import environment, write
from zoo.runs.folder import log_folder
from zoo.tokens.batch import Batch

Stage = Literal["val", "test"]
#: Lightning's names of precisions -> those of the benchmarks
PRECISIONS = {"32-true": "32", "bf16-mixed": "bf16", "16-mixed": "16"}


class ScoredSet(EveryFewValidations, Callback):
    """Measure a model on the images of the first validation or test loader, and log ``val/...`` and ``test/...``.

    A subclass implements :meth:`begin`, :meth:`take` and :meth:`finish`, and :meth:`check_model` where not every model
    can be measured. All four are called on every rank; whoever writes files asks ``trainer.is_global_zero``. Batches
    come under the trainer's precision and, in training, with the weights of validation, which are the averaged ones
    where the callback EMA is used.
    """

    every_n_validations = 1
    #: whether the few batches that Lightning validates before training are taken, too
    in_sanity_check: ClassVar[bool] = False
    #: whether ``finish`` asks the model, and so needs the weights of validation
    asks_model_at_end: ClassVar[bool] = False
    #: the values to show in the progress bar
    in_progress_bar: ClassVar[tuple[str, ...]] = ()
    #: the folder of its pictures and texts, inside the log folder
    subfolder: ClassVar[str] = ""

    folder: Path | None = None
    run_folder: Path | None = None
    _active = False
    _started = 0.0

    # ------------------------------------------------------------------ what a subclass implements

    def check_model(self, model: LightningModule, stage: str) -> None:
        """Refuse a model that cannot be measured, before the first step.

        Args:
            model: to be measured.
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            ValueError: saying what it lacks.
        """

    def begin(self, stage: Stage, trainer: Trainer, model: Any) -> bool:
        """Forget the last set; returns whether this one is measured."""
        raise NotImplementedError

    def take(self, stage: Stage, trainer: Trainer, model: Any, batch: Batch) -> None:
        """Add a batch."""
        raise NotImplementedError

    def finish(self, stage: Stage, trainer: Trainer, model: Any) -> dict[str, float]:
        """Values of the whole set, name -> number, to be logged; ranks that agree return the same ones."""
        raise NotImplementedError

    # ------------------------------------------------------------------ what a subclass uses

    def places(self, batch: Batch, count: int) -> list[int | None]:
        """Places of the first images of a batch in the data set, None where the data module does not say."""
        return places_of(batch, count)

    def write_picture(self, trainer: Trainer, name: str, picture: Any, file: str = "") -> None:
        """Write ``step_NNNNNN[_FILE].png`` into the callback's folder, and show it in loggers of images as ``name``."""
        if trainer.is_global_zero and self.folder is not None:
            suffix = f"_{file}" if file else ""
            write_picture_whole(self.folder / f"step_{trainer.global_step:06d}{suffix}.png", picture)
            log_picture(trainer, name, picture)

    def write_record(
        self,
        trainer: Trainer,
        model: Any,
        benchmark: str,
        file: str,
        metrics: dict[str, float],
        num_images: int,
        protocol: dict[str, Any],
        size: tuple[int, ...] | None = None,
    ) -> None:
        """Write the record of a test, as the benchmark of that name writes it, into the log folder.

        Args:
            trainer: of the test.
            model: that was measured.
            benchmark: name of the script in ``benchmarks/``.
            file: name of the file.
            metrics: name -> value.
            num_images: that were measured.
            protocol: what the values depend on.
            size: of the images in pixels, for the description of the data.
        """
        if not trainer.is_global_zero or self.run_folder is None or trainer.fast_dev_run:
            return
        data: Any = trainer.datamodule
        facts = {"class": "none"} if data is None else data_facts(data)
        shape = f", {'x'.join(map(str, size))} px" if size else ""
        start = trainer.ckpt_path
        record = {
            "benchmark": benchmark,
            "status": "ok",
            "model": type(model).__name__ if start is None else f"ckpt:{start}",
            "data": f"{facts['class']} test{shape}",
            "metrics": metrics,
            "n": num_images,
            "protocol": {**protocol, "data": facts, "ranks": trainer.world_size},
            "environment": environment(str(model.device), precision_of(trainer)),
            "seconds": round(time.perf_counter() - self._started, 2),
        }
        write(to_plain_data(record), self.run_folder / file)

    def _stop(self) -> None:
        """Take no more batches of this set, and finish it with no values."""
        self._active = False

    # ------------------------------------------------------------------ the hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.check_model(pl_module, stage)
        self.run_folder = log_folder(trainer)
        self.folder = self.run_folder / self.subfolder

    def _begin(self, stage: Stage, trainer: Trainer, model: Any) -> None:
        due = stage == "test" or self.is_due(trainer) or (trainer.sanity_checking and self.in_sanity_check)
        self._started = time.perf_counter()
        self._active = due and self.begin(stage, trainer, model)

    def _take(self, stage: Stage, trainer: Trainer, model: Any, batch: Batch, dataloader_idx: int) -> None:
        # At the end of a validation the EMA callback may have put the raw weights back already.
        if self._active and dataloader_idx == 0:
            with trainer.precision_plugin.forward_context():  # callbacks run outside of autocast otherwise
                self.take(stage, trainer, model, batch)

    def _finish(self, stage: Stage, trainer: Trainer, model: Any) -> None:
        if not self._active:
            return
        self._active = False
        if self.asks_model_at_end:
            with weights_of_validation(trainer, model), torch.no_grad(), trainer.precision_plugin.forward_context():
                values = self.finish(stage, trainer, model)
        else:
            values = self.finish(stage, trainer, model)
        for name, value in values.items():
            shown = name in self.in_progress_bar
            model.log(f"{stage}/{name}", value, prog_bar=shown, batch_size=1, sync_dist=True)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("val", trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._take("val", trainer, pl_module, batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        self._finish("val", trainer, pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("test", trainer, pl_module)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._take("test", trainer, pl_module, batch, dataloader_idx)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish("test", trainer, pl_module)


def precision_of(trainer: Trainer) -> str:
    """The trainer's precision, as the benchmarks name it where they know it."""
    return PRECISIONS.get(str(trainer.precision), str(trainer.precision))
