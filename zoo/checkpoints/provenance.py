"""Which entries of a file a converted tensor was made of, so that none can be left out without a word.

A reader renames, casts, splits and joins tensors as it likes; each result remembers the entries that went into it. What
no result remembers, and no check has looked at, is reported by :mod:`zoo.checkpoints.load`, whatever the reader does.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

SHOWN_EACH = 2  # names of one group that are spelled out; more of them are counted


class Traced(Tensor):
    """A tensor that remembers the entries of the file that it was made of; see :func:`trace`."""

    entries: frozenset[str] = frozenset()

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **(kwargs or {}))
        entries = entries_of(leaf for leaf in tree_leaves((args, kwargs)))
        return tree_map_only(Tensor, lambda value: _marked(value, entries), found)


def _marked(value: Tensor, entries: frozenset[str]) -> Traced:
    with torch._C.DisableTorchFunctionSubclass():
        traced = value.as_subclass(Traced)
    traced.entries = entries
    return traced


def trace(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, each of which remembers its name from now on; nothing is copied."""
    return {name: _marked(value, frozenset([name])) for name, value in state.items()}


def plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without memory."""
    with torch._C.DisableTorchFunctionSubclass():
        return {name: value.as_subclass(Tensor) if type(value) is Traced else value for name, value in state.items()}


def entries_of(values: Iterable[Any]) -> frozenset[str]:
    """Names of the entries that these tensors were made of; other values have none."""
    return frozenset().union(*(value.entries for value in values if isinstance(value, Traced)))


def grouped(names: Iterable[str]) -> str:
    """Names for a message: few are spelled out, many of one part are counted: ``visual_encoder.blocks.* (468)``."""
    groups: dict[str, list[str]] = {}
    for name in names:
        separator = "/" if "/" in name else "."
        parts = [part for part in name.split(separator)[:-1] if not part.isdigit()][:2]
        groups.setdefault(separator.join([*parts, "*"]) if parts else name, []).append(name)
    return ", ".join(
        ", ".join(found) if len(found) <= SHOWN_EACH else f"{group} ({len(found)})" for group, found in groups.items()
    )
