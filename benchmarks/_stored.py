"""All records below ``benchmarks/results``, by name: one JSON per measured thing.

A benchmark script writes its record into the folder itself (``_record.SCHEMA``). ``runs`` holds what was read off a
run, or off a script that writes no record (``RUN``); ``published`` what others measured (``PUBLISHED``).
"""

import json
import math
from pathlib import Path
from types import NoneType
from typing import Any

from benchmarks._record import RESULTS, check

#: name of a record, its path below the folder without the ending -> its content
Records = dict[str, dict[str, Any]]
Schema = dict[str, type | tuple[type, ...]]

#: of a record in ``runs``; None is what nobody wrote down
RUN: Schema = {
    "command": str,
    "commit": (str, NoneType),  # that the run started from
    "date": str,
    "seed": (int, NoneType),
    "steps": (int, NoneType),
    "minutes": (int, float, NoneType),
    "machine": (str, NoneType),
    "metrics": dict,
}
#: of a record in ``published``
PUBLISHED: Schema = {"source": str, "metrics": dict}
#: what a record in ``runs`` or ``published`` may have besides
OPTIONAL: Schema = {
    "headers": dict,  # recipe -> key of its header -> template of the value, see ``_references``
    "tolerance": dict,  # metric -> how far another run may be away
    "curves": dict,  # name -> list of numbers
    "note": str,
    "weights": str,  # shipped weights that the run trained
    "benchmarks": list,  # records about them, which their card repeats
}
#: facts of a card that the record of the training run holds, and the key they have there
OF_THE_RUN = {
    "command": "command",
    "commit": "commit",
    "seed": "seed",
    "steps": "steps",
    "minutes": "minutes",
    "hardware": "machine",
}


def check_stored(record: dict[str, Any], schema: Schema = RUN) -> None:
    """Refuse a record of ``runs``, or with ``PUBLISHED`` one of ``published``, that does not keep its schema.

    Raises:
        ValueError: naming the key.
    """
    schema = schema | {key: kind for key, kind in OPTIONAL.items() if key in record}
    if set(record) != set(schema):
        raise ValueError(f"keys of the record differ from the schema: {sorted(set(record) ^ set(schema))}")
    for key, kind in schema.items():
        if not isinstance(record[key], kind) or isinstance(record[key], bool):
            raise ValueError(f"{key} must be {kind}, got {record[key]!r}")
    for name, value in (record["metrics"] | record.get("tolerance", {})).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"metric {name} must be a finite number, got {value!r}")


def read_by_name(folder: Path = RESULTS) -> Records:
    """All records by their path below the folder without its ending: ``dvae_emoji``, ``runs/dvae``, ``published/dvae``.

    Raises:
        ValueError: a record is no JSON, or does not keep the schema of its kind; names the file.
    """
    records = {}
    for path in sorted(folder.rglob("*.json")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if name.startswith("runs/"):
                check_stored(record)
            elif name.startswith("published/"):
                check_stored(record, PUBLISHED)
            else:
                check(record)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        records[name] = record
    return records


def facts_of_card(weights: str, records: Records) -> dict[str, Any]:
    """The part of a card that comes from records: the training run, and ``metrics``.

    Raises:
        ValueError: no record in ``runs`` names these weights.
    """
    runs = [record for record in records.values() if record.get("weights") == weights]
    if len(runs) != 1:
        raise ValueError(f"{weights}: one record in benchmarks/results/runs must have it as `weights`, {len(runs)} do")
    (run,) = runs
    facts = {key: run[there] for key, there in OF_THE_RUN.items()}
    return facts | {"metrics": [records[name] for name in run["benchmarks"]]}
