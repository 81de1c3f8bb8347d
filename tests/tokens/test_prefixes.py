"""Beginnings of token sequences, and several sequences in one stream."""

from dataclasses import replace

import pytest
import torch

from zoo.tokens import Segment, Tokens, TokenSpec
from zoo.tokens.allowed import allowed_ids

SIDES = (1, 2, 4, 8, 16, 16)  # SPAE, Section 3.2
SPAE = TokenSpec(
    tuple(Segment(f"level_{i}", (s, s), 0, 32000) for i, s in enumerate(SIDES)), dim=256, order="pyramid"
)  # fmt: skip
SEED = TokenSpec((Segment("tokens", (32,), 0, 8192),), dim=32, order="causal", decodes="embedding")
GRID = TokenSpec((Segment("grid", (4, 4), 0, 64),), dim=8)
TEXT = TokenSpec((Segment("text", (3,), 0, 20),), dim=8, order="causal", decodes=None)
V2L = TokenSpec(
    (Segment("global", (21,), 0, 11908), Segment("local", (16, 16), 11908, 32000)), dim=768, order="set",
)  # fmt: skip


def test_a_pyramid_ends_with_a_level():
    assert SPAE.prefix_lengths == (1, 5, 21, 85, 341, 597)
    assert SPAE.first(21) == replace(SPAE, segments=SPAE.segments[:3], prefix_of=597)
    assert SPAE.first(597) is SPAE
    with pytest.raises(ValueError, match=r"ends with a whole level: take 1, 5, 21, 85, 341, 597 tokens, not 7$"):
        SPAE.first(7)


def test_a_causal_sequence_ends_anywhere():
    assert SEED.prefix_lengths == tuple(range(1, 33))
    shorter = replace(SEED, segments=(Segment("tokens", (4,), 0, 8192),))
    assert SEED.first(4) == replace(shorter, prefix_of=32) != shorter, "no tokenizer of 4 tokens"
    assert SEED.first(8).first(4) == SEED.first(4)
    for n in (0, 33, -1):
        with pytest.raises(ValueError, match=f"take 1 to 32 tokens, not {n}$"):
            SEED.first(n)


@pytest.mark.parametrize(("spec", "kind"), [(GRID, "raster"), (V2L, "set")])
def test_other_orders_need_all_of_their_tokens(spec, kind):
    assert spec.prefix_lengths == (spec.num_tokens,)
    assert spec.first(spec.num_tokens) is spec
    with pytest.raises(ValueError, match=f"the first 4 tokens of a {kind} are no image without the others: take all"):
        spec.first(4)


def test_the_first_tokens_are_a_prefix_of_ids_and_vectors():
    pyramid = TokenSpec((Segment("a", (1, 1), 0, 9), Segment("b", (2, 2), 0, 9)), dim=2, order="pyramid")
    tokens = Tokens(torch.arange(10).view(2, 5), torch.zeros(2, 5, 2), pyramid)
    part = tokens.first(1)
    assert part.ids.tolist() == [[0], [5]]
    assert part.embeddings.shape == (2, 1, 2)
    assert part.spec == pyramid.first(1)
    assert {k: v.tolist() for k, v in part.grids().items()} == {"a": [[[0]], [[5]]]}
    assert [g.shape for g in tokens.grids().values()] == [(2, 1, 1), (2, 2, 2)]
    only = Tokens(None, torch.zeros(1, 5, 2), pyramid).first(1)
    assert only.ids is None
    assert only.embeddings.shape == (1, 1, 2)


def test_a_prefix_keeps_its_words():
    spec = replace(SEED, vocabulary="words", word_list=[str(i) for i in range(8192)])
    assert Tokens(torch.tensor([[7, 8]]), None, spec.first(2)).words() == [["7", "8"]]
    assert spec.first(2).words is spec.words


# ---------------------------------------------------------------- one stream


def test_text_and_image_in_one_stream():
    joint = TokenSpec.join(TEXT, GRID)
    assert joint.segments == (Segment("text", (3,), 0, 20), Segment("grid", (4, 4), 20, 64))
    assert (joint.vocab_size, joint.num_tokens, joint.dim, joint.order) == (84, 19, 8, "causal")
    assert (joint.vocabulary, joint.decodes, joint.words) == ("learned", "pixels", None)
    assert joint.span("text") == slice(0, 3)
    assert joint.span("grid") == slice(3, 19)


def test_each_position_of_a_stream_takes_the_ids_of_its_segment():
    allowed = allowed_ids(TokenSpec.join(TEXT, GRID))
    assert allowed.shape == (19, 84)
    assert allowed.sum(1).tolist() == [20] * 3 + [64] * 16
    assert allowed[:3, :20].all()
    assert allowed[3:, 20:].all()


def test_streams_are_joined_and_split():
    text = Tokens(torch.tensor([[0, 1, 19], [2, 3, 4]]), None, TEXT)
    image = Tokens(torch.arange(32).view(2, 16), None, GRID)
    both = Tokens.join(text, image)
    assert both.ids[0].tolist() == [0, 1, 19, *range(20, 36)]
    assert both.spec == TokenSpec.join(TEXT, GRID)
    again = both.split(TEXT, GRID)
    assert [part.spec for part in again] == [TEXT, GRID]
    assert torch.equal(again[0].ids, text.ids)
    assert torch.equal(again[1].ids, image.ids)
    assert torch.equal(both.grid("grid"), image.grid() + 20)
    assert (
        Tokens.join(text, Tokens(torch.zeros(2, 16, dtype=torch.int64), None, replace(GRID, dim=3)), dim=5).spec.dim
        == 5
    )


def test_a_stream_may_end_after_any_word_and_any_row():
    joint = TokenSpec.join(TEXT, GRID)
    assert joint.prefix_lengths == (1, 2, 3, 7, 11, 15, 19)
    assert joint.first(11).segments == (joint.segments[0], Segment("grid", (2, 4), 20, 64))
    assert joint.first(3).segments == joint.segments[:1]
    with pytest.raises(ValueError, match="ends with a whole row: take 1, 2, 3, 7, 11, 15, 19 tokens, not 4"):
        joint.first(4)


def test_segments_with_offsets_of_their_own_keep_them():
    joint = TokenSpec.join(TEXT, V2L, dim=4)
    assert [s.offset for s in joint.segments] == [0, 20, 11928]
    assert joint.vocab_size == 20 + 43908


def test_streams_of_words_have_words():
    a = replace(TEXT, vocabulary="words", word_list=[f"a{i}" for i in range(25)])  # more than its ids
    b = replace(GRID, vocabulary="words", word_list=[f"b{i}" for i in range(64)])
    joint = TokenSpec.join(a, b)
    assert joint.vocabulary == "words"
    assert joint.words[19] == "a19"
    assert joint.words[20] == "b0"


def test_what_does_not_join_ends_with_one_sentence():
    for specs, sentence in (
        ((), "at least one spec"),
        ((TEXT, replace(GRID, segments=(Segment("v", (4,)),), vocabulary=None)), "each of tokens with ids"),
        ((GRID, GRID), "segments of a joint sequence need names of their own, got grid, grid"),
        ((TEXT, SEED), "have widths 8, 32: set dim"),
    ):
        with pytest.raises(ValueError, match=sentence):
            TokenSpec.join(*specs)
    text, image = Tokens(torch.zeros(2, 3, dtype=torch.int64), None, TEXT), torch.zeros(2, 16, dtype=torch.int64)
    with pytest.raises(ValueError, match="ids of as many images in each part, got 1"):
        Tokens.join(text, Tokens(image[:1], None, GRID))
    both = Tokens.join(text, Tokens(image, None, GRID))
    with pytest.raises(ValueError, match="these specs do not make this sequence, whose segments are text, grid"):
        both.split(GRID, TEXT)
    wrong = Tokens(both.ids.clamp(min=5) * 0, None, both.spec)
    with pytest.raises(ValueError, match=r"segment grid has ids in 0\.\.0, and its own are 20\.\.83"):
        wrong.split(TEXT, GRID)
