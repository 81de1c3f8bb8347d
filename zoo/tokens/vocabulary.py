"""Vocabularies of words: the strings behind ids, and the frozen vectors that some vocabularies have for them."""

import difflib
import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class Vocabulary:
    """Words, counted from 0, and one vector per word where there are any.

    Vocabularies are equal if their words are equal. Only fingerprints are compared, so that a comparison, a hash or a
    ``repr`` costs the same for ten words and for fifty thousand.

    Args:
        words: the word of id 0, of id 1, and so on.
        name: what the words are called in messages and in token shards, such as ``wordllama``.
        vectors: one row per word; not to be changed, since copies of a model share it.

    Attributes:
        fingerprint: SHA-256 of the words, in order.

    Raises:
        ValueError: for a single string, no words, or another number of vectors than of words.
        TypeError: for words that are no strings.
    """

    def __init__(self, words: Sequence[str], name: str = "", vectors: Float[Tensor, "v d"] | None = None):
        if isinstance(words, str) or not isinstance(words, Sequence) or not words:
            raise ValueError(f"a vocabulary is a list of at least one word, got {words!r}")
        if strange := [word for word in words if not isinstance(word, str)][:1]:
            raise TypeError(f"words are strings, got {strange[0]!r} of type {type(strange[0]).__name__}")
        if vectors is not None and vectors.ndim != 2:
            raise ValueError(f"vectors have shape {tuple(vectors.shape)}: give one row per word")
        if vectors is not None and len(vectors) != len(words):
            raise ValueError(f"there are {len(vectors)} vectors for {len(words)} words: give one vector per word")
        self.name, self.vectors = name, vectors
        self._words: tuple[str, ...] | None = tuple(words)
        self._size = len(words)
        self.fingerprint = _fingerprint(self._words)

    @classmethod
    def unread(
        cls, name: str, size: int, fingerprint: str, vectors: Float[Tensor, "v d"] | None = None
    ) -> "Vocabulary":
        """A vocabulary of which only the identity is known, as in the header of token shards.

        It equals the vocabulary with these words; asking it for a word is an error.

        Args:
            name: of the vocabulary.
            size: number of words.
            fingerprint: of the words.
            vectors: for their shape, on the meta device.
        """
        found = cls.__new__(cls)
        found.name, found.vectors, found.fingerprint = name, vectors, fingerprint
        found._words, found._size = None, size
        return found

    @property
    def words(self) -> tuple[str, ...]:
        """All words.

        Raises:
            ValueError: for a vocabulary that was not read.
        """
        if self._words is None:
            raise ValueError(
                f"the words of {self.name or 'this vocabulary'} are not here, only their fingerprint: take the spec of "
                "the tokenizer that made the tokens"
            )
        return self._words

    @property
    def width(self) -> int | None:
        """Width of the vectors, or None where there are none."""
        return None if self.vectors is None else self.vectors.shape[1]

    def find(self, word: str, start: int = 0, stop: int | None = None) -> int:
        """The id of a word; the first one, where several ids between ``start`` and ``stop`` have the same word.

        Args:
            word: as the vocabulary writes it, with any sign for a space in front.
            start: lowest id that may be returned.
            stop: one past the highest id that may be returned; None for the end.

        Raises:
            ValueError: for a word that none of these ids has, naming the nearest one.
            TypeError: for what is no string.
        """
        if not isinstance(word, str):
            raise TypeError(f"words are strings, got {word!r} of type {type(word).__name__}")
        stop = len(self) if stop is None else stop
        for found in self._ids.get(word, ()):
            if start <= found < stop:
                return found
        if elsewhere := self._ids.get(word):
            raise ValueError(f"{word!r} has id {elsewhere[0]}, and the ids that may stand here are {start}..{stop - 1}")
        close = difflib.get_close_matches(word, self.words[start:stop], n=1)
        hint = f": did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{word!r} is no word of {self.name or 'this vocabulary'}, which has {len(self)} words{hint}")

    @cached_property
    def _ids(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for i, word in enumerate(self.words):
            found[word] = (*found.get(word, ()), i)
        return found

    def with_vectors(self, vectors: Float[Tensor, "v d"], name: str | None = None) -> "Vocabulary":
        """The same words with other vectors, such as those of a text encoder.

        Raises:
            ValueError: for another number of vectors than of words.
        """
        return Vocabulary(self.words, self.name if name is None else name, vectors)

    def __add__(self, other: "Vocabulary") -> "Vocabulary":
        """The words of both, those of the second behind; with vectors where both have them in the same width."""
        if not isinstance(other, Vocabulary):
            return NotImplemented
        name = f"{self.name}+{other.name}" if self.name and other.name else self.name or other.name
        vectors = None
        if self.vectors is not None and other.vectors is not None and self.width == other.width:
            vectors = torch.cat([self.vectors, other.vectors])
        return Vocabulary((*self.words, *other.words), name, vectors)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, i: int) -> str:
        return self.words[i]

    def __iter__(self) -> Iterator[str]:
        return iter(self.words)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return self is other or self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Vocabulary({self.name!r}, {len(self)} words)"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Vocabulary":
        return self  # nothing in it changes


def _fingerprint(words: Sequence[str]) -> str:
    encoded = [word.encode("utf-8", "surrogatepass") for word in words]
    lengths = ",".join(str(len(word)) for word in encoded)  # "ab", "c" are other words than "a", "bc"
    return hashlib.sha256(lengths.encode() + b"\n" + b"".join(encoded)).hexdigest()
