"""Pieces of captions: learned from the data, the same after a checkpoint, in any language, with dropout in training."""

import random

import pytest
import torch

from zoo.language.caption_bpe import NUM_BYTES, CaptionBPE

CAPTIONS = ["A red heart", "grinning face with big eyes", "Drapeau : France", "旗: 日本", "red flag", "red apple"] * 5


@pytest.fixture(scope="module")
def codec():
    return CaptionBPE.train(CAPTIONS, 400)


@pytest.mark.parametrize("caption", [*CAPTIONS[:6], "никогда не видел", "a snowman ⛄ in an unknown word", "É"])
def test_every_caption_comes_back_in_lower_case(codec, caption):
    assert codec.text(codec.ids(caption)) == caption.lower()


def test_pieces_join_what_stands_together_often(codec):
    assert len(codec.ids("red heart")) == 2
    assert len(codec.ids("zyx")) == 4  # a space and three letters that are never together


def test_the_same_captions_give_the_same_pieces(codec):
    assert CaptionBPE.train(CAPTIONS, 400).merges == codec.merges


def test_a_tensor_holds_all_of_it(codec):
    merges = codec.to_tensor()
    assert merges.shape == (400 - NUM_BYTES, 2)
    again = CaptionBPE.from_tensor(merges)
    assert again.vocab_size == 400
    for caption in CAPTIONS:
        assert again.ids(caption) == codec.ids(caption)
    assert torch.equal(again.to_tensor(), merges)


def test_ids_are_of_the_vocabulary_and_bytes_come_first(codec):
    ids = [i for caption in CAPTIONS for i in codec.ids(caption)]
    assert max(ids) < len(codec.vocabulary) == 400
    assert max(codec.ids("ß")) < NUM_BYTES


def test_dropout_leaves_merges_out_and_never_a_letter(codec):
    caption = "grinning face with big eyes"
    found = {}
    for dropout in (1e-12, 0.5, 1.0):
        random.seed(0)
        found[dropout] = codec.ids_with_dropout(caption, dropout)
        random.seed(0)
        assert codec.ids_with_dropout(caption, dropout) == found[dropout]
        assert codec.text(found[dropout]) == caption
    assert found[1e-12] == codec.ids(caption)
    assert len(found[1e-12]) < len(found[0.5]) < len(found[1.0]) == len(caption) + 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CaptionBPE.train(CAPTIONS, 100), "text_vocab must be at least 256"),
        (lambda: CaptionBPE.train(["", " "], 400), "no captions to learn"),
        (lambda: CaptionBPE([(0, 300)], 400), "merge 0 joins the pieces 0 and 300"),
    ],
)
def test_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
