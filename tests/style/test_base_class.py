"""The base class of all papers stays small, and knows none of them."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "zoo" / "module.py").read_text(encoding="utf-8")
PAPERS = sorted((ROOT / "zoo" / "models").glob("[a-z]*.py"))
CLASSES = [
    node.name for path in PAPERS for node in ast.parse(path.read_text(encoding="utf-8")).body
    if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
]  # fmt: skip
#: of language models, of LoRA, and of what single papers do
WORDS = ["lora", "adapter", "language", "llm", "gpt", "bert", "clip", "prompt", "caption", "text", "q-former", "mask"]


def named(text):
    """Words of a paper in a text, whole or as parts of a longer name."""
    known = [*(path.stem for path in PAPERS), *(name.lower() for name in CLASSES), *WORDS]
    return sorted(word for word in set(known) if re.search(rf"(?<![a-z]){re.escape(word)}(?![a-z])", text.lower()))


def test_the_base_class_fits_on_two_hundred_lines():
    assert len(TEXT.splitlines()) <= 200


def test_the_base_class_has_no_word_of_a_paper():
    assert {"BEiT", "VQGAN", "LLaVA"} <= set(CLASSES)
    assert named(TEXT) == []


@pytest.mark.parametrize(("text", "word"), [("self.lora_rank", "lora"), ("of BEiT", "beit"), ("a caption", "caption")])
def test_such_a_word_is_found(text, word):
    assert word in named(text)
