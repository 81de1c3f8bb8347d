"""JSON by the letter of its standard: NaN and Infinity, which that lacks, are refused or written as null."""

import json
import math
from collections.abc import Callable
from typing import Any, Literal


def dump_json(
    value: Any,
    not_finite: Literal["refuse", "null"] = "refuse",
    indent: int | None = 2,
    default: Callable[[Any], Any] | None = None,
    ascii_only: bool = True,
) -> str:
    """Write the text of a JSON document, without a line break at its end.

    Args:
        value: plain data.
        not_finite: what happens to numbers that JSON has no word for; ``null`` is for records whose other entries are
            worth keeping, and whose reader is told by :func:`find_non_finite` which they were.
        indent: spaces per level; None writes one line.
        default: what is written in the place of other types; None refuses them.
        ascii_only: write other letters as escapes.

    Raises:
        ValueError: naming the entry that is NaN or infinite.
    """
    if not_finite == "null":
        value = _replace_non_finite(value)
    elif bad := find_non_finite(value):
        name, number = next(iter(bad.items()))
        raise ValueError(f"{name or 'the value'} is {number}, which JSON cannot hold: nothing was written")
    return json.dumps(value, indent=indent, default=default, ensure_ascii=ascii_only, allow_nan=False)


def find_non_finite(value: Any, name: str = "") -> dict[str, str]:
    """Find the entries that are ``nan``, ``inf`` or ``-inf``: path of the entry, with dots -> number."""
    if isinstance(value, float) and not math.isfinite(value):
        return {name: str(float(value))}
    entries: Any = value.items() if isinstance(value, dict) else enumerate(value) if _is_list(value) else ()
    found: dict[str, str] = {}
    for key, entry in entries:
        found |= find_non_finite(entry, f"{name}.{key}" if name else str(key))
    return found


def _replace_non_finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _replace_non_finite(entry) for key, entry in value.items()}
    return [_replace_non_finite(entry) for entry in value] if _is_list(value) else value


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)
