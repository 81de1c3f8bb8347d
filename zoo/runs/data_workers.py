"""Processes that load images outlive the signals that stop their run, which still waits for what they read.

A terminal and a job scheduler send a signal to every process of a run. torch gives data workers a handler of its own
for SIGTERM, which ends them and with them the run, before it has saved anything.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

#: Ctrl-C, the end of a job or a container, a terminal that is closed
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextlib.contextmanager
def shield_new_workers(loader: DataLoader[Any]) -> Iterator[None]:
    """Let the workers that are started inside this block outlive every stopping signal, from their first moment on.

    They inherit that the signals are blocked, so that one which comes before their handler stands has to wait for it.
    Systems without ``sigwaitinfo`` (macOS, Windows) leave workers as torch makes them.

    Args:
        loader: whose workers are started; a ``worker_init_fn`` of its own is called as well.
    """
    if not loader.num_workers or not hasattr(signal, "sigwaitinfo"):
        yield
        return
    own = loader.worker_init_fn
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    loader.worker_init_fn = partial(_start_worker, own)
    try:
        yield
    finally:
        loader.worker_init_fn = own
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(own: Callable[[int], None] | None, worker: int) -> None:
    """Begin to take signals in a new worker; they stay blocked for its other threads."""
    threading.Thread(target=_take_signals, args=(os.getppid(),), daemon=True).start()
    if own is not None:
        own(worker)


def _take_signals(parent: int) -> None:
    """Take signals for ever; only SIGTERM from the process of the run, or where that has gone, ends the worker."""
    while True:
        received = signal.sigwaitinfo(STOPPING)
        if received.si_signo == signal.SIGTERM and (received.si_pid == parent or os.getppid() != parent):
            os._exit(0)  # as torch's handler does: with another code it would report an error
