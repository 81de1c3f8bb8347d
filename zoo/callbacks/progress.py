"""The display of a run while it goes: its networks, whether it validates, and one bar over all of its steps."""

import os
import shutil
import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, Timer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from zoo.module import ZooModule

INFINITE = float("inf")
FRESH = 0.2  # seconds between two looks at the metrics, which make a GPU wait


class RunProgress(ProgressBar):
    """One bar over all steps of a run, with the rate and the time that is left.

    Without a terminal, as in a log file, a line is printed now and then instead.

    Args:
        every: seconds between two such lines.
    """

    def __init__(self, every: float = 30.0):
        super().__init__()
        self.every = every
        self._enabled = True
        self._unit = "step"
        self._total: int | None = None
        self._bars: list[Any] = []
        #: when, and at which step, counting started: after the first step, which may compile or read files
        self._start: tuple[float, int] | None = None
        self._shown = self._said = 0.0
        self._epoch = 0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        if self._bars:
            self._bars[0].write(kwargs.get("sep", " ").join(map(str, args)), file=sys.stdout)
        elif self._enabled:
            print(*args, **kwargs)

    # ------------------------------------------------------------------ what Lightning calls

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open("step", finite(trainer.estimated_stepping_batches), trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._epoch = trainer.current_epoch + 1
        self._advance(trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bars:
            self._advance(trainer.global_step, at_once=True)
            self._close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._open("validate" if trainer.state.fn == "validate" else "validation", finite(sum(batches)))

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        self._advance(None)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open("test", finite(sum(trainer.num_test_batches)))

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        self._advance(None)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open("predict", finite(sum(trainer.num_predict_batches)))

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        self._advance(None)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        while self._bars:
            self._close()

    # ------------------------------------------------------------------ the bar and the lines

    def _open(self, what: str, total: int | None, done: int = 0) -> None:
        if what == "step":
            self._total, self._start, self._said = total, None, time.monotonic()
        if self._enabled and sys.stdout.isatty():
            from tqdm import tqdm

            counts = "{n_fmt}" if total is None else "{n_fmt}/{total_fmt} |{bar:24}|"
            self._bars.append(
                tqdm(
                    total=total,
                    initial=done,
                    desc=what,
                    bar_format=f"{{desc}} {counts}{{postfix}}",
                    leave=what != "validation",
                    ncols=None if has_size() else shutil.get_terminal_size().columns,
                    nrows=None if has_size() else shutil.get_terminal_size().lines,
                    dynamic_ncols=has_size(),
                    file=sys.stdout,
                    mininterval=FRESH,
                )
            )

    def _advance(self, step: int | None, at_once: bool = False) -> None:
        """Move the innermost bar: to a step of the run, or one batch further."""
        if not self._enabled:
            return
        now = time.monotonic()
        if step is not None and self._start is None:
            self._start = now, step
        if step is None:
            if self._bars:
                self._bars[-1].update(1)
        elif self._bars:
            bar = self._bars[-1]
            if at_once or now - self._shown >= FRESH:
                self._shown = now
                bar.set_postfix_str(self.state(step, now), refresh=False)
            bar.update(step - bar.n)
            if at_once:
                bar.refresh()
        elif not sys.stdout.isatty() and now - self._said >= self.every:
            self._said = now
            of = "" if self._total is None else f"/{self._total}"
            print(f"step {step}{of}, {self.state(step, now)}", flush=True)

    def _close(self) -> None:
        if self._bars:
            self._bars.pop().close()

    def state(self, step: int, now: float) -> str:
        """Rate, time left, epoch and the metrics that the model shows, as far as they are known."""
        from tqdm import tqdm

        started, first = self._start or (now, step)
        rate = (step - first) / (now - started) if step > first and now > started else 0.0
        parts = []
        if rate:
            parts.append(f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s/step")
            left = INFINITE if self._total is None else (self._total - step) / rate
            limits = [t.time_remaining() for t in self.trainer.callbacks if isinstance(t, Timer)]
            left = min([left, *(limit for limit in limits if limit is not None)])
            if left < INFINITE:
                parts.append(f"{tqdm.format_interval(left)} left")
        epochs = self.trainer.max_epochs
        parts.append(f"epoch {self._epoch}" + (f"/{epochs}" if epochs and epochs > 0 else ""))
        for name, value in self.trainer.progress_bar_metrics.items():
            parts.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
        return ", ".join(parts)


class RunStart(Callback):
    """Print, before the first step, the networks with their sizes, and whether the run will validate."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            print(networks_table(pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (said := no_validation(trainer)) is not None:
            rank_zero_info(said)


def networks_table(model: LightningModule) -> str:
    """The networks of a model, trained or frozen, with their numbers of parameters."""
    from zoo.runs.table import format_table

    rows = []
    parts = [*model.named_children(), *(model.frozen.items() if isinstance(model, ZooModule) else ())]
    own = [(name, p) for name, p in model.named_parameters() if "." not in name]
    for name, part in parts:
        rows.append(_row(name, type(part).__name__, list(part.parameters())))
    rows += [_row(name, "parameter", [p]) for name, p in own]
    rows = [row for row in rows if row[2] != "0"]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    every = {id(p): p.numel() for _, part in parts for p in part.parameters()}
    every |= {id(p): p.numel() for _, p in own}
    frozen = sum(every.values()) - trained
    total = f"{count(trained)} parameters are trained" + (f", {count(frozen)} are frozen" if frozen else "")
    return f"{format_table(('network', 'class', 'parameters', ''), rows)}\n{total}"


def _row(name: str, kind: str, parameters: list[nn.Parameter]) -> tuple[str, ...]:
    trained, every = sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)
    state = "trained" if trained == every else f"{count(trained)} trained" if trained else "frozen"
    return name, kind, count(every), state


def count(number: int) -> str:
    """A number of parameters in words: ``253 K``, ``86.5 M``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number < 1000 * size else f"{number / size:,.0f} {unit}"
    return str(number)


def has_size() -> bool:
    """Return whether the terminal tells its width; those that programs open may not."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns > 0
    except OSError:
        return False


def finite(number: float) -> int | None:
    """The number as an integer, None for an infinite one."""
    return None if number == INFINITE else int(number)


def no_validation(trainer: Trainer) -> str | None:
    """Say in one sentence why a run will never validate; None where it will, or where nobody knows."""
    total = finite(trainer.estimated_stepping_batches)
    if trainer.global_step or trainer.fast_dev_run:
        return None
    if trainer.limit_val_batches == 0:
        return "this run does not validate: trainer.limit_val_batches is 0"
    if trainer.val_dataloaders is not None and not sum(trainer.num_val_batches):  # None: not loaded yet
        return "this run does not validate: there are no images for it"
    if total is None or trainer.val_check_batch == INFINITE or trainer.num_training_batches == INFINITE:
        return None
    batches, gathered = trainer.num_training_batches, trainer.accumulate_grad_batches
    if trainer.check_val_every_n_epoch is None:
        first = trainer.val_check_batch // gathered
    else:
        in_epoch = trainer.val_check_batch
        steps = -(-in_epoch // gathered) if in_epoch == batches else in_epoch // gathered
        first = (trainer.check_val_every_n_epoch - 1) * -(-batches // gathered) + steps
    if first <= total:
        return None
    return (
        f"this run ends at step {total} without validating, which would first happen after step {first}: lengthen it, "
        f"or set --trainer.check_val_every_n_epoch=null --trainer.val_check_interval={max(1, total * gathered)}"
    )
