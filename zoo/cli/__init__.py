"""The command line: commands, recipes by name, errors in one sentence; :mod:`zoo.cli.entry` is where it starts."""

from typing import Any

from zoo.cli.entry import main

__all__ = ["ZooCLI", "main"]


def __getattr__(name: str) -> Any:
    if name == "ZooCLI":  # which imports Lightning
        from zoo.cli.app import ZooCLI

        return ZooCLI
    raise AttributeError(f"module 'zoo.cli' has no attribute {name!r}")
