"""A run that is told to stop saves where it is, says how to go on, and ends with the exit code of the signal."""

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer

from zoo.distributed import exit_code_of_rank
from zoo.runs.data_workers import STOPPING
from zoo.runs.folder import display_path

NOTHING, REQUEUE, STOP = 0, 1, 2


class Interrupted(SystemExit):
    """A signal ended the run; the exit code is 128 and its number, as of a program that has died of it."""


@runtime_checkable
class EndsProcesses(Protocol):
    """A launcher of Lightning that can end the processes that it started."""

    def kill(self, signum: Any) -> None:
        """Send a signal to all of them."""
        ...


class StopOnSignal(Callback):
    """Save and stop after the step at which Ctrl-C, SIGTERM or SIGHUP arrives; a second signal ends at once.

    All ranks stop after the same step, whichever of them is told. A validation is cut short, and done again by the run
    that goes on. Under SLURM the signal of Lightning's automatic requeueing is answered between two steps as well,
    where the state is one that training can go on from.

    Args:
        arguments: of the command line, as typed, for the command that goes on.
    """

    def __init__(self, arguments: Sequence[str] | None = None):
        self.arguments = None if arguments is None else list(arguments)
        self._received: int | None = None
        self._requeue: Callable[[], Any] | None = None
        self._previous: dict[int, Any] = {}
        self._trainer: Trainer | None = None
        self._training = False
        self._process = os.getpid()

    # ------------------------------------------------------------------ signals

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Lightning's handler talks to other ranks in the middle of a step, and is passed on to data workers.
        self._trainer, self._process = trainer, os.getpid()
        connector = trainer._signal_connector
        register = type(connector).register_signal_handlers

        def register_ours() -> None:
            register(connector)
            self._listen(trainer)

        connector.register_signal_handlers = register_ours

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = True

    def _listen(self, trainer: Trainer) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOPPING:
            if (before := signal.getsignal(number)) not in (signal.SIG_IGN, self._handle, None):
                self._previous[number] = trainer._signal_connector._original_handlers.get(number, before)
                signal.signal(number, self._handle)
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            number = environment.requeue_signal or signal.SIGUSR1
            if callable(requeue := signal.getsignal(number)):
                self._previous[number] = trainer._signal_connector._original_handlers.get(number, signal.SIG_DFL)
                signal.signal(number, lambda *received: self._handle_requeue(requeue, *received))

    def _handle_requeue(self, requeue: Callable[..., Any], *received: Any) -> None:
        if os.getpid() == self._process:
            self._requeue = lambda: requeue(*received)

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # forked, with no run of its own to stop
            return
        again, self._received = self._received is not None, number
        if again or not self._training:
            launcher = None if self._trainer is None else self._trainer.strategy.launcher
            if isinstance(launcher, EndsProcesses):
                launcher.kill(signal.SIGKILL if again else signal.SIGTERM)
            if again:
                os._exit(128 + number)
            raise self._exception()
        if self._trainer is None or self._trainer.is_global_zero:
            with contextlib.suppress(OSError):  # not by print, which the signal may have interrupted
                os.write(2, f"\n{signal.Signals(number).name}: stopping after this step; again: at once\n".encode())

    def _exception(self) -> Interrupted:
        assert self._trainer is not None
        assert self._received is not None
        return Interrupted(exit_code_of_rank(self._trainer, 128 + self._received))

    # ------------------------------------------------------------------ between two steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        asked = STOP if self._received is not None else REQUEUE if self._requeue is not None else NOTHING
        if trainer.world_size > 1:
            codes = torch.tensor(asked, device=trainer.strategy.root_device)
            asked = int(trainer.strategy.reduce(codes, reduce_op="max"))
        if asked == REQUEUE:
            answer, self._requeue = self._requeue, None
            if answer is not None:
                answer()
        elif asked == STOP:
            self._received = self._received or signal.SIGTERM
            raise self._exception()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # ranks may have different numbers of validation batches: there the next step is waited for
        if self._training and self._received is not None and trainer.world_size == 1:
            raise self._exception()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Interrupted):
            said = f"interrupted by {signal.Signals(self._received or signal.SIGTERM).name}"
            said += f" after step {trainer.global_step}" if self._training else ""
            if not self._training or not trainer.checkpoint_callbacks or trainer.fast_dev_run:
                said += ", nothing was saved"
            else:
                path = display_path(Path(trainer.default_root_dir) / "last.ckpt")
                trainer.save_checkpoint(path, weights_only=False)
                said += f", saved {path}"
                said += "" if self.arguments is None else f"; go on with: {self.command(path)}"
            if trainer.is_global_zero:
                with contextlib.suppress(OSError):  # the terminal may be gone
                    print(f"\n{said}", file=sys.stderr, flush=True)
        self._restore()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()

    def _restore(self) -> None:
        if self._trainer is not None:
            vars(self._trainer._signal_connector).pop("register_signal_handlers", None)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous, self._received, self._training = {}, None, False

    def command(self, checkpoint: Path) -> str:
        """The command that goes on from a checkpoint, with the flags that were typed, ready for a shell."""
        kept, skip = [], False
        for argument in self.arguments or []:
            if not skip and not argument.startswith("--ckpt_path="):
                skip = argument == "--ckpt_path"
                kept += [] if skip else [argument]
            else:
                skip = False
        return shlex.join(["lightning", *kept, "--ckpt_path", str(checkpoint)])
