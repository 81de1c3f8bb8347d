"""Metrics of captions in pure Python: CIDEr-D, BLEU and ROUGE-L.

They take tokens, or strings that :func:`caption_tokens` splits. On given tokens they are those of the
COCO caption evaluation (pycocoevalcap 1.2).

Sources: CIDEr-D, arXiv:1411.5726; BLEU, Papineni et al. 2002; ROUGE-L, Lin 2004; smoothing constants, effective
lengths and the maximum over references are those of the COCO caption evaluation.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from zoo.files.strict_json import dump_json

SIGMA = 6.0  # of CIDEr-D's penalty on differences in length
BETA = 1.2  # weight of recall in ROUGE-L
SMALL, TINY = 1e-9, 1e-15  # BLEU: keep quotients finite, and their product above 0
ORDERS = 4  # n-grams of 1 to 4 tokens
_PUNCTUATION = re.compile(r"\.{2,}|--+|[;!?\"`()\[\]{}]")

Caption = str | Sequence[str]
Counts = Counter[tuple[str, ...]]
#: tokens of a caption, and of each of its references
Tokenised = tuple[Sequence[str], Sequence[Sequence[str]]]


def caption_tokens(caption: Caption) -> tuple[str, ...]:
    """Tokens of a caption: lower case, without punctuation, with ``'s`` and ``n't`` apart; given tokens pass unchanged.

    An approximation in a few rules of the Stanford tokenizer that the COCO evaluation runs in Java: "cannot" becomes
    "can not", hyphenated words stay whole, brackets are dropped (there, round ones survive as "-lrb-" and "-rrb-").
    Numbers to be compared with published ones need tokens from that tokenizer.
    """
    if not isinstance(caption, str):
        return tuple(caption)
    text = re.sub(r"\bcannot\b", "can not", caption.lower().replace("\u2019", "'"))
    text = re.sub(r"(\w)('s|'m|'d|'re|'ve|'ll|n't)\b", r"\1 \2", _PUNCTUATION.sub(" ", text))
    text = re.sub(r"(?<!\d)[.,:]|[.,:](?!\d)", " ", text)  # 3.5 and 1,000 stay whole
    return tuple(word for word in text.split() if word.strip("'"))


def ngrams(tokens: Sequence[str]) -> Counts:
    """Count how often each n-gram of one to four tokens occurs."""
    return Counter(tuple(tokens[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(tokens) - n + 1))


def cider_d(images: Sequence[Tokenised]) -> float:
    """CIDEr-D, mean over the images, 0 to 10: tf-idf weighted n-grams shared with the references.

    The weights are counted in the references of these images, so scores of different sets of images cannot be compared,
    and a single image has score 0.
    """
    counted = [(ngrams(caption), [ngrams(r) for r in references]) for caption, references in images]
    frequency = Counter(gram for _, references in counted for gram in set().union(*references))
    log_images = math.log(len(counted))
    rarity = {gram: log_images - math.log(count) for gram, count in frequency.items()}
    scores = []
    for caption, references in counted:
        weighted = _tf_idf(caption, rarity, log_images)
        found = [_similarity(weighted, _tf_idf(r, rarity, log_images)) for r in references]
        scores.append(10 * sum(found) / len(found))
    return sum(scores) / len(scores)


def _tf_idf(counts: Counts, rarity: dict[tuple[str, ...], float], unknown: float) -> tuple[Any, list[float], int]:
    """Weights of each order, their norms, and the number of bigrams, by which lengths are compared."""
    weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDERS)]
    for gram, count in counts.items():
        weights[len(gram) - 1][gram] = count * rarity.get(gram, unknown)
    norms = [math.sqrt(sum(w * w for w in order.values())) for order in weights]
    return weights, norms, sum(count for gram, count in counts.items() if len(gram) == 2)


def _similarity(caption: tuple[Any, list[float], int], reference: tuple[Any, list[float], int]) -> float:
    """Mean over the orders of the clipped cosine, times the penalty on another length."""
    total = 0.0
    for ours, theirs, norm, other in zip(caption[0], reference[0], caption[1], reference[1], strict=True):
        if norm and other:
            shared = sum(min(w, theirs[gram]) * theirs[gram] for gram, w in ours.items() if gram in theirs)
            total += shared / (norm * other)
    return total / ORDERS * math.exp(-((caption[2] - reference[2]) ** 2) / (2 * SIGMA**2))


def bleu(images: Sequence[Tokenised], order: int = ORDERS) -> float:
    """BLEU over all images together, 0 to 1, against the reference of the nearest length.

    Args:
        images: caption and references of each.
        order: longest n-gram, at most 4.
    """
    correct, guessed = [0] * order, [0] * order
    length = wanted = 0
    for caption, references in images:
        most: Counts = Counter()
        for reference in references:
            most |= ngrams(reference)
        for gram, count in ngrams(caption).items():
            if len(gram) <= order:
                correct[len(gram) - 1] += min(count, most[gram])
        guessed = [g + max(0, len(caption) - n) for n, g in enumerate(guessed)]
        length += len(caption)
        wanted += min((abs(len(r) - len(caption)), len(r)) for r in references)[1]
    product = math.prod((c + TINY) / (g + SMALL) for c, g in zip(correct, guessed, strict=True))
    ratio = (length + TINY) / (wanted + SMALL)
    return product ** (1 / order) * min(1.0, math.exp(1 - 1 / ratio))


def rouge_l(images: Sequence[Tokenised]) -> float:
    """ROUGE-L, mean over the images, 0 to 1: longest common subsequence, best precision and best recall apart."""
    scores = []
    for caption, references in images:
        shared = [_longest_common_subsequence(caption, r) for r in references]
        precision = max(s / max(1, len(caption)) for s in shared)
        recall = max(s / max(1, len(r)) for s, r in zip(shared, references, strict=True))
        both = recall + BETA**2 * precision
        scores.append((1 + BETA**2) * precision * recall / both if both else 0.0)
    return sum(scores) / len(scores)


def _longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        above = row
        row = [0]
        for j, y in enumerate(b):
            row.append(above[j] + 1 if x == y else max(above[j + 1], row[j]))
    return row[-1]


def check_references(captions: Sequence[Caption], references: Sequence[Sequence[Caption]]) -> None:
    """Refuse captions that cannot be scored.

    Raises:
        ValueError: for another number of references than captions, or an image without any.
    """
    if len(captions) != len(references):
        raise ValueError(f"there are {len(captions)} captions and references of {len(references)} images")
    if any(isinstance(given, str) or not len(given) for given in references):
        raise ValueError("references must hold a list of at least one caption per image")


class CaptionMetric(Metric):
    """Base: collects captions with their references, on all processes, and scores them together.

    The captions are kept as bytes in a tensor state, so that they travel between processes.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    written: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("written", default=[], dist_reduce_fx="cat")

    def update(self, captions: Sequence[Caption], references: Sequence[Sequence[Caption]]) -> None:
        """Add images.

        Args:
            captions: one per image, strings or tokens.
            references: one or more per image.

        Raises:
            ValueError: for another number of references than captions, or an image without any.
        """
        check_references(captions, references)
        lines = []
        for caption, given in zip(captions, references, strict=True):
            lines.append(dump_json([caption_tokens(caption), *map(caption_tokens, given)], indent=None) + "\n")
        written = bytearray("".join(lines).encode())
        if written:
            self.written.append(torch.frombuffer(written, dtype=torch.uint8).to(self.device))

    def images(self) -> list[Tokenised]:
        """Tokens of each caption and of its references.

        Raises:
            ValueError: before the first update.
        """
        parts = self.written if isinstance(self.written, list) else [self.written]
        lines = b"".join(part.cpu().numpy().tobytes() for part in parts).decode().splitlines()
        if not lines:
            raise ValueError(f"{type(self).__name__} has seen no captions: call update first")
        return [(found[0], found[1:]) for found in map(json.loads, lines)]


class CIDErD(CaptionMetric):
    """CIDEr-D of all captions, see :func:`cider_d`."""

    def compute(self) -> Float[Tensor, ""]:
        return torch.tensor(cider_d(self.images()), dtype=torch.float64)


class BLEU(CaptionMetric):
    """BLEU of all captions, see :func:`bleu`.

    Args:
        order: longest n-gram.
    """

    def __init__(self, order: int = ORDERS) -> None:
        super().__init__()
        if not 1 <= order <= ORDERS:
            raise ValueError(f"order must lie in 1..{ORDERS}, got {order}")
        self.order = order

    def compute(self) -> Float[Tensor, ""]:
        return torch.tensor(bleu(self.images(), self.order), dtype=torch.float64)


class ROUGEL(CaptionMetric):
    """ROUGE-L of all captions, see :func:`rouge_l`."""

    def compute(self) -> Float[Tensor, ""]:
        return torch.tensor(rouge_l(self.images()), dtype=torch.float64)
