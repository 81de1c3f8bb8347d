"""Text to ids and back: one interface for every tokenizer of text, and the one for those of transformers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from zoo.tokens import Segment, TokenSpec, Vocabulary


class TextCodec(ABC):
    """Text to ids and back.

    Attributes:
        start: ids that stand in front of a text: a beginning-of-sequence id, ``[CLS]``, or nothing.
        stop: ids that stand behind a text: ``[SEP]``, an end-of-sequence id, or nothing.
        pad: id that fills up shorter texts, which a mask takes out.
        vocab_size: number of ids.
        refuses_empty: whether a text without words is an error in :meth:`batch`.
    """

    refuses_empty = False

    @property
    @abstractmethod
    def start(self) -> tuple[int, ...]:
        """Ids that stand in front of a text."""

    @property
    @abstractmethod
    def stop(self) -> tuple[int, ...]:
        """Ids that stand behind a text."""

    @property
    @abstractmethod
    def pad(self) -> int:
        """The id of padding."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids."""

    @property
    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """The words behind all ids, as the tokenizer writes them."""

    @abstractmethod
    def ids(self, text: str) -> tuple[int, ...]:
        """Ids of a text, without :attr:`start` and :attr:`stop`."""

    @abstractmethod
    def text(self, ids: Sequence[int]) -> str:
        """The text of ids, without special ones."""

    def batch(
        self, texts: Sequence[str], length: int, full: bool = False
    ) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """Ids between :attr:`start` and :attr:`stop`, cut and padded on the right, and a mask that is 0 on padding.

        Args:
            texts: as they are.
            length: longest sequence, ids of start and stop included.
            full: pad to that length rather than to the longest text.

        Raises:
            ValueError: for one text in place of a list, or a text of which nothing is left, where
                :attr:`refuses_empty` says so.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts are a list, got the text {texts[:20]!r}: make it one")
        rows = []
        for i, text in enumerate(texts):
            found = self.ids(text)
            if not found and self.refuses_empty:
                raise ValueError(f"caption {i} of the batch is {text!r}, which has no words: remove such images")
            rows.append((*self.start, *found[: max(0, length - len(self.start) - len(self.stop))], *self.stop))
        longest = length if full or not rows else max(map(len, rows))
        ids = torch.tensor([(*row, *[self.pad] * (longest - len(row))) for row in rows], dtype=torch.int64)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], dtype=torch.int64)
        return ids.view(len(rows), longest), mask.view(len(rows), longest)

    def spec(self, length: int, name: str = "text") -> TokenSpec:
        """A text of ``length`` ids as a segment, to be joined with that of an image (``TokenSpec.join``).

        Its ``dim`` is 0, since a text has no vectors before a model embeds it.

        Args:
            length: ids per text, padding included.
            name: of the segment.
        """
        return TokenSpec(
            (Segment(name, (length,), size=self.vocab_size),), dim=0, order="causal", vocabulary="words", decodes=None,
            word_list=self.vocabulary,
        )  # fmt: skip


class PretrainedCodec(TextCodec):
    """A tokenizer of transformers.

    Args:
        tokenizer: a fast one.
        name: of its vocabulary.
    """

    def __init__(self, tokenizer: Any, name: str = ""):
        self.tokenizer, self.name = tokenizer, name

    def ids(self, text: str) -> tuple[int, ...]:
        """Ids of a text, without any that the tokenizer would add."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def ids_and_spans(self, text: str) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        """Ids, and the part of the text (first character, one past the last) that each stands for."""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return tuple(found["input_ids"]), [tuple(span) for span in found["offset_mapping"]]

    @cached_property
    def start(self) -> tuple[int, ...]:
        """The beginning-of-sequence or ``[CLS]`` id, if the tokenizer puts one in front of a text."""
        added, known = self._added, (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id)
        return added[:1] if added and added[0] in known else ()

    @cached_property
    def stop(self) -> tuple[int, ...]:
        """The end-of-sequence or ``[SEP]`` id, if the tokenizer puts one behind a text."""
        return self._added[len(self.start) :]

    @cached_property
    def _added(self) -> tuple[int, ...]:
        return tuple(self.tokenizer("")["input_ids"])

    @cached_property
    def joins_spaces(self) -> bool:
        """True if the vocabulary has words together with the space in front of them."""
        return len(self.tokenizer.convert_ids_to_tokens(self.ids("x a"))[-1]) > 1

    @property
    def end(self) -> int:
        """The end-of-sequence id.

        Raises:
            ValueError: for a tokenizer without one.
        """
        if self.tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer of this language model has no end-of-sequence token: add one to its files")
        return int(self.tokenizer.eos_token_id)

    @property
    def pad(self) -> int:
        """An id for padding that is masked anyway; the end-of-sequence id where the tokenizer has none."""
        pad = self.tokenizer.pad_token_id
        return self.end if pad is None else int(pad)

    @property
    def mask(self) -> int:
        """The id of what a masked language model is to fill in.

        Raises:
            ValueError: for a tokenizer without one.
        """
        if self.tokenizer.mask_token_id is None:
            raise ValueError("the tokenizer of this language model has no mask token: take a masked language model's")
        return int(self.tokenizer.mask_token_id)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added ones included."""
        return len(self.tokenizer)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The words behind all ids, as the tokenizer writes them."""
        return Vocabulary(words_of(self.tokenizer), self.name)

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids, without special ones."""
        return str(self.tokenizer.decode([i for i in ids if i >= 0], skip_special_tokens=True))


def words_of(tokenizer: Any) -> list[str]:
    """The words behind all ids of a tokenizer of transformers; those of ids that it leaves out are made up."""
    found = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return [f"<unused_{i}>" if word is None else word for i, word in enumerate(found)]
