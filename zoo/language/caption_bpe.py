"""Byte-pair encoding that is trained on the captions of the data, and travels inside the checkpoint as a tensor.

Source: DALL-E (arXiv:2102.12092), Section 2.2: captions in lower case, 16,384 pieces, and BPE dropout (Provilkov et
al., arXiv:1910.13267) of 10 % in training. Its own vocabulary was never published. The pieces are of bytes, so that
captions in any language have some, and none is unknown.
"""

import random
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from zoo.language.text_codec import TextCodec
from zoo.tokens import Vocabulary

#: pieces before any merge: one per byte
NUM_BYTES = 256
Merge = tuple[int, int]


class CaptionBPE(TextCodec):
    """Captions to ids and back. Id ``256 + r`` is the piece that merge ``r`` makes; those before are the bytes.

    Args:
        merges: the two ids that each merge joins, in the order in which they were learned.
        vocab_size: number of ids; those that no merge makes stay unused.

    Raises:
        ValueError: for merges of pieces that are not there yet.
    """

    start: tuple[int, ...] = ()
    stop: tuple[int, ...] = ()
    pad: int = 0

    def __init__(self, merges: Sequence[Merge], vocab_size: int):
        self.merges, self._vocab_size = list(merges), vocab_size
        letters = _alphabet()
        self._pieces = list(letters)
        self._first = {piece: i for i, piece in enumerate(letters)}
        self._ranks: dict[tuple[str, str], int] = {}
        for rank, (left, right) in enumerate(self.merges):
            if not 0 <= min(left, right) <= max(left, right) < len(self._pieces):
                raise ValueError(f"merge {rank} joins the pieces {left} and {right}, of which one is made later")
            pair = self._pieces[left], self._pieces[right]
            self._ranks.setdefault(pair, rank)
            self._first.setdefault("".join(pair), len(self._pieces))
            self._pieces.append("".join(pair))

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> "CaptionBPE":
        """Learn the pieces of captions; the same captions give the same pieces.

        Args:
            captions: all of the data's.
            vocab_size: pieces at most; few captions give fewer.

        Raises:
            ValueError: for no captions, or fewer pieces than bytes.
        """
        import json

        from tokenizers import trainers

        if vocab_size < NUM_BYTES:
            raise ValueError(f"text_vocab must be at least {NUM_BYTES}, one piece per byte, got {vocab_size}")
        captions = [caption for caption in captions if caption.strip()]
        if not captions:
            raise ValueError("there are no captions to learn pieces of words from: bring data with captions")
        tokenizer = _tokenizer({}, [])
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=_alphabet(), show_progress=False)
        tokenizer.train_from_iterator(captions, trainer)
        first = {piece: i for i, piece in enumerate(_alphabet())}
        merges: list[Merge] = []
        for pair in json.loads(tokenizer.to_str())["model"]["merges"]:
            left, right = pair.split(" ") if isinstance(pair, str) else pair
            first.setdefault(left + right, NUM_BYTES + len(merges))
            merges.append((first[left], first[right]))
        return cls(merges, vocab_size)

    @classmethod
    def from_tensor(cls, merges: Int[Tensor, "m 2"]) -> "CaptionBPE":
        """The encoding behind :meth:`to_tensor`.

        Args:
            merges: rows of -1 where there are fewer merges than rows.
        """
        pairs = [(int(left), int(right)) for left, right in merges.tolist() if left >= 0]
        return cls(pairs, NUM_BYTES + len(merges))

    def to_tensor(self) -> Int[Tensor, "m 2"]:
        """All merges, with rows of -1 behind them up to the size of the vocabulary."""
        rows = [*self.merges, *[(-1, -1)] * (self._vocab_size - NUM_BYTES - len(self.merges))]
        return torch.tensor(rows, dtype=torch.int32).view(-1, 2)

    @property
    def vocab_size(self) -> int:
        """Number of ids, unused ones included."""
        return self._vocab_size

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The pieces as the package tokenizers writes bytes; unused ids have no letters."""
        words = [*self._pieces, *[""] * (self._vocab_size - len(self._pieces))]
        return Vocabulary(words, name="captions")

    @cached_property
    def _encoder(self) -> Any:
        return _tokenizer(self._first, list(self._ranks))

    def ids(self, text: str) -> tuple[int, ...]:
        """Ids of a caption in any language, in lower case."""
        return tuple(self._encoder.encode(text, add_special_tokens=False).ids)

    def ids_with_dropout(self, text: str, dropout: float) -> tuple[int, ...]:
        """Ids of a caption in which merges are left out at random.

        Args:
            text: the caption.
            dropout: probability that a merge is left out, each time it could be made; drawn by :mod:`random`, which
                every training step seeds.
        """
        normal = self._encoder.normalizer.normalize_str(text)
        words = [word for word, _ in self._encoder.pre_tokenizer.pre_tokenize_str(normal)]
        return tuple(self._first[piece] for word in words for piece in self._merge(list(word), dropout))

    def _merge(self, pieces: list[str], dropout: float) -> list[str]:
        while True:
            ranked = [
                (self._ranks[pair], i)
                for i, pair in enumerate(pairwise(pieces))
                if pair in self._ranks and random.random() >= dropout
            ]
            if not ranked:
                return pieces
            _, i = min(ranked)
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]

    def text(self, ids: Sequence[int]) -> str:
        """The caption of ids, in lower case; bytes that are no text become replacement signs."""
        found = "".join(self._pieces[i] for i in ids if i < len(self._pieces))
        return self._encoder.decoder.decode([found]).removeprefix(" ")


def _alphabet() -> list[str]:
    """The letter that the package tokenizers writes for each byte, in its own order."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
