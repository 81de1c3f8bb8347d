"""Vocabularies of words: compared by fingerprint, looked up in both directions, with vectors where there are any."""

import copy
from dataclasses import replace

import jaxtyping
import pytest
import torch

from zoo.tokens import Segment, Tokens, TokenSpec, Vocabulary

WORDS = tuple("abcdefghijkl")
PYRAMID = TokenSpec(
    (Segment("coarse", (1, 1), 0, 5), Segment("fine", (2, 2), 5, 7)), dim=3, order="pyramid", vocabulary="words",
    decodes=None, word_list=WORDS,
)  # fmt: skip


class Untouchable(tuple):
    """Words that must not be read."""

    def _refuse(self, *_):
        raise AssertionError("the words were read")

    __eq__ = __ne__ = __hash__ = __iter__ = __getitem__ = __repr__ = __len__ = _refuse


def untouchable(words):
    vocabulary = Vocabulary(words, "w")
    vocabulary._words = Untouchable(words)
    return vocabulary


def test_comparing_specs_does_not_touch_the_words():
    a, b, other = (replace(PYRAMID, word_list=untouchable(w)) for w in (WORDS, list(WORDS), WORDS[::-1]))
    assert a == b
    assert hash(a) == hash(b)
    assert len({a, b, other}) == 2
    assert a != other
    assert a != replace(PYRAMID, word_list=None)
    assert "word_list=Vocabulary('w', 12 words), " in repr(a)
    assert copy.deepcopy(a) == a
    assert copy.deepcopy(a).words is a.words
    assert replace(a, dim=4).words is a.words
    with pytest.raises(AssertionError, match="the words were read"):
        _ = a.words._words[0]


def test_equal_words_are_equal_vocabularies_whatever_their_name_and_vectors():
    plain = Vocabulary(["ab", "c"])
    assert plain == Vocabulary(("ab", "c"), "named", torch.zeros(2, 3))
    assert plain != Vocabulary(["a", "bc"])
    assert plain != ("ab", "c")
    assert [*plain] == ["ab", "c"]
    assert (len(plain), plain[1]) == (2, "c")
    assert Vocabulary(["\ud800"]) != Vocabulary(["\ud801"])  # halves of a pair, which byte-level vocabularies hold


def test_strings_become_a_vocabulary():
    assert isinstance(PYRAMID.words, Vocabulary)
    assert PYRAMID.words.words == WORDS
    assert replace(PYRAMID, word_list=Vocabulary(WORDS, "letters")) == PYRAMID
    assert TokenSpec((Segment("grid", (1, 1), 0, 2),), dim=1).words is None


def test_words_are_as_many_as_ids():
    with pytest.raises(ValueError, match="there are 11 words for 12 ids: give one word per id"):
        replace(PYRAMID, word_list=WORDS[:-1])
    with pytest.raises(ValueError, match="there are 2 vectors for 3 words"):
        Vocabulary(["a", "b", "c"], vectors=torch.zeros(2, 4))
    for wrong in ("abc", []):
        with pytest.raises(ValueError, match="a list of at least one word"):
            Vocabulary(wrong)


def test_words_and_back():
    ids = torch.tensor([[0, 5, 6, 7, 11], [4, 5, 5, 5, 5]])
    words = Tokens(ids, None, PYRAMID).words()
    assert words == [list("afghl"), list("effff")]
    found = Tokens.from_words(words, PYRAMID)
    assert torch.equal(found.ids, ids)
    assert found.spec is PYRAMID
    assert Tokens.from_words([], PYRAMID).ids.shape == (0, 5)
    assert Tokens.from_words([["b"]], PYRAMID.first(1)).grid("coarse").tolist() == [[[1]]]


def test_a_word_is_looked_up_in_its_segment():
    spec = replace(PYRAMID, word_list=[*"abcde", *"abcdeab"])
    tokens = Tokens.from_words([list("aabcd")], spec)
    assert tokens.ids.tolist() == [[0, 5, 6, 7, 8]]
    assert tokens.words() == [list("aabcd")]
    with pytest.raises(ValueError, match=r"'f' has id 5, and the ids that may stand here are 0\.\.4"):
        Tokens.from_words([list("fffff")], PYRAMID)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([list("afgh")], r"image 0 needs a list of 5 words, got 4 words: for the words of a prefix give spec\.first"),
        ([list("afghi"), "afghi"], r"image 1 needs a list of 5 words, got the string 'afghi'"),
        ([["a", "f", "g", "h", "hh"]], r"'hh' is no word of letters, which has 12 words: did you mean 'h'\?"),
        ([["a", "f", "g", "h", "8"]], r"'8' is no word of letters, which has 12 words$"),
    ],
)
def test_what_is_no_words_of_an_image_ends_with_one_sentence(words, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        Tokens.from_words(words, replace(PYRAMID, word_list=Vocabulary(WORDS, "letters")))
    assert "\n" not in str(caught.value)


def test_vocabularies_without_words_say_so():
    grid = TokenSpec((Segment("grid", (1, 1), 0, 2),), dim=1)
    for spec, kind in (
        (grid, "learned"),
        (replace(grid, vocabulary="words"), "of words that nobody has listed"),
        (replace(grid, vocabulary=None), "continuous"),
    ):
        with pytest.raises(ValueError, match=f"the vocabulary of this tokenizer is {kind}, not words"):
            Tokens.from_words([["a"]], spec)
        with pytest.raises(ValueError, match=f"is {kind}, not words"):
            Tokens(torch.zeros(1, 1, dtype=torch.int64), None, spec).words()
    with pytest.raises(ValueError, match="these tokens have no ids"):
        Tokens(None, torch.zeros(1, 5, 3), PYRAMID).words()


def test_a_vocabulary_that_was_not_read_is_known_by_its_fingerprint():
    known = Vocabulary(WORDS, "letters")
    unread = Vocabulary.unread("letters", 12, known.fingerprint)
    assert unread == known
    assert hash(unread) == hash(known)
    assert len(unread) == 12
    assert replace(PYRAMID, word_list=unread) == PYRAMID
    with pytest.raises(ValueError, match="the words of letters are not here, only their fingerprint: take the spec of"):
        _ = unread[0]


def test_vocabularies_are_put_one_behind_the_other():
    a, b = Vocabulary(["x", "y"], "few", torch.zeros(2, 3)), Vocabulary(["y"], "one", torch.ones(1, 3))
    both = a + b
    assert both.words == ("x", "y", "y")
    assert both.name == "few+one"
    assert both.vectors.sum(1).tolist() == [0, 0, 3]
    assert (both.find("y"), both.find("y", start=2)) == (1, 2)
    assert (a + b.with_vectors(torch.ones(1, 4))).width is None
    assert (a + Vocabulary(["z"])).name == "few"
    assert b.with_vectors(torch.ones(1, 4), "wide").width == 4


def test_ids_without_words_are_named():
    for outside in (12, -1):
        tokens = Tokens(torch.tensor([[0, 5, 6, 7, outside]]), None, PYRAMID)
        with pytest.raises(ValueError, match=r"^the ids lie in -?\d\.\.\d+, and only 0\.\.11 have words$"):
            tokens.words()


def test_what_is_no_word_no_vector_and_no_sequence_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside of the tests
    with pytest.raises(TypeError, match=r"^words are strings, got 1 of type int$"):
        Vocabulary(["a", 1])
    with pytest.raises(ValueError, match=r"^a vocabulary is a list of at least one word, got None$"):
        Vocabulary(None)
    with pytest.raises(ValueError, match=r"^vectors have shape \(2,\): give one row per word$"):
        Vocabulary(["a", "b"], vectors=torch.zeros(2))
    with pytest.raises(TypeError, match=r"^words are strings, got 0 of type int$"):
        Tokens.from_words([[0, 5, 6, 7, 8]], PYRAMID)
    with pytest.raises(ValueError, match=r"^a spec needs at least one segment"):
        TokenSpec((), 4)
    with pytest.raises(ValueError, match=r"^ids have shape \(5,\), and 'b n' is needed: one row per image$"):
        Tokens(torch.zeros(5, dtype=torch.int64), None, PYRAMID)
    with pytest.raises(ValueError, match=r"^embeddings have shape \(1, 5\), and 'b n d' is needed"):
        Tokens(None, torch.zeros(1, 5), PYRAMID)
