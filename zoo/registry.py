"""The registry: models are created by name, from presets and from checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.checkpoints.files import Checkpoint, read_checkpoint
from zoo.checkpoints.load import load_into, pickled_classes
from zoo.checkpoints.size import check_size
from zoo.init_args import as_init_args, check_overrides, migrate_and_say, typed_arguments
from zoo.module import ZooModule
from zoo.presets import (
    ModelInfo,
    Preset,
    Reference,
    Weights,
    describe_preset,
    find_class,
    find_preset,
    list_models,
    presets,
    register,
    registered_classes,
    resolve_weights,
)

__all__ = [
    "ModelInfo",
    "Preset",
    "Reference",
    "Weights",
    "class_of",
    "create_model",
    "find_preset",
    "list_models",
    "model_from",
    "model_info",
    "presets",
    "register",
]


def create_model(name: str, weights: bool | str | Path | None = None, **overrides: Any) -> Any:
    """Make a model by name.

    Args:
        name: a registry name, also with its weights as in recipes (``NAME:TAG_OR_PATH``, ``NAME:random``), or
            ``ckpt:PATH`` for a checkpoint that one of our runs wrote.
        weights: None for random initialisation, True for the preset's default weights, a tag, the name of another
            model whose weights this one can start from, or a path to weights in any layout that the model reads.
        overrides: constructor arguments that differ from the preset; a dictionary for a settings group, such as
            ``optim={"lr": 1e-4}``, changes these fields and keeps the preset's others.

    Returns:
        The :class:`ZooModule`, on the CPU, in training mode.

    Raises:
        TypeError: for a name that is no string, and for arguments that the constructor does not take.
        ValueError: for an unknown name, and for settings that cannot work.
        FileNotFoundError: for weights that are not there.
    """
    reference = Reference.parse(name)
    if reference.checkpoint is not None:
        if weights is not None:
            raise ValueError("a checkpoint brings its own weights; leave weights out")
        return from_checkpoint(reference.checkpoint, overrides)
    if reference.source is not None and weights is not None:
        raise ValueError(f"the weights are named twice, by '{name}' and by weights={weights!r}: leave one out")
    if reference.source is not None and reference.source != "random":
        weights = reference.available_weights()
    preset = reference.preset
    overrides = migrate_and_say(preset.cls, overrides)
    check_overrides(preset.cls, overrides)
    args = as_init_args(preset.cls, overrides, preset.init_args)
    if weights is not None and weights is not False:  # the constructor may leave to them what it is not told
        args["weights"] = str(resolve_weights(preset, weights))
    model = preset.cls(**args)
    model.random_on_purpose = reference.source == "random"
    return model


def model_from(reference: str, **overrides: Any) -> Any:
    """Make the model that a recipe names by a string, such as ``tokenizer: dvae_emoji``.

    ``NAME`` takes its default weights, ``NAME:TAG_OR_PATH`` others, ``NAME:random`` none, ``ckpt:PATH`` a checkpoint.
    Overrides are constructor arguments that differ from the preset's or the checkpoint's.

    Raises:
        TypeError: for a reference that is no string.
    """
    parsed = Reference.parse(reference)
    if parsed.checkpoint is not None or parsed.source is not None:
        return create_model(reference, **overrides)
    return create_model(reference, weights=parsed.available_weights(), **overrides)


def class_of(reference: str) -> type[ZooModule]:
    """Find the class that :func:`model_from` builds of a reference, without building it.

    Raises:
        ValueError: for an unknown name, or a checkpoint that is none of ours.
        TypeError: for a reference that is no string.
    """
    parsed = Reference.parse(reference)
    if parsed.checkpoint is None:
        return parsed.preset.cls
    return find_class(read_description(parsed.checkpoint)["class"])


def model_info(name: str) -> ModelInfo:
    """Describe a preset, or the model of a checkpoint, without allocating its parameters.

    Args:
        name: as for :func:`create_model`; weights behind a colon change no fact.
    """
    parsed = Reference.parse(name)
    if parsed.checkpoint is None:
        return describe_preset(parsed.preset)
    _, cls, settings = read_described_model(parsed.checkpoint)
    paper = next(p.paper for p in presets().values() if p.cls is cls)
    return describe_preset(Preset(name, cls, paper, None, {}, settings))


def from_checkpoint(path: str | Path, overrides: Mapping[str, Any] | None = None) -> ZooModule:
    """Build the model that a checkpoint of one of our runs, or an exported file, describes, with its weights.

    Args:
        path: of the file.
        overrides: constructor arguments that differ from the checkpoint's.

    Raises:
        FileNotFoundError: for a path that is not there.
        ValueError: for a file without a description, of an unknown class, or with other weights.
        TypeError: for an override that the class does not take.
    """
    checkpoint, cls, settings = read_described_model(Path(path))
    overrides = migrate_and_say(cls, overrides or {})
    check_overrides(cls, overrides)
    model = cls(**as_init_args(cls, overrides, settings))
    load_into(model, checkpoint, registered_classes())
    return model


def read_described_model(path: Path) -> tuple[Checkpoint, type[ZooModule], dict[str, Any]]:
    """Read one of our checkpoints, and the class and constructor arguments that it describes; nothing is built.

    Raises:
        FileNotFoundError: for a path that is not there.
        ValueError: for a file without a description, of an unknown class, or one of far more than it holds.
    """
    checkpoint = read_checkpoint(path, pickled_classes(registered_classes()))
    said = check_description(checkpoint)
    cls = find_class(said["class"])
    settings = typed_arguments(cls, said["init_args"])
    check_size(cls, settings, checkpoint.state, path, said.get("absent", ()))
    return checkpoint, cls, settings


def read_description(path: Path) -> dict[str, Any]:
    """Read the description of a model in one of our checkpoints: ``class``, ``init_args``, ``version``.

    Raises:
        FileNotFoundError: for a path that is not there.
        ValueError: for a file that says nothing.
    """
    return check_description(read_checkpoint(path, pickled_classes(registered_classes())))


def check_description(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the description of a model in a file that was read, if it is whole.

    Raises:
        ValueError: for a file that says nothing.
    """
    if checkpoint.zoo is None:
        raise ValueError(
            f"{checkpoint.path} does not say which model it is of, so it is none of our checkpoints: "
            f"use create_model(NAME, weights={str(checkpoint.path)!r})"
        )
    said = checkpoint.zoo
    if not isinstance(said.get("class"), str) or not isinstance(said.get("init_args"), dict):
        raise ValueError(f"{checkpoint.path} does not say class and init_args of its model: save it again")
    return said
