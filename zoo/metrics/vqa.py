"""Accuracy of visual question answering against several human answers, by the rules of two published evaluations.

Source: VQA (Antol et al. 2015, arXiv:1505.00468), Section 5, and its evaluation code, GT-Vision-Lab/VQA ``vqaEval``:
``2021`` is the official one since its correction of March 2021 (commit a013f00), ``lavis`` its predecessor, which
salesforce/LAVIS (commit 506965b, ``vqa_eval``) and with it BLIP-2 measures by. They differ in what is cleaned:

=========  =============================================  ===============================================
version    answers that are all equal                     answers that differ
=========  =============================================  ===============================================
``2021``   nothing is cleaned                             prediction and answers are cleaned in full
``lavis``  the prediction is cleaned, the answers not     prediction in full, the answers of punctuation
=========  =============================================  ===============================================

Their oddities are rules too: a sign is dropped rather than replaced by a space if it touches a space *anywhere* in the
text or if there is a comma between digits; no period before a digit is dropped, and never more than 32; capital
contractions are in the table and never found, since words are in lower case by then.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from zoo.choices import one_of

Version = Literal["2021", "lavis"]
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = ("a", "an", "the")


def _words(text: str) -> list[str]:
    return text.split()


NUMBERS = {word: str(i) for i, word in enumerate(_words("zero one two three four five six seven eight nine ten"))}
NUMBERS["none"] = "0"
_APOSTROPHES = _words("""
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""")
#: a word that lost one of its apostrophes -> the word; and three entries that follow no rule
CONTRACTIONS = {
    f"{word[:i]}{word[i + 1 :]}": word for word in _APOSTROPHES for i, letter in enumerate(word) if letter == "'"
} | {"let's": "let's", "she's": "she's", "somebody'd": "somebodyd"}
_COMMA, _PERIOD, _PERIODS = re.compile(r"\d,\d"), re.compile(r"\.(?!\d)"), 32


def clean_punctuation(answer: str) -> str:
    """An answer without punctuation: each sign becomes a space, or nothing; periods before digits stay."""
    found, comma = answer, _COMMA.search(answer)
    for sign in PUNCTUATION:
        dropped = f"{sign} " in answer or f" {sign}" in answer or comma
        found = found.replace(sign, "" if dropped else " ")
    return _PERIOD.sub("", found, count=_PERIODS)


def clean_words(answer: str) -> str:
    """An answer in lower case, with digits for number words, without articles, and with apostrophes restored."""
    words = [NUMBERS.get(word, word) for word in answer.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _clean(answer: str) -> str:
    return clean_words(clean_punctuation(answer))


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def vqa_accuracy(prediction: str, answers: Sequence[str], version: Version = "2021") -> float:
    """Mean, over the human answers, of min(1, matches among the others / 3).

    Args:
        prediction: of the model.
        answers: of several people, ten in the VQA data set. Where there is one, the accuracy is equality; the published
            code, made for ten, gives 0 whatever the model says.
        version: whose rules: the official evaluation's since ``2021``, or its predecessor's, which ``lavis`` uses.

    Raises:
        ValueError: without answers, for one text in place of several, for what is no text, or for an unknown version.
    """
    one_of("version", version, get_args(Version))
    if isinstance(answers, str) or not all(isinstance(text, str) for text in (prediction, *answers)):
        raise ValueError(f"the answers to a question are a list of texts, and a prediction is one, not {answers!r:.80}")
    if not answers:
        raise ValueError("a question has no human answer to compare with: remove it")
    given, truth = _one_line(prediction), list(answers)
    if version == "2021":
        truth = [_one_line(answer) for answer in truth]
        if len(set(truth)) > 1:
            given, truth = _clean(given), [_clean(answer) for answer in truth]
    else:
        given = _clean(given)
        if len(set(truth)) > 1:
            truth = [clean_punctuation(answer) for answer in truth]
    if len(truth) == 1:
        return float(given == truth[0])
    matches = [given == answer for answer in truth]
    return sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)


class VQAAccuracy(Metric):
    """Accuracy of answers to questions about images, 0 to 1, over all processes.

    Args:
        version: whose rules, see :func:`vqa_accuracy`.

    Raises:
        ValueError: for an unknown version.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, version: Version = "2021") -> None:
        super().__init__()
        self.version: Version = one_of("version", version, get_args(Version))
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
            self.total += vqa_accuracy(prediction, given, self.version)
            self.count += 1

    def compute(self) -> Float[Tensor, ""]:
        return self.total / self.count

    def protocol(self) -> dict[str, Any]:
        """Say by which rules the number was computed: those of different rules cannot be compared."""
        code = {"2021": "GT-Vision-Lab/VQA a013f00", "lavis": "salesforce/LAVIS 506965b"}[self.version]
        return {"metric": "VQA accuracy", "version": self.version, "rules": code, "questions": int(self.count)}
