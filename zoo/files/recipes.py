"""Recipes found by name: in the working directory, else inside the installed package."""

import itertools
import re
from pathlib import Path

from zoo.choices import suggest_nearest
from zoo.files.recipe_header import parse_header

# a wheel carries the recipes as zoo/recipes; a checkout has them beside the package
_PACKAGE = Path(__file__).parents[1]
_PLACES = (_PACKAGE / "recipes", _PACKAGE.parent / "recipes")


def packaged_recipes() -> dict[str, Path]:
    """List the recipes that came with the package: name (``beit``, ``paper/beit_base_imagenet1k``) -> file."""
    root = next((place for place in _PLACES if place.is_dir()), _PLACES[-1])
    return {p.relative_to(root).with_suffix("").as_posix(): p for p in sorted(root.rglob("*.yaml"))}


def find_recipe(path: str) -> Path:
    """Find the file that ``--config path`` means: a local file, else the packaged recipe of that name.

    Raises:
        FileNotFoundError: naming the nearest recipes.
    """
    if Path(path).is_file():
        return Path(path)
    name = Path(path).with_suffix("").as_posix() if path.endswith((".yaml", ".yml")) else path
    name = name.removeprefix("./").removeprefix("recipes/")
    known = packaged_recipes()
    if name in known:
        return known[name]
    hint = suggest_nearest(name, known, most=3, cutoff=0.5, show=lambda near: f"recipes/{near}.yaml")
    see = "see 'lightning recipes'"
    raise FileNotFoundError(f"there is no recipe {path!r}, neither here nor in the package: {hint or see}")


def suggest_recipe(path: str | Path) -> str:
    """Say ``; make it with lightning fit ...`` of a file that a packaged recipe writes; empty for others.

    Where that recipe needs the file of another one that is not there either, the commands of both stand in order.
    """
    commands = _list_commands(Path(path), ())
    return f"; make it with {' and then '.join(commands)}" if commands else ""


def _list_commands(path: Path, asked: tuple[str, ...]) -> list[str]:
    """List the commands that make a file, in order; ``asked`` are the recipes that wait for it, which end a circle."""
    """List the commands that make a file, in order; ``asked`` are the recipes that wait for it, which end a circle."""
    known = {name.rpartition("/")[2]: file for name, file in packaged_recipes().items()}
    name = next((b for a, b in itertools.pairwise(path.parts) if a == "runs"), None)
    if name not in known or name in asked or path.exists():
        return []
    text = known[name].read_text(encoding="utf-8")
    lines = parse_header(known[name]).get("run", "").splitlines()
    run = next((line for line in lines if line.startswith("lightning fit") and f"/{name}.yaml" in line), "")
    body = [line.partition(" #")[0] for line in text.splitlines() if not line.startswith("#")]
    needed = dict.fromkeys(re.findall(r"runs/[\w/.-]+\.ckpt", "\n".join([run, *body])))
    before = [c for needs in needed for c in _list_commands(Path(needs), (*asked, name))]
    return [*dict.fromkeys(before), run or f"lightning fit --config recipes/{name}.yaml"]
