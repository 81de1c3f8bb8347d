"""Options that several benchmark scripts share: the data module and its arguments."""

import argparse
from typing import Any

import yaml


def parse_data_arguments(parser: argparse.ArgumentParser, rest: list[str]) -> dict[str, Any]:
    """Read ``--data.KEY VALUE`` and ``--data.KEY=VALUE`` as constructor arguments; the parser ends at anything else."""
    words = [part for word in rest for part in (word.split("=", 1) if word.startswith("--data.") else [word])]
    keys, values = words[::2], words[1::2]
    if len(keys) != len(values) or not all(key.startswith("--data.") for key in keys):
        parser.error(f"cannot read {' '.join(rest)}: arguments of the data module are written --data.KEY VALUE")
    return {key.removeprefix("--data."): yaml.safe_load(value) for key, value in zip(keys, values, strict=True)}


def make_data(name: str, arguments: dict[str, Any], **usual: Any) -> Any:
    """Build a data module.

    Args:
        name: of a class in ``datamodules``.
        arguments: of its constructor, as they were given.
        usual: what holds for arguments that were not given; None is left out.

    Raises:
        ValueError: there is no such data module.
        TypeError: it takes no argument of that name.
    """
    from lightning.pytorch import LightningDataModule

    import datamodules
    from zoo.choices import suggest_nearest
    from zoo.init_args import check_overrides

    cls = getattr(datamodules, name, None)
    if not isinstance(cls, type) or not issubclass(cls, LightningDataModule):
        known = [known for known in datamodules.__all__ if known != "ZooDataModule"]
        there_are = suggest_nearest(name, known) or f"there are {', '.join(known)}"
        raise ValueError(f"there is no data module {name!r}: {there_are}")
    check_overrides(cls, arguments)
    return cls(**{key: value for key, value in usual.items() if value is not None} | arguments)
