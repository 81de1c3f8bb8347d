"""The tokenizer interface: what tokens are, and what every tokenizer can do.

Pixels are ``b 3 h w`` floats in [0, 1]; uint8 is accepted and converted. Each model owns its normalisation.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn


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
    """What the tokens of a model are, known before any image is encoded.

    Args:
        segments: layout of the one flat sequence per image, in order.
        dim: width of the token embeddings that ``embed`` returns.
        order: ``raster`` and ``causal`` sequences, ``pyramid`` of growing grids, unordered ``set``.
        vocabulary: ids of a ``learned`` codebook, ids of ``words``, or None for continuous tokens.
        decodes: what ``decode`` returns: ``pixels``, an ``embedding``, or None for nothing.
        word_list: the strings behind the ids where the vocabulary is ``words``.
    """

    segments: tuple[Segment, ...]
    dim: int
    order: Literal["raster", "causal", "pyramid", "set"] = "raster"
    vocabulary: Literal["learned", "words"] | None = "learned"
    decodes: Literal["pixels", "embedding"] | None = "pixels"
    word_list: tuple[str, ...] | None = None

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
        return values[:, self.spec.span(segment.name)].unflatten(1, segment.shape)  # type: ignore[no-untyped-call]

    def words(self) -> list[list[str]]:
        """The tokens as strings, one list per image.

        Raises:
            ValueError: where the vocabulary is not made of words.
        """
        if self.spec.word_list is None or self.ids is None:
            raise ValueError(f"the vocabulary of this tokenizer is {self.spec.vocabulary or 'continuous'}, not words")
        return [[self.spec.word_list[i] for i in row] for row in self.ids.tolist()]

    def to(self, device: torch.device | str) -> "Tokens":
        """The same tokens on another device."""
        return replace(
            self,
            ids=None if self.ids is None else self.ids.to(device),
            embeddings=None if self.embeddings is None else self.embeddings.to(device),
        )


@runtime_checkable
class Tokenizer(Protocol):
    """What every model of the zoo can do with images, and what a second stage needs of a tokenizer."""

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


def reconstruct(model: Tokenizer, images: Shaped[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
    """Encode and decode: what is left of the images after tokenization, in [0, 1].

    Runs without gradients and in eval mode, which is restored afterwards.

    Raises:
        NotInvertible: where the model does not decode to pixels.
        TypeError: for what is no model, such as a name.
    """
    if not (hasattr(model, "encode") and hasattr(model, "decode")):
        got = repr(model) if isinstance(model, str) else type(model).__name__
        raise TypeError(f"reconstruct takes a model, got {got}: zoo.create_model(NAME, weights=True) makes one")
    spec = getattr(model, "spec", None)
    if spec is None or spec.decodes != "pixels":
        why = "it has no tokens" if spec is None else f"spec.decodes = {spec.decodes!r}"
        raise NotInvertible(f"{type(model).__name__} does not decode to pixels ({why})")
    with torch.no_grad(), evaluating(model):
        return model.decode(model.encode(images))


def id_range(ids: Int[Tensor, "..."]) -> tuple[int, int]:
    """The lowest and the highest id; 0 and 0 of an empty batch, which passes every check."""
    low, high = ids.aminmax() if ids.numel() else (0, 0)
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


def as_pixels(
    images: Shaped[Tensor, "b c h w"], multiple_of: int = 1, size: int | Sequence[int] | None = None
) -> Float[Tensor, "b c h w"]:
    """Check a batch of images and return it as floats in [0, 1].

    Args:
        images: uint8, or any float type in [0, 1]; float32 is returned as it is, without a copy.
        multiple_of: both sides must be divisible by this.
        size: both sides must equal this, or this ``(height, width)``.

    Raises:
        ValueError: naming the value that is wrong and what to do.
    """
    if not isinstance(images, Tensor):
        kind = type(images).__name__
        raise ValueError(
            f"images must be a tensor, got {kind}: torch.from_numpy(...) or torch.as_tensor(...) makes one"
        )
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape (batch, 3, height, width), got {tuple(images.shape)}")
    height, width = images.shape[-2:]
    if not (height and width):
        raise ValueError(f"images of {height}x{width} have no pixels")
    if size is not None and (height, width) != (expected := (size, size) if isinstance(size, int) else tuple(size)):
        raise ValueError(f"images are {height}x{width}, this model needs {expected[0]}x{expected[1]}: resize them")
    if height % multiple_of or width % multiple_of:
        raise ValueError(f"image size {height}x{width} is not divisible by {multiple_of}: resize or crop the images")
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise ValueError(f"images must be uint8 or float in [0, 1], got {images.dtype}")
    images = images.float()  # networks are float32; autocast casts by itself
    if not torch.compiler.is_compiling():
        low, high = (x.item() for x in images.detach().aminmax()) if images.numel() else (0.0, 0.0)
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also catches nan
            normalised = "undo any mean/std normalisation; each model normalises by itself"
            hint = "divide by 255" if high > 2 and low >= 0 else normalised
            raise ValueError(f"float images must lie in [0, 1], got [{low:.3g}, {high:.3g}]: {hint}")
    return images
