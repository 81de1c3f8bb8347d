"""Settings that are one of a few words."""

import difflib
from collections.abc import Sequence
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
