"""The checkpoint that every run keeps: soon after the start, every few minutes, and at the end of each epoch."""

import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

SHARE = 20  # a pause between two saves is at least so many times as long as a save takes


class LastCheckpoint(ModelCheckpoint):
    """Overwrite ``last.ckpt`` at the end of every epoch, and within epochs by the clock.

    All ranks save after the same step: the first one looks at its clock now and then and tells the others.

    Args:
        dirpath: folder of the file; None takes that of the run, ``trainer.default_root_dir``.
        first_minutes: until the first save within an epoch.
        first_steps: the first save comes after so many steps, if that is sooner.
        every_minutes: between later ones.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        first_minutes: float = 0.5,
        first_steps: int = 100,
        every_minutes: float = 5.0,
    ):
        super().__init__(
            dirpath,
            filename="last",
            save_on_train_epoch_end=True,
            enable_version_counter=False,  # without a monitor, save_top_k=1 keeps the newest
        )
        self.first_minutes, self.first_steps, self.every_minutes = first_minutes, first_steps, every_minutes
        self._began = self._saved = 0.0
        self._cost: float | None = None
        self._first_step = self._look = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.dirpath is None:  # type: ignore[has-type] # set by Lightning, in a method that it types not
            self.dirpath = os.path.realpath(trainer.default_root_dir)
        super().setup(trainer, pl_module, stage)

    @property
    def state_key(self) -> str:
        """The key of Lightning's own callback, so that older checkpoints are resumed without a warning."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._began = self._saved = time.monotonic()
        self._cost = None
        self._first_step, self._look = trainer.global_step, trainer.global_step + 1
        self._last_global_step_saved = trainer.global_step  # a run that goes on has its checkpoint already

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step < self._look or self._should_skip_saving_checkpoint(trainer):
            return
        due, self._look = trainer.strategy.broadcast(self._plan(trainer.global_step, time.monotonic()))
        if due:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _plan(self, step: int, now: float) -> tuple[bool, int]:
        """Return whether a save is due, and the step at which to look at the clock again."""
        done, first = step - self._first_step, self._cost is None
        pause = max(60 * (self.first_minutes if first else self.every_minutes), SHARE * (self._cost or 0.0))
        due = now - self._saved >= pause or (first and done >= self.first_steps)
        left = 60 * self.every_minutes if due else pause - (now - self._saved)
        ahead = int(done / max(now - self._began, 1e-9) * left)
        look = step + min(max(1, ahead), max(10, done))  # the first steps tell little about the rate
        return due, min(look, self._first_step + self.first_steps) if first and not due else look

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        before = time.monotonic()
        super()._save_checkpoint(trainer, filepath)
        self._saved = time.monotonic()
        self._cost = self._saved - before
