"""One vocabulary of text and image tokens: its layout, images in it, and what may be generated."""

import pytest
import torch

import zoo
from zoo.language.image_vocabulary import ImageVocabulary


def spec(count=4, size=32):
    return zoo.TokenSpec(segments=(zoo.Segment("tokens", (count,), size=size),), dim=8, order="causal")


def test_layout_of_the_vocabulary():
    words = ImageVocabulary(100, spec())
    assert (words.begin, words.end, words.size) == (132, 133, 134)
    assert words.span([0, 31, 5, 5]) == (132, 100, 131, 105, 105, 133)
    assert words.images_in([7, *words.span([1, 2, 3, 4]), 9, *words.span([0, 0, 0, 0])]) == [[1, 2, 3, 4], [0] * 4]


@pytest.mark.parametrize(
    ("sequence", "sentence"),
    [
        ([132, 100, 101, 133], "an image has 4 ids, these are 2"),
        ([132, 100, 7, 101, 102, 133], "word 7 of text stands inside an image"),
        ([132, 100, 101], "an image has no end after 2 ids"),
        ([132, 100, 132], "an image begins inside another one"),
        ([100, 133], "an image ends that did not begin"),
    ],
)
def test_sequences_that_hold_no_image(sequence, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        ImageVocabulary(100, spec()).images_in(sequence)
    assert "\n" not in str(caught.value)


def test_ids_that_make_no_image():
    words = ImageVocabulary(100, spec())
    with pytest.raises(ValueError, match=r"image ids must lie in 0..31, got 32"):
        words.span([0, 1, 2, 32])
    with pytest.raises(ValueError, match="an image has 4 ids, these are 3"):
        words.span([0, 1, 2])


def test_generation_is_held_to_the_ids_of_each_position_and_to_text():
    pyramid = zoo.TokenSpec((zoo.Segment("a", (1,), 0, 3), zoo.Segment("b", (2,), 3, 5)), dim=8, order="pyramid")
    words = ImageVocabulary(10, pyramid)
    constrain, scores = words.allow_only_images(torch.device("cpu")), torch.zeros(1, words.size)
    allowed = [
        constrain(torch.zeros(1, n, dtype=torch.int64), scores)[0].isfinite().nonzero().flatten().tolist()
        for n in range(5)
    ]
    assert allowed == [[10, 11, 12], [13, 14, 15, 16, 17], [13, 14, 15, 16, 17], [words.end], [words.end]]
    text = words.allow_only_text(torch.zeros(1, 0, dtype=torch.int64), scores)[0]
    assert text.isfinite().tolist() == [True] * 10 + [False] * 10
    assert words.is_of_image(torch.tensor([9, 10, 18, 19])).tolist() == [False, True, True, True]
