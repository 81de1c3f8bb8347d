"""Processes that load images outlive the signals that stop their run, which still waits for what they read."""

import os
import signal
import time
from multiprocessing import util

import pytest
import torch
from torch.utils.data import Dataset

from datamodules.base import GoodBatches

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal():
    """A background process starts with some of them ignored."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Images(Dataset):
    """Eight of them; the worker that reads the third gets a signal, or sleeps."""

    def __init__(self, number=None, sleeps=0.0):
        self.number, self.sleeps = number, sleeps

    def __len__(self):
        return 8

    def __getitem__(self, i):
        if i == 2 and self.number is not None:
            os.kill(os.getpid(), self.number)
        time.sleep(self.sleeps)
        return torch.tensor(i)


class WorkersGet:
    """Sends a signal to every worker before the first line of torch runs in it, and after the fork."""

    def __init__(self, number):
        self.number = number
        util.register_after_fork(self, lambda own: os.kill(os.getpid(), own.number))


def read(loader):
    return [int(value) for batch in loader for value in batch]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_a_worker_starts_does_not_end_it(number):
    sends = WorkersGet(number)
    assert read(GoodBatches(Images(), num_workers=2, batch_size=2)) == list(range(8))
    del sends


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_a_worker_reads_does_not_end_it(number):
    loader = GoodBatches(Images(number), num_workers=2, batch_size=2, persistent_workers=True)
    assert read(loader) == read(loader) == list(range(8))


def test_the_process_itself_gets_its_signals_as_before():
    got = []
    signal.signal(signal.SIGTERM, lambda *received: got.append(received[0]))
    batches = iter(GoodBatches(Images(), num_workers=1, batch_size=2))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    os.kill(os.getpid(), signal.SIGTERM)
    assert got == [signal.SIGTERM]
    assert len(list(batches)) == 4


def test_a_worker_ends_at_once_when_its_own_process_says_so():
    loader = GoodBatches(Images(sleeps=60), num_workers=1, batch_size=2, persistent_workers=True)
    batches = iter(loader)
    worker = loader._iterator._workers[0]
    time.sleep(0.5)  # it reads
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == 0
    del batches


def test_the_start_of_workers_that_a_program_asks_for_is_kept():
    class Started(Images):
        start = -1

        def __getitem__(self, i):
            return torch.tensor(self.start)

    def note_start(worker):
        torch.utils.data.get_worker_info().dataset.start = worker

    loader = GoodBatches(Started(), num_workers=2, batch_size=4, worker_init_fn=note_start)
    assert read(loader) == [0] * 4 + [1] * 4
    assert loader.worker_init_fn is note_start
