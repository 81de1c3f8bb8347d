"""One line at the end of a run: what was reached, where it is, what to do next."""

import shlex
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from zoo.runs.folder import display_path, log_folder

METRICS = ("val/psnr", "val/codebook_usage", "val/perplexity", "val/accuracy", "val/loss", "train/loss")


class RunSummary(Callback):
    """Print what ``fit`` reached, where the checkpoint and the pictures are, and the command to test it.

    Args:
        recipe: what was run, one file or several, for the command that is printed where the run wrote no configuration.
        metrics: those of the logged metrics to print, in this order.
    """

    def __init__(self, recipe: str | list[str] | None = None, metrics: tuple[str, ...] = METRICS):
        self.recipe = [recipe] if isinstance(recipe, str) else list(recipe or [])
        self.metrics = tuple(metrics)
        self._validated: int | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validated = trainer.global_step

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = log_folder(trainer)
        if trainer.is_global_zero:
            print(f"\n{self.line(trainer, folder)}")

    def line(self, trainer: Any, folder: Path) -> str:
        """The line that is printed."""
        logged = trainer.callback_metrics
        reached = ", ".join(f"{name} {float(logged[name]):.4g}" for name in self.metrics if name in logged)
        earlier = self._validated not in (None, trainer.global_step)  # max_steps may end a run between validations
        when = f" (validated at step {self._validated})" if earlier else ""
        steps = "1 step" if trainer.global_step == 1 else f"{trainer.global_step} steps"
        parts = [f"{steps}{when}: {reached or 'no metrics were logged'}"]
        checkpoint = last_checkpoint(trainer)
        if checkpoint:
            parts.append(f"checkpoint {display_path(checkpoint)}")
        if (folder / "images").is_dir():
            parts.append(f"pictures {folder / 'images'}")
        if checkpoint:
            written = written_config(trainer, folder)
            configs = self.recipe if written is None else [str(display_path(written))]
            options = [word for config in configs or ["RECIPE"] for word in ("--config", config)]
            command = shlex.join(["lightning", "test", *options, "--ckpt_path", str(display_path(checkpoint))])
            parts.append(f"next: {command}")
        elif own := trainer.checkpoint_callback:
            monitor = own.monitor if isinstance(own, ModelCheckpoint) else None
            parts.append("no checkpoint was saved" + (f": the recipe's own waits for {monitor!r}" if monitor else ""))
        return "; ".join(parts)


def written_config(trainer: Any, folder: Path) -> Path | None:
    """The configuration that this run wrote into its log folder, flags included; None for a run from Python."""
    from lightning.pytorch.cli import SaveConfigCallback

    writer = next((c for c in trainer.callbacks if isinstance(c, SaveConfigCallback)), None)
    path = None if writer is None else folder / writer.config_filename
    return path if path is not None and path.is_file() else None


def last_checkpoint(trainer: Any) -> str:
    """The best checkpoint where a metric is monitored, otherwise the last one; empty where none is there."""
    callback = trainer.checkpoint_callback
    paths = (callback.best_model_path, callback.last_model_path) if isinstance(callback, ModelCheckpoint) else ()
    return next((str(path) for path in paths if path and ("://" in str(path) or Path(path).exists())), "")
