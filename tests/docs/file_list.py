"""The list of what each file is for, from the first sentence of its docstring: ``python tests/docs/file_list.py``.

It writes the tree in ``README.md``, one line per room, and ``docs/files.md``, one line per file.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("zoo", "datamodules", "benchmarks")
#: folders at the top that hold no package, or are described by what a newcomer looks for in them
FOLDERS = {
    "benchmarks/": "Scripts that measure, and `results/`: one JSON per measured thing, which all numbers come from.",
    "recipes/": "One YAML per experiment on the embedded data; `paper/` has the published scale.",
    "docs/": "One page per paper, conventions, data, how to add a model.",
    "tests/": "The rooms again, and `contract/`, `parity/`, `style/`, `recipes/`, `docs/` over all of them.",
    ".ci/": "What runs the tests on a clean clone, with the lowest versions and without extras.",
}
TREE = re.compile(r"(<!-- tree: written by python tests/docs/file_list.py -->\n).*?(\n<!-- end -->)", re.DOTALL)
HEAD = """# What each file is for

The first sentence of each file, in the order of the tree. Written by `python tests/docs/file_list.py`.
Imports go strictly down between rooms; `tests/style/test_floors.py` lists the floors.
"""
MODELS = """## zoo/models

One file per paper or part of one, with the name of its recipe; each paper has [a page](index.md#models) of its own.
"""


def summary(path: Path) -> str:
    """The first sentence of a module's docstring, in Markdown.

    Raises:
        ValueError: for a module without a docstring.
    """
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not text:
        raise ValueError(f"{path.relative_to(ROOT)} has no docstring that says what it is for")
    sentence = re.match(r".*?[.!?](?=\s+[A-Z`]|$)|.*", " ".join(text.partition("\n\n")[0].split()))
    assert sentence is not None
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", sentence[0]).replace("``", "`")


def rooms() -> Iterator[tuple[str, str]]:
    """(path, line) of every room: a folder, or a module that lies loose in the package."""
    for package in PACKAGES[:2]:
        root = ROOT / package
        yield f"{package}/", summary(root / "__init__.py")
        if package == "zoo":
            found = [p for p in root.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()]
            for path in sorted(found, key=lambda p: (p.suffix == ".py", p.name)):
                if path.suffix == ".py" and not path.stem.startswith("__"):
                    yield f"  {path.name}", summary(path)
                elif path.is_dir():
                    yield f"  {path.name}/", summary(path / "__init__.py")
    yield from FOLDERS.items()


def tree() -> str:
    """One line per room, as it stands in the README."""
    lines = list(rooms())
    width = max(len(path) for path, _ in lines)
    return "\n".join(["```", *(f"{path:{width}}  {line.replace('`', '')}" for path, line in lines), "```"])


def page() -> str:
    """One line per file, as a page of the documentation."""
    sections = [HEAD]
    for package in PACKAGES:
        for folder in [ROOT / package, *sorted(p for p in (ROOT / package).rglob("*") if p.is_dir())]:
            files = [p for p in sorted(folder.glob("*.py")) if p.stem != "__init__"]
            if folder == ROOT / "zoo" / "models":
                sections += [MODELS]
                continue
            if not files:
                continue
            own = folder / "__init__.py"
            about = summary(own) if own.is_file() else FOLDERS[f"{package}/"]
            lines = [f"* `{path.name}`: {summary(path)}" for path in files]
            sections += [f"## {folder.relative_to(ROOT).as_posix()}\n\n{about}\n\n" + "\n".join(lines) + "\n"]
    return "\n".join(sections)


def texts() -> dict[Path, str]:
    """The files that hold the list, with the text that they should have."""
    readme = ROOT / "README.md"
    with_tree = TREE.sub(lambda found: found[1] + tree() + found[2], readme.read_text(encoding="utf-8"))
    return {readme: with_tree, ROOT / "docs" / "files.md": page()}


if __name__ == "__main__":
    for file, text in texts().items():
        file.write_text(text, encoding="utf-8")
