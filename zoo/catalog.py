"""Tables for the command line: the models and the recipes that there are."""

from zoo.recipe_files import packaged
from zoo.recipe_header import parse_header
from zoo.registry import ModelInfo, list_models, model_info


def models_table(pattern: str = "*") -> str:
    """All registered models that match a shell wildcard, one per line.

    Raises:
        ValueError: when none does.
    """
    names = list_models(pattern) or list_models(f"*{pattern}*")
    if not names:
        raise ValueError(f"no model matches {pattern!r}: 'lightning list' prints all of them")
    header = ("name", "class", "parameters", "tokens x vocabulary", "decodes to", "weights", "recipe", "paper")
    return table(header, [_row(model_info(name)) for name in names])


def _row(info: ModelInfo) -> tuple[str, ...]:
    spec = info.spec
    tokens = "-" if spec is None else f"{spec.num_tokens} x {spec.vocab_size or 'continuous'}"
    decodes = "-" if spec is None or spec.decodes is None else spec.decodes
    weights = ", ".join(tag if w.file else f"{tag} (to download)" for tag, w in info.weights.items())
    parameters = f"{info.num_parameters / 1e6:,.2f} M"
    return info.name, info.cls.__name__, parameters, tokens, decodes, weights or "-", info.recipe or "-", info.paper


def recipes_table() -> str:
    """All recipes of the package with their title and what they are expected to reach."""
    headers = {name: parse_header(path) for name, path in packaged().items()}
    rows = [
        (f"recipes/{name}.yaml", *(h.get(key, "").partition("\n")[0] for key in ("title", "expect")))
        for name, h in headers.items()
    ]
    return table(("recipe", "title", "expect"), rows)


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Left-aligned columns, two spaces apart."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]
    return "\n".join(line.rstrip() for line in lines)
