"""Entries of batches, and of a set that several ranks went through: each once, in the order of the data set."""

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor

from zoo.distributed import gather_objects, world_size

T = TypeVar("T")


def first_entries(batch: dict[str, Any], count: int | None) -> dict[str, Any]:
    """The first entries of every tensor and list of a batch; None takes all."""
    return {k: v[:count] if isinstance(v, Tensor | list | tuple) else v for k, v in batch.items()}


def chosen_entries(batch: dict[str, Any], chosen: Sequence[int]) -> dict[str, Any]:
    """The chosen entries of every tensor and list of a batch."""
    return {
        k: v[list(chosen)] if isinstance(v, Tensor) else [v[i] for i in chosen] if isinstance(v, list) else v
        for k, v in batch.items()
    }


def places_in_set(places: Sequence[int | None]) -> list[int]:
    """Order of the entries that has each place of the data set once.

    Samplers repeat some entries to give all ranks as many, and deal them out in turn. Where a place is not known, such
    as that of a stream, all entries stay as they are.

    Args:
        places: in the data set, of the entries in the order of the ranks.
    """
    known = [place for place in places if place is not None]
    if len(known) < len(places):
        return list(range(len(places)))
    first = {place: i for i, place in reversed(list(enumerate(known)))}
    return [first[place] for place in sorted(first)]


def entries_of_all_ranks(entries: Sequence[T], places: Sequence[int | None]) -> list[T]:
    """The entries of all ranks, each once; every rank must call this.

    On one rank they are the given ones, in their order.

    Args:
        entries: plain data, one per image of this rank.
        places: of the images in the data set, None where it is not known.
    """
    if world_size() == 1:
        return list(entries)
    every = [entry for part in gather_objects(list(entries)) for entry in part]
    order = places_in_set([place for part in gather_objects(list(places)) for place in part])
    return [every[i] for i in order]


def places_of(batch: dict[str, object], count: int) -> list[int | None]:
    """The ``index`` of the first images of a batch; None where the data module says none."""
    index = batch.get("index")
    if index is None:
        return [None] * count
    return [int(i) for i in index[:count]]  # type: ignore[index]
