"""References to measured numbers.

In a template they are written ``{RECORD.METRIC:FORMAT}``, in prose ``NUMBER<!--= RECORD.METRIC:FORMAT -->``.
``RECORD`` is the path of a JSON below ``benchmarks/results`` without its ending. ``METRIC`` is a key of its ``metrics``
or a path through the JSON (``protocol.baselines.train_images.recall_lite0``). An empty ``RECORD`` is the record that
the template stands in. Two values, or a value and a number, may be divided or multiplied: ``{a.x / b.x:.1f}``.
``FORMAT`` is Python's, and besides ``.1p``: per cent without the sign.
"""

import re
from collections.abc import Callable
from typing import Any

from benchmarks._stored import Records

IN_TEMPLATE = re.compile(r"\{([^{}\n]+)\}")
IN_PROSE = re.compile(r"(?P<number>[\w.,-]*)<!--= (?P<reference>.*?) -->", re.DOTALL)
OPERATION = re.compile(r"\s+([/*])\s+")
NUMBER = re.compile(r"-?\d+(\.\d+)?")


def look_up(records: Records, path: str, own: dict[str, Any] | None = None) -> Any:
    """The value that ``RECORD.METRIC`` names.

    Args:
        records: all records.
        path: as above, without a format.
        own: what an empty ``RECORD`` means.

    Raises:
        ValueError: naming the record or the key that is not there.
    """
    name, _, key = path.partition(".")
    record = records.get(name) if name else own
    if record is None:
        raise ValueError(f"{path}: there is no record benchmarks/results/{name}.json")
    if key in record.get("metrics", {}):
        return record["metrics"][key]
    value: Any = record
    for part in key.split("."):
        try:
            value = value[int(part) if isinstance(value, list) else part]
        except (KeyError, IndexError, TypeError, ValueError):
            raise ValueError(f"{path}: benchmarks/results/{name or '(its own)'}.json has no {part!r}") from None
    return value


def evaluate(records: Records, reference: str, own: dict[str, Any] | None = None) -> str:
    """The text that a reference stands for.

    Raises:
        ValueError: the reference names nothing, or does not fit its format.
    """
    path, _, form = reference.strip().partition(":")
    first, *rest = OPERATION.split(path)
    value = _operand(records, first, own)
    try:
        for sign, operand in zip(rest[::2], rest[1::2], strict=True):
            other = _operand(records, operand, own)
            value = value / other if sign == "/" else value * other
        if form.endswith("p"):
            return f"{100 * value:{form[:-1]}f}"
        return f"{value:{form}}"
    except (TypeError, ValueError) as error:
        raise ValueError(f"{reference}: {value!r} cannot be written so ({error})") from None


def fill_template(text: str, records: Records, own: dict[str, Any] | None = None) -> str:
    """A template with every ``{reference}`` replaced by its value."""
    return IN_TEMPLATE.sub(lambda found: evaluate(records, found[1], own), text)


def fill_prose(text: str, records: Records, differs: Callable[[int, str, str, str], None] | None = None) -> str:
    """A page with the number in front of every ``<!--= reference -->`` replaced by the value of the record.

    Args:
        text: of the page.
        records: all records.
        differs: called with the position, the number that stands there, the one of the record, and the reference.
    """

    def replace(found: re.Match[str]) -> str:
        value = evaluate(records, found["reference"])
        if differs and found["number"] != value:
            differs(found.start(), found["number"], value, found["reference"])
        return f"{value}<!--= {found['reference']} -->"

    return IN_PROSE.sub(replace, text)


def _operand(records: Records, text: str, own: dict[str, Any] | None) -> Any:
    return float(text) if NUMBER.fullmatch(text) else look_up(records, text, own)
