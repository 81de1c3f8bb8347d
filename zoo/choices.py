"""Settings that are one of a few words, and arguments that have one of a few names."""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any


def one_of(name: str, value: str, choices: Sequence[str]) -> Any:
    """The value, if it is one of the choices; the command line checks types, Python callers are checked here.

    Raises:
        ValueError: naming the nearest choice.
    """
    if value in choices:
        return value
    close = difflib.get_close_matches(value, choices, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"{name} cannot be {value!r}: {hint}it is one of {', '.join(choices)}")


def known_names(owner: str, given: Iterable[str], accepted: Sequence[str]) -> None:
    """Refuse arguments that nobody takes.

    Args:
        owner: who would take them.
        given: names of the arguments.
        accepted: names that the owner knows.

    Raises:
        TypeError: naming the nearest one.
    """
    for name in given:
        if name not in accepted:
            close = difflib.get_close_matches(name, accepted, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise TypeError(f"{owner} takes no {name!r}: {hint}it takes {', '.join(accepted)}")


def check_number(
    name: str, value: Any, least: float | None = None, below: float | None = None, whole: bool = False
) -> None:
    """Refuse what is no finite number in a range; Python callers are checked here, the command line checks types.

    Args:
        name: of the setting, for the message.
        value: as given.
        least: smallest value that is allowed; None for any.
        below: all allowed values are below this; None for any.
        whole: whether it must be a whole number.

    Raises:
        ValueError: naming the setting and what it may be.
    """
    kinds = (int,) if whole else (int, float)
    fits = not isinstance(value, bool) and isinstance(value, kinds) and math.isfinite(value)
    if fits and (least is None or value >= least) and (below is None or value < below):
        return
    noun = "a whole number" if whole else "a number"
    from_, to = "" if least is None else f" of at least {least:g}", "" if below is None else f" below {below:g}"
    raise ValueError(f"{name} must be {noun}{from_}{' and' if from_ and to else ''}{to}, got {value!r}")


def natural_order(name: str) -> list[Any]:
    """A key for sorting that counts numbers in names as numbers."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


SHOWN = 8  # names per message


def some(names: Iterable[str], separator: str = ", ", most: int = SHOWN) -> str:
    """The first names, and how many there are."""
    names = list(names)
    more = f"{separator}... ({len(names)} in all)" if len(names) > most else ""
    return separator.join(names[:most]) + more
