"""Stop a run whose loss is no longer a number, before anything is saved."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor


class DivergenceGuard(pl.Callback):
    """End the run with one sentence when the loss becomes infinite or NaN; the last good checkpoint stays.

    The first bad step is noted on the device and read only now and then, so that a GPU never waits for it.
    """

    def __init__(self) -> None:
        self._first: Tensor | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first = torch.full((), -1, dtype=torch.int64, device=pl_module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if self._first is None or not isinstance(loss, Tensor):
            return
        bad = ~loss.detach().isfinite().all() & (self._first < 0)
        self._first = torch.where(bad, trainer.global_step, self._first)
        if pl_module.device.type == "cpu" or (batch_idx + 1) % trainer.log_every_n_steps == 0:
            self._check(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check(trainer)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        self._check(trainer)

    def _check(self, trainer: pl.Trainer) -> None:
        if self._first is not None and (step := int(self._first)) >= 0:
            self._first = None  # an emergency checkpoint must not raise again
            raise ValueError(
                f"the loss is no longer finite at step {step}: lower the learning rate, warm up longer or clip "
                f"gradients (--trainer.gradient_clip_val=1); the last checkpoint before it is still in "
                f"{trainer.default_root_dir}"
            )
