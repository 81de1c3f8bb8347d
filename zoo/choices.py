"""Checks of settings that are one of a few words, and of names of arguments, with the nearest one that is known."""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


def one_of(name: str, value: str, choices: Sequence[str]) -> Any:
    """Return the value if it is one of the choices; the command line checks types, Python callers are checked here.

    Raises:
        ValueError: naming the nearest choice.
    """
    if value in choices:
        return value
    hint = suggest_nearest(value, choices, show=repr)
    raise ValueError(f"{name} cannot be {value!r}: {hint + ' ' if hint else ''}it is one of {', '.join(choices)}")


def known_names(owner: str, given: Iterable[str], accepted: Sequence[str], older: Mapping[str, str] = {}) -> None:
    """Refuse arguments that nobody takes.

    Args:
        owner: who would take them.
        given: names of the arguments.
        accepted: names that the owner knows.
        older: name of an older version -> of today, which is suggested for what is near the older one.

    Raises:
        TypeError: naming the nearest one.
    """
    for name in given:
        if name not in accepted:
            hint = suggest_nearest(name, [*accepted, *older], show=lambda near: older.get(near, near))
            raise TypeError(f"{owner} takes no {name!r}: {hint + ' ' if hint else ''}it takes {', '.join(accepted)}")


def suggest_nearest(
    name: str, known: Iterable[str], most: int = 1, cutoff: float = 0.6, show: Callable[[str], str] = str
) -> str:
    """Ask ``did you mean X or Y?``; empty where no known name is near.

    Args:
        name: that is not known.
        known: names that are.
        most: names to suggest.
        cutoff: similarity from 0 to 1 below which a name is not near.
        show: how a name is written.
    """
    close = difflib.get_close_matches(name, list(known), n=most, cutoff=cutoff)
    return f"did you mean {' or '.join(map(show, close))}?" if close else ""


def check_number(
    name: str,
    value: Any,
    least: float | None = None,
    below: float | None = None,
    whole: bool = False,
    above: float | None = None,
) -> None:
    """Refuse what is no finite number in a range; Python callers are checked here, the command line checks types.

    Args:
        name: of the setting, for the message.
        value: as given.
        least: smallest value that is allowed; None for any.
        below: all allowed values are below this; None for any.
        whole: whether it must be a whole number.
        above: all allowed values are above this; None for any.

    Raises:
        ValueError: naming the setting and what it may be.
    """
    kinds = (int,) if whole else (int, float)
    fits = not isinstance(value, bool) and isinstance(value, kinds) and math.isfinite(value)
    in_range = (least is None or value >= least) and (above is None or value > above) if fits else False
    if in_range and (below is None or value < below):
        return
    noun = "a whole number" if whole else "a number"
    limits = {"of at least": least, "above": above, "below": below}
    said = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if limit is not None)
    raise ValueError(f"{name} must be {noun} {said}".rstrip() + f", got {value!r}")


def natural_order(name: str) -> list[Any]:
    """Make a key for sorting that compares numbers inside names as numbers: ``a2`` before ``a10``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


#: names that a message spells out
MOST_NAMES = 8


def shorten_list(names: Iterable[str], separator: str = ", ", most: int = MOST_NAMES) -> str:
    """Join the first names, and say how many there are where some are left out.

    Args:
        names: for a message.
        separator: between two of them.
        most: names that are spelled out.
    """
    names = list(names)
    more = f"{separator}... ({len(names)} in all)" if len(names) > most else ""
    return separator.join(names[:most]) + more
