"""Stop a run whose loss or weights are no longer numbers, before anything is saved."""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from zoo.callbacks.summary import last_checkpoint
from zoo.choices import shorten_list
from zoo.runs.folder import display_path
from zoo.tokens.precision import names_where

REMEDY = "lower the learning rate, warm up longer or clip gradients (--trainer.gradient_clip_val=1)"


class DivergenceGuard(pl.Callback):
    """End the run with one sentence when loss or weights become infinite or NaN; the last good checkpoint stays.

    The first bad step is noted on the device and read only now and then, so that a GPU never waits for it. Weights are
    looked at before each checkpoint: a gradient that is no number spoils them behind a loss that still was one.
    """

    def __init__(self) -> None:
        self._first: Tensor | None = None
        self._stopped = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first = torch.full((), -1, dtype=torch.int64, device=pl_module.device)
        self._stopped = False

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
        if not self._stopped and (names := not_finite(pl_module)):
            self._stopped = True  # an emergency checkpoint must not raise again
            raise ValueError(
                f"weights are no longer finite at step {trainer.global_step} ({shorten_list(names, most=3)}): "
                f"{REMEDY}; {_kept(trainer)}"
            )

    def _check(self, trainer: pl.Trainer) -> None:
        if self._first is not None and not self._stopped and (step := int(self._first)) >= 0:
            self._stopped = True
            raise ValueError(f"the loss is no longer finite at step {step}: {REMEDY}; {_kept(trainer)}")


def _kept(trainer: pl.Trainer) -> str:
    path = last_checkpoint(trainer)
    return f"the last checkpoint before it is {display_path(path)}" if path else "nothing was saved before it"


@torch.no_grad()
def not_finite(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers that a checkpoint holds and that have an infinite or NaN entry.

    Frozen parameters are left out: nothing has changed them.
    """
    return names_where({name: ~value.isfinite().all() for name, value in _stored(model)})


def _stored(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}".lstrip("."), buffer
