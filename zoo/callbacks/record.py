"""The record that a run keeps of itself, from the moment that it trains and not before."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from zoo.files.atomic import write_text_whole
from zoo.runs.folder import find_free_number, log_folder, move_aside
from zoo.runs.loggers import RunCSVLogger, RunTensorBoardLogger, read_rows, select_rows_to_keep

KEY = "metrics_file"


class RunRecord(SaveConfigCallback):
    """Write ``config.yaml`` and open the loggers in the folder of the run when training starts.

    A command that fails before that leaves the record of an earlier run as it is; a new run moves it aside, with its
    checkpoint. A run that goes on appends to the metrics that were there when its checkpoint was written, and replaces
    the configuration together with the checkpoint. Other commands write their configuration when they have ended well,
    and never that of a training.
    """

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self._said: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write nothing yet."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._said = checkpoint.get(KEY)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run_dir, log_dir = Path(trainer.default_root_dir), log_folder(trainer)
        own = [logger for logger in trainer.loggers if isinstance(logger, RunCSVLogger)]
        if trainer.is_global_zero:
            files = [Path(logger.log_dir) / "metrics.csv" for logger in own]
            before = [read_rows(file) for file in files]
            kept: list[Any] = [[] for _ in own]
            if trainer.ckpt_path is not None:
                kept = [select_rows_to_keep(rows, self._said, trainer.global_step) for rows in before]
            cut = kept != before
            goes_on = trainer.ckpt_path is not None and None not in kept
            goes_on = goes_on and _goes_on(Path(str(trainer.ckpt_path)), run_dir, cut)
            if not goes_on:
                moved = [to for folder in {run_dir, log_dir, *(f.parent for f in files)} for to in move_aside(folder)]
                if moved:
                    rank_zero_info(f"An earlier run was here; kept of it: {', '.join(str(to) for to in sorted(moved))}")
            for logger, rows in zip(own, kept, strict=True):
                logger.kept = rows or []
            if not goes_on or not (run_dir / "last.ckpt").exists():
                self._write(log_dir)
            else:
                self._write_after_saving(trainer, log_dir)
        for logger in trainer.loggers if trainer.ckpt_path is not None else []:
            if isinstance(logger, RunTensorBoardLogger):  # it hides what a killed run wrote after its checkpoint
                logger._kwargs.setdefault("purge_step", trainer.global_step)
        self._open(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING or not trainer.is_global_zero:
            return
        own = [logger for logger in trainer.loggers if isinstance(logger, RunCSVLogger) and logger.opened]
        if own:
            checkpoint[KEY] = own[0].state()

    def _write_after_saving(self, trainer: Trainer, folder: Path) -> None:
        """Replace the configuration once a checkpoint is there: beside the one before lies that of its training."""
        strategy = trainer.strategy
        save = strategy.save_checkpoint

        def save_and_write(*args: Any, **options: Any) -> None:
            save(*args, **options)
            strategy.save_checkpoint = save
            self._write(folder)

        strategy.save_checkpoint = save_and_write

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._open(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._write_beside(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_beside(trainer)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_beside(trainer)

    def _open(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, RunCSVLogger | RunTensorBoardLogger):
                logger.open()

    def _write_beside(self, trainer: Trainer) -> None:
        run_dir, log_dir = Path(trainer.default_root_dir), log_folder(trainer)
        if trainer.is_global_zero:
            assert trainer.state.fn is not None
            self._write(run_dir / trainer.state.fn.value if log_dir == run_dir else log_dir)

    def _write(self, folder: Path) -> None:
        path = folder / self.config_filename
        text = self.parser.dump(self.config, skip_none=False)
        before = path.read_text(encoding="utf-8") if path.exists() and (folder / "last.ckpt").exists() else None
        if before is not None and _settings(before) != _settings(text):
            write_text_whole(path.with_name(f"{path.stem}-{find_free_number(folder)}{path.suffix}"), before)
        write_text_whole(path, text)


def _goes_on(checkpoint: Path, run_dir: Path, cut: bool) -> bool:
    """Return whether a run continues the record of its folder rather than beginning one from an old checkpoint."""
    checkpoint, run_dir = checkpoint.resolve(), run_dir.resolve()
    if checkpoint == run_dir / "last.ckpt" or (
        checkpoint.parent == run_dir and checkpoint.name.startswith("hpc_ckpt_")
    ):
        return True
    return checkpoint.is_relative_to(run_dir) and not (run_dir / "last.ckpt").exists() and not cut


def _settings(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith(("ckpt_path:", "#"))]
