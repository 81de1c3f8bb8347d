"""The examples of ``docs/adding_a_model.md`` work as they are written, and a file that is forgotten is named."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding_a_model.md").read_text(encoding="utf-8")
FILE = re.compile(
    r"^`(?P<path>[\w/.]+)`:\n\n(?:<!-- no-run: .*? -->\n)?(?P<fence>`{3,})\w+\n(?P<text>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
FILES = {found["path"]: found["text"] for found in FILE.finditer(PAGE)}
#: capability -> name of its example
EXAMPLES = {"tokenizer": "brightness", "second stage": "successor", "bridge": "glance"}
NAMES = list(EXAMPLES.values())


def parts(name):
    """The four files of a paper."""
    return (
        f"zoo/models/{name}.py",
        f"recipes/{name}.yaml",
        f"tests/models/test_{name}.py",
        f"docs/models/{name}.md",
    )


def paste(folder, name):
    for path in parts(name):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(FILES[path], encoding="utf-8")


def test_the_page_has_the_four_files_of_each_example_and_no_others():
    assert list(FILES) == [path for name in NAMES for path in parts(name)]


@pytest.mark.parametrize(("capability", "name"), EXAMPLES.items())
def test_an_example_stands_under_its_capability(capability, name):
    section = PAGE.split(f"\n## A {capability}\n")[1].split("\n`zoo/models/")[1]
    assert section.startswith(f"{name}.py`:")


def link_or_copy(source, target):
    """Weights are large, and are not changed."""
    return os.symlink(source, target) if source.endswith(".safetensors") else shutil.copy(source, target)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the repository in which the twelve files were pasted."""
    folder = tmp_path_factory.mktemp("copy")
    leave_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("zoo", "datamodules", "benchmarks", "recipes", "docs", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=leave_out, copy_function=link_or_copy)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, folder / name)
    for name in NAMES:
        paste(folder, name)
    return folder


def run_in(folder, *command):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(folder / "tests")])}
    return subprocess.run([sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_four_files_pasted_as_written_pass_the_tests_of_every_model(copy):
    tests = [
        *(f"tests/models/test_{name}.py" for name in NAMES),
        "tests/style/test_style.py",
        "tests/docs/test_snippets.py",
        "tests/recipes/test_recipes.py",
        *(f"tests/contract/test_{kind}.py" for kind in ("models", "learning", "empty_batches", "missing_entries")),
    ]
    chosen = f"({' or '.join(NAMES)}) and not two_steps"
    done = run_in(copy, "pytest", "-q", "-rA", "-n", "0", "-p", "no:cacheprovider", *tests, "-k", chosen)
    assert done.returncode == 0, done.stdout[-3000:]
    for name in NAMES:
        passed = re.findall(rf"^PASSED (tests/\w+)/.*{name}", done.stdout, re.MULTILINE)
        assert set(passed) == {"tests/models", "tests/style", "tests/docs", "tests/recipes", "tests/contract"}, name
        assert len(passed) >= 50, name


@pytest.mark.slow
def test_the_examples_keep_the_style_and_the_types_of_the_house(copy):
    code = [path for path in FILES if path.endswith(".py")]
    for command in (["ruff", "check", "--no-cache"], ["ruff", "format", "--no-cache", "--check"]):
        done = run_in(copy, *command, *code)
        assert done.returncode == 0, done.stdout
    models = [path for path in code if path.startswith("zoo/")]
    done = run_in(copy, "mypy", "--cache-dir", str(copy / "mypy"), *models)
    assert done.returncode == 0, done.stdout


def load_for(path, folder, monkeypatch):
    """A module of tests that look at another folder than this repository."""
    spec = importlib.util.spec_from_file_location(f"{Path(path).stem}_elsewhere", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", folder)
    return module


def check_parts(name, folder, monkeypatch):
    """Those of the tests that name a part that is missing."""
    style = load_for("tests/style/test_style.py", folder, monkeypatch)
    snippets = load_for("tests/docs/test_snippets.py", folder, monkeypatch)
    if (folder / "zoo" / "models" / f"{name}.py").exists():  # a paper is a file there
        style.test_a_paper_has_its_four_files(name)
    for page in (folder / "docs" / "models").glob("*.md"):
        snippets.test_model_pages_belong_to_a_paper(page)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_named_when_all_four_files_are_there(name, tmp_path, monkeypatch):
    paste(tmp_path, name)
    check_parts(name, tmp_path, monkeypatch)
    load_for("tests/style/test_numbers.py", tmp_path, monkeypatch).test_recipes_that_promise_a_number_have_a_record()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (0, "docs/models/{name}.md is the page of no file in zoo/models"),
        (1, "zoo/models/{name}.py needs recipes/{name}.yaml"),
        (2, "zoo/models/{name}.py needs tests/models/test_{name}.py"),
        (3, "docs/models/{name}.md is missing"),
    ],
    ids=["module", "recipe", "test", "page"],
)
def test_a_forgotten_file_is_named(name, part, sentence, tmp_path, monkeypatch):
    paste(tmp_path, name)
    (tmp_path / parts(name)[part]).unlink()
    with pytest.raises(AssertionError, match=re.escape(sentence.format(name=name))):
        check_parts(name, tmp_path, monkeypatch)
