"""One vocabulary of text and image tokens for a language model, and constraints on what it generates.

Layout, as SEED-LLaMA's: the model's own words, then one word per image id, then BOI and EOI.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.tokens import TokenSpec
from zoo.tokens.allowed import allowed_ids


@dataclass(frozen=True)
class ImageVocabulary:
    """The ids of image tokens in a language model's vocabulary.

    Args:
        offset: word that stands for image id 0, and so the number of words of text.
        spec: of the tokenizer.
    """

    offset: int
    spec: TokenSpec

    @property
    def begin(self) -> int:
        """The word BOI, which begins an image."""
        return self.offset + self.spec.vocab_size

    @property
    def end(self) -> int:
        """The word EOI, which ends an image."""
        return self.begin + 1

    @property
    def size(self) -> int:
        """Number of all words: text, image ids, BOI and EOI."""
        return self.end + 1

    def span(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The words of an image: BOI, its ids, EOI.

        Raises:
            ValueError: for another number of ids than the tokenizer has, or ids that are not its own.
        """
        self.check(ids)
        return (self.begin, *(self.offset + i for i in ids), self.end)

    def images_in(self, words: Sequence[int]) -> list[list[int]]:
        """The ids of every image in a sequence of words.

        Raises:
            ValueError: for an image that has no end, ids of text inside, or another number of ids.
        """
        found: list[list[int]] = []
        inside: list[int] | None = None
        for word in words:
            if word == self.begin:
                if inside is not None:
                    raise ValueError("an image begins inside another one: EOI is missing")
                inside = []
            elif word == self.end:
                if inside is None:
                    raise ValueError("an image ends that did not begin: BOI is missing")
                self.check(inside)
                found.append(inside)
                inside = None
            elif inside is not None:
                if not self.offset <= word < self.begin:
                    raise ValueError(
                        f"word {word} of text stands inside an image, whose words are {self.offset}..{self.begin - 1}: "
                        "generate images with generate_images, which allows no others"
                    )
                inside.append(word - self.offset)
        if inside is not None:
            raise ValueError(f"an image has no end after {len(inside)} ids: EOI is missing")
        return found

    def check(self, ids: Sequence[int]) -> None:
        """Refuse ids that make no image.

        Raises:
            ValueError: naming the number or the id that is wrong.
        """
        if len(ids) != self.spec.num_tokens:
            raise ValueError(f"an image has {self.spec.num_tokens} ids, these are {len(ids)}")
        if strange := [i for i in ids if not 0 <= i < self.spec.vocab_size]:
            raise ValueError(f"image ids must lie in 0..{self.spec.vocab_size - 1}, got {strange[0]}")

    def allow_only_images(self, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
        """A constraint on generation after BOI: at each position the ids that it may hold, and EOI after the last."""
        allowed = allowed_ids(self.spec)
        rows = torch.zeros(self.spec.num_tokens + 1, self.size, dtype=torch.bool)
        rows[:-1, self.offset : self.begin] = True if allowed is None else allowed
        rows[-1, self.end] = True
        rows = rows.to(device)

        def constrain(written: Int[Tensor, "b n"], scores: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
            row = rows[min(written.shape[1], len(rows) - 1)]
            return scores.masked_fill(~row, -torch.inf)

        return constrain

    def allow_only_text(self, written: Int[Tensor, "b n"], scores: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        """Set the scores of all words of images to minus infinity."""
        image = torch.arange(scores.shape[1], device=scores.device) >= self.offset
        return scores.masked_fill(image, -torch.inf)

    def is_of_image(self, labels: Int[Tensor, "*n"]) -> Bool[Tensor, "*n"]:
        """True where a label is a word of an image, BOI and EOI included."""
        return labels >= self.offset


def extend_vocabulary(network: Any, words: ImageVocabulary, codes: Float[Tensor, "n d"] | None = None) -> None:
    """Add rows for the words of images to the embeddings and the output layer of a language model; in place.

    Args:
        network: of transformers.
        words: the joint vocabulary.
        codes: vectors of all image ids, from which the new rows are initialised, so that similar ids are similar words;
            None initialises them near the mean of the words of text, from which they first have to move apart.
    """
    network.resize_token_embeddings(words.size, mean_resizing=False)
    tables = {id(m.weight): m.weight for m in (network.get_input_embeddings(), network.get_output_embeddings())}
    with torch.no_grad():
        for table in tables.values():
            text = table[: words.offset].float()
            mean, spread = text.mean(0), text.std(0)
            noise = torch.randn(words.size - words.offset, len(mean), generator=torch.Generator().manual_seed(0))
            table[words.offset :] = (mean + 0.1 * spread * noise.to(mean.device)).to(table.dtype)
            if codes is not None:
                weight, bias = fit_codes_to_words(codes, text)
                table[words.offset : words.begin] = F.linear(codes.to(weight), weight, bias).to(table.dtype)


def fit_codes_to_words(
    codes: Float[Tensor, "n d"], words: Float[Tensor, "v w"]
) -> tuple[Float[Tensor, "w d"], Float[Tensor, " w"]]:
    """Weight and bias of a random linear layer that gives codes the mean and the spread of a language model's words.

    Args:
        codes: all of a tokenizer; each dimension counts alike, however small its values are.
        words: vectors of the words of text.
    """
    codes, words = codes.float(), words.float()
    scale = codes.std(0).clamp(min=codes.std() * 1e-3 + 1e-12)
    directions = torch.randn(words.shape[1], codes.shape[1], generator=torch.Generator().manual_seed(0)).to(codes)
    weight = words.std(0)[:, None] * directions / codes.shape[1] ** 0.5 / scale
    return weight, words.mean(0) - weight @ codes.mean(0)


class CodesAsWords(nn.Module):
    """Input vectors of a language model: a table for text, and a linear layer on the tokenizer's codes (SEED-OPT).

    Args:
        table: of all words; the rows of image ids are used by the output layer alone.
        words: the joint vocabulary.
        width: of the codes.
        codes: from image ids to codes.
    """

    def __init__(self, table: nn.Embedding, words: ImageVocabulary, width: int, codes: Callable[[Tensor], Tensor]):
        super().__init__()
        self.table, self.words, self._codes = table, words, codes
        self.visual_proj = nn.Linear(width, table.weight.shape[1])
        # Codes are often tiny: with the usual start all images would look the same to the language model.
        with torch.no_grad():
            weight, bias = fit_codes_to_words(codes(torch.arange(words.spec.vocab_size)), table.weight[: words.offset])
            self.visual_proj.weight.copy_(weight)
            self.visual_proj.bias.copy_(bias)

    @property
    def weight(self) -> Tensor:
        """The table, for code that asks an embedding for its width or type."""
        return self.table.weight

    def forward(self, ids: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        """Vectors of words."""
        image = (ids >= self.words.offset) & (ids < self.words.begin)
        with torch.no_grad():
            codes = self._codes((ids - self.words.offset).clamp(0, self.words.spec.vocab_size - 1))
        vectors = self.visual_proj(codes.to(self.visual_proj.weight.dtype)).to(self.table.weight.dtype)
        return torch.where(image[..., None], vectors, F.embedding(ids, self.table.weight))
