"""Tables of models and recipes for the command line.

Sizes and tokens of a model are known when it is built, which takes seconds for all of them and needs torch. The package
therefore carries them in ``models_table.json``, per file of ``zoo/models`` and with a digest of its registrations: what
was registered since, or elsewhere, is built.
``python -c "import zoo.cli.catalog as c; c.write_table()"`` writes it anew.
"""

import ast
import fnmatch
import hashlib
import json
import pkgutil
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.choices import natural_order
from zoo.files.atomic import write_text_whole
from zoo.files.recipe_header import parse_header
from zoo.files.recipes import packaged_recipes
from zoo.files.strict_json import dump_json
from zoo.runs.table import format_table

if TYPE_CHECKING:
    from zoo.presets import ModelInfo, Weights

TABLE = Path(__file__).parent / "models_table.json"
COLUMNS = ("name", "class", "parameters", "tokens x vocabulary", "decodes to", "weights", "recipe", "paper")
RECIPE_COLUMNS = ("recipe", "title", "expect")


def format_models(pattern: str = "*", width: int | None = None) -> str:
    """Format all registered models that match a shell wildcard, one per line.

    Args:
        pattern: that names match as a whole, or else in part.
        width: of the terminal; None cuts nothing.

    Raises:
        ValueError: when none does.
    """
    known = _read_rows()
    names = fnmatch.filter(known, pattern) or fnmatch.filter(known, f"*{pattern}*")
    if not names:
        raise ValueError(f"no model matches {pattern!r}: 'lightning list' prints all of them")
    rows = []
    for name in sorted(names, key=natural_order):
        row = known[name]
        rows.append(_row_as_far_as_possible(name) if row is None else row)
    return format_table(COLUMNS, rows, width)


def format_recipes(width: int | None = None) -> str:
    """Format all recipes of the package, with their title and the result that is expected of them.

    Args:
        width: of the terminal; None cuts nothing.
    """
    headers = {name: parse_header(path) for name, path in packaged_recipes().items()}
    rows = [
        (f"recipes/{name}.yaml", *(h.get(key, "").partition("\n")[0] for key in ("title", "expect")))
        for name, h in headers.items()
    ]
    return format_table(RECIPE_COLUMNS, rows, width)


def describe_left_out(shown: str, command: str) -> str:
    """Name the columns that a narrow terminal has no room for; empty where all are there.

    Args:
        shown: the table.
        command: that prints it, ``list`` or ``recipes``.
    """
    header = re.split(r"  +", shown.partition("\n")[0])
    missing = [name for name in (RECIPE_COLUMNS if command == "recipes" else COLUMNS) if name not in header]
    return f"not shown: {', '.join(missing)}; lightning {command} | cat prints all\n" if missing else ""


def write_table() -> None:
    """Build every model of the package, and store the row that ``lightning list`` shows of it."""
    from zoo.presets import presets

    papers = []
    for module, path in _find_papers().items():
        names = [name for name, preset in presets().items() if preset.cls.__module__ == f"zoo.models.{module}"]
        rows = [dump_json(_build_row(name), indent=None, ascii_only=False) for name in sorted(names, key=natural_order)]
        listed = ",\n  ".join(rows)  # a line per model, so that changes can be read
        papers.append(f'"{module}": {{\n "registrations": "{_digest(path)}",\n "rows": [\n  {listed}\n ]\n}}')
    write_text_whole(TABLE, "{\n" + ",\n".join(papers) + "\n}\n")


def _read_rows() -> dict[str, tuple[str, ...] | None]:
    """Read the stored row of every preset; None for one that has to be built."""
    stored = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}
    papers = _find_papers()
    current = [m for m, path in papers.items() if m in stored and stored[m]["registrations"] == _digest(path)]
    rows: dict[str, tuple[str, ...] | None] = {row[0]: tuple(row) for m in current for row in stored[m]["rows"]}
    if len(current) < len(papers) or "zoo.registry" in sys.modules:  # new files, or presets that a program registered
        from zoo.presets import presets

        rows = {name: rows.get(name) for name in presets()}
    return rows


def _find_papers() -> dict[str, Path]:
    import zoo.models

    places = [Path(place) for place in zoo.models.__path__]
    names = sorted(module.name for module in pkgutil.iter_modules(zoo.models.__path__))
    return {name: next(p / f"{name}.py" for p in places if (p / f"{name}.py").is_file()) for name in names}


def _digest(path: Path) -> str:
    """Hash the statements of a paper's file that register presets, without its classes and functions."""
    text = path.read_text(encoding="utf-8")
    kinds = (ast.ClassDef, ast.FunctionDef, ast.Import, ast.ImportFrom)
    statements = [
        ast.get_source_segment(text, node) or "" for node in ast.parse(text).body[1:] if not isinstance(node, kinds)
    ]
    return hashlib.sha256("".join("".join(statements).split()).encode()).hexdigest()[:12]


def _build_row(name: str) -> tuple[str, ...]:
    from zoo.registry import model_info

    return _format_cells(model_info(name))


def _row_as_far_as_possible(name: str) -> tuple[str, ...]:
    """The row of a preset; sizes and tokens are left open where building it needs a package that is not installed."""
    from zoo.presets import find_preset

    try:
        return _build_row(name)
    except ModuleNotFoundError:
        preset = find_preset(name)
        return name, preset.cls.__name__, "-", "-", "-", _tags(preset.weights), preset.recipe or "-", preset.paper


def _tags(weights: "dict[str, Weights]") -> str:
    return ", ".join(tag if w.file else f"{tag} (to download)" for tag, w in weights.items()) or "-"


def _format_cells(info: "ModelInfo") -> tuple[str, ...]:
    spec = info.spec
    tokens = "-" if spec is None else f"{spec.num_tokens} x {spec.vocab_size or 'continuous'}"
    decodes = "-" if spec is None or spec.decodes is None else spec.decodes
    parameters = f"{info.num_parameters / 1e6:,.2f} M"
    return (
        info.name,
        info.cls.__name__,
        parameters,
        tokens,
        decodes,
        _tags(info.weights),
        info.recipe or "-",
        info.paper,
    )
