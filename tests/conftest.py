"""What holds for every test: fixed seeds, one thread, no network, nothing left behind."""

import os

# before torch and transformers are imported; two workers of pytest share two cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("TOKENZOO_TRACEBACK", None)

import logging
import random
import socket
import sys
import warnings

import numpy as np
import pytest
import torch

LOCAL = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def _seeds():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries draw from it
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def local_connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and str(address[0]) not in LOCAL:
            raise RuntimeError(f"tests have no network, something connects to {address}")
        return connect(self, address)

    def local_lookup(host, *args, **kwargs):
        if host is not None and str(host) not in (*LOCAL, socket.gethostname()):
            raise RuntimeError(f"tests have no network, something looks up {host}")
        return lookup(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", local_connect)
    monkeypatch.setattr(socket, "getaddrinfo", local_lookup)


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    """An empty working directory, and the import path as it was afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture
def said(caplog):
    """All that was logged until it is called."""
    caplog.set_level(logging.INFO)
    return lambda: " | ".join(record.getMessage() for record in caplog.records)


@pytest.fixture
def marker(tmp_path):
    """What a program inside a file would make, and must not."""
    path = tmp_path / "it_ran"
    yield path
    assert not path.exists()


@pytest.fixture
def run_cli(in_tmp, capsys):
    """Call the command line in an empty folder; gives the exit code (0 when it returns), stdout and stderr."""
    from zoo.cli import main

    def run(*args):
        code = 0
        with warnings.catch_warnings():
            try:
                assert main([str(a) for a in args]) is None
            except SystemExit as stop:
                code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def recipe(in_tmp):
    from command_line import RECIPE

    (in_tmp / "toy.yaml").write_text(RECIPE)
    return "toy.yaml"
