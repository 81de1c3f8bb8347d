"""Constructor arguments as plain data, and back; arguments of older versions under their names of today."""

import dataclasses
import inspect
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Union, get_args, get_origin, get_type_hints

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from zoo.choices import known_names
from zoo.optim import Optim


@dataclass(frozen=True)
class Moved:
    """Flat arguments of older versions that are fields of a settings group now.

    Args:
        group: name of the argument that holds them.
        fields: old name of the argument -> field of the group.
        none: a field and its old value that stand for no group at all, such as ``("kind", "none")``.
        values: field -> old value -> today's, where they differ.
        without_effect: of all arguments as they were given, the old names whose value did nothing; they are left out.
    """

    group: str
    fields: Mapping[str, str]
    none: tuple[str, Any] | None = None
    values: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)
    without_effect: Callable[[Mapping[str, Any]], Collection[str]] = field(default=lambda args: ())

    def value(self, name: str, old: Any) -> Any:
        """Today's value of a field."""
        return self.values.get(name, {}).get(old, old) if isinstance(old, str) else old


def constructor_arguments(module: nn.Module) -> dict[str, Any]:
    """Arguments of the constructors that are running for ``module``, the most specific class winning.

    Lightning's own search ends at a constructor that is wrapped in a decorator, such as the shape checks of the tests.

    Raises:
        TypeError: for a dictionary in the place of a settings group.
    """
    arguments: dict[str, Any] = {}
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__init__" and frame.f_locals.get("self") is module:
            names = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
            arguments |= {name: frame.f_locals[name] for name in names if name in frame.f_locals}
        frame = frame.f_back
    check_settings(type(module), arguments)
    return arguments


def to_plain_data(value: Any) -> Any:
    """Turn dataclasses into dicts and tuples into lists, recursively: data that JSON and ``weights_only`` can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_plain_data(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(k): to_plain_data(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain_data(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "items"):  # jsonargparse.Namespace
        return {str(k): to_plain_data(v) for k, v in value.items()}
    raise TypeError(f"constructor arguments must be plain data, got {type(value).__name__}: {value!r}")


def check_settings(cls: type, args: Mapping[str, Any]) -> None:
    """Refuse dictionaries where a constructor that is called directly needs the settings group itself.

    Raises:
        TypeError: naming the group and who takes a dictionary.
    """
    for name, kind in settings_groups(cls).items():
        if isinstance(args.get(name), Mapping):
            raise TypeError(
                f"{name} of {cls.__name__} is {_a(kind.__name__)}, got a dictionary: write {kind.__name__}(...), or "
                "use create_model, which takes dictionaries of fields that differ"
            )


def class_by_path(path: str, classes: Iterable[type[Any]]) -> type[Any] | None:
    """The class that a checkpoint names, also by a module that it moved out of and that still holds it.

    Args:
        path: full name of a class, from a file: no module is imported for it.
        classes: that may be meant.
    """
    known = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in classes}
    if path in known:
        return known[path]
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), "__dict__", {}).get(name)  # without the module's __getattr__
    return next((cls for cls in known.values() if cls is found), None)


def without_classes(args: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments in which settings groups are dictionaries of their fields; the others as they are."""
    return {name: to_plain_data(value) if _is_settings(value) else value for name, value in args.items()}


def check_overrides(cls: type, overrides: Iterable[str]) -> None:
    """Refuse arguments that the constructor does not take, naming the nearest one."""
    known_names(cls.__name__, overrides, list(inspect.signature(cls).parameters), moved_names(cls))


# ---------------------------------------------------------------- settings groups


def settings_groups(cls: type) -> dict[str, type]:
    """Constructor arguments that are frozen dataclasses of plain data, or None: name -> dataclass."""
    try:
        hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    except NameError:  # names that a module imports for type checkers alone
        hints = {}
    found = {name: next((kind for kind in _options(hint) if _is_settings(kind)), None) for name, hint in hints.items()}
    return {"optim": Optim} | {name: kind for name, kind in found.items() if kind is not None}


def as_init_args(cls: type, args: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Constructor arguments in which settings groups are their classes, not dictionaries of their fields.

    A dictionary changes the fields that it names. The others are those of ``base``, else of the constructor's default,
    else of the group itself.

    Args:
        cls: of the model.
        args: as given, under names of today.
        base: what they change, such as the arguments of a preset.

    Raises:
        TypeError: for a field that the group does not have, or another type than the group.
        ValueError: for a value that the group refuses.
    """
    merged, parameters = {**(base or {}), **args}, inspect.signature(cls).parameters
    for name, kind in settings_groups(cls).items():
        if name not in args:
            continue
        default = parameters[name].default if name in parameters else None
        given = args[name]
        if isinstance(given, Mapping):
            start = next((s for s in ((base or {}).get(name), default) if isinstance(s, kind)), None)
            merged[name] = _group(name, kind, given, start)
        elif not isinstance(given, kind) and not (given is None and takes_none(cls, name)):
            raise TypeError(f"{name} is {_a(kind.__name__)} or a dictionary of its fields, got {type(given).__name__}")
    return merged


def typed_arguments(cls: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments from a file: under names of today, tuples where the constructor says so, groups as classes.

    Args:
        cls: of the model.
        args: of JSON or a checkpoint, also of an older version.
    """
    hints = get_type_hints(cls.__init__)
    given = as_init_args(cls, migrate(cls, args))
    return {name: _as_tuple(value, hints.get(name)) for name, value in given.items()}


def without_weights(cls: type, init_args: Mapping[str, Any]) -> dict[str, Any]:
    """Choose arguments that build the model without reading weights from disk."""
    args = as_init_args(cls, migrate(cls, init_args))
    for name in ("tokenizer", "condition_tokenizer"):
        default = inspect.signature(cls).parameters.get(name)
        reference = args.get(name, default.default if default else None)
        if isinstance(reference, str) and not reference.startswith("ckpt:"):
            args[name] = reference.partition(":")[0] + ":random"
    return args


def value_at(args: Mapping[str, Any], path: str) -> Any:
    """The argument, or the field of a settings group, that a dotted name leads to; None where there is none."""
    name, dot, rest = path.partition(".")
    value = args.get(name)
    if dot and dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if not dot:
        return value
    return value_at(value, rest) if isinstance(value, Mapping) else None


def _group(name: str, kind: type, given: Mapping[str, Any], start: Any) -> Any:
    hints = get_type_hints(kind)
    known_names(name, given, list(hints))
    values = {key: _as_tuple(value, hints[key]) for key, value in given.items()}
    return kind(**values) if start is None else dataclasses.replace(start, **values)


def _is_settings(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and bool(value.__dataclass_params__.frozen)  # type: ignore[union-attr]


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def takes_none(cls: type, name: str) -> bool:
    """Tell whether None is a value of this constructor argument."""
    return type(None) in _options(get_type_hints(cls.__init__).get(name))  # type: ignore[misc]


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOU' else 'a'} {noun}"


def _as_tuple(value: Any, hint: Any) -> Any:
    inner = next((option for option in _options(hint) if get_origin(option) is tuple), None)
    if not isinstance(value, list) or inner is None:
        return value
    kinds = [kind for kind in get_args(inner) if kind is not Ellipsis]
    return tuple(_as_tuple(item, kinds[min(i, len(kinds) - 1)] if kinds else None) for i, item in enumerate(value))


# ---------------------------------------------------------------- older versions


def migrate(cls: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments of any version under their names of today; what is new already stays as it is.

    Flat arguments that became fields of a settings group are put into a dictionary, with the fields that were given.

    Args:
        cls: of the model, whose ``moved`` says what went where.
        args: plain data; all arguments or some.

    Raises:
        TypeError: for a field that is given by its old name and in its group.
    """
    found = dict(args)
    for moved in getattr(cls, "moved", ()):
        old = {name: found.pop(name) for name in moved.fields if name in found}
        old = {name: value for name, value in old.items() if name not in moved.without_effect(args)}
        if not old:
            continue
        given = {moved.fields[name]: moved.value(moved.fields[name], value) for name, value in old.items()}
        there = found.get(moved.group, {})
        twice = [name for name in old if not isinstance(there, Mapping) or moved.fields[name] in there]
        if twice:
            raise TypeError(
                f"{twice[0]} is {moved.group}.{moved.fields[twice[0]]} now, and {moved.group} is given too: leave "
                f"{twice[0]} out"
            )
        none = moved.none is not None and given.get(moved.none[0]) == moved.none[1]
        found[moved.group] = None if none else {**given, **there}
    return found


def moved_names(cls: Any) -> dict[str, str]:
    """Old name of a constructor argument -> dotted name of the field that it is now."""
    return {name: f"{m.group}.{new}" for m in getattr(cls, "moved", ()) for name, new in m.fields.items()}


def migrate_and_say(cls: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    """Migrate arguments that somebody wrote, see :func:`migrate`, and warn once of old names, with the new ones."""
    found = migrate(cls, args)
    if said := renamed(cls, args):
        rank_zero_warn(f"{cls.__name__} has settings under other names now: {said}", category=FutureWarning)
    return found


def renamed(cls: Any, names: Iterable[str]) -> str:
    """Old names among these with those of today, for a message; empty where there are none."""
    now = moved_names(cls)
    return ", ".join(f"{name} is {now[name]}" for name in dict.fromkeys(names) if name in now)
