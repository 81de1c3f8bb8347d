"""Constructor arguments as plain data, and back."""

import dataclasses
import inspect
import sys
import types
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, Union, get_args, get_origin, get_type_hints

from torch import nn

from zoo.choices import known_names
from zoo.optim import Optim


def constructor_arguments(module: nn.Module) -> dict[str, Any]:
    """Arguments of the constructors that are running for ``module``, the most specific class winning.

    Lightning's own search ends at a constructor that is wrapped in a decorator, such as the shape checks of the tests.
    """
    arguments: dict[str, Any] = {}
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__init__" and frame.f_locals.get("self") is module:
            names = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
            arguments |= {name: frame.f_locals[name] for name in names if name in frame.f_locals}
        frame = frame.f_back
    return arguments


def plain(value: Any) -> Any:
    """Dataclasses as dicts and tuples as lists, recursively: what JSON and ``weights_only`` can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "items"):  # jsonargparse.Namespace
        return {str(k): plain(v) for k, v in value.items()}
    raise TypeError(f"constructor arguments must be plain data, got {type(value).__name__}: {value!r}")


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


def check_overrides(cls: type, overrides: dict[str, Any]) -> None:
    """Refuse arguments that the constructor does not take, naming the nearest one."""
    known_names(cls.__name__, overrides, list(inspect.signature(cls).parameters))


def without_towers(cls: type, init_args: dict[str, Any]) -> dict[str, Any]:
    """Arguments that build the model without reading weights from disk."""
    args = dict(as_init_args(init_args))
    for name in ("tokenizer", "condition_tokenizer"):
        default = inspect.signature(cls).parameters.get(name)
        reference = args.get(name, default.default if default else None)
        if isinstance(reference, str) and not reference.startswith("ckpt:"):
            args[name] = reference.partition(":")[0] + ":random"
    return args


def as_init_args(args: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments in which ``optim`` is an :class:`~zoo.optim.Optim`, not a dictionary of its fields."""
    optim = args.get("optim")
    if optim is not None and not isinstance(optim, (dict, Optim)):
        raise TypeError(f"optim is an Optim or a dictionary of its fields, got {type(optim).__name__}")
    if isinstance(optim, dict):
        known_names("optim", optim, [f.name for f in fields(Optim)])
        args = args | {"optim": Optim(**(optim | ({"betas": tuple(optim["betas"])} if "betas" in optim else {})))}
    return args


def typed_arguments(cls: type, args: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments from JSON: lists are tuples where the constructor says so, and ``optim`` is its class."""
    hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    return {name: _as_tuple(value, hints.get(name)) for name, value in as_init_args(args).items()}


def _as_tuple(value: Any, hint: Any) -> Any:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    inner = next((option for option in options if get_origin(option) is tuple), None)
    if not isinstance(value, list) or inner is None:
        return value
    kinds = [kind for kind in get_args(inner) if kind is not Ellipsis]
    return tuple(_as_tuple(item, kinds[min(i, len(kinds) - 1)] if kinds else None) for i, item in enumerate(value))
