"""Where recipes are: in the working directory, else inside the installed package."""

import difflib
import itertools
import re
import shlex
import sys
from pathlib import Path

import zoo
from zoo.atomic_files import write_text_whole
from zoo.recipe_header import parse_header

# a wheel carries the recipes as zoo/recipes; a checkout has them beside the package
_PLACES = (Path(zoo.__file__).parent / "recipes", Path(zoo.__file__).parents[1] / "recipes")


def packaged() -> dict[str, Path]:
    """Name (``beit``, ``paper/beit_base_imagenet1k``) to file, of every recipe that came with the package."""
    root = next((place for place in _PLACES if place.is_dir()), _PLACES[-1])
    return {p.relative_to(root).with_suffix("").as_posix(): p for p in sorted(root.rglob("*.yaml"))}


def find(path: str) -> Path:
    """The file that ``--config path`` means: a local file, else the packaged recipe of that name.

    Raises:
        FileNotFoundError: naming the nearest recipes.
    """
    if Path(path).is_file():
        return Path(path)
    name = Path(path).with_suffix("").as_posix() if path.endswith((".yaml", ".yml")) else path
    name = name.removeprefix("./").removeprefix("recipes/")
    known = packaged()
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(f'recipes/{c}.yaml' for c in close)}?" if close else "see 'lightning recipes'"
    raise FileNotFoundError(f"there is no recipe {path!r}, neither here nor in the package: {hint}")


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
        _check_place(arguments, i)
        flag, equals, path = argument.partition("=")
        if path_follows:
            resolved.append(_recipe(argument, recipes))
        elif equals and flag in ("--config", "-c"):
            resolved.append(f"{flag}={_recipe(path, recipes)}")
        else:
            resolved.append(argument)
        path_follows = not path_follows and argument in ("--config", "-c")
    return resolved


def _check_place(arguments: list[str], i: int) -> None:
    """Refuse a recipe that stands alone, where the parser would speak of an unknown option."""
    argument, before = arguments[i], arguments[i - 1] if i else ""
    option = argument.startswith("-") or (before.startswith("-") and "=" not in before)  # or the value of one
    if re.match(r"-config\b", argument):
        right = [*arguments[:i], f"-{argument}", *arguments[i + 1 :]]
    elif not option and (argument.endswith((".yaml", ".yml")) or (i == 1 and argument in packaged())):
        named = argument if Path(argument).is_file() or argument not in packaged() else f"recipes/{argument}.yaml"
        right = [*(arguments[:i] or ["fit"]), "--config", named, *arguments[i + 1 :]]
    else:
        return
    sys.stderr.write(f"error: a recipe stands behind --config: write lightning {shlex.join(right)}\n")
    sys.exit(2)


def how_to_make(path: str | Path) -> str:
    """``; lightning fit --config recipes/x.yaml makes it`` for a file that a packaged recipe writes, else nothing.

    Where that recipe needs the file of another one that is not there either, the commands of both stand in order.
    """
    commands = _commands(Path(path), ())
    return f"; make it with {' and then '.join(commands)}" if commands else ""


def _commands(path: Path, asked: tuple[str, ...]) -> list[str]:
    known = {name.rpartition("/")[2]: file for name, file in packaged().items()}
    name = next((b for a, b in itertools.pairwise(path.parts) if a == "runs"), None)
    if name not in known or name in asked or path.exists():
        return []
    text = known[name].read_text(encoding="utf-8")
    lines = parse_header(known[name]).get("run", "").splitlines()
    run = next((line for line in lines if line.startswith("lightning fit") and f"/{name}.yaml" in line), "")
    body = [line.partition(" #")[0] for line in text.splitlines() if not line.startswith("#")]
    needed = dict.fromkeys(re.findall(r"runs/[\w/.-]+\.ckpt", "\n".join([run, *body])))
    before = [c for needs in needed for c in _commands(Path(needs), (*asked, name))]
    return [*dict.fromkeys(before), run or f"lightning fit --config recipes/{name}.yaml"]


def _recipe(path: str, recipes: dict[str, Path]) -> str:
    if "\n" in path or path.lstrip().startswith("{"):  # a configuration given in place
        return path
    try:
        found = find(path)
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


def copy(name: str, target: str | None = None) -> Path:
    """Copy a packaged recipe for editing; never overwrites.

    Args:
        name: as for :func:`find`.
        target: file or existing folder; by default the recipe's own file name, here.

    Raises:
        FileExistsError: rather than overwriting.
    """
    source = packaged().get(name.removeprefix("recipes/").removesuffix(".yaml")) or find(name)
    destination = Path(target or source.name)
    if destination.is_dir():
        destination = destination / source.name
    if destination.exists():
        raise FileExistsError(f"{destination} exists: give another name, lightning copy {shlex.quote(name)} OTHER.yaml")
    return write_text_whole(destination, source.read_text(encoding="utf-8"))
