"""Tokens: what they are, what makes them, and how they are stored."""

from zoo.tokens.interface import (
    NotInvertible,
    Segment,
    Tokenizer,
    Tokens,
    TokenSpec,
    evaluating,
    id_range,
    reconstruct,
)
from zoo.tokens.pixels import as_pixels, sides_of
from zoo.tokens.vocabulary import Vocabulary

__all__ = [
    "NotInvertible",
    "Segment",
    "TokenSpec",
    "Tokenizer",
    "Tokens",
    "Vocabulary",
    "as_pixels",
    "evaluating",
    "id_range",
    "reconstruct",
    "sides_of",
]
