"""The list of what each file is for is that of the files."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("file_list", Path(__file__).with_name("file_list.py"))
file_list = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(file_list)


@pytest.mark.parametrize("name", ["README.md", "docs/files.md"])
def test_the_list_is_that_of_the_docstrings(name):
    assert (ROOT / name).read_text(encoding="utf-8") == file_list.texts()[ROOT / name], (
        "run python tests/docs/file_list.py"
    )


def test_the_command_that_the_page_names_writes_the_list(tmp_path):
    """As a script: installed packages hold modules called ``tests``, which ``python -m tests`` would find first."""
    copied = ("README.md", "docs/files.md", "zoo", "datamodules", "benchmarks", "tests/docs")
    for name in copied:
        for path in [ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*.py"):
            target = tmp_path / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    page = (tmp_path / "docs" / "files.md").read_text(encoding="utf-8")
    (tmp_path / "docs" / "files.md").write_text("", encoding="utf-8")
    command = re.search(r"Written by `python ([^`]+)`", page)[1]
    subprocess.run([sys.executable, *command.split()], cwd=tmp_path, check=True)
    assert (tmp_path / "docs" / "files.md").read_text(encoding="utf-8") == page


def test_every_file_stands_in_the_list_once():
    page = file_list.page()
    for package in file_list.PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if path.stem != "__init__" and path.parent.name != "models":
                section = page.split(f"\n## {path.parent.relative_to(ROOT).as_posix()}\n")[1].partition("\n## ")[0]
                assert section.count(f"* `{path.name}`: ") == 1


def test_every_room_stands_in_the_tree_of_the_readme_once():
    paths = [path for path, _ in file_list.rooms()]
    loose = [f"  {p.name}" for p in (ROOT / "zoo").glob("*.py") if not p.stem.startswith("__")]
    folders = [f"  {p.parent.name}/" for p in (ROOT / "zoo").glob("*/__init__.py")]
    assert sorted(p for p in paths if p.startswith(" ")) == sorted(loose + folders)
    for folder in ("zoo/", "datamodules/", "benchmarks/", "recipes/", "docs/", "tests/", ".ci/"):
        assert paths.count(folder) == 1
        assert (ROOT / folder).is_dir()


@pytest.mark.parametrize(
    ("docstring", "line"),
    [
        ("Orders of tokens.\n\nMore.", "Orders of tokens."),
        ("Version 1.0 of ``x``. It does more.", "Version 1.0 of `x`."),
        ("For a :class:`zoo.nn.A`, and\nits heirs", "For a `zoo.nn.A`, and its heirs"),
    ],
)
def test_a_line_is_the_first_sentence(tmp_path, docstring, line):
    path = tmp_path / "a.py"
    path.write_text(f'"""{docstring}"""\n')
    assert file_list.summary(path) == line


def test_a_file_without_a_docstring_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(file_list, "ROOT", tmp_path)
    (tmp_path / "a.py").write_text("A = 1\n")
    with pytest.raises(ValueError, match=r"a\.py has no docstring that says what it is for"):
        file_list.summary(tmp_path / "a.py")
