"""Facts of a network that no tensor shows and ``config.json`` beside the weights states: heads, activations, norms."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.checkpoints.folders import read_json


def config_beside(path: Path) -> dict[str, Any]:
    """What ``config.json`` in the folder of the weights says; nothing where there is none.

    Raises:
        ValueError: for a file that holds no settings by name.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    return read_json(file) if file.is_file() else {}


def check_facts(config: Mapping[str, Any], facts: Mapping[str, tuple[Any, Any]], source: str = "") -> None:
    """Compare fields of a configuration with a model.

    Args:
        config: of the weights.
        facts: field -> (what it is where the configuration leaves it out, what the model has). A number of the model
            is also found in a pair of it, as sides of images and patches are written.
        source: name of the weights, for the message.

    Raises:
        ValueError: naming the first field that says something else than the model.
    """
    for name, (default, own) in facts.items():
        found = config.get(name, default)
        if found not in (own, [own, own]):
            of = f" of {source}" if source else " beside these weights"
            raise ValueError(f"config.json{of} says {name} {found!r}, and this model has {own!r}")
