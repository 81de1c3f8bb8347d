"""Accuracy of answers against several people: the formula, the cleaning, and both together."""

import pytest

from zoo.metrics.vqa import VQAAccuracy, clean_punctuation, clean_words, vqa_accuracy


def test_a_third_of_the_others_is_enough():
    others = ["red"] * 6
    for matches, expected in ((0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0)):
        answers = ["blue"] * matches + [f"{other} {i}" for i, other in enumerate(["red"] * (10 - matches))]
        # of ten answers, each in turn is left out: 1/3 of a point per match among the other nine
        wanted = sum(min(1, (matches - (i < matches)) / 3) for i in range(10)) / 10
        assert vqa_accuracy("blue", answers) == pytest.approx(wanted) == pytest.approx(expected)
    assert others


def test_people_who_agree_are_taken_at_their_word():
    assert vqa_accuracy("the cat", ["the cat"] * 10) == 1
    assert vqa_accuracy("cat", ["the cat"] * 10) == 0, "nothing is cleaned where all agree"
    assert vqa_accuracy("The cat!", ["cat"] * 9 + ["dog"]) == 1
    assert vqa_accuracy("cat", ["cat"]) == 1 and vqa_accuracy("dog", ["cat"]) == 0


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Two dogs", "2 dogs"), ("a man on the bench", "man on bench"), ("dont know", "don't know"),
        ("its well", "its well"), ("im here", "i'm here"), ("they've", "they've"),
    ],
)  # fmt: skip
def test_words(raw, clean):
    assert clean_words(raw) == clean


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("red/blue", "red blue"),
        ("red, blue", "red blue"),
        ("yes.", "yes"),
        ("3.5", "3.5"),
        ("1,000", "1000"),
        ("(no)", " no "),
    ],
)
def test_punctuation(raw, clean):
    assert clean_punctuation(raw) == clean


def test_the_metric_is_the_mean():
    metric = VQAAccuracy()
    metric.update(["yes", "2"], [["yes"] * 10, ["two"] * 5 + ["three"] * 5])
    metric.update(["no"], [["yes"] * 10])
    assert metric.compute() == pytest.approx((1 + 0 + 0) / 3), "people's number words are not cleaned"
    with pytest.raises(ValueError, match="1 predictions and answers to 2 questions"):
        metric.update(["x"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="no human answer"):
        vqa_accuracy("x", [])
