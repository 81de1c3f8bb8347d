"""Recipes on the command line: found by name, copied for editing."""

import re
import shlex
import sys
from pathlib import Path

from zoo.files.atomic import write_text_whole
from zoo.files.recipes import find_recipe, packaged_recipes


def resolve_arguments(arguments: list[str], recipes: dict[str, Path]) -> list[str]:
    """Replace every ``--config PATH`` that does not exist here by the packaged recipe of that name.

    Args:
        arguments: of the command line.
        recipes: filled with the configuration files, as typed -> as found.

    Raises:
        SystemExit: with code 2 and one line for a recipe that does not exist.
    """
    resolved = []
    path_follows = False
    for i, argument in enumerate(arguments):
        _refuse_misplaced_recipe(arguments, i)
        flag, equals, path = argument.partition("=")
        if path_follows:
            resolved.append(_resolve_recipe(argument, recipes))
        elif equals and flag in ("--config", "-c"):
            resolved.append(f"{flag}={_resolve_recipe(path, recipes)}")
        else:
            resolved.append(argument)
        path_follows = not path_follows and argument in ("--config", "-c")
    return resolved


def _refuse_misplaced_recipe(arguments: list[str], i: int) -> None:
    """Refuse a recipe that stands alone, where the parser would speak of an unknown option."""
    argument, before = arguments[i], arguments[i - 1] if i else ""
    option = argument.startswith("-") or (before.startswith("-") and "=" not in before)  # or the value of one
    if re.match(r"-config\b", argument):
        right = [*arguments[:i], f"-{argument}", *arguments[i + 1 :]]
    elif not option and (argument.endswith((".yaml", ".yml")) or (i == 1 and argument in packaged_recipes())):
        packaged = argument in packaged_recipes() and not Path(argument).is_file()
        named = f"recipes/{argument}.yaml" if packaged else argument
        right = [*(arguments[:i] or ["fit"]), "--config", named, *arguments[i + 1 :]]
    else:
        return
    sys.stderr.write(f"error: a recipe stands behind --config: write lightning {shlex.join(right)}\n")
    sys.exit(2)


def _resolve_recipe(path: str, recipes: dict[str, Path]) -> str:
    if "\n" in path or path.lstrip().startswith("{"):  # a configuration given in place
        return path
    try:
        found = find_recipe(path)
        found.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        sys.stderr.write(
            f"error: {path} is no text in UTF-8, so no recipe: 'lightning recipes' lists those there are\n"
        )
        sys.exit(2)
    except OSError as error:
        sys.stderr.write(f"error: {error if error.errno is None else f'{path}: {error.strerror}'}\n")
        sys.exit(2)
    recipes[path] = found
    if not Path(path).is_file():
        sys.stderr.write(f"{path} is not here, using the packaged recipe {recipes[path]}\n")
    return str(recipes[path])


def copy_recipe(name: str, target: str | None = None) -> Path:
    """Copy a packaged recipe for editing; never overwrites.

    Args:
        name: as for :func:`find_recipe`.
        target: file or existing folder; by default the recipe's own file name, here.

    Raises:
        FileExistsError: rather than overwriting.
    """
    source = packaged_recipes().get(name.removeprefix("recipes/").removesuffix(".yaml")) or find_recipe(name)
    destination = Path(target or source.name)
    if destination.is_dir():
        destination = destination / source.name
    if destination.exists():
        raise FileExistsError(f"{destination} exists: give another name, lightning copy {shlex.quote(name)} OTHER.yaml")
    return write_text_whole(destination, source.read_text(encoding="utf-8"))
