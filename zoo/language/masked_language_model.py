"""Masked language models: every word is read at once, and hidden words are guessed (BERT, arXiv:1810.04805)."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.language.splice import IGNORED
from zoo.language.text_codec import PretrainedCodec
from zoo.tokens import Vocabulary


class MaskedLanguageModel(nn.Module):
    """A bidirectional language model that reads vectors in the place of words, and its tokenizer.

    LQAE (arXiv:2302.00902) puts images between the two: the word vectors are its codebook, some are replaced by
    :attr:`mask_vector`, and the hidden states go on to its decoder.

    Args:
        network: of transformers, with a head that guesses words (``lm_head`` or ``cls``), or without one: then a word's
            score is the product of its vector and the hidden state. None on the meta device, where no weights are read.
        text: its tokenizer; None likewise.
        width: of word vectors and hidden states.
        vocab_size: number of words.

    Raises:
        ValueError: for a head that is built in another way.
    """

    def __init__(self, network: Any, text: PretrainedCodec | None, width: int, vocab_size: int):
        super().__init__()
        self.network, self.width, self.vocab_size = network, width, vocab_size
        self._text = text
        self._vocabulary: Vocabulary | None = None
        heads = [name for name in ("lm_head", "cls") if hasattr(network, name)]
        if network is not None and not heads and network.base_model is not network:
            raise ValueError(f"{type(network).__name__} guesses words in a way that is not known: take BERT or RoBERTa")
        self._head = heads[0] if heads else None

    @property
    def text(self) -> PretrainedCodec:
        """The tokenizer."""
        if self._text is None:
            raise RuntimeError("a language model on the meta device has no tokenizer")
        return self._text

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The words with their vectors, in float32 on the CPU; None where no files were read, on the meta device."""
        if self._vocabulary is None and self._text is not None:
            vectors = self.vectors.detach().float()
            self._vocabulary = self._text.vocabulary.with_vectors(vectors if vectors.is_meta else vectors.cpu())
        return self._vocabulary

    @property
    def vectors(self) -> Float[Tensor, "v d"]:
        """The vectors of all words."""
        return self.network.get_input_embeddings().weight[: self.vocab_size]

    @property
    def mask_vector(self) -> Float[Tensor, " d"]:
        """The vector of what is to be guessed, ``<mask>`` or ``[MASK]``."""
        return self.vectors[self.text.mask]

    def embed(self, ids: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        """Vectors of words, before positions are added."""
        return self.network.get_input_embeddings()(ids)

    def positions_of(self, ids: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
        """Positions as the network counts them in ids.

        RoBERTa counts from behind its padding id and leaves padding out, wherever it stands, so that an id of padding
        inside a sequence moves all that follow. BERT counts from 0.
        """
        if (pad := self._position_of_padding) is None:
            return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        words = (ids != pad).long()
        return words.cumsum(1) * words + pad

    @property
    def _position_of_padding(self) -> int | None:
        table = getattr(getattr(self.network.base_model, "embeddings", None), "position_embeddings", None)
        return getattr(table, "padding_idx", None)

    def forward(
        self,
        embeds: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "b n"] | None = None,
        positions: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Hidden states of the last layer.

        Args:
            embeds: word vectors, without positions.
            mask: True where there is no padding; None for no padding at all.
            positions: see :meth:`positions_of`; None counts all vectors one by one.

        Raises:
            ValueError: for more vectors than the network has positions.
        """
        first = 0 if self._position_of_padding is None else self._position_of_padding + 1
        limit = self.network.config.max_position_embeddings - first
        if embeds.shape[1] > limit:
            raise ValueError(
                f"{embeds.shape[1]} words are more than the {limit} positions of this language model: take fewer "
                "tokens per image, or another language model"
            )
        found = self.network.base_model(
            inputs_embeds=embeds, attention_mask=None if mask is None else mask.long(), position_ids=positions
        )
        return found.last_hidden_state

    def logits(self, hidden: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        """Scores of all words for hidden states."""
        if self._head is None:
            return F.linear(hidden, self.vectors)
        return getattr(self.network, self._head)(hidden)[..., : self.vocab_size]

    def score(self, hidden: Float[Tensor, "b n d"], targets: Int[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """Cross entropy, in nats, of the word at each position; 0 where the target is -100.

        Args:
            hidden: of :meth:`forward`.
            targets: the words that were hidden, -100 elsewhere. The head is applied to the former alone.
        """
        wanted = targets != IGNORED
        terms = F.cross_entropy(self.logits(hidden[wanted]).float(), targets[wanted], reduction="none")
        return terms.new_zeros(targets.shape).masked_scatter(wanted, terms)
