"""The tokenizer interface: descriptions of tokens, tokens themselves, and the methods of every tokenizer.

Pixels are ``b 3 h w`` floats in [0, 1]; uint8 is accepted and converted. Each model owns its normalisation.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from zoo.tokens.vocabulary import Vocabulary


class NotInvertible(RuntimeError):
    """Raised by ``decode`` of a model that cannot turn its tokens back into pixels, with the paper's reason."""


@dataclass(frozen=True)
class Segment:
    """A part of the flat token sequence: a grid, a list or one level of a pyramid.

    Args:
        name: how to ask for it, ``tokens.grid(name)``.
        shape: layout of its tokens, e.g. ``(32, 32)``.
        offset: first id that this segment uses in the id space of the tokenizer.
        size: how many ids it uses.
    """

    name: str
    shape: tuple[int, ...]
    offset: int = 0
    size: int = 0

    @property
    def num_tokens(self) -> int:
        """Number of tokens in the segment."""
        return prod(self.shape)


@dataclass(frozen=True)
class TokenSpec:
    """Description of a model's tokens, known before any image is encoded.

    Args:
        segments: layout of the one flat sequence per image, in order.
        dim: width of the token embeddings that ``embed`` returns.
        order: ``raster`` of a grid, ``causal`` sequence (each token adds to those before it), ``pyramid`` of grids
            (each level adds to those before it), or ``set`` without an order.
        vocabulary: ids of a ``learned`` codebook, ids of ``words``, or None for continuous tokens.
        decodes: what ``decode`` returns: ``pixels``, an ``embedding``, or None for nothing.
        word_list: the words behind the ids, one per id, where the vocabulary is ``words``; strings become a
            :class:`~zoo.tokens.vocabulary.Vocabulary`, which knows its name and may have vectors.
        prefix_of: tokens of the whole sequence, where this is only its beginning, see :meth:`first`.

    Raises:
        ValueError: for no segments, or fewer words than ids.
    """

    segments: tuple[Segment, ...]
    dim: int
    order: Literal["raster", "causal", "pyramid", "set"] = "raster"
    vocabulary: Literal["learned", "words"] | None = "learned"
    decodes: Literal["pixels", "embedding"] | None = "pixels"
    word_list: Vocabulary | Sequence[str] | None = None
    prefix_of: int | None = None

    def __post_init__(self) -> None:
        if not self.segments:
            raise ValueError("a spec needs at least one segment: Segment(name, shape, size=...)")
        if self.word_list is None:
            return
        words = self.word_list if isinstance(self.word_list, Vocabulary) else Vocabulary(self.word_list)
        if len(words) < self.vocab_size:
            raise ValueError(f"there are {len(words)} words for {self.vocab_size} ids: give one word per id")
        object.__setattr__(self, "word_list", words)

    @property
    def words(self) -> Vocabulary | None:
        """The vocabulary of words behind the ids, or None where there is none."""
        assert self.word_list is None or isinstance(self.word_list, Vocabulary)
        return self.word_list

    @property
    def vocab_size(self) -> int:
        """Size of the one id space of all segments; 0 for continuous tokens."""
        return max(s.offset + s.size for s in self.segments)

    @property
    def num_tokens(self) -> int:
        """Tokens per image."""
        return sum(s.num_tokens for s in self.segments)

    @property
    def grid_shape(self) -> tuple[int, int] | None:
        """``(gh, gw)`` of a tokenizer with exactly one grid, else None."""
        if len(self.segments) == 1 and len(self.segments[0].shape) == 2:
            gh, gw = self.segments[0].shape
            return gh, gw
        return None

    def span(self, name: str) -> slice:
        """Positions of a segment in the flat sequence."""
        start = 0
        for segment in self.segments:
            if segment.name == name:
                return slice(start, start + segment.num_tokens)
            start += segment.num_tokens
        raise KeyError(f"no segment {name!r}; this tokenizer has {', '.join(s.name for s in self.segments)}")

    def segment(self, name: str) -> Segment:
        """The segment of that name."""
        self.span(name)  # raises the helpful error
        return next(s for s in self.segments if s.name == name)

    def with_grid(self, shape: tuple[int, int]) -> "TokenSpec":
        """The same tokens for another image size (fully convolutional tokenizers)."""
        if self.grid_shape is None:
            raise ValueError("only a tokenizer with exactly one grid has other grid sizes")
        return self if shape == self.grid_shape else replace(self, segments=(replace(self.segments[0], shape=shape),))

    @property
    def prefix_lengths(self) -> tuple[int, ...]:
        """Numbers of first tokens that can be decoded without the others, in ascending order; the last is all of them.

        A pyramid ends after any level. A causal sequence ends after any token, or after any row inside a grid. All
        tokens of a raster or a set are needed.
        """
        if self.order not in ("pyramid", "causal"):
            return (self.num_tokens,)
        lengths: list[int] = []
        start = 0
        for segment in self.segments:
            step = segment.num_tokens if self.order == "pyramid" else prod(segment.shape[1:])
            lengths += range(start + step, start + segment.num_tokens + 1, step)
            start += segment.num_tokens
        return tuple(lengths)

    def first(self, n: int) -> "TokenSpec":
        """The spec of the first ``n`` tokens; ids and order stay as they are, segments behind them are left out.

        Args:
            n: one of :attr:`prefix_lengths`.

        Raises:
            ValueError: for another number, or an order whose tokens mean nothing without the others.
        """
        lengths = self.prefix_lengths
        if n == self.num_tokens:
            return self
        if n not in lengths:
            if self.order not in ("pyramid", "causal"):
                raise ValueError(
                    f"the first {n} tokens of a {self.order} are no image without the others: take all "
                    f"{self.num_tokens}, or a tokenizer whose order is causal or pyramid"
                )
            one_by_one = len(lengths) == self.num_tokens
            known = f"1 to {lengths[-1]}" if one_by_one else ", ".join(map(str, lengths))
            unit = "level" if self.order == "pyramid" else "token" if one_by_one else "row"
            raise ValueError(
                f"the beginning of a {self.order} sequence ends with a whole {unit}: take {known} tokens, not {n}"
            )
        segments: list[Segment] = []
        for segment in self.segments:
            if n >= segment.num_tokens:
                segments.append(segment)
            elif n:
                segments.append(replace(segment, shape=(n // prod(segment.shape[1:]), *segment.shape[1:])))
            n = max(0, n - segment.num_tokens)
        return replace(self, segments=tuple(segments), prefix_of=self.prefix_of or self.num_tokens)

    @classmethod
    def join(cls, *specs: "TokenSpec", dim: int | None = None) -> "TokenSpec":
        """One sequence in one id space: the tokens of each spec behind those of the spec before it, as are their ids.

        DALL-E's stream of a text and an image is ``TokenSpec.join(codec.spec(256), tokenizer.spec, dim=width)``;
        :meth:`Tokens.join` and :meth:`Tokens.split` shift the ids.

        Args:
            specs: of discrete tokens, in the order of the sequence, which is causal. It has words where all of them do.
            dim: width of the embeddings of the joint sequence; None where all specs have the same.

        Raises:
            ValueError: for no specs, continuous tokens, two segments of one name, or widths that differ.
        """
        return _joined(specs, dim)


@lru_cache(maxsize=8)  # of a joint vocabulary of words, a hash is made
def _joined(specs: tuple[TokenSpec, ...], dim: int | None) -> TokenSpec:
    if not specs or not all(spec.vocab_size for spec in specs):
        raise ValueError("a joint sequence is made of at least one spec, each of tokens with ids")
    names = [segment.name for spec in specs for segment in spec.segments]
    if len(set(names)) < len(names):
        raise ValueError(f"the segments of a joint sequence need names of their own, got {', '.join(names)}")
    if dim is None and len({spec.dim for spec in specs}) > 1:
        raise ValueError(
            f"the parts of a joint sequence have widths {', '.join(str(spec.dim) for spec in specs)}: set dim to "
            "that of the model that embeds them"
        )
    segments: list[Segment] = []
    offset = 0
    for spec in specs:
        segments += (replace(segment, offset=segment.offset + offset) for segment in spec.segments)
        offset += spec.vocab_size
    decodes = [spec.decodes for spec in specs if spec.decodes is not None]
    words = [word for spec in specs if spec.words is not None for word in spec.words.words[: spec.vocab_size]]
    speaks = all(spec.words is not None for spec in specs)
    name = "+".join(spec.words.name for spec in specs if spec.words is not None and spec.words.name)
    return TokenSpec(
        tuple(segments), specs[0].dim if dim is None else dim, "causal", "words" if speaks else "learned",
        decodes[0] if len(decodes) == 1 else None, Vocabulary(words, name) if speaks else None,
    )  # fmt: skip


@dataclass(frozen=True)
class Tokens:
    """The tokens of a batch of images: ids, embeddings, or both.

    Args:
        ids: one flat sequence per image in the id space of ``spec``, or None for continuous tokens.
        embeddings: one vector per token, or None.
        spec: what they are.
    """

    ids: Int[Tensor, "b n"] | None
    embeddings: Float[Tensor, "b n d"] | None
    spec: TokenSpec

    def __post_init__(self) -> None:
        for name, values in (("ids", self.ids), ("embeddings", self.embeddings)):
            if values is not None and values.ndim != (wanted := 2 if name == "ids" else 3):
                axes = "b n" if wanted == 2 else "b n d"
                raise ValueError(f"{name} have shape {tuple(values.shape)}, and {axes!r} is needed: one row per image")
            if values is not None and values.shape[1] != self.spec.num_tokens:
                raise ValueError(
                    f"{name} have {values.shape[1]} tokens per image, but the spec says {self.spec.num_tokens}: "
                    "take the spec of the tokenizer and the image size that made them"
                )

    def __len__(self) -> int:
        values = self.ids if self.ids is not None else self.embeddings
        return 0 if values is None else len(values)

    def grid(self, name: str | None = None) -> Shaped[Tensor, "b ..."]:
        """Ids of one segment in its own layout, e.g. ``b gh gw``; embeddings, ``b gh gw d``, where there are no ids.

        Args:
            name: of the segment; may be left out where there is only one.
        """
        segment = self.spec.segment(name if name is not None else self.spec.segments[0].name)
        if name is None and len(self.spec.segments) > 1:
            raise KeyError(f"name one of the segments {', '.join(s.name for s in self.spec.segments)}")
        values = self.ids if self.ids is not None else self.embeddings
        if values is None:
            raise ValueError("these tokens hold neither ids nor embeddings")
        part = values[:, self.spec.span(segment.name)]
        return part.reshape(len(part), *segment.shape, *part.shape[2:])

    def grids(self) -> dict[str, Shaped[Tensor, "b ..."]]:
        """Every segment in its own layout, by name and in order: the levels of a pyramid, coarse to fine."""
        return {segment.name: self.grid(segment.name) for segment in self.spec.segments}

    def first(self, n: int) -> "Tokens":
        """The first ``n`` tokens of each image, to be decoded without the others.

        Args:
            n: one of ``spec.prefix_lengths``.

        Raises:
            ValueError: for another number, or an order whose tokens mean nothing without the others.
        """
        spec = self.spec.first(n)
        ids = None if self.ids is None else self.ids[:, :n]
        return Tokens(ids, None if self.embeddings is None else self.embeddings[:, :n], spec)

    def words(self) -> list[list[str]]:
        """The tokens as strings, one list per image.

        Raises:
            ValueError: where the vocabulary is not made of words, its words are not known, or an id has no word.
        """
        words = self._vocabulary(self.spec)
        if self.ids is None:
            raise ValueError("these tokens have no ids, which words stand behind")
        low, high = id_range(self.ids)
        if low < 0 or high >= len(words):
            raise ValueError(f"the ids lie in {low}..{high}, and only 0..{len(words) - 1} have words")
        return [[words[i] for i in row] for row in self.ids.tolist()]

    @classmethod
    def from_words(cls, words: Sequence[Sequence[str]], spec: TokenSpec) -> "Tokens":
        """The inverse of :meth:`words`.

        A word is looked up among the ids of its segment. Where several of them have the same word, the first is taken.

        Args:
            words: as many for each image as the spec has tokens, written as in the vocabulary.
            spec: with words.

        Raises:
            ValueError: for unknown words, another number of words per image, or a vocabulary that is not made of words.
        """
        vocabulary, rows = cls._vocabulary(spec), []
        places = [segment for segment in spec.segments for _ in range(segment.num_tokens)]
        for i, row in enumerate(words):
            if isinstance(row, str) or len(row) != len(places):
                got = f"the string {row!r}" if isinstance(row, str) else f"{len(row)} words"
                raise ValueError(
                    f"image {i} needs a list of {len(places)} words, got {got}: for the words of a prefix give "
                    "spec.first(n)"
                )
            rows.append([vocabulary.find(w, s.offset, s.offset + s.size) for w, s in zip(row, places, strict=True)])
        return cls(torch.tensor(rows, dtype=torch.int64).reshape(len(rows), len(places)), None, spec)

    @staticmethod
    def _vocabulary(spec: TokenSpec) -> Vocabulary:
        if spec.words is None:
            kind = "of words that nobody has listed" if spec.vocabulary == "words" else spec.vocabulary or "continuous"
            raise ValueError(f"the vocabulary of this tokenizer is {kind}, not words")
        return spec.words

    @classmethod
    def join(cls, *tokens: "Tokens", dim: int | None = None) -> "Tokens":
        """Tokens of the same images in one sequence and one id space, see :meth:`TokenSpec.join`.

        Args:
            tokens: with ids.
            dim: see :meth:`TokenSpec.join`.

        Raises:
            ValueError: for tokens without ids, or of another number of images.
        """
        spec = TokenSpec.join(*(part.spec for part in tokens), dim=dim)
        shifted, offset = [], 0
        for part in tokens:
            if part.ids is None or len(part) != len(tokens[0]):
                raise ValueError(f"a joint sequence needs ids of as many images in each part, got {len(part)}")
            shifted.append(part.ids + offset)
            offset += part.spec.vocab_size
        return cls(torch.cat(shifted, dim=1), None, spec)

    def split(self, *specs: TokenSpec) -> tuple["Tokens", ...]:
        """The parts of a joint sequence, each in its own id space; the inverse of :meth:`join`.

        Args:
            specs: that were joined, in the same order.

        Raises:
            ValueError: for specs that this sequence was not made of, or an id of another part.
        """
        if self.ids is None or TokenSpec.join(*specs, dim=0).segments != self.spec.segments:
            names = ", ".join(segment.name for segment in self.spec.segments)
            raise ValueError(
                f"these specs do not make this sequence, whose segments are {names}: give those it was made of"
            )
        parts, start, offset = [], 0, 0
        for spec in specs:
            ids = self.ids[:, start : start + spec.num_tokens] - offset
            low, high = id_range(ids)
            if low < 0 or high >= spec.vocab_size:
                raise ValueError(
                    f"segment {spec.segments[0].name} has ids in {low + offset}..{high + offset}, and its own are "
                    f"{offset}..{offset + spec.vocab_size - 1}: write it with zoo.tokens.allowed"
                )
            parts.append(Tokens(ids, None, spec))
            start, offset = start + spec.num_tokens, offset + spec.vocab_size
        return tuple(parts)

    def to(self, device: torch.device | str) -> "Tokens":
        """The same tokens on another device."""
        return replace(
            self,
            ids=None if self.ids is None else self.ids.to(device),
            embeddings=None if self.embeddings is None else self.embeddings.to(device),
        )


@runtime_checkable
class Tokenizer(Protocol):
    """The interface of every model of the zoo towards images, and all that a second stage needs of a tokenizer."""

    spec: TokenSpec

    def encode(self, images: Shaped[Tensor, "b 3 h w"]) -> Tokens:
        """Turn images into tokens."""
        ...

    def decode(self, tokens: Tokens) -> Float[Tensor, "b ..."]:
        """Turn tokens into pixels in [0, 1] or into an embedding, as ``spec.decodes`` says.

        Raises:
            NotInvertible: where ``spec.decodes`` is None.
        """
        ...

    def embed(self, ids: Int[Tensor, "b *n"]) -> Float[Tensor, "b *n d"]:
        """The vectors that stand behind ids."""
        ...


@runtime_checkable
class _Codec(Protocol):
    """The part of a tokenizer that images go through to be reconstructed."""

    def encode(self, images: Tensor) -> Tokens: ...

    def decode(self, tokens: Tokens) -> Tensor: ...


def reconstruct(model: Tokenizer, images: Shaped[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
    """Encode and decode: what is left of the images after tokenization, in [0, 1].

    Runs without gradients and in eval mode, which is restored afterwards.

    Raises:
        NotInvertible: where the model does not decode to pixels.
        TypeError: for what is no model, such as a name.
    """
    if not isinstance(model, _Codec):
        got = repr(model) if isinstance(model, str) else type(model).__name__
        raise TypeError(f"reconstruct takes a model, got {got}: zoo.create_model(NAME, weights=True) makes one")
    spec = getattr(model, "spec", None)
    if spec is None or spec.decodes != "pixels":
        why = "it has no tokens" if spec is None else f"spec.decodes = {spec.decodes!r}"
        raise NotInvertible(f"{type(model).__name__} does not decode to pixels ({why})")
    with torch.no_grad(), evaluating(model):
        return model.decode(model.encode(images))


def id_range(ids: Int[Tensor, "..."]) -> tuple[int, int]:
    """The lowest and the highest id; 0 and 0 of an empty batch or one without values, which passes every check."""
    low, high = ids.aminmax() if ids.numel() and not ids.is_meta else (0, 0)
    return int(low), int(high)


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Eval mode inside the block; tokenizers that are no modules have no such mode."""
    training = isinstance(model, nn.Module) and model.training
    if training:
        model.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if training:
            model.train()  # type: ignore[attr-defined]
