"""Entries of a file are tracked through every conversion, so that none can be left out unreported.

A reader renames, casts, splits and joins tensors as it likes; each result remembers the entries that went into it. An
entry that no result remembers, and that no check has looked at, is reported by :mod:`zoo.checkpoints.load`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

SHOWN_EACH = 2  # so many names of one part are spelled out; more of them are counted, but for those that stand alone
SHOWN_ALONE = 8


class TrackedTensor(Tensor):
    """A tensor that remembers the entries of the file that it was made of; see :func:`track_entries`."""

    entries: frozenset[str] = frozenset()

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **(kwargs or {}))
        entries = entries_of(leaf for leaf in tree_leaves((args, kwargs)))
        return tree_map_only(Tensor, lambda value: _track(value, entries), found)


def _track(value: Tensor, entries: frozenset[str]) -> TrackedTensor:
    with torch._C.DisableTorchFunctionSubclass():
        traced = value.as_subclass(TrackedTensor)
    traced.entries = entries
    return traced


def track_entries(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make each tensor of a file remember its name from now on; nothing is copied."""
    return {name: _track(value, frozenset([name])) for name, value in state.items()}


def untrack_entries(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn tracked tensors back into ordinary ones; nothing is copied."""
    with torch._C.DisableTorchFunctionSubclass():
        return {
            name: value.as_subclass(Tensor) if type(value) is TrackedTensor else value for name, value in state.items()
        }


def entries_of(values: Iterable[Any]) -> frozenset[str]:
    """Collect the names of the entries that these tensors were made of; other values have none."""
    return frozenset().union(*(value.entries for value in values if isinstance(value, TrackedTensor)))


def report_unused_entries(source: object, state: Mapping[str, Tensor], used: Iterable[str]) -> None:
    """Name the entries of a file that nothing was made of, and that no check has looked at; nothing where all were.

    Args:
        source: name of the file.
        state: what is in it.
        used: names of the other entries.
    """
    used = set(used)
    if unused := [name for name in state if name not in used]:
        rank_zero_info(f"not used from {source}: {summarise_names(unused)}")


def summarise_names(names: Iterable[str]) -> str:
    """Shorten names for a message: of many in one part, those that stand alone are spelled out, the others counted.

    ``visual_encoder.blocks.* (468), visual_encoder.scale``.
    """
    groups: dict[str, dict[str, list[str]]] = {}
    for name in names:
        separator = "/" if "/" in name else "."
        *parts, leaf = (part for part in name.split(separator) if not part.isdigit())
        within = (*parts[2:], leaf)[0]
        groups.setdefault(separator.join([*parts[:2], "*"]), {}).setdefault(within, []).append(name)
    return ", ".join(text for group, found in groups.items() for text in _summarise_group(group, found))


def _summarise_group(group: str, found: dict[str, list[str]]) -> list[str]:
    if sum(map(len, found.values())) <= SHOWN_EACH:
        return [name for names in found.values() for name in names]
    alone = [names[0] for names in found.values() if len(names) == 1]
    alone = alone if len(alone) <= SHOWN_ALONE else []
    counted = sum(map(len, found.values())) - len(alone)
    return ([f"{group} ({counted})"] if counted else []) + alone
