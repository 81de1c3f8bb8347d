"""Accuracy of answers against several people: the formula, the cleaning, and both together, in both versions."""

import random

import pytest

from zoo.metrics.vqa import CONTRACTIONS, VQAAccuracy, clean_punctuation, clean_words, vqa_accuracy


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
    assert vqa_accuracy("cat", ["cat"]) == 1
    assert vqa_accuracy("dog", ["cat"]) == 0


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Two dogs", "2 dogs"), ("a man on the bench", "man on bench"), ("dont know", "don't know"),
        ("its well", "its well"), ("they've", "they've"), ("Im here", "im here"), ("Ive", "ive"), ("id've", "id've"),
        ("none", "0"), ("Zero one TEN eleven", "0 1 10 eleven"), ("THE a An", ""), ("a none", "0"),
        ("somebody'd", "somebodyd"), ("somebodyd've", "somebody'd've"), ("ow's'at", "'ow's'at"), ("twas", "'twas"),
        ("yalld've", "yalld've"), ("y'alld've", "y'all'd've"), ("couldnt've", "couldn't've"), ("shes", "shes"),
        ("hed", "he'd"), ("wed", "wed"), ("DONT", "don't"), ("two  dogs", "2 dogs"),
    ],
)  # fmt: skip
def test_words_are_cleaned_as_in_the_evaluation_code(raw, clean):
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
        ("t-shirt", "t shirt"),
        ("t-shirt -", "tshirt "),
        ("t-shirt 1,5", "tshirt 15"),
        ("a,b", "a b"),
        ("1, 2", "1 2"),
        (".5", ".5"),
        ("5.", "5"),
        ("3.a", "3a"),
        ("...5", ".5"),
        ("it's 5:30", "it's 5:30"),
        ("\u0663,\u0663", "\u0663\u0663"),
        ("." * 33, "."),
        ("x\\y_z", "x y z"),
        ("$5 & 5% #1", "$5 & 5% #1"),
    ],
)
def test_punctuation_is_cleaned_as_in_the_evaluation_code(raw, clean):
    assert clean_punctuation(raw) == clean


def test_the_metric_is_the_mean():
    metric = VQAAccuracy("lavis")
    metric.update(["yes", "2"], [["yes"] * 10, ["two"] * 5 + ["three"] * 5])
    metric.update(["no"], [["yes"] * 10])
    assert metric.compute() == pytest.approx((1 + 0 + 0) / 3), "people's number words are not cleaned"
    with pytest.raises(ValueError, match="1 predictions and answers to 2 questions"):
        metric.update(["x"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="are a list of texts, and a prediction is one, not 'aaaa'"):
        vqa_accuracy("a", "aaaa")  # whose letters would be counted as people
    with pytest.raises(ValueError, match="no human answer"):
        vqa_accuracy("x", [])


# ---------------------------------------------------------------- both versions against loops


def spelled_out(answer):
    """The published rules once more, letter by letter: punctuation, then words."""
    signs = list(';/[]"{}()=+\\_-><@`,?!')
    between_digits = any(
        answer[i] == "," and answer[i - 1].isdigit() and answer[i + 1].isdigit() for i in range(1, len(answer) - 1)
    )
    drop = {s for s in signs if between_digits or s + " " in answer or " " + s in answer}
    text, removed = "", 0
    kept = ["" if c in drop else " " if c in signs else c for c in answer]
    letters = list("".join(kept))
    for i, letter in enumerate(letters):
        last = letters[i + 1 : i + 2]
        if letter == "." and not (last and last[0].isdigit()) and removed < 32:
            removed += 1
        else:
            text += letter
    return text


DIGITS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
          "seven": "7", "eight": "8", "nine": "9", "ten": "10"}  # fmt: skip
#: a sample of the published table, with every kind of entry
TABLE = {
    "dont": "don't", "hes": "he's", "couldnt've": "couldn't've", "couldn'tve": "couldn't've", "somebody'd": "somebodyd",
    "'ows'at": "'ow's'at", "yall'd've": "y'all'd've", "twas": "'twas", "oclock": "o'clock", "maam": "ma'am",
    "let's": "let's", "wed've": "we'd've",
}  # fmt: skip


def in_words(text):
    found = []
    for word in text.lower().split():
        word = DIGITS.get(word, word)
        if word in ("a", "an", "the"):
            continue
        found.append(TABLE.get(word, word))
    return " ".join(found)


def accuracy_by_loops(prediction, answers, version):
    given = prediction.replace("\n", " ").replace("\t", " ").strip()
    people = list(answers)
    if version == "2021":
        people = [person.replace("\n", " ").replace("\t", " ").strip() for person in people]
    differ = any(person != people[0] for person in people)
    if version == "lavis" or differ:
        given = in_words(spelled_out(given))
    if differ:
        people = [in_words(spelled_out(p)) if version == "2021" else spelled_out(p) for p in people]
    points = []
    for i in range(len(people)):
        agree = 0
        for j, person in enumerate(people):
            agree += i != j and person == given
        points.append(1 if agree >= 3 else agree / 3)
    return sum(points) / len(points)


ATOMS = (
    "the cat", "cat", "Cat.", "a cat", "two", "2", "Two!", "none", "0", "red/blue", "red blue", "t-shirt", "1,000",
    "1000", "3.5", "3. 5", "dont", "don't", "Im", "im", "somebody'd", "somebodyd", "couldn'tve", "yes\n", "yes",
    "\tyes", "yes  no", "yes no", "(no)", "no", "it's", "its", "e.g. that", "." * 35, "x,y", "the", "", "hes ",
    "yall'd've", "12:30",
)  # fmt: skip


@pytest.mark.parametrize("version", ["2021", "lavis"])
def test_random_answers_are_scored_as_by_the_published_rules(version):
    rng = random.Random(0)
    scores = []
    for _ in range(4000):
        pool = [rng.choice(ATOMS) for _ in range(rng.randint(1, 3))]
        if rng.random() < 0.3:
            pool.append(" ".join(rng.sample(ATOMS, 2)))
        answers = [rng.choice(pool) for _ in range(rng.choice([2, 3, 10, 10]))]
        prediction = rng.choice([*pool, *ATOMS[:6]])
        expected = accuracy_by_loops(prediction, answers, version)
        assert vqa_accuracy(prediction, answers, version) == pytest.approx(expected), (prediction, answers)
        scores.append(expected)
    assert 0.05 < sum(scores) / len(scores) < 0.9
    assert len({round(score, 3) for score in scores}) > 8


def test_the_two_versions_clean_different_sides():
    for prediction, answers, official, lavis in (
        ("the cat", ["the cat"] * 10, 1, 0),  # all agree: only one of them cleans the prediction then
        ("two", ["two"] * 5 + ["2"] * 5, 1, 1),
        ("two", ["two"] * 9 + ["3"], 1, 0),  # people's words are cleaned by one only
        ("2", ["two"] * 9 + ["3"], 1, 0),
        ("the cat", ["a cat"] * 9 + ["dog"], 1, 0),
        ("yes", ["yes\n"] * 10, 1, 0),
        ("cat", ["the cat"] * 10, 0, 0),
        ("yes", ["yes!"] * 9 + ["no"], 1, 0),  # a sign at the end becomes a space, which words lose
    ):
        assert vqa_accuracy(prediction, answers, "2021") == official, (prediction, answers)
        assert vqa_accuracy(prediction, answers, "lavis") == lavis, (prediction, answers)


def test_every_contraction_is_known():
    assert len(CONTRACTIONS) == 120
    assert TABLE.items() <= CONTRACTIONS.items()
    assert all(key.replace("'", "") == value.replace("'", "") for key, value in CONTRACTIONS.items())
    assert not {"its", "ill", "well", "im", "id", "shes", "shed", "hell", "were", "wed"} & CONTRACTIONS.keys()
    assert {"wont", "cant", "Im", "Ive", "I'dve", "whens"} <= CONTRACTIONS.keys()


def test_the_version_is_part_of_the_protocol():
    for version, rules in (("2021", "GT-Vision-Lab/VQA a013f00"), ("lavis", "salesforce/LAVIS 506965b")):
        metric = VQAAccuracy(version)
        metric.update(["2"], [["two"] * 9 + ["3"]])
        assert metric.compute() == (version == "2021")
        assert metric.protocol() == {"metric": "VQA accuracy", "version": version, "rules": rules, "questions": 1}
    assert VQAAccuracy().version == "2021"
