"""Captions as ids: BERT's word pieces, with the start token that BLIP-2 adds."""

import re
import string
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from zoo.assets import minilm_folder

BERT_SIZE = 30522
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
MAX_WORDS = 50


def clean_caption(caption: str) -> str:
    """Lower case, without the punctuation ``. ! " ( ) * # : ; ~``, single spaces, at most 50 words.

    Source: LAVIS ``BlipCaptionProcessor``.
    """
    text = re.sub(r"[.!\"()*#:;~]", " ", caption.lower())
    return " ".join(text.split()[:MAX_WORDS])


def clean_question(question: str) -> str:
    """As :func:`clean_caption`, but the signs are taken out without a space (LAVIS ``BlipQuestionProcessor``)."""
    return " ".join(re.sub(r"[.!\"()*#:;~]", "", question.lower()).split()[:MAX_WORDS])


class WordPiece:
    """A tokenizer of captions. The last id is ``[DEC]``, the start token of generation.

    Args:
        vocabulary: ``bert_base_uncased`` (from a pip package), ``characters`` (printable ASCII, no file), or the path
            of a ``vocab.txt``.
    """

    def __init__(self, vocabulary: str):
        self.vocabulary = vocabulary

    @cached_property
    def words(self) -> dict[str, int]:
        """Piece -> id, without ``[DEC]``.

        Raises:
            ModuleNotFoundError: with the pip line.
            ValueError: for a file that is no vocabulary of BERT.
        """
        if self.vocabulary == "characters":
            letters = [c for c in string.printable if not c.isspace()]
            lines = [*SPECIAL, *letters, *(f"##{c}" for c in letters)]
        else:
            # at line feeds alone: a word may hold what else Unicode breaks lines at
            lines = self._file().read_text(encoding="utf-8").removesuffix("\n").split("\n")
        words = {word: i for i, word in enumerate(lines)}
        if missing := [word for word in SPECIAL if word not in words]:
            raise ValueError(f"{self.vocabulary} is no vocabulary of BERT: it lacks {', '.join(missing)}")
        return words

    def _file(self) -> Path:
        if self.vocabulary != "bert_base_uncased":
            if not Path(self.vocabulary).is_file():
                raise FileNotFoundError(
                    f"there is no vocabulary {self.vocabulary!r}: give bert_base_uncased, characters, or the path of a "
                    "vocab.txt"
                )
            return Path(self.vocabulary)
        return minilm_folder() / "vocab.txt"

    @property
    def vocab_size(self) -> int:
        """Number of ids, ``[DEC]`` included; needs no file for the published vocabulary."""
        return (BERT_SIZE if self.vocabulary == "bert_base_uncased" else len(self.words)) + 1

    @property
    def start_id(self) -> int:
        """``[DEC]``, in the place of ``[CLS]`` where text is generated."""
        return self.vocab_size - 1

    @cached_property
    def _pieces(self) -> Any:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

        pieces = Tokenizer(models.WordPiece(self.words, unk_token="[UNK]"))
        pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
        pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return pieces

    def __call__(
        self, captions: list[str], length: int, full: bool = False
    ) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """Ids between ``[CLS]`` and ``[SEP]``, cut and padded, and a mask that is 0 on padding.

        Args:
            captions: raw text.
            length: longest sequence, special tokens included.
            full: pad to that length rather than to the longest caption.

        Raises:
            ValueError: for a caption of which nothing is left.
        """
        rows = []
        for i, caption in enumerate(captions):
            found = self._pieces.encode(clean_caption(caption)).ids
            if not found:
                raise ValueError(f"caption {i} of the batch is {caption!r}, which has no words: remove such images")
            rows.append([self.words["[CLS]"], *found[: length - 2], self.words["[SEP]"]])
        longest = length if full else max(map(len, rows))
        pad = self.words["[PAD]"]
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return ids, mask
