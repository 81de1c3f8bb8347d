"""Models read batches through zoo.tokens.batch, where an entry that is missing ends with one sentence."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "zoo" / "models").glob("*.py"))


def bare_reads(text):
    """Lines that take an entry out of a batch by subscript, which is a KeyError where it is missing."""
    return [
        node.lineno for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load)
        and isinstance(node.value, ast.Name) and node.value.id == "batch"
    ]  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_model_takes_an_entry_by_subscript(path):
    assert bare_reads(path.read_text(encoding="utf-8")) == []


def test_one_bare_read_is_found():
    assert bare_reads('def losses(batch):\n    x = batch["image"]\n    batch["y"] = batch.get("z")') == [2]
