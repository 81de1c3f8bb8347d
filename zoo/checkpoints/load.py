"""Putting weights into models: the layout is recognised by content, and everything is checked before anything moves."""

import types
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from zoo import registry
from zoo.checkpoints.config_facts import ADAPTER, config_beside
from zoo.checkpoints.files import WRAPPED, Checkpoint, read
from zoo.checkpoints.format import Converted
from zoo.checkpoints.llava_config import adapter_settings, check_adapter
from zoo.checkpoints.provenance import entries_of, plain, say_unused, some, trace
from zoo.checkpoints.size import check_size
from zoo.module import ZooModule


def load_weights(model: ZooModule, source: str | Path) -> None:
    """Load weights in any layout that the model reads.

    Args:
        model: gets the weights, in place.
        source: a file or folder, ``ckpt:PATH``, or a registry reference such as ``dvae_emoji`` or ``dvae_emoji:TAG``.

    Raises:
        FileNotFoundError: for a source that is not there.
        ValueError: for a layout that the model does not read, missing or unexpected names, or other shapes. The model
            is then as it was.
    """
    _put(model, read(registry.locate_weights(str(source)), _known_classes()))


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
    overrides = dict(overrides or {})
    checkpoint, cls, settings = read_described(Path(path))
    registry.check_overrides(cls, overrides)
    model = cls(**settings | overrides)
    _put(model, checkpoint)
    return model


def read_described(path: Path) -> tuple[Checkpoint, type[ZooModule], dict[str, Any]]:
    """One of our checkpoints with the class and the constructor arguments that it describes, before anything is built.

    Raises:
        FileNotFoundError: for a path that is not there.
        ValueError: for a file without a description, of an unknown class, or one of far more than it holds.
    """
    checkpoint = read(path, _known_classes())
    said = _describe(checkpoint)
    cls = registry.class_named(said["class"])
    settings = typed_arguments(cls, said["init_args"])
    check_size(cls, settings, checkpoint.state, path, said.get("absent", ()))
    return checkpoint, cls, settings


def describe(path: Path) -> dict[str, Any]:
    """What one of our checkpoints says about its model: ``class``, ``init_args``, ``version``.

    Raises:
        FileNotFoundError: for a path that is not there.
        ValueError: for a file that says nothing.
    """
    return _describe(read(path, _known_classes()))


def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
    if checkpoint.zoo is None:
        raise ValueError(
            f"{checkpoint.path} does not say which model it is of, so it is none of our checkpoints: "
            f"use create_model(NAME, weights={str(checkpoint.path)!r})"
        )
    said = checkpoint.zoo
    if not isinstance(said.get("class"), str) or not isinstance(said.get("init_args"), dict):
        raise ValueError(f"{checkpoint.path} does not say class and init_args of its model: save it again")
    return said


def _put(model: ZooModule, checkpoint: Checkpoint) -> None:
    said = _adapter(model, checkpoint) if checkpoint.zoo is None else checkpoint.zoo
    layout, converted = _convert(model, checkpoint)
    used = entries_of(converted.state.values()).union(converted.checked)
    converted = replace(converted, state=plain(converted.state))
    _check(model, converted, checkpoint, layout)
    model.load_state_dict(converted.state, strict=False)  # strictness is _check's
    model.set_absent(converted.absent)
    model.fresh = dict(converted.fresh)
    model.warn_of_other_parts(said, str(checkpoint.path))
    _report(checkpoint, layout, converted)
    say_unused(checkpoint.path, checkpoint.state, used)


def _adapter(model: ZooModule, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """What peft says of LoRA matrices, which must be as the model's; None where it says nothing."""
    matrices = any(".lora_" in name for name in checkpoint.state)
    beside = config_beside(checkpoint.path).get(f"_{ADAPTER}")
    if not beside or not (matrices or checkpoint.path.is_dir()):  # a file without matrices is no part of the adapter
        return None
    source = f"{ADAPTER} of {checkpoint.path}"
    said = adapter_settings(beside, source)
    if matrices:
        check_adapter(beside, model, source)
    return said


def _convert(model: ZooModule, checkpoint: Checkpoint) -> tuple[str, Converted]:
    """The name of the layout and the weights under the model's own names."""
    own = model.state_dict()
    state = trace(checkpoint.state)
    said = (checkpoint.zoo or {}).get("absent", {})
    compiled = {WRAPPED.sub("", name): name for name in own}  # where networks of the model are wrapped
    names_equal = state.keys() == {plain for plain in compiled if not plain.startswith(tuple(said))}
    if names_equal and all(state[name].shape == own[compiled[name]].shape for name in state):
        return "ours", Converted({compiled[name]: value for name, value in state.items()}, absent=said)
    for layout in model.formats:
        if layout.matches(state):
            notes = () if layout.check_config is None else layout.check_config(config_beside(checkpoint.path), model)
            converted = layout.convert(state, model)
            return layout.name, replace(converted, notes=(*notes, *converted.notes))
    if names_equal or (checkpoint.zoo or {}).get("class") == _name(type(model)):
        return "ours", Converted(dict(state), absent=said)
    shared = len(state.keys() & own.keys())
    if shared > len(own) / 2 and not _of_another(model, checkpoint):  # ours with a few other names: say which
        return "ours", Converted(dict(state))
    raise ValueError(_unknown(model, checkpoint))


def _unknown(model: ZooModule, checkpoint: Checkpoint) -> str:
    whose = ""
    if checkpoint.zoo is not None:
        whose = f"it is a checkpoint of {checkpoint.zoo.get('class')}; "
    else:
        whose = _of_another(model, checkpoint)
    readable = ", ".join(["our own checkpoints", *(f"'{layout.name}'" for layout in model.formats)])
    return (
        f"{checkpoint.path} is not for {type(model).__name__}: {whose}it holds {some(checkpoint.state)}, "
        f"and {type(model).__name__} reads {readable}"
    )


def _of_another(model: ZooModule, checkpoint: Checkpoint) -> str:
    """Which other model reads a foreign file, or nothing."""
    if checkpoint.zoo is None:
        for cls in {preset.cls for preset in registry.presets().values()} - {type(model)}:
            if layout := next((f for f in cls.formats if f.matches(checkpoint.state)), None):
                return f"it looks like '{layout.name}', which {cls.__name__} reads; "
    return ""


def _check(model: ZooModule, converted: Converted, checkpoint: Checkpoint, layout: str) -> None:
    own = model.state_dict()
    excused = tuple(converted.absent) + tuple(converted.fresh)
    missing = [name for name in own if name not in converted.state and not name.startswith(excused)]
    unexpected = [name for name in converted.state if name not in own]
    shapes = [
        f"{name} is {_shape(value)} in the file and {_shape(own[name])} in the model"
        for name, value in converted.state.items()
        if name in own and value.shape != own[name].shape
    ]
    problems = []
    if missing:
        problems.append(f"it lacks {some(missing)}")
    if unexpected:
        problems.append(f"it has the unexpected {some(unexpected)}")
    if shapes:
        problems.append(f"shapes differ: {some(shapes, '; ')}")
    if problems:
        of = (checkpoint.zoo or {}).get("class")
        whose = f" (a checkpoint of {of})" if of and of != _name(type(model)) else ""
        raise ValueError(
            f"{checkpoint.path}{whose}, read as {layout}, does not fit {type(model).__name__} and nothing was loaded: "
            f"{'; '.join(problems)}; build the model with the settings of the checkpoint"
        )


def _report(checkpoint: Checkpoint, layout: str, converted: Converted) -> None:
    path = checkpoint.path
    if layout != "ours":
        rank_zero_info(f"read {path} as {layout}")
    for note in checkpoint.notes:
        rank_zero_info(note)
    for note in converted.notes:
        rank_zero_info(note)
    for prefix, reason in converted.fresh.items():
        rank_zero_info(f"{prefix.rstrip('.')} starts anew: {reason}")
    for prefix, reason in converted.absent.items():
        rank_zero_info(f"{prefix.rstrip('.')} was not loaded: {reason}")


def _known_classes() -> set[str]:
    """Classes of the pickled modules that some model reads; another model's are known too, to say whose they are."""
    return {name for preset in registry.presets().values() for layout in preset.cls.formats for name in layout.classes}


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def typed_arguments(cls: type, args: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments from JSON: lists are tuples where the constructor says so, and ``optim`` is its class."""
    hints = get_type_hints(cls.__init__)
    return {name: _as_tuple(value, hints.get(name)) for name, value in registry._as_init_args(args).items()}


def _as_tuple(value: Any, hint: Any) -> Any:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    inner = next((option for option in options if get_origin(option) is tuple), None)
    if not isinstance(value, list) or inner is None:
        return value
    kinds = [kind for kind in get_args(inner) if kind is not Ellipsis]
    return tuple(_as_tuple(item, kinds[min(i, len(kinds) - 1)] if kinds else None) for i, item in enumerate(value))
