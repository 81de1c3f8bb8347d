"""A module as a run sees it: its optimizer, the callbacks that every run has, and checkpoints that are read safely."""

import dataclasses
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torch import nn

from zoo.checkpoints.lightning_io import load_from_checkpoint, read_safely
from zoo.distributed import leave_group_at_exit
from zoo.optim import Optim, can_fuse, lr_factor, parameter_groups, settings_of
from zoo.runs.resuming import Resuming
from zoo.runs.untrained import UntrainedWarning


class RunModule(pl.LightningModule):
    """A module that is trained as an :class:`~zoo.optim.Optim` says and runs no program that a checkpoint asks for."""

    optim_settings: Optim

    # ------------------------------------------------------------------ parameters: hooks of a subclass

    def no_decay(self, name: str, parameter: nn.Parameter) -> bool:
        """Tell whether a matrix-shaped parameter is exempt from weight decay."""
        return False

    def layer_of(self, name: str) -> int:
        """Layer index of a parameter for layer-wise learning rates, 0 at the input."""
        raise ValueError(f"{type(self).__name__} has no layers for optim.layer_decay; set it to 1")

    def lr_scale(self, name: str) -> float:
        """Factor of the learning rate of a parameter, for parts that learn slower or faster than the others."""
        return 1.0

    @property
    def num_layers(self) -> int:
        """Index of the topmost layer group of :meth:`layer_of`."""
        return 0

    # ------------------------------------------------------------------ optimizer

    @property
    def lr(self) -> float:
        """Peak learning rate, where Lightning's search for one reads and writes it."""
        return self.optim_settings.lr

    @lr.setter
    def lr(self, value: float) -> None:
        self.optim_settings = self.hparams["optim"] = dataclasses.replace(self.optim_settings, lr=float(value))

    def parameter_groups(self, optim: Optim) -> list[dict[str, Any]]:
        """Divide the trained parameters into groups, as these settings say."""
        return parameter_groups(
            self.named_parameters(), optim, self.no_decay, self.layer_of, self.num_layers, self.lr_scale
        )

    def configure_optimizers(self) -> Any:
        """AdamW over :meth:`parameter_groups`, and its schedule, stepped once per optimizer step.

        Raises:
            ValueError: where the schedule needs the length of a run that has none.
        """
        optim, groups = self.optim_settings, self.parameter_groups(self.optim_settings)
        # In mixed precision Lightning refuses to clip the gradients of a fused optimizer, even without a scaler.
        clipped_mixed = bool(self.trainer.gradient_clip_val) and str(self.trainer.precision).endswith("-mixed")
        fused = not clipped_mixed and can_fuse(p for group in groups for p in group["params"])
        optimizer = torch.optim.AdamW(
            groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=fused or None
        )
        self.group_settings = [settings_of(group) for group in optimizer.param_groups]
        total = optim.total_steps or self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError("the run has no end: set trainer.max_steps, trainer.max_epochs or optim.total_steps")
        if optim.schedule == "cosine" and 0 < optim.lr < optim.min_lr:
            rank_zero_info(
                f"optim.lr {optim.lr:g} is below optim.min_lr {optim.min_lr:g}: the rate stays at {optim.lr:g}"
            )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(optim, int(total)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}

    # ------------------------------------------------------------------ callbacks and checkpoints

    def configure_callbacks(self) -> list[pl.Callback]:
        """Add the callbacks of every run: one that resumes it exactly, and one that warns of random weights."""
        there = [] if self._trainer is None else [type(callback) for callback in self._trainer.callbacks]
        return [callback() for callback in (Resuming, UntrainedWarning) if callback not in there]

    @property
    def trainer(self) -> pl.Trainer:
        """The trainer, which from the moment it meets this module reads checkpoints safely and ends its group."""
        return super().trainer

    @trainer.setter
    def trainer(self, trainer: pl.Trainer | None) -> None:
        pl.LightningModule.trainer.fset(self, trainer)
        if isinstance(trainer, pl.Trainer):
            read_safely(trainer)
            leave_group_at_exit()

    @_restricted_classmethod  # type: ignore[untyped-decorator]
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **overrides: Any,
    ) -> Any:
        """Read a checkpoint as Lightning does; see :func:`zoo.checkpoints.lightning_io.load_from_checkpoint`.

        Nothing but tensors and plain data is ever read, whatever ``weights_only`` says.
        """
        return load_from_checkpoint(cls, checkpoint_path, map_location, hparams_file, strict, **overrides)
