"""Loading weights into models: the layout is recognised by content, and all is checked before the model changes."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from zoo.checkpoints.config_files import ADAPTER, read_config_beside
from zoo.checkpoints.files import WRAPPED, Checkpoint, read_checkpoint
from zoo.checkpoints.format import Converted
from zoo.checkpoints.peft import check_adapter, read_adapter_settings
from zoo.checkpoints.unused_entries import entries_of, report_unused_entries, track_entries, untrack_entries
from zoo.choices import shorten_list
from zoo.frozen import warn_of_other_networks
from zoo.init_args import class_by_path


def load_weights(model: Any, source: Path, classes: Collection[type]) -> None:
    """Load weights in any layout that the model reads.

    Args:
        model: a :class:`zoo.module.ZooModule`; gets the weights, in place.
        source: a file or folder.
        classes: all models that there are: pickled modules may be of the classes that they name, and a file that
            another one of them reads is said to be its.

    Raises:
        FileNotFoundError: for a source that is not there.
        ValueError: for a layout that the model does not read, missing or unexpected names, or other shapes. The model
            is then as it was.
    """
    load_into(model, read_checkpoint(source, pickled_classes(classes)), classes)


def load_into(model: Any, checkpoint: Checkpoint, classes: Collection[type]) -> None:
    """Load weights that were read; arguments as for :func:`load_weights`."""
    said = _check_adapter(model, checkpoint) if checkpoint.zoo is None else checkpoint.zoo
    layout, converted = _to_own_names(model, checkpoint, classes)
    used = entries_of(converted.state.values()).union(converted.checked)
    converted = replace(converted, state=untrack_entries(converted.state))
    _check_fit(model, converted, checkpoint, layout)
    settings = (said or {}).get("init_args", {}) | converted.settings
    converted = replace(converted, notes=(*converted.notes, *model.take_open_settings(settings, str(checkpoint.path))))
    model.load_state_dict(converted.state, strict=False)  # strictness is _check's
    model.set_not_in_file(converted.not_in_file)
    model.newly_initialised = dict(converted.newly_initialised)
    warn_of_other_networks(model, said, str(checkpoint.path))
    _report(checkpoint, layout, converted)
    report_unused_entries(checkpoint.path, checkpoint.state, used)


def pickled_classes(classes: Iterable[Any]) -> set[str]:
    """List the full names of pickled modules' classes that some model reads."""
    return {name for cls in classes for layout in cls.formats for name in layout.classes}


def _check_adapter(model: Any, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Read what peft says of LoRA matrices, and compare it with the model; None where it says nothing."""
    matrices = any(".lora_" in name for name in checkpoint.state)
    beside = read_config_beside(checkpoint.path).get(f"_{ADAPTER}")
    if not beside or not (matrices or checkpoint.path.is_dir()):  # a file without matrices is no part of the adapter
        return None
    source = f"{ADAPTER} of {checkpoint.path}"
    said = read_adapter_settings(beside, source)
    if matrices:
        check_adapter(beside, model, source)
    return said


def _to_own_names(model: Any, checkpoint: Checkpoint, classes: Collection[Any]) -> tuple[str, Converted]:
    """Find the layout of weights, and rename them to the model's own names."""
    own = model.state_dict()
    state = track_entries(checkpoint.state)
    said = (checkpoint.zoo or {}).get("absent", {})
    compiled = {WRAPPED.sub("", name): name for name in own}  # where networks of the model are wrapped
    names_equal = state.keys() == {plain for plain in compiled if not plain.startswith(tuple(said))}
    facts: Mapping[str, Any] = (checkpoint.zoo or {}).get("init_args", {})
    if not facts and any(layout.convert_described is not None for layout in model.formats):
        facts = read_config_beside(checkpoint.path)
    rearranged = any(f.rearranges is not None and f.rearranges(state, model, facts) for f in model.formats)
    if names_equal and not rearranged and all(state[name].shape == own[compiled[name]].shape for name in state):
        return "ours", Converted({compiled[name]: value for name, value in state.items()}, not_in_file=said)
    for layout in model.formats:
        if layout.matches(state):
            config = read_config_beside(checkpoint.path)
            notes = () if layout.check_config is None else layout.check_config(config, model)
            if layout.convert_described is not None:
                converted = layout.convert_described(state, model, facts)
            else:
                converted = layout.convert(state, model)
            return layout.name, replace(converted, notes=(*notes, *converted.notes))
    if names_equal or _is_of(model, checkpoint):
        return "ours", Converted(dict(state), not_in_file=said)
    shared = len(state.keys() & own.keys())
    if shared > len(own) / 2 and not _name_other_reader(model, checkpoint, classes):
        # ours with a few other names, which are reported
        return "ours", Converted(dict(state))
    raise ValueError(_explain_unknown_layout(model, checkpoint, classes))


def _explain_unknown_layout(model: Any, checkpoint: Checkpoint, classes: Collection[Any]) -> str:
    whose = ""
    if checkpoint.zoo is not None:
        whose = f"it is a checkpoint of {checkpoint.zoo.get('class')}; "
    else:
        whose = _name_other_reader(model, checkpoint, classes)
    readable = ", ".join(["our own checkpoints", *(f"'{layout.name}'" for layout in model.formats)])
    return (
        f"{checkpoint.path} is not for {type(model).__name__}: {whose}it holds {shorten_list(checkpoint.state)}, "
        f"and {type(model).__name__} reads {readable}"
    )


def _name_other_reader(model: Any, checkpoint: Checkpoint, classes: Collection[Any]) -> str:
    """Say which other model reads a foreign file; empty where none does."""
    if checkpoint.zoo is None:
        for cls in set(classes) - {type(model)}:
            if layout := next((f for f in cls.formats if f.matches(checkpoint.state)), None):
                return f"it looks like '{layout.name}', which {cls.__name__} reads; "
    return ""


def _check_fit(model: Any, converted: Converted, checkpoint: Checkpoint, layout: str) -> None:
    own = model.state_dict()
    excused = tuple(converted.not_in_file) + tuple(converted.newly_initialised)
    missing = [name for name in own if name not in converted.state and not name.startswith(excused)]
    unexpected = [name for name in converted.state if name not in own]
    shapes = [
        f"{name} is {_format_shape(value)} in the file and {_format_shape(own[name])} in the model"
        for name, value in converted.state.items()
        if name in own and value.shape != own[name].shape
    ]
    problems = []
    if missing:
        problems.append(f"it lacks {shorten_list(missing)}")
    if unexpected:
        problems.append(f"it has the unexpected {shorten_list(unexpected)}")
    if shapes:
        problems.append(f"shapes differ: {shorten_list(shapes, '; ')}")
    if problems:
        of = (checkpoint.zoo or {}).get("class")
        whose = f" (a checkpoint of {of})" if of and not _is_of(model, checkpoint) else ""
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
    for prefix, reason in converted.newly_initialised.items():
        rank_zero_info(f"{prefix.rstrip('.')} starts anew: {reason}")
    for prefix, reason in converted.not_in_file.items():
        rank_zero_info(f"{prefix.rstrip('.')} was not loaded: {reason}")


def _is_of(model: Any, checkpoint: Checkpoint) -> bool:
    """Tell whether a checkpoint of ours says that it is of this class."""
    return class_by_path(str((checkpoint.zoo or {}).get("class")), [type(model)]) is not None


def _format_shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
