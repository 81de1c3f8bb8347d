"""Accuracy of visual question answering against several human answers.

Source: VQA (Antol et al. 2015, arXiv:1505.00468), Section 5; the cleaning of answers follows the rules of its
evaluation code (VQA ``vqaEval``): punctuation, articles, number words, lost apostrophes.
"""

import re
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = ("a", "an", "the")


def _words(text: str) -> list[str]:
    return text.split()


NUMBERS = {word: str(i) for i, word in enumerate(_words("zero one two three four five six seven eight nine ten"))}
NUMBERS["none"] = "0"
_NEGATED = _words(
    "ai are ca could did do does had has have is might must need ought sha should was were wo would"
)  # n't
_SHORT = {
    "ve": _words("could i might must should they we would you who"),
    "re": _words("they we you who what how"),
    "d": _words("he how i it she that there they we who you where"),
    "ll": _words("he i it she that they we who you what"),
    "s": _words("he she that there what where who how when let somebody someone something everyone"),
}
#: spelling without apostrophe -> with
CONTRACTIONS = {f"{word}nt": f"{word}n't" for word in _NEGATED} | {
    f"{word}{end}": f"{word}'{end}" for end, words in _SHORT.items() for word in words
}
# these are words of their own
for _word in ("ill", "shell", "well", "wed", "shed", "hell", "were", "its", "id", "wont", "cant"):
    CONTRACTIONS.pop(_word, None)
CONTRACTIONS |= {"im": "i'm", "cant": "can't", "wont": "won't", "yall": "y'all", "oclock": "o'clock"}
_COMMA, _PERIOD = re.compile(r"\d,\d"), re.compile(r"\.(?!\d)")


def clean_punctuation(answer: str) -> str:
    """An answer without punctuation; a sign between letters becomes a space, one beside a space goes."""
    found = answer
    for sign in PUNCTUATION:
        if f"{sign} " in answer or f" {sign}" in answer or _COMMA.search(answer):
            found = found.replace(sign, "")
        else:
            found = found.replace(sign, " ")
    return _PERIOD.sub("", found)


def clean_words(answer: str) -> str:
    """An answer in lower case, with digits for number words, apostrophes restored, and without articles."""
    words = [NUMBERS.get(word, word) for word in answer.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Mean, over the human answers, of min(1, matches among the others / 3).

    Args:
        prediction: of the model.
        answers: of several people, ten in the VQA data set. Where there is one, the accuracy is equality.

    Raises:
        ValueError: without answers.
    """
    if not answers:
        raise ValueError("a question has no human answer to compare with: remove it")
    given = " ".join(prediction.split())
    truth = [" ".join(answer.split()) for answer in answers]
    if len(set(truth)) > 1:  # people who agree are taken at their word
        given, truth = clean_words(clean_punctuation(given)), [clean_punctuation(answer) for answer in truth]
    else:
        given, truth = given.strip(), [answer.strip() for answer in truth]
    if len(truth) == 1:
        return float(given == truth[0])
    scores = []
    for i in range(len(truth)):
        others = sum(given == answer for j, answer in enumerate(truth) if j != i)
        scores.append(min(1.0, others / 3))
    return sum(scores) / len(scores)


class VQAAccuracy(Metric):
    """Accuracy of answers to questions about images, 0 to 1, over all processes."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> None:
        """Add questions.

        Args:
            predictions: one per question.
            answers: of people, one or more per question.

        Raises:
            ValueError: for another number of predictions than questions.
        """
        if len(predictions) != len(answers):
            raise ValueError(f"there are {len(predictions)} predictions and answers to {len(answers)} questions")
        for prediction, given in zip(predictions, answers, strict=True):
            self.total += vqa_accuracy(prediction, given)
            self.count += 1

    def compute(self) -> Float[Tensor, ""]:
        return self.total / self.count
