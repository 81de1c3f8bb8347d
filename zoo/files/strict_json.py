"""JSON as the standard has it: NaN and Infinity, which it lacks, are refused or written as null."""

import json
import math
from collections.abc import Callable
from typing import Any, Literal


def strict_json(
    value: Any,
    not_finite: Literal["refuse", "null"] = "refuse",
    indent: int | None = 2,
    default: Callable[[Any], Any] | None = None,
    ascii_only: bool = True,
) -> str:
    """The text of a JSON document, without a line break at its end.

    Args:
        value: plain data.
        not_finite: what happens to numbers that JSON has no word for; ``null`` is for records whose other entries are
            worth keeping, and whose reader is told by :func:`not_finite_in` which they were.
        indent: spaces per level; None writes one line.
        default: what is written in the place of other types; None refuses them.
        ascii_only: write other letters as escapes.

    Raises:
        ValueError: naming the entry that is NaN or infinite.
    """
    if not_finite == "null":
        value = _without(value)
    elif bad := not_finite_in(value):
        name, number = next(iter(bad.items()))
        raise ValueError(f"{name or 'the value'} is {number}, which JSON cannot hold: nothing was written")
    return json.dumps(value, indent=indent, default=default, ensure_ascii=ascii_only, allow_nan=False)


def not_finite_in(value: Any, name: str = "") -> dict[str, str]:
    """Which entries are ``nan``, ``inf`` or ``-inf``: path of the entry, with dots, -> number."""
    if isinstance(value, float) and not math.isfinite(value):
        return {name: str(float(value))}
    entries: Any = value.items() if isinstance(value, dict) else enumerate(value) if _listed(value) else ()
    found: dict[str, str] = {}
    for key, entry in entries:
        found |= not_finite_in(entry, f"{name}.{key}" if name else str(key))
    return found


def _without(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without(entry) for key, entry in value.items()}
    return [_without(entry) for entry in value] if _listed(value) else value


def _listed(value: Any) -> bool:
    return isinstance(value, list | tuple)
