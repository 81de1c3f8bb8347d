"""The optimizer's side of a module: which parameters it trains, how fast, and by which schedule."""

import dataclasses
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from zoo.optim import Optim, can_fuse, lr_factor, parameter_groups, settings_of


class OptimisedModule(pl.LightningModule):
    """A module that is trained as an :class:`~zoo.optim.Optim` says; the hooks divide its parameters."""

    optim_settings: Optim

    def no_decay(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether a matrix-shaped parameter is exempt from weight decay."""
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

    @property
    def lr(self) -> float:
        """Peak learning rate, where Lightning's search for one reads and writes it."""
        return self.optim_settings.lr

    @lr.setter
    def lr(self, value: float) -> None:
        self.optim_settings = self.hparams["optim"] = dataclasses.replace(self.optim_settings, lr=float(value))

    def parameter_groups(self, optim: Optim) -> list[dict[str, Any]]:
        """The trained parameters in groups, as these settings divide them."""
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
