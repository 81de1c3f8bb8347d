"""The house rules that a machine can check."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("zoo", "datamodules", "benchmarks", "tests")
FILES = [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))]
PAPERS = [p.stem for p in sorted((ROOT / "zoo" / "models").glob("*.py")) if p.stem != "__init__"]
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
#: imports that floors alone would let pass (test_floors.py)
FORBIDDEN_IMPORTS = {
    "zoo/models": ("datamodules",),
    "zoo": ("pytorch_lightning", "tests"),
    "datamodules": ("pytorch_lightning", "tests"),
    "benchmarks": ("pytorch_lightning", "tests"),
}
#: a docstring says what something does or is, not that it does
RIDDLES = re.compile(r"^(What|Which|How|Whether|Where|When|Why|As)\b|\bAnd back\.|\bNot possible\.")
HEAVY = (
    "timm",
    "transformers",
    "torchvision",
    "torchmetrics",
    "matplotlib",
    "scipy",
    "skimage",
    "sklearn",
    "torch_fidelity",
)


def name(path):
    return path.relative_to(ROOT).as_posix()


def imports(tree):
    """(module, whether at the top level) of every import statement."""
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, id(node) in top
            yield from ((f"{node.module}.{alias.name}", id(node) in top) for alias in node.names)


def starts(module, prefixes):
    return any(module == p or module.startswith(p + ".") for p in prefixes)


def test_something_is_checked():
    assert len(FILES) > 40
    assert {"dvae", "beit"} <= set(PAPERS)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_keeps_the_rules_of_the_house(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) < 500, "split the file"
    assert path.stem not in FORBIDDEN_NAMES
    assert path.parent.name not in FORBIDDEN_NAMES
    assert not re.search(r"^\s*from \S+ import \*", text, re.MULTILINE)
    if not name(path).startswith("tests/"):
        assert not text.strip() or ast.get_docstring(tree), "every module says in a docstring what it is"
    for folder, forbidden in FORBIDDEN_IMPORTS.items():
        if name(path).startswith(folder + "/"):
            wrong = sorted({module for module, _ in imports(tree) if starts(module, forbidden)})
            assert not wrong, f"{folder} must not import {', '.join(wrong)}"
    if name(path).startswith(("zoo/", "datamodules/")):
        heavy = sorted({module for module, top in imports(tree) if top and starts(module, HEAVY)})
        heavy = [m for m in heavy if not (m.startswith("torchmetrics") and name(path).startswith("zoo/metrics/"))]
        assert not heavy, f"import {', '.join(heavy)} inside the functions that use it"


@pytest.mark.parametrize("path", [p for p in FILES if not name(p).startswith("tests/")], ids=name)
def test_docstrings_of_public_classes_and_functions_are_no_riddles(path):
    nodes = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    ]
    assert [node.name for node in nodes if RIDDLES.search(ast.get_docstring(node) or "")] == []


@pytest.mark.parametrize(
    "riddle",
    ["What it needs.", "How often.", "Whether it is.", "As in torch.", "From ids to words. And back.", "Not possible."],
)
def test_a_riddle_is_found(riddle):
    assert RIDDLES.search(riddle)


@pytest.mark.parametrize("paper", PAPERS)
def test_a_paper_has_its_four_files(paper):
    text = (ROOT / "zoo" / "models" / f"{paper}.py").read_text(encoding="utf-8")
    assert (ROOT / f"tests/models/test_{paper}.py").is_file(), (
        f"zoo/models/{paper}.py needs tests/models/test_{paper}.py"
    )
    # the parts of one paper share a page: blip2_stage1 and blip2_stage2 are on blip2.md
    pages = [path.stem for path in (ROOT / "docs" / "models").glob("*.md")]
    pages = [page for page in pages if paper == page or paper.startswith(f"{page}_")]
    assert pages, f"docs/models/{paper}.md is missing"
    # a recipe is named after its file, or, of a part that is trained in several ways, after the paper and the way
    recipes = [recipe for recipe in re.findall(r'recipe="([\w/]+\.yaml)"', text) if "/" not in recipe]
    named = [r for r in recipes if r == f"{paper}.yaml" or (paper not in pages and r.startswith(f"{pages[0]}_"))]
    assert any((ROOT / "recipes" / recipe).is_file() for recipe in named), (
        f"zoo/models/{paper}.py needs recipes/{paper}.yaml, and a preset that names it"
    )


@pytest.mark.parametrize("paper", PAPERS)
def test_a_paper_says_what_it_implements(paper):
    text = ast.get_docstring(ast.parse((ROOT / "zoo" / "models" / f"{paper}.py").read_text(encoding="utf-8")))
    assert re.search(r"arXiv:\d{4}\.\d{5}", text)
    for heading in ("Official code:", "Implemented:", "Not implemented:", "Deviations:", "Equations:"):
        assert re.search(rf"^{heading} ?|[.;] {heading}", text, re.MULTILINE), f"{heading} missing"


@pytest.mark.parametrize("paper", PAPERS)
def test_methods_stand_in_the_agreed_order(paper):
    steps = ["training_step", "validation_step", "configure_optimizers"]
    order = ["__init__", "encode", "decode", "embed", "generate", "losses", *steps]
    tree = ast.parse((ROOT / "zoo" / "models" / f"{paper}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found = [f.name for f in node.body if isinstance(f, ast.FunctionDef) and f.name in order]
            assert found == sorted(found, key=order.index), f"{node.name}: {' '.join(found)}"


def test_nothing_names_a_model_to_switch_on_it():
    """Capabilities decide (spec.decodes), never names: no comparison of a class name with a string."""
    pattern = re.compile(r"__name__\s*(==|!=|in)\s")
    offenders = [name(p) for p in FILES if name(p).startswith("zoo/") and pattern.search(p.read_text(encoding="utf-8"))]
    assert [o for o in offenders if o not in ("zoo/__main__.py", "zoo/__init__.py")] == []


def test_tests_mirror_the_packages():
    """Sub-folders of tests are those of zoo and datamodules, and the layers of the harness."""
    layers = {
        "style",
        "behaviour",
        "contract",
        "parity",
        "recipes",
        "docs",
        "benchmarks",
        "fixtures",
        "packaging",
        "datamodules",
    }
    allowed = layers | {p.name for p in (ROOT / "zoo").iterdir() if p.is_dir()}
    found = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert found <= allowed


@pytest.mark.parametrize("path", [p for p in FILES if p.stem.startswith("test_")], ids=name)
def test_names_of_tests_are_sentences(path):
    """More than one word, so that a failure says what does not hold any more."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tests = [n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
    assert [test for test in tests if test.count("_") < 2] == []


def test_shared_toys_have_no_doubles():
    """A class that stands in a module of ``tests`` itself is imported from there, and not written a second time."""
    places = {}
    for path in (p for p in FILES if name(p).startswith("tests/")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name(path))
    in_common = [name(p) for p in (ROOT / "tests").glob("*.py") if not p.stem.startswith("test_")]
    shared = {cls: files for cls, files in places.items() if set(files) & set(in_common)}
    assert {cls: files for cls, files in shared.items() if len(files) > 1} == {}


def test_every_package_travels_in_the_wheel():
    """The list is written by hand, because the recipes are packages without code."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = [f.parent for package in ("zoo", "datamodules") for f in (ROOT / package).rglob("__init__.py")]
    recipes = {"zoo.recipes", *(f"zoo.recipes.{p.name}" for p in (ROOT / "recipes").iterdir() if p.is_dir())}
    assert sorted(listed) == sorted({name(f).replace("/", ".") for f in folders} | recipes)


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["ruff check --no-cache", "ruff format --check --no-cache"])
def test_tools_find_nothing(tool):
    """As in pyproject.toml. Snippets in Markdown keep their aligned comments."""
    command = [sys.executable, "-m", *tool.split(), *PACKAGES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-500:]


def test_typing_marker_and_licence_travel():
    assert (ROOT / "zoo" / "py.typed").exists()
    assert (ROOT / "NOTICE").exists()
    assert (ROOT / "LICENSE").exists()
