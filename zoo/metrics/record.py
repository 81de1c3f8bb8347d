"""The record of a measurement: one JSON that says what was measured, how, and where.

``lightning test`` and the scripts in ``benchmarks/`` write the same record; ``benchmarks/RESULTS.md`` is made of them.
"""

import math
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from zoo.files.atomic import write_text_whole
from zoo.files.strict_json import dump_json, find_non_finite
from zoo.version import __version__

Record = dict[str, Any]
#: folder that holds the package; a checkout where zoo was installed from one
HOME = Path(__file__).resolve().parents[2]
#: key -> type of its value; every record has exactly these keys
SCHEMA: dict[str, type | tuple[type, ...]] = {
    "benchmark": str,  # name of the script
    "status": str,  # "ok", or why there are no metrics
    "model": str,
    "data": str,
    "metrics": dict,  # name -> number
    "n": int,  # images, or repetitions of a timing
    "protocol": dict,
    "environment": dict,
    "seconds": (int, float),
}
ENVIRONMENT = ("zoo", "git", "python", "torch", "lightning", "device", "threads", "precision", "date")


def environment(device: str = "cpu", precision: str = "32") -> dict[str, Any]:
    """Versions, machine and date of a measurement.

    Args:
        device: on which the model ran, such as ``cpu`` or ``cuda:0``.
        precision: of the model.
    """
    import torch

    cuda = device.startswith("cuda")
    return {
        "zoo": _installed_version(),
        "git": _git_revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": version("lightning"),
        "device": torch.cuda.get_device_name(device) if cuda else f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "precision": precision,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def check(record: Record) -> None:
    """Refuse a record that does not keep the schema.

    Raises:
        ValueError: naming the key.
    """
    if set(record) != set(SCHEMA):
        raise ValueError(f"keys of the record differ from the schema: {sorted(set(record) ^ set(SCHEMA))}")
    for key, kind in SCHEMA.items():
        if not isinstance(record[key], kind) or isinstance(record[key], bool):
            raise ValueError(f"{key} must be {kind}, got {record[key]!r}")
    missing = set(ENVIRONMENT) - set(record["environment"])
    if missing:
        raise ValueError(f"environment lacks {sorted(missing)}")
    for name, value in record["metrics"].items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"metric {name} must be a number, got {value!r}")
        if not math.isfinite(value):
            raise ValueError(f"metric {name} is {value}, which is no measurement")
    if record["status"] == "ok" and not record["metrics"]:
        raise ValueError("a record with status 'ok' has metrics")


def write(record: Record, path: Path) -> None:
    """Check a record and write it.

    Metrics that are no finite numbers are left out and named by the status, so that the others are not lost.

    Raises:
        ValueError: naming the key that does not keep the schema.
    """
    if bad := find_non_finite(record["metrics"]):
        status = "not finite: " + ", ".join(f"{name} {number}" for name, number in bad.items())
        metrics = {name: value for name, value in record["metrics"].items() if name not in bad}
        record = record | {"status": status, "metrics": metrics}
    check(record)
    write_text_whole(path, dump_json(record, "null") + "\n")


def _installed_version() -> str:
    try:
        return version("tokenzoo")
    except PackageNotFoundError:  # on the path without being installed
        return __version__


def _git_revision() -> str:
    """Commit of the checkout, with ``+`` where files differ from it; "none" outside of one."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=HOME, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != HOME:
            return "none"  # an installed package below somebody else's repository
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "none"
