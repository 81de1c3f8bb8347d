"""Language models that read vectors, for the models that put image tokens among words."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from zoo.language.splice import IGNORED, Spliced
from zoo.language.text_codec import PretrainedCodec


class LanguageModel(nn.Module):
    """A language model that reads vectors, and its tokenizer.

    Args:
        network: of transformers; None on the meta device, where no weights are read.
        text: its tokenizer; None likewise.
        width: of the token embeddings.
        encoder_decoder: whether it reads with an encoder and writes with a decoder.
    """

    def __init__(self, network: Any, text: PretrainedCodec | None, width: int, encoder_decoder: bool):
        super().__init__()
        self.network, self.width, self.encoder_decoder = network, width, encoder_decoder
        self._text = text
        self._said_cut = False
        self.not_savable = ""  # why no checkpoint may be written: LoRA is merged into weights that none holds
        if getattr(network, "generation_config", None) is not None:
            from transformers import GenerationConfig

            network.generation_config = GenerationConfig()  # rules of its folder would mix with those of each call

    @property
    def text(self) -> PretrainedCodec:
        """The tokenizer.

        Raises:
            RuntimeError: on the meta device, where none was read.
        """
        if self._text is None:
            raise RuntimeError("a language model on the meta device has no tokenizer")
        return self._text

    def check_writes_on(self, name: str) -> None:
        """Refuse an encoder for a model that writes behind what it reads.

        Args:
            name: of the language model, for the message.

        Raises:
            ValueError: for a language model with an encoder of its own.
        """
        if self.encoder_decoder:
            raise ValueError(f"this model writes behind the image, and {name!r} has an encoder: take one without")

    def checkpoint_activations(self) -> None:
        """Compute activations twice in training rather than keep them; nothing where there is no network."""
        if self.network is not None:
            older = self.network.gradient_checkpointing_enable  # warns in the newer releases of transformers
            getattr(self.network, "activation_checkpointing_enable", older)({"use_reentrant": False})

    def embed(self, ids: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        """Input vectors of ids."""
        return self.network.get_input_embeddings()(ids)

    def forward(
        self,
        embeds: Float[Tensor, "b s d"],
        mask: Bool[Tensor, "b s"],
        positions: Int[Tensor, "b s"] | None = None,
        keep: Int[Tensor, " k"] | None = None,
        labels: Int[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b k v"]:
        """Logits of the next token.

        Args:
            embeds: input vectors; of the encoder where there is one.
            mask: True where there is no padding.
            positions: place of each vector in its sequence (decoders only).
            keep: positions whose logits are wanted (decoders only); None takes all.
            labels: of the decoder where there is an encoder, -100 on padding; it reads them shifted by one.
        """
        if self.encoder_decoder:
            written = self.network.prepare_decoder_input_ids_from_labels(labels)  # shifted, -100 becomes padding
            found = self.network(
                inputs_embeds=embeds, attention_mask=mask.long(), decoder_input_ids=written, use_cache=False
            )
            return found.logits
        self.check_length(embeds.shape[1])
        found = self.network(
            inputs_embeds=embeds, attention_mask=mask.long(), position_ids=positions, use_cache=False,
            logits_to_keep=0 if keep is None else keep,
        )  # fmt: skip
        return found.logits

    def check_length(self, length: int) -> None:
        """Refuse sequences that are longer than what the network was made for.

        Args:
            length: words and vectors together.

        Raises:
            ValueError: naming both numbers.
        """
        limit = None if self.encoder_decoder else getattr(self.network.config, "max_position_embeddings", None)
        if limit is not None and length > limit:
            raise ValueError(
                f"{length} words and image tokens are more than the {limit} positions of this language model: take "
                "fewer tokens per image, shorter texts, or another language model"
            )

    def score(self, batch: Spliced, targets: Int[Tensor, "b t"] | None = None) -> Float[Tensor, "b t"]:
        """Cross entropy, in nats, of each token to be predicted; 0 elsewhere.

        The output layer, as wide as the vocabulary, is applied only to columns in which something is predicted.

        Args:
            batch: what is read, with labels of what is to be predicted.
            targets: instead of these labels, what the decoder of an encoder-decoder model writes, -100 on padding.
        """
        if self.encoder_decoder:
            assert targets is not None
            logits = self(batch.embeds, batch.mask, labels=targets)
        else:
            shifted = batch.labels[:, 1:]
            keep = (shifted != IGNORED).any(0).nonzero().flatten()
            targets = shifted[:, keep]
            logits = self(batch.embeds, batch.mask, batch.positions, keep)
        terms = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
        return terms.view(targets.shape)

    def log_likelihood(
        self,
        batch: Spliced,
        targets: Int[Tensor, "b t"] | None = None,
        limit: Literal["max_length", "max_text_tokens"] = "max_length",
    ) -> Float[Tensor, " b"]:
        """Logarithm of the probability of what is to be predicted of each sample.

        Args:
            batch: as for :meth:`score`.
            targets: likewise.
            limit: the setting that cuts samples off. ``max_text_tokens`` is of the text alone, the same for all:
                captions that it cuts are compared as far as it goes, which is said once.

        Raises:
            ValueError: where nothing of a caption is left, whose probability would be 1, or where ``max_length`` took
                its end: how much is left depends on what stands in front of it.
        """
        cut = batch.cut + batch.partly_cut
        if batch.cut or (cut and limit == "max_length"):
            raise ValueError(
                f"{limit} cuts {cut} captions off, {batch.cut} of them entirely, and what is left would be scored in "
                "their place: raise it"
            )
        if cut and not self._said_cut:
            self._said_cut = True
            rank_zero_info(f"captions longer than {limit} are scored as far as it goes: raise it to score all of them")
        return -self.score(batch, targets).sum(1)

    def loss(self, batch: Spliced, targets: Int[Tensor, "b t"] | None = None) -> Float[Tensor, ""]:
        """Mean cross entropy of all tokens to be predicted, in nats.

        Args:
            batch: as for :meth:`score`.
            targets: likewise.

        Raises:
            ValueError: where there is none.
        """
        count = ((batch.labels[:, 1:] if targets is None else targets) != IGNORED).sum()
        if not count or (batch.answers and batch.cut == batch.answers):  # signs between turns may be left
            raise ValueError(
                "no token of this batch is to be predicted: its texts are empty, or all answers are cut off; "
                "raise max_length or max_text_tokens"
            )
        return self.score(batch, targets).sum() / count

    @torch.no_grad()
    def write(
        self, batch: Spliced, *, stop: Sequence[int] = (), stop_text: Sequence[str] = (), **settings: Any
    ) -> list[str]:
        """Continue each sample and return the continuations as text.

        Args:
            batch: samples, padded on the left for a model without an encoder.
            stop: ids that end a text, besides the tokenizer's own.
            stop_text: strings that end a text, however they are tokenised.
            settings: see :meth:`continue_ids`.

        Raises:
            ValueError: for right padding.
        """
        ends = sorted({self.text.end, *stop})
        rows = self.continue_ids(batch, ends, stop_text=stop_text, **settings)
        texts = [self.text.text(_before(row, ends)) for row in rows]
        return [text[: min([len(text), *(text.find(s) for s in stop_text if s in text)])].strip() for text in texts]

    @torch.no_grad()
    def continue_ids(
        self,
        batch: Spliced,
        ends: Sequence[int],
        *,
        max_new_tokens: int = 30,
        min_new_tokens: int = 0,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        repetition_penalty: float = 1.0,
        top_p: float | None = None,
        temperature: float = 1.0,
        stop_text: Sequence[str] = (),
        forbid: Sequence[int] = (),
        constrain: Callable[[Tensor, Tensor], Tensor] | None = None,
        seed: int | None = None,
    ) -> list[list[int]]:
        """Continue each sample and return the new ids; those behind the first end id are padding.

        Args:
            batch: samples, padded on the left for a model without an encoder.
            ends: ids that end a text.
            max_new_tokens: longest continuation.
            min_new_tokens: shortest continuation.
            num_beams: of the beam search; 1 takes the best token each time.
            length_penalty: exponent of the length by which the scores of beams are divided.
            repetition_penalty: divides the scores of tokens that have been written.
            top_p: sample from the most likely tokens that together have this probability; None takes the best.
            temperature: divides the logits of sampling.
            stop_text: strings that end a text.
            forbid: ids that are never written.
            constrain: maps the new ids ``b n`` and the scores ``b v`` of the next to scores with a constraint.
            seed: of sampling; None continues torch's random state.

        Raises:
            ValueError: for right padding, more tokens than the network has positions, or settings that contradict each
                other.
        """
        if not self.encoder_decoder and not batch.mask[:, -1].all():
            raise ValueError("texts go on at their end: splice(..., side='left') to generate")
        if min(num_beams, max_new_tokens) < 1:
            raise ValueError(f"num_beams and max_new_tokens must be positive, got {num_beams} and {max_new_tokens}")
        if top_p is not None and num_beams > 1:
            raise ValueError(f"{num_beams} beams are a search without chance: set top_p to None, or num_beams to 1")
        if not 0 < temperature < math.inf or (top_p is None and temperature != 1):
            raise ValueError(f"temperature is positive, and 1 where nothing is sampled (top_p), got {temperature}")
        self.check_length(batch.embeds.shape[1] + max_new_tokens)
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        config = GenerationConfig(
            max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens, num_beams=num_beams,
            length_penalty=length_penalty, repetition_penalty=repetition_penalty, do_sample=top_p is not None,
            eos_token_id=list(ends), pad_token_id=self.text.pad, bos_token_id=self.text.tokenizer.bos_token_id,
            suppress_tokens=list(forbid) or None, use_cache=True,
            decoder_start_token_id=getattr(self.network.config, "decoder_start_token_id", None),
            **({} if top_p is None else {"top_p": top_p, "temperature": temperature, "top_k": 0}),
        )  # fmt: skip
        devices = [batch.embeds.device] if batch.embeds.is_cuda else []
        with torch.random.fork_rng(devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            ids = self.network.generate(
                inputs_embeds=batch.embeds, attention_mask=batch.mask.long(), generation_config=config,
                stopping_criteria=StoppingCriteriaList([partial(_said, self.text, tuple(stop_text))]),
                logits_processor=LogitsProcessorList([] if constrain is None else [constrain]),
            )  # fmt: skip
        return ids[:, int(self.encoder_decoder) :].tolist()  # a decoder of its own begins with its start id


def _said(codec: PretrainedCodec, endings: tuple[str, ...], ids: Tensor, scores: Any, **_: Any) -> Bool[Tensor, " b"]:
    """True for rows whose text contains one of the strings."""
    found = [any(s in codec.text(row) for s in endings) for row in (ids.tolist() if endings else [[]] * len(ids))]
    return torch.tensor(found, device=ids.device)


def _before(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The ids in front of the first that ends a text."""
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]
