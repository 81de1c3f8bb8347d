"""Zero-Shot Text-to-Image Generation, stage 2: DALL-E's transformer over text and image tokens (Ramesh et al. 2021).

arXiv:2102.12092, Sections 2.2 and 2.4 to 2.6 and Appendix B. Official code: none; the transformer was never published.
Relatives: ai-forever/ru-dalle (commit 0255cec, Apache-2.0), of the same architecture, whose weights are read.

Implemented: one stream of text and image tokens of any discrete tokenizer, row, column and convolutional attention in
the paper's order with a cost that follows the mask, a padding vector of its own for each text position, 1/8 and 7/8 of
the losses, BPE of the captions with dropout, sampling with caches of what can still be seen, guidance by a null text,
completion of images, re-ranking; ruDALL-E's two versions, with CogView's norms and softmax.
Not implemented: the mixed precision with a scale per block, and sharded optimizer moments in 6 to 9 bits.
Deviations: the start token has a row of the text table; the window of convolutional layers runs on in raster order
where the paper says "wraparound", see `nn.sparse_attention.image_mask`.

Equations: Eq. 1 prior -> `DALLE.losses`; Figure 10 -> `nn.dalle_transformer.DALLETransformer`; Figure 11 ->
`nn.sparse_attention.image_mask`; Appendix B.1 -> `nn.sparse_attention.lay_out_kinds`; Section 2.6 -> `DALLE.rank`.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from zoo.checkpoints.published import rudalle
from zoo.choices import one_of
from zoo.distributed import broadcast_from_first_rank
from zoo.language.caption_bpe import NUM_BYTES, CaptionBPE
from zoo.losses.mixing import mark_correct
from zoo.nn.dalle_transformer import DALLETransformer
from zoo.nn.sparse_attention import Wraparound, lay_out_kinds
from zoo.optim import Optim
from zoo.presets import Weights, register
from zoo.runs.untrained import warn_if_untrained
from zoo.sampling.next_token import check_sampling, draw_next
from zoo.second_stage import SecondStage
from zoo.tokens import Tokens, TokenSpec, evaluating
from zoo.tokens.abilities import SaysCaptions, default_settings
from zoo.tokens.batch import Batch, captions_of
from zoo.vision.scorers import find_scorer, score_images

Version = Literal["paper", "rudalle_v2", "rudalle_v3"]
#: what each version takes the window of convolutional layers to do at the edges of the grid
WRAPAROUND: dict[str, Wraparound] = {"paper": "raster", "rudalle_v2": "torus", "rudalle_v3": "none"}


class Ranking(NamedTuple):
    """Candidates of each of c captions, the best first.

    Args:
        order: rows of the candidates.
        scores: theirs.
    """

    order: Int[Tensor, "c n"]
    scores: Float[Tensor, "c n"]


class DALLE(SecondStage):
    """Text in, image out: predicts the tokens of a caption, and then those of its image.

    Args:
        tokenizer: whose tokens are drawn; any discrete one of the registry, e.g. ``vqgan_emoji`` or ``ckpt:PATH``.
        text_vocab: pieces of words that are learned from the captions of the data when training begins.
        text_length: pieces per caption; shorter ones are padded.
        width: of the tokens; 3,968 in the paper.
        depth: layers; 64 in the paper.
        heads: of the attention; 62 in the paper.
        attention: ``sparse`` as in the paper, or ``full``: every token sees all before it.
        kernel: side of the window of convolutional layers.
        wraparound: of that window at the edges of the grid, see :func:`zoo.nn.sparse_attention.image_mask`; None takes
            that of the version.
        version: ``paper``, or ruDALL-E's: ``rudalle_v2`` begins with id 2 and has masks that are shifted by it,
            ``rudalle_v3`` begins with the text.
        sandwich: CogView's norms behind attention and MLP as well.
        stable_softmax: CogView's softmax for float16, see :func:`zoo.nn.sparse_attention.gather_values`.
        embedding_gradient: factor of the gradients of embeddings; 0.1 in CogView.
        checkpointing: compute activations again in the backward pass instead of keeping them.
        text_weight: of the text's loss; the image's has the rest. The paper's is 1/8.
        text_dropout: share of captions that training leaves out, for classifier-free guidance.
        bpe_dropout: probability that training leaves a merge of pieces out; the paper's is 0.1.
        cut_captions: cut captions that are too long, and say how many; else they are refused.
        loss: ``paper``, or ``rudalle_v3``, whose loss compares the first image id with the text's logits.
        optim: optimizer and schedule; the paper's betas and weight decay by default.
        weights: start from these: a registry name or a path.
    """

    must_match = ("heads", "attention", "kernel", "wraparound", "version")
    spec: TokenSpec
    text_merges: Tensor

    def __init__(
        self,
        tokenizer: str = "dvae_openai",
        text_vocab: int = 16384,
        text_length: int = 256,
        width: int = 3968,
        depth: int = 64,
        heads: int = 62,
        attention: Literal["sparse", "full"] = "sparse",
        kernel: int = 11,
        wraparound: Wraparound | None = None,
        version: Version = "paper",
        sandwich: bool = False,
        stable_softmax: bool = False,
        embedding_gradient: float = 1.0,
        checkpointing: bool = False,
        text_weight: float = 1 / 8,
        text_dropout: float = 0.0,
        bpe_dropout: float = 0.1,
        cut_captions: bool = False,
        loss: Literal["paper", "rudalle_v3"] = "paper",
        optim: Optim = Optim(lr=4.5e-4, betas=(0.9, 0.96), weight_decay=4.5e-2, warmup_steps=5000),
        weights: str | None = None,
    ):
        super().__init__(optim)
        for name, value in {
            "text_weight": text_weight,
            "text_dropout": text_dropout,
            "bpe_dropout": bpe_dropout,
        }.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        if text_length < 1 or text_vocab < 1:
            raise ValueError(f"text_length and text_vocab must be at least 1, got {text_length} and {text_vocab}")
        if version == "paper" and text_vocab < NUM_BYTES:
            raise ValueError(f"text_vocab must be at least {NUM_BYTES}, one piece per byte, got {text_vocab}")
        self.text_vocab, self.text_length, self.text_weight = text_vocab, text_length, text_weight
        self.text_dropout, self.bpe_dropout, self.cut_captions = text_dropout, bpe_dropout, cut_captions
        self.version = one_of("version", version, ("paper", "rudalle_v2", "rudalle_v3"))
        self.loss = one_of("loss", loss, ("paper", "rudalle_v3"))
        if loss == "rudalle_v3" and version != "rudalle_v3":
            raise ValueError(f"loss 'rudalle_v3' is for a stream without a start token: set version, not {version!r}")
        one_of("attention", attention, ("sparse", "full"))
        self.kernel, self.wraparound = kernel, wraparound or WRAPAROUND[version]
        self.add_tokenizer(tokenizer)
        self.add_allowed_ids()
        # ids of the text: pieces, the padding of each position, and the start where it has a row of its own
        rows = text_vocab + text_length + (version == "paper")
        start = {"paper": rows - 1, "rudalle_v2": 2, "rudalle_v3": None}[version]
        self.transformer = DALLETransformer(
            rows, text_length, self.spec.vocab_size, self.segment_shapes, width, heads,
            lay_out_kinds(depth) if attention == "sparse" else ["full"] * depth, start, kernel, self.wraparound,
            int(version == "rudalle_v2"), sandwich, stable_softmax, embedding_gradient, checkpointing,
        )  # fmt: skip
        #: what :class:`~zoo.language.caption_bpe.CaptionBPE` has learned, so that a checkpoint needs no other file
        self.register_buffer("text_merges", torch.full((max(0, text_vocab - NUM_BYTES), 2), -1, dtype=torch.int32))
        #: captions that were cut so far
        self.num_cut = 0
        self._codec: tuple[int, CaptionBPE] | None = None
        self.load_weights(weights)

    @property
    def segment_shapes(self) -> list[tuple[int, ...]]:
        """Layout of the image tokens: one shape per segment."""
        return [segment.shape for segment in self.spec.segments]

    # ------------------------------------------------------------------ text

    @property
    def codec(self) -> CaptionBPE:
        """Captions to ids and back, as the captions of the training data have taught; bytes before they did.

        Raises:
            ValueError: for weights without their pieces of words.
        """
        if reason := self.not_in_file.get("text_merges"):
            raise ValueError(reason)
        if self._codec is None or self._codec[0] != self.text_merges._version:
            self._codec = self.text_merges._version, CaptionBPE.from_tensor(self.text_merges)
        return self._codec[1]

    def learn_pieces(self, captions: Sequence[str]) -> None:
        """Learn pieces of words from captions; training does it from those of its data.

        Args:
            captions: of all images to train on.
        """
        self.text_merges.copy_(CaptionBPE.train(captions, self.text_vocab).to_tensor())

    def text_ids(self, captions: Sequence[str]) -> Int[Tensor, "b t"]:
        """Ids of captions with the padding of each position.

        In training merges are left out at random, as ``bpe_dropout`` says.

        Raises:
            ValueError: for an empty caption, or one that is too long where ``cut_captions`` does not cut it.
        """
        rows, long = [], 0
        for i, caption in enumerate(captions):
            if self.training and self.bpe_dropout:
                found = self.codec.ids_with_dropout(caption, self.bpe_dropout)
            else:
                found = self.codec.ids(caption)
            if not caption.strip():
                raise ValueError(f"caption {i} is empty: say what is to be seen")
            long += len(found) > self.text_length
            rows.append(found[: self.text_length])
        if long:
            said = f"{long} of {len(captions)} captions have more than {self.text_length} pieces of words"
            if not self.cut_captions:
                raise ValueError(f"{said}: set a larger text_length, or cut_captions to true to cut them")
            if not self.num_cut:
                rank_zero_info(f"{said} and are cut, as others may be; num_cut counts them")
            self.num_cut += long
        padding = self.null_text(len(rows))
        for row, ids in zip(padding, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids, device=self.device)
        return padding

    def null_text(self, count: int) -> Int[Tensor, "b t"]:
        """The text that says nothing: padding alone."""
        return torch.arange(self.text_vocab, self.text_vocab + self.text_length, device=self.device).repeat(count, 1)

    # ------------------------------------------------------------------ generation

    def sampling_settings(self) -> dict[str, Any]:
        """Name and default of every setting of :meth:`generate` that decides how tokens are drawn."""
        return {n: v for n, v in default_settings(self.generate).items() if n not in ("num_candidates", "scorer")}

    @torch.no_grad()
    def generate(
        self,
        captions: str | Sequence[str],
        num_candidates: int = 1,
        *,
        scorer: Any = None,
        known: Tokens | None = None,
        as_tokens: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        use_cache: bool = True,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Images of captions, token by token.

        Args:
            captions: one or several.
            num_candidates: images per caption.
            scorer: see :meth:`rank`; the candidates are then in its order, the best first.
            known: the first tokens of each caption's image, which stay as they are; -1 behind them.
            as_tokens: return :class:`Tokens` instead of images.
            temperature: divides the logits; 0 takes the most likely token.
            top_k: sample among so many.
            top_p: sample within this probability.
            guidance: of the caption over the null text: 1 takes the caption's logits, more go beyond them. Needs a
                model that was trained with ``text_dropout``.
            use_cache: keep keys and values; without, every step computes all tokens again, to the same result.
            seed: of the noise; with ``generator`` None as well, torch's global state is used.
            generator: of the noise.

        Returns:
            Images in [0, 1] (or what else the tokenizer decodes to), or tokens: the candidates of the first caption,
            then those of the second, and so on.

        Raises:
            ValueError: naming the setting that is wrong.
        """
        captions = [captions] if isinstance(captions, str) else list(captions)
        if not captions or num_candidates < 1:
            raise ValueError(f"give at least one caption and one candidate, got {len(captions)} and {num_candidates}")
        check_sampling(temperature, top_k, top_p)
        if guidance < 0:
            raise ValueError(f"guidance must not be negative, got {guidance}")
        warn_if_untrained(self, "draws")
        if seed is not None:
            generator = torch.Generator(self.device).manual_seed(seed)
        with evaluating(self):
            text = self.text_ids(captions).repeat_interleave(num_candidates, 0)
            begun = self._known(known, len(captions)).repeat_interleave(num_candidates, 0)
            ids = self._draw(text, begun, guidance, use_cache, (temperature, top_k, top_p, generator))
            if scorer is not None:
                ids = ids[self.rank(Tokens(ids, None, self.spec), captions, scorer).order.flatten()]
            tokens = Tokens(ids, None, self.spec)
            return tokens if as_tokens else self.decode(tokens)

    def generate_images(
        self,
        captions: Sequence[str],
        decoder: Any = None,
        *,
        as_tokens: bool = False,
        seed: int | None = None,
        **sampling: Any,
    ) -> Any:
        """One image per caption, see :meth:`generate`; ``decoder`` draws tokens that do not decode to pixels."""
        tokens = self.generate(captions, as_tokens=True, seed=seed, **sampling)
        if as_tokens:
            return tokens
        return self.decode(tokens) if self.spec.decodes == "pixels" else self.tokenizer.decode_pixels(tokens, decoder)

    def complete(self, images: Shaped[Tensor, "b 3 h w"], captions: Sequence[str], rows: int, **sampling: Any) -> Any:
        """Images whose top rows of tokens are given (Figure 2d of the paper).

        Args:
            images: of the tokenizer's size.
            captions: one per image.
            rows: of the first grid of tokens, that are kept.
            sampling: as for :meth:`generate`.

        Raises:
            ValueError: for tokens without a grid, or rows that there are not.
        """
        shape = self.spec.segments[0].shape
        if len(shape) != 2:
            raise ValueError(f"the tokens of this {type(self.tokenizer).__name__} are no grid, so there are no rows")
        if not 0 <= rows <= shape[0]:
            raise ValueError(f"rows must lie in 0..{shape[0]}, the rows of tokens, got {rows}")
        with torch.no_grad(), evaluating(self):
            ids = self.encode(images).ids
        assert ids is not None
        places = torch.arange(self.spec.num_tokens, device=ids.device)
        known = torch.where(places < rows * shape[1], ids, -1)
        return self.generate(captions, known=Tokens(known, None, self.spec), **sampling)

    def rank(self, tokens: Tokens, captions: Sequence[str], scorer: Any = None) -> Ranking:
        """Order the candidates of each caption by how well they match it (Section 2.6).

        Args:
            tokens: as many candidates of each caption, those of the first caption first.
            captions: one per group of candidates.
            scorer: name of a model that scores images against texts (``blip2_stage1:PATH``, ``ckpt:PATH``, or
                ``clip:PATH``, a folder of CLIP in transformers' layout), or the model itself; None takes the
                probability that this model gives the image tokens after the caption, as ruDALL-E does.

        Returns:
            Rows of ``tokens`` and their scores for each caption, the best first.

        Raises:
            ValueError: for a scorer that reads no text, or another number of candidates.
        """
        if len(tokens) % len(captions):
            raise ValueError(f"there are {len(tokens)} images for {len(captions)} captions: give as many for each")
        each = len(tokens) // len(captions)
        if scorer is None:
            scores = self.image_log_likelihood(tokens, [c for c in captions for _ in range(each)]).view(-1, each)
        else:
            images = self.decode(tokens)
            scores = score_images(find_scorer(scorer), images, captions)
        best = scores.argsort(1, descending=True)
        first = torch.arange(len(captions), device=best.device)[:, None] * each
        return Ranking(first + best, scores.gather(1, best))

    @torch.no_grad()
    def image_log_likelihood(self, tokens: Tokens, captions: Sequence[str]) -> Float[Tensor, " b"]:
        """Natural logarithm of the probability of each image's tokens after its caption."""
        assert tokens.ids is not None
        with evaluating(self):
            logits = self._image_logits(self.text_ids(captions), tokens.ids)
        return -F.cross_entropy(logits.transpose(1, 2), tokens.ids, reduction="none").sum(1)

    def _known(self, known: Tokens | None, count: int) -> Int[Tensor, "b n"]:
        """Image tokens that are given, as many of each image."""
        if known is None:
            return torch.zeros(count, 0, dtype=torch.int64, device=self.device)
        assert known.ids is not None
        given = (known.ids >= 0).sum(0)
        number, size = int((given > 0).sum()), self.spec.vocab_size
        if (
            len(known) != count
            or not bool((given[:number] == count).all())
            or bool((known.ids >= self.spec.vocab_size).any())
        ):
            raise ValueError(
                f"known holds the first tokens of {count} images, as many of each, in 0..{size - 1}, "
                f"and -1 behind them; got those of {len(known)} images"
            )
        return known.ids[:, :number].to(self.device)

    def _draw(
        self,
        text: Int[Tensor, "b t"],
        ids: Int[Tensor, "b m"],
        guidance: float,
        use_cache: bool,
        sampling: tuple[float, int | None, float | None, torch.Generator | None],
    ) -> Int[Tensor, "b n"]:
        """Go on from the first image tokens to all of them."""
        guided = guidance != 1
        if guided:
            text = torch.cat([text, self.null_text(len(text))])
        caches = self.transformer.make_caches() if use_cache else None
        start = ids.shape[1]
        for place in range(start, self.spec.num_tokens):
            seen = torch.cat([ids, ids]) if guided else ids
            if caches is None or place == start:
                logits = self.transformer(text, seen, caches)[:, -1]
            else:
                logits = self.transformer.step(seen[:, -1:], place - 1, caches)
            logits = logits[:, self.transformer.text_vocab :].float()
            if guided:
                conditional, null = logits.chunk(2)
                logits = null + guidance * (conditional - null)
            if self.allowed is not None:
                logits = logits.masked_fill(~self.allowed[place], -torch.inf)
            ids = torch.cat([ids, draw_next(logits, *sampling).unsqueeze(1)], 1)
        return ids

    # ------------------------------------------------------------------ training

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and not (self.text_merges >= 0).any():
            data: Any = self.trainer.datamodule
            captions = data.train_captions() if isinstance(data, SaysCaptions) else []
            if not captions:
                rank_zero_info("DALLE reads captions byte by byte, as its data cannot say them before it is trained")
                return
            if self.trainer.is_global_zero:
                self.learn_pieces(captions)
            self.text_merges.copy_(broadcast_from_first_rank(self.text_merges.to(self.trainer.strategy.root_device)))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The prior's part of Eq. 1: mean negative log-likelihood of text and image tokens in nats, weighted."""
        target = self.tokenize(batch)
        text = self.text_ids(captions_of(batch, self, len(target)))
        if self.training and self.text_dropout:
            dropped = torch.rand(len(text), 1, device=text.device) < self.text_dropout
            text = torch.where(dropped, self.null_text(len(text)), text)
        return self.token_losses(text, target)

    def token_losses(self, text: Int[Tensor, "b t"], target: Int[Tensor, "b n"]) -> dict[str, Tensor]:
        """The losses of ids.

        Args:
            text: with the padding of each position.
            target: of the images.
        """
        network = self.transformer
        logits = network(text, target[:, :-1]).float()
        begun = network.prefix - self.text_length  # 1 where there is a start token, 0 where the text begins
        said, drawn = logits[:, : network.prefix - 1], logits[:, network.prefix - 1 :]
        image = self.keep_allowed(drawn[..., network.text_vocab :])
        heard = text[:, 1 - begun :]
        if self.loss == "rudalle_v3":  # the first image id is looked for among the text's, and missed in the image's
            said, heard = torch.cat([said, drawn[:, :1]], 1), torch.cat([heard, target[:, :1]], 1)
            image, target = image[:, 1:], target[:, 1:]
        words = said[..., : network.text_vocab]
        terms = {
            "text": F.cross_entropy(words.transpose(1, 2), heard),
            "image": F.cross_entropy(image.transpose(1, 2), target),
        }
        loss = self.text_weight * terms["text"] + (1 - self.text_weight) * terms["image"]
        return {"loss": loss} | terms | {"accuracy": mark_correct(image, target).mean()}

    def _image_logits(self, text: Int[Tensor, "b t"], ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n k"]:
        logits = self.transformer(text, ids[:, :-1])[:, self.transformer.prefix - 1 :, self.transformer.text_vocab :]
        return self.keep_allowed(logits.float())

    def no_decay(self, name: str, parameter: nn.Parameter) -> bool:
        """Only weights of linear layers decay."""
        return "embeddings" in name


DALLE.formats = (rudalle.MALEVICH,)

PAPER = "arXiv:2102.12092"
register(
    "dalle_tiny", DALLE, paper=PAPER, tokenizer="dvae_tiny:random", text_vocab=288, text_length=12, width=32, depth=4,
    heads=4, kernel=3, text_dropout=0.1, cut_captions=True,
    optim=Optim(lr=3e-3, betas=(0.9, 0.96), weight_decay=4.5e-2),
)  # fmt: skip
for name, width, heads in (("dalle_2b8", 1920, 30), ("dalle_5b6", 2688, 42), ("dalle_12b", 3968, 62)):
    register(name, DALLE, paper=PAPER, width=width, heads=heads, checkpointing=True)
register(
    "dalle_emoji", DALLE, paper=PAPER, recipe="dalle.yaml", tokenizer="vqgan_emoji", text_vocab=2048, text_length=32,
    width=192, depth=6, heads=6, text_dropout=0.1, cut_captions=True,
    optim=Optim(lr=1.5e-3, betas=(0.9, 0.96), weight_decay=0.045, warmup_steps=100),
)  # fmt: skip
register(
    "rudalle_malevich", DALLE, paper=PAPER, tokenizer="vqgan_gumbel_f8", text_length=128, width=2048, depth=24,
    heads=16, version="rudalle_v3", sandwich=True, stable_softmax=True, embedding_gradient=0.1,
    weights={
        "published": Weights(
            origin="https://huggingface.co/ai-forever/rudalle-Malevich, pytorch_model_v3.bin", licence="Apache-2.0",
            note="text in Russian; the transformer alone; version='rudalle_v2' for pytorch_model_v2.bin",
        )
    },
)  # fmt: skip
