"""The documentation is true: its Python runs, its links lead somewhere, its equation maps name functions that exist."""

import ast
import collections
import importlib
import logging
import re
from pathlib import Path

import pytest

from zoo import presets

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAPERS = sorted((ROOT / "docs" / "models").glob("*.md"))
#: a block may be preceded by <!-- no-run: reason -->
BLOCK = re.compile(
    r"(<!-- no-run(?:: *(?P<reason>[^>]*?))? -->\s*)?^```python\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL
)
#: a page that is shown whole, whose own blocks are not those of the page around it
QUOTED = re.compile(r"^````.*?^````$", re.MULTILINE | re.DOTALL)
HEADINGS = (
    "In one paragraph", "Idea and equations", "What is implemented", "Deviations", "Tokens", "Recipe", "Results",
    "Use from Python", "Weights and licences", "References",
)  # fmt: skip


def name(path):
    return path.relative_to(ROOT).as_posix()


def test_there_are_pages():
    assert len(PAGES) > 1
    assert PAPERS


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_blocks_run(page, in_tmp, monkeypatch):
    """Blocks of one page share their names, like cells of a notebook."""
    monkeypatch.setattr(presets, "_PRESETS", dict(presets.presets()))  # what a page registers is not there later
    namespace = {"__name__": "snippet"}
    text = QUOTED.sub(lambda found: "\n" * found[0].count("\n"), page.read_text(encoding="utf-8"))
    for block in BLOCK.finditer(text):
        line = text[: block.start("code")].count("\n") + 1
        if block[1]:
            assert block["reason"], f"{name(page)}:{line}: say why the block does not run: <!-- no-run: reason -->"
            ast.parse(block["code"])
            continue
        exec(compile("\n" * (line - 1) + block["code"], str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_resolve(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name(page)} links to {target}, which is not there"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{name(page)} links to {target}: no such heading"


def test_the_site_builds_without_a_warning(tmp_path, caplog):
    """As ``mkdocs build --strict -f .mkdocs.yml``: every page is in the menu, and every link leads to a page."""
    config = pytest.importorskip("mkdocs.config")
    from mkdocs.commands.build import build

    site = config.load_config(str(ROOT / ".mkdocs.yml"), site_dir=str(tmp_path / "site"))
    site["plugins"].on_startup(command="build", dirty=False)
    with caplog.at_level(logging.WARNING, logger="mkdocs"):
        build(site)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert "lightning fit" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lists_and_tables_are_the_same_on_the_site_and_in_the_repository(page):
    """The site's Markdown knows fewer forms: a list after a list, or code in a list, may be swallowed."""
    markdown, commonmark = pytest.importorskip("markdown"), pytest.importorskip("markdown_it")
    text = page.read_text(encoding="utf-8")
    site = markdown.markdown(text, extensions=["tables", "fenced_code", "toc", "sane_lists"])
    assert blocks(site) == blocks(commonmark.MarkdownIt("commonmark").enable("table").render(text))


def blocks(html):
    return collections.Counter(re.findall(r"<(ul|ol|li|pre|table|tr|blockquote|h\d|img)\b", html))


def anchors(page):
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in found}


def prose(page):
    """A page without its blocks of code, and without the name that stands for any paper."""
    text = QUOTED.sub("", page.read_text(encoding="utf-8"))
    text = re.sub(r"^```.*?^```$|^`[\w/.]+`:$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"[\w/]*\bfoo\b[\w/.<>]*|[\w/]*test_foo\.py", "", text)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_names_and_paths_in_prose_exist(page):
    text = prose(page)
    names = set(re.findall(r"(?<![\w/.-])(?:zoo|datamodules)(?:\.[A-Za-z_]\w*)+", text))
    missing = [n for n in names if not exists(n) and not re.search(r"\.(py|yaml|md)$", n)]
    assert not missing, f"{name(page)} names {', '.join(missing)}, which do not exist"
    rooms = "zoo|tests|benchmarks|recipes|docs|datamodules"
    paths = set(re.findall(rf"(?<![\w/.:-])(?:{rooms})/[\w./-]*\w(?![\w*{{])", text))
    lost = [p for p in paths if not (ROOT / p).exists() and "NAME" not in p and not p.endswith("_")]
    assert not lost, f"{name(page)} names {', '.join(lost)}, where nothing is"


@pytest.mark.parametrize("page", PAPERS, ids=name)
def test_model_pages_have_the_same_headings(page):
    headings = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert [h for h in headings if h in HEADINGS] == list(HEADINGS)


@pytest.mark.parametrize("page", PAPERS, ids=name)
def test_model_pages_belong_to_a_paper(page):
    assert modules(page), f"{name(page)} is the page of no file in zoo/models"


def modules(page):
    """Files of the paper: one, or one per part, such as its stages."""
    stems = sorted(path.stem for path in (ROOT / "zoo" / "models").glob("*.py"))
    return [f"zoo.models.{stem}" for stem in stems if stem == page.stem or stem.startswith(f"{page.stem}_")]


@pytest.mark.parametrize("page", PAPERS, ids=name)
def test_functions_of_the_equation_map_exist(page):
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    names = [n for row in rows for n in re.findall(r"`((?:zoo|datamodules)\.[\w.]+)`", row)]
    assert names, f"{name(page)} has no table that maps equations to functions of the zoo"
    missing = [n for n in names if not exists(n)]
    assert not missing, f"{name(page)} names {', '.join(missing)}, which do not exist"


@pytest.mark.parametrize("page", PAPERS, ids=name)
def test_functions_of_the_docstring_exist(page):
    """`Equations: Eq. 1 -> `DVAE.losses`` at the top of the paper's module, relative to it or to the package."""
    for module in modules(page):
        equations = importlib.import_module(module).__doc__.partition("Equations:")[2]
        names = re.findall(r"`+([A-Za-z_][\w.]*)`+", equations)
        assert names
        missing = [n for n in names if not any(exists(f"{prefix}{n}") for prefix in ("", "zoo.", f"{module}."))]
        assert not missing, f"the equation map of {module} names {', '.join(missing)}"


def exists(dotted):
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part, None)
        return found is not None
    return False
