"""Captions as ids: BERT's word pieces, with the start token that BLIP-2 adds."""

import re
import string
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from zoo.assets import minilm_folder
from zoo.language.text_codec import TextCodec
from zoo.tokens import Vocabulary

BERT_SIZE = 30522
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
MAX_WORDS = 50


def clean_caption(caption: str) -> str:
    """Convert to lower case, replace the punctuation ``. ! " ( ) * # : ; ~`` by spaces, and keep at most 50 words.

    Source: LAVIS ``BlipCaptionProcessor``.
    """
    text = re.sub(r"[.!\"()*#:;~]", " ", caption.lower())
    return " ".join(text.split()[:MAX_WORDS])


def clean_question(question: str) -> str:
    """Clean as :func:`clean_caption`, but remove the punctuation without a space (LAVIS ``BlipQuestionProcessor``)."""
    return " ".join(re.sub(r"[.!\"()*#:;~]", "", question.lower()).split()[:MAX_WORDS])


class WordPiece(TextCodec):
    """A tokenizer of captions, which it cleans first. The last id is ``[DEC]``, the start token of generation.

    Args:
        vocabulary: ``bert_base_uncased`` (from a pip package), ``characters`` (printable ASCII, no file), or the path
            of a ``vocab.txt``.
    """

    refuses_empty = True

    def __init__(self, vocabulary: str):
        self.source = vocabulary

    @cached_property
    def words(self) -> dict[str, int]:
        """The id of each piece, without ``[DEC]``.

        Raises:
            ModuleNotFoundError: with the pip line.
            ValueError: for a file that is no vocabulary of BERT.
        """
        if self.source == "characters":
            letters = [c for c in string.printable if not c.isspace()]
            lines = [*SPECIAL, *letters, *(f"##{c}" for c in letters)]
        else:
            # at line feeds alone: a word may hold what else Unicode breaks lines at
            lines = self._file().read_text(encoding="utf-8").removesuffix("\n").split("\n")
        words = {word: i for i, word in enumerate(lines)}
        if missing := [word for word in SPECIAL if word not in words]:
            raise ValueError(f"{self.source} is no vocabulary of BERT: it lacks {', '.join(missing)}")
        return words

    def _file(self) -> Path:
        if self.source != "bert_base_uncased":
            if not Path(self.source).is_file():
                raise FileNotFoundError(
                    f"there is no vocabulary {self.source!r}: give bert_base_uncased, characters, or the path of a "
                    "vocab.txt"
                )
            return Path(self.source)
        return minilm_folder() / "vocab.txt"

    @property
    def vocab_size(self) -> int:
        """Number of ids, ``[DEC]`` included; needs no file for the published vocabulary."""
        return (BERT_SIZE if self.source == "bert_base_uncased" else len(self.words)) + 1

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """All pieces and ``[DEC]``."""
        return Vocabulary([*self.words, "[DEC]"], self.source)

    @property
    def start(self) -> tuple[int, ...]:
        """``[CLS]``."""
        return (self.words["[CLS]"],)

    @property
    def stop(self) -> tuple[int, ...]:
        """``[SEP]``."""
        return (self.words["[SEP]"],)

    @property
    def pad(self) -> int:
        """``[PAD]``."""
        return self.words["[PAD]"]

    @property
    def start_id(self) -> int:
        """``[DEC]``, which takes the place of ``[CLS]`` where text is generated."""
        return self.vocab_size - 1

    @cached_property
    def _pieces(self) -> Any:
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

        pieces = Tokenizer(models.WordPiece(self.words, unk_token="[UNK]"))
        pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
        pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        pieces.decoder = decoders.WordPiece(cleanup=False)
        return pieces

    def ids(self, text: str) -> tuple[int, ...]:
        """Ids of a text, after :func:`clean_caption`; none where nothing is left of it."""
        return tuple(self._pieces.encode(clean_caption(text)).ids)

    def text(self, ids: Sequence[int]) -> str:
        """Lower-case words with a space between them; ids of ``[PAD]`` and the like are left out."""
        special = {self.words[word] for word in SPECIAL} | {self.start_id}
        return str(self._pieces.decode([i for i in ids if i not in special], skip_special_tokens=False))
