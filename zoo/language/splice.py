"""Sequences of text and image tokens for a language model: pieces joined, padded, and labelled."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORED = -100  # label of what is not to be predicted


@dataclass(frozen=True)
class Text:
    """A piece of text.

    Args:
        ids: its tokens.
        learn: one flag per token, True where it is to be predicted; or one flag for all.
        answers: number of the answer that each token belongs to, or None for no answer; without this argument, all
            learned tokens of a sample are one answer.
        lost: number of tokens of that answer that a limit on the text has cut off before.
    """

    ids: tuple[int, ...]
    learn: bool | tuple[bool, ...] = False
    answers: tuple[int | None, ...] | None = None
    lost: int = 0

    def flags(self) -> tuple[bool, ...]:
        """True for each token that is to be predicted."""
        return (self.learn,) * len(self.ids) if isinstance(self.learn, bool) else self.learn

    def answer_of(self) -> tuple[int | None, ...]:
        """The answer that each token belongs to, if any."""
        return tuple(0 if learn else None for learn in self.flags()) if self.answers is None else self.answers


@dataclass(frozen=True)
class Image:
    """The tokens of one image.

    Args:
        index: of the image in the batch.
    """

    index: int


Piece = Text | Image


@dataclass(frozen=True)
class Spliced:
    """A padded batch, ready for a language model.

    Args:
        embeds: input vectors; zero on padding.
        mask: True where there is no padding.
        labels: the token at each position that is to be predicted, elsewhere -100.
        answers: number of answers to be predicted; a conversation with several turns has several.
        cut: number of answers that ``max_length`` cut off entirely.
        partly_cut: number of answers whose end it, or a limit on the text, cut off.
    """

    embeds: Float[Tensor, "b s d"]
    mask: Bool[Tensor, "b s"]
    labels: Int[Tensor, "b s"]
    answers: int = 0
    cut: int = 0
    partly_cut: int = 0

    @property
    def cut_share(self) -> float:
        """Share of the answers that were cut off, partly or entirely."""
        return (self.cut + self.partly_cut) / max(1, self.answers)

    @property
    def positions(self) -> Int[Tensor, "b s"]:
        """Position of each token in its own sequence, padding in front of it not counted."""
        return (self.mask.long().cumsum(1) - 1).clamp(min=0)


def splice(
    samples: Sequence[Sequence[Piece]],
    images: Float[Tensor, "i q d"] | None,
    embed: Callable[[Tensor], Tensor],
    side: Literal["right", "left"] = "right",
    max_length: int | None = None,
    device: torch.device | None = None,
) -> Spliced:
    """Join the pieces of each sample into sequences of vectors, and pad them.

    All vectors are gathered from one pool that holds every image, so that a projection of the images has a gradient,
    if a zero one, even in a batch that shows none of them; distributed training needs it.

    Args:
        samples: pieces in their order.
        images: tokens of each image, or None where there are no images.
        embed: maps ids of any shape to vectors.
        side: of the padding: right to train, left to generate.
        max_length: longest sequence, image tokens included; the rest is cut off.
        device: of the result, where there are no images.

    Raises:
        ValueError: for no samples, or one that shows an image which is not there.
    """
    if not samples:
        raise ValueError("there is nothing to read: give at least one image or text")
    device = device if images is None else images.device
    words: list[int] = []
    places: list[list[int]] = []  # rows of the pool: image tokens first, then text
    labels: list[list[int]] = []
    count, size = (0, 0) if images is None else (images.shape[0], images.shape[1])
    lengths: list[tuple[int, int]] = []  # of each answer: tokens that are left, and all of them
    for pieces in samples:
        place: list[int] = []
        label: list[int] = []
        answers: list[int | None] = []
        lost = 0
        for piece in pieces:
            if isinstance(piece, Image):
                if not 0 <= piece.index < count:
                    raise ValueError(f"a sample shows image {piece.index}, and there are {count}")
                place += range(piece.index * size, (piece.index + 1) * size)
                label += [IGNORED] * size
                answers += [None] * size
            else:
                start = count * size + len(words)
                place += range(start, start + len(piece.ids))
                label += [i if learn else IGNORED for i, learn in zip(piece.ids, piece.flags(), strict=True)]
                words += piece.ids
                answers += piece.answer_of()
                lost += piece.lost
        left, whole = Counter(answers[:max_length]), Counter(answers + [0] * lost)
        lengths += [(left[answer], size_of) for answer, size_of in whole.items() if answer is not None]
        places.append(place[:max_length])
        labels.append(label[:max_length])
    text = embed(torch.tensor(words, dtype=torch.int64, device=device))
    parts = [text, text.new_zeros(1, text.shape[-1])]
    if images is not None:
        parts.insert(0, images.flatten(0, 1).to(text.dtype))
    pool = torch.cat(parts)
    longest = max(map(len, places))

    def pad(rows: list[list[int]], value: int) -> Tensor:
        filler = [[value] * (longest - len(row)) for row in rows]
        pairs = zip(rows, filler, strict=True)
        return torch.tensor([row + fill if side == "right" else fill + row for row, fill in pairs], device=pool.device)

    index = pad(places, len(pool) - 1)
    mask = pad([[1] * len(row) for row in places], 0).bool()
    cut, partly = sum(not left for left, _ in lengths), sum(0 < left < whole for left, whole in lengths)
    return Spliced(pool[index], mask, pad(labels, IGNORED), len(lengths), cut, partly)
