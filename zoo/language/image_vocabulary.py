"""One vocabulary of text and image tokens for a language model, and the rules of what may be written.

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
    """Where the words of images are.

    Args:
        offset: id of image id 0; as many words of text come before.
        spec: of the tokenizer.
    """

    offset: int
    spec: TokenSpec

    @property
    def begin(self) -> int:
        """BOI, in front of an image."""
        return self.offset + self.spec.vocab_size

    @property
    def end(self) -> int:
        """EOI, behind an image."""
        return self.begin + 1

    @property
    def size(self) -> int:
        """All words: text, image ids, BOI and EOI."""
        return self.end + 1

    def span(self, ids: Sequence[int]) -> tuple[int, ...]:
        """An image as words: BOI, its ids, EOI.

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

    def only_images(self, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
        """Scores after BOI: exactly the ids that may stand at each place, then EOI."""
        allowed = allowed_ids(self.spec)
        rows = torch.zeros(self.spec.num_tokens + 1, self.size, dtype=torch.bool)
        rows[:-1, self.offset : self.begin] = True if allowed is None else allowed
        rows[-1, self.end] = True
        rows = rows.to(device)

        def constrain(written: Int[Tensor, "b n"], scores: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
            row = rows[min(written.shape[1], len(rows) - 1)]
            return scores.masked_fill(~row, -torch.inf)

        return constrain

    def only_text(self, written: Int[Tensor, "b n"], scores: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        """Scores without any word of an image."""
        image = torch.arange(scores.shape[1], device=scores.device) >= self.offset
        return scores.masked_fill(image, -torch.inf)

    def of_images(self, labels: Int[Tensor, "*n"]) -> Bool[Tensor, "*n"]:
        """Which labels are words of images, BOI and EOI included."""
        return labels >= self.offset


def extend_vocabulary(network: Any, words: ImageVocabulary, codes: Float[Tensor, "n d"] | None = None) -> None:
    """Give a language model of transformers rows for the words of images; in place.

    Args:
        network: whose tables of words grow.
        words: where the new ones are.
        codes: vectors of all image ids, which the new rows then start from, so that similar ids are similar words; None
            starts them close to the mean of the others, where they must part first.
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
                weight, bias = words_of_codes(codes, text)
                table[words.offset : words.begin] = F.linear(codes.to(weight), weight, bias).to(table.dtype)


def words_of_codes(
    codes: Float[Tensor, "n d"], words: Float[Tensor, "v w"]
) -> tuple[Float[Tensor, "w d"], Float[Tensor, " w"]]:
    """A linear layer, weight and bias, that puts codes among the words of a language model: with their mean and spread.

    Args:
        codes: all of a tokenizer; each dimension counts alike, however small its values are.
        words: of text.
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
        words: where the words of images are.
        width: of the codes.
        codes: from image ids to codes.
    """

    def __init__(self, table: nn.Embedding, words: ImageVocabulary, width: int, codes: Callable[[Tensor], Tensor]):
        super().__init__()
        self.table, self.words, self._codes = table, words, codes
        self.visual_proj = nn.Linear(width, table.weight.shape[1])
        # Codes are often tiny: with the usual start all images would look the same to the language model.
        with torch.no_grad():
            weight, bias = words_of_codes(codes(torch.arange(words.spec.vocab_size)), table.weight[: words.offset])
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
