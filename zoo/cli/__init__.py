"""The command line; see :mod:`zoo.cli.entry`, which needs neither torch nor Lightning to answer a question."""

from typing import Any

from zoo.cli.entry import main

__all__ = ["ZooCLI", "main"]


def __getattr__(name: str) -> Any:
    if name == "ZooCLI":  # which imports Lightning
        from zoo.cli.app import ZooCLI

        return ZooCLI
    raise AttributeError(f"module 'zoo.cli' has no attribute {name!r}")
