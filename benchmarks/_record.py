"""One JSON per benchmark run: what was measured, how, and where; :mod:`zoo.metrics.record` writes it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.metrics.record import ENVIRONMENT, SCHEMA, check, environment, write

__all__ = ["ENVIRONMENT", "RESULTS", "ROOT", "SCHEMA", "check", "environment", "read_all", "run", "write"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def read_all(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """All records of a folder, in the order of their file names."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def run(main: Callable[[], Any]) -> None:
    """Run a script from the command line: what the user can help ends it with one line, as it does a command."""
    from zoo.cli.sentences import FOR_THE_USER, end_with_sentence

    try:
        main()
    except FOR_THE_USER as error:
        end_with_sentence(error)
