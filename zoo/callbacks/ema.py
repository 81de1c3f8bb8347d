"""Exponential moving average of the parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from zoo.frozen import FrozenNetworks
from zoo.module import ZooModule


class EMA(EMAWeightAveraging):
    """Average the trained parameters, ``a <- d a + (1 - d) p``, after optimizer steps.

    Validation, checkpoints (``state_dict``) and the model at the end of ``fit`` have the averaged weights; the raw ones
    are kept beside them to resume exactly. Against Lightning's own callback: only trained parameters are averaged;
    buffers and frozen parameters are copied, because an average of integer counters or of the running sums of a
    quantizer means nothing; frozen towers (``ZooModule.frozen``) are shared instead of copied; the average lives on
    the training device; an optimizer step is counted once, also with several optimizers or gradient accumulation.

    Args:
        decay: d. DALL-E: 0.999 (Section A.2).
        warmup: use ``min(decay, (1 + n) / (10 + n))`` at the n-th update, so that short runs do not end on an average
            with their initial weights; it reaches 0.999 after 9,000 updates. Off: d from the second update on.
        update_every_n_steps: average at every n-th optimizer step, starting with the first.
        update_starting_at_step: leave out the optimizer steps before this one.
    """

    def __init__(
        self,
        decay: float = 0.999,
        warmup: bool = True,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
    ):
        if not 0 <= decay <= 1:
            raise ValueError(f"the decay of EMA must lie in [0, 1], got {decay}")
        if update_every_n_steps < 1:
            raise ValueError(f"update_every_n_steps must be at least 1, got {update_every_n_steps}")
        super().__init__(
            use_buffers=False,
            decay=decay,
            update_every_n_steps=update_every_n_steps,
            update_starting_at_step=update_starting_at_step,
        )
        self.decay, self.warmup = decay, warmup
        self._steps = 0
        self._swapped = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        model: Any = pl_module
        frozen = model.frozen if isinstance(model, ZooModule) else FrozenNetworks()
        model.frozen = FrozenNetworks()
        try:
            # The model itself moves to its device only after this hook.
            self._average_model: _AveragedParameters | None = _AveragedParameters(
                pl_module, trainer.strategy.root_device, self.decay, self.warmup
            )
        finally:
            model.frozen = frozen
        average: Any = self._average_model.module
        average.frozen = frozen
        self._steps, self._latest_update_step = 0, trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._latest_update_step:
            return  # gradients are still being accumulated
        self._latest_update_step = trainer.global_step
        if self.should_update(step_idx=self._steps):
            assert self._average_model is not None
            self._average_model.update_parameters(pl_module)
        self._steps += 1

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._catch_up(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._catch_up(pl_module)
        super().on_train_end(trainer, pl_module)

    def _catch_up(self, pl_module: LightningModule) -> None:
        """Make the average equal to the model before its first update, not to the initial weights."""
        if self._average_model is not None and self._average_model.n_averaged == 0:
            self._average_model.copy_from(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the raw weights back where a validation was interrupted."""
        if self._swapped:
            self._swap_models(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._average_model = None  # a later validation of this trainer must not put these weights in again
            self._swapped = False

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._steps = state_dict["steps"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average_model is not None:  # else: test or predict, and state_dict holds the averaged weights
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average_model is not None:  # else: after fit, and the model holds the averaged weights
            self._catch_up(pl_module)
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def _swap_models(self, pl_module: LightningModule) -> None:
        super()._swap_models(pl_module)
        self._swapped = not self._swapped


@contextmanager
def weights_of_validation(trainer: Trainer, model: LightningModule) -> Iterator[None]:
    """The averaged weights once more, where EMA has put the raw ones back already."""
    averages = (c for c in trainer.callbacks if isinstance(c, EMA) and c._average_model is not None and not c._swapped)
    if (ema := next(averages, None)) is not None:
        ema._swap_models(model)
    try:
        yield
    finally:
        if ema is not None:
            ema._swap_models(model)


class _AveragedParameters(AveragedModel):
    """A copy of a model whose trained parameters are averaged and whose other tensors are copied."""

    def __init__(self, model: nn.Module, device: torch.device, decay: float, warmup: bool):
        super().__init__(model, device)
        self.decay, self.warmup = decay, warmup

    @torch.no_grad()
    def copy_from(self, model: nn.Module) -> None:
        """Take over all tensors of the model."""
        for average, current in zip(_tensors(self.module), _tensors(model), strict=True):
            average.copy_(current)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """One step of the average; the first one takes over the model."""
        n = int(self.n_averaged)
        self.n_averaged += 1
        if n == 0:
            self.copy_from(model)
            return
        decay = min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay
        averages, currents = [], []
        for average, current in zip(_tensors(self.module), _tensors(model), strict=True):
            if current.requires_grad:
                averages.append(average.data)
                currents.append(current.data)
            else:
                average.copy_(current)
        torch._foreach_lerp_(averages, currents, 1 - decay)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
