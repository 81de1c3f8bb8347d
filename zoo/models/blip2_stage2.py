"""BLIP-2, second stage: a Q-Former whose queries a frozen language model reads (Li et al. 2023).

arXiv:2301.12597. Official code: salesforce/LAVIS ``lavis/models/blip2_models/blip2_opt.py`` and ``blip2_t5.py``
(commit 506965b, BSD-3).

Implemented: queries projected in front of the text of any decoder-only language model, or of the encoder of an
encoder-decoder one (prefix language modelling); prompts that are not learned; captions and answers with cached keys,
beams and left padding; the likelihood of given texts; reading of LAVIS's second-stage and first-stage weights, of
transformers' ``Blip2ForConditionalGeneration`` and of our own first stage; writing of transformers' layout.
Not implemented: fine-tuning of the image encoder, the instruction-aware Q-Former of InstructBLIP.
Deviations: ``mixing``, ``norm`` and the other settings of ``qformer`` are options of ours. The learning rate follows
the paper's cosine over steps; LAVIS's moves once per epoch. A caption without a given split is divided at a random word
for an encoder-decoder model; LAVIS leaves the split to the data.

Equations: Section 3.2, Figure 3 -> `BLIP2Stage2.losses`; Section 3.1 queries -> `zoo.nn.bridges.QueryBridge`; Section
4.1 captions -> `BLIP2Stage2.caption`; Section 4.1 visual question answering -> `BLIP2Stage2.answer`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from zoo.checkpoints.published import hf_blip2, lavis
from zoo.init_args import Moved
from zoo.language.by_name import find_language_model
from zoo.language.splice import IGNORED, Image, Piece, Text, splice
from zoo.language.wordpiece import clean_caption, clean_question
from zoo.module import ZooModule
from zoo.nn.bridges import QueryBridge
from zoo.nn.qformer_sizes import FLAT_NAMES, QFormerSizes
from zoo.optim import Optim
from zoo.presets import Weights, register
from zoo.runs.untrained import warn_if_untrained
from zoo.tokens import NotInvertible, Segment, Tokens, TokenSpec, as_pixels, evaluating
from zoo.tokens.batch import Batch, captions_of, images_of, one_question_each, texts_of, vectors_of
from zoo.vision.encoders import LN_VISION_EPS, vision_tower


class BLIP2Stage2(ZooModule):
    """BLIP-2's second stage: queries that a frozen language model reads.

    Args:
        image_size: side of the images in pixels.
        vision: frozen image encoder, see :func:`zoo.vision.encoders.vision_tower`.
        language_model: frozen, see :func:`zoo.language.by_name.find_language_model`; None builds the part up
            to the queries, which then serve another model.
        language_dtype: of its weights.
        prompt: in front of every caption; given, not learned.
        end: of every caption for a decoder-only model; what the model is to stop at.
        max_text_tokens: longest text, prompt and special tokens included.
        qformer: queries and the transformer that they read the image with, see
            :class:`zoo.nn.qformer_sizes.QFormerSizes`.
        vision_cache: images whose features are kept, for data without augmentation.
        bridge_lr: learning rate of the Q-Former as a fraction of ``optim.lr``, which the new projection learns with.
        optim: optimizer and schedule; the paper's by default.
        weights: start from these: a registry name or a path, of this or of the first stage.
    """

    moved = (Moved("qformer", FLAT_NAMES),)
    spec: TokenSpec

    def __init__(
        self,
        image_size: int = 224,
        vision: str = "eva_vit_g",
        language_model: str | None = "opt_2.7b",
        language_dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        prompt: str = "",
        end: str = "\n",
        max_text_tokens: int = 32,
        qformer: QFormerSizes = QFormerSizes(),
        vision_cache: int = 0,
        bridge_lr: float = 1.0,
        optim: Optim = Optim(lr=1e-4, min_lr=5e-5, betas=(0.9, 0.98), weight_decay=0.05, warmup_steps=2000),
        weights: str | None = None,
    ):
        super().__init__(optim)
        if max_text_tokens < 2:
            raise ValueError(f"max_text_tokens must be at least 2, got {max_text_tokens}")
        if not bridge_lr > 0:
            raise ValueError(f"bridge_lr must be above 0, got {bridge_lr}: MiniGPT4 is the model of a frozen Q-Former")
        self.image_size, self.max_text_tokens, self.prompt, self.end = image_size, max_text_tokens, prompt, end
        self.bridge_lr = bridge_lr
        tower = vision_tower(vision, image_size, vision_cache)
        self.add_frozen("vision", tower, role="vectors")
        self.ln_vision = nn.LayerNorm(tower.width, LN_VISION_EPS)
        self.bridge = QueryBridge.of(qformer, tower.width)
        if language_model is not None:
            self.add_frozen("language_model", find_language_model(language_model, language_dtype), role="vectors")
            self.language_projection = nn.Linear(qformer.width, self.language.width)
        self.spec = TokenSpec(
            segments=(Segment("queries", (qformer.queries,)),), dim=qformer.width, order="set", vocabulary=None,
            decodes=None,
        )  # fmt: skip
        self.load_weights(weights)

    @property
    def language(self) -> Any:
        """The frozen language model.

        Raises:
            ValueError: where there is none.
        """
        if "language_model" not in self.frozen:
            raise ValueError("this model has no language model: set language_model")
        return self.frozen["language_model"]

    def lr_scale(self, name: str) -> float:
        return self.bridge_lr if name.startswith(("bridge.", "ln_vision.")) else 1.0

    # ------------------------------------------------------------------ tokens

    def encode(self, images: Shaped[Tensor, "b 3 h w"]) -> Tokens:
        """Last hidden states of the queries, before the projection into the language model."""
        features = self.frozen["vision"](as_pixels(images, size=self.image_size))
        return Tokens(None, self.bridge(self.ln_vision(features)), self.spec)

    def decode(self, tokens: Tokens) -> Tensor:
        """Refuse: BLIP-2 has no decoder.

        Raises:
            NotInvertible: always.
        """
        raise NotInvertible(
            "BLIP-2's query tokens are soft prompts of a language model (Section 3.2) and there is no decoder to "
            "pixels: look at what caption() says of them"
        )

    def language_inputs(self, images: Shaped[Tensor, "b 3 h w"]) -> Float[Tensor, "b q d"]:
        """The queries, projected to the width of the language model's words."""
        return self.language_projection(self.encode(images).embeddings)

    # ------------------------------------------------------------------ writing

    @torch.no_grad()
    def caption(self, images: Shaped[Tensor, "b 3 h w"], prompt: str | None = None, **writing: Any) -> list[str]:
        """Say what is in the images.

        Args:
            images: in [0, 1] or uint8.
            prompt: None takes the model's own.
            writing: see :meth:`zoo.language.language_model.LanguageModel.write`; 5 beams by default, as published.
        """
        prompts = [self.prompt if prompt is None else prompt] * len(images)
        return self._write(images, prompts, {"num_beams": 5} | writing)

    @torch.no_grad()
    def answer(
        self,
        images: Shaped[Tensor, "b 3 h w"],
        questions: Sequence[str],
        template: str = "Question: {} Short answer:",
        **writing: Any,
    ) -> list[str]:
        """Answer one question per image.

        Args:
            images: in [0, 1] or uint8.
            questions: one per image.
            template: of the prompt.
            writing: see :meth:`zoo.language.language_model.LanguageModel.write`; 5 beams and at most 10 tokens by
                default.

        Raises:
            ValueError: for another number of questions than images.
        """
        questions = one_question_each(questions, len(images))
        prompts = [template.format(clean_question(question)) for question in questions]
        penalty = -1.0 if self.language.encoder_decoder else 0.0
        defaults = {"num_beams": 5, "max_new_tokens": 10, "length_penalty": penalty}
        return self._write(images, prompts, defaults | writing)

    def _write(self, images: Tensor, prompts: list[str], writing: dict[str, Any]) -> list[str]:
        warn_if_untrained(self, "writes")
        text = self.language.text
        with evaluating(self):
            tokens = self.language_inputs(images)
            samples: list[list[Piece]]
            if self.language.encoder_decoder:
                samples = [[Image(i), Text((*text.ids(p), text.end))] for i, p in enumerate(prompts)]
                return self.language.write(splice(samples, tokens, self.language.embed), **writing)
            samples = [[Image(i), Text((*text.start, *text.ids(p)))] for i, p in enumerate(prompts)]
            stop = text.ids(self.end)[-1:]
            return self.language.write(splice(samples, tokens, self.language.embed, "left"), stop=stop, **writing)

    # ------------------------------------------------------------------ training

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy of the captions, or of the answers, given the queries (Section 3.2).

        The batch holds ``image`` and either ``caption`` (one string per image), ``question`` and ``answer``, or
        ``text_input`` and ``text_output`` (what is given and what is learned).
        """
        images = images_of(batch, self)
        tokens = self.language_inputs(images)
        spliced, targets = self._read(tokens, self._texts(batch, len(images)))
        cut = torch.tensor(spliced.cut_share, device=tokens.device)
        return {"loss": self.language.loss(spliced, targets), "answers_cut_off": cut}

    def log_likelihood(self, tokens: Tokens, texts: Sequence[str]) -> Float[Tensor, " b"]:
        """Natural logarithm of the probability of each caption given the tokens of its image.

        Args:
            tokens: of :meth:`encode`.
            texts: one caption per image.

        Raises:
            ValueError: for tokens without vectors, or captions of which nothing is left to score.
        """
        vectors = self.language_projection(vectors_of(tokens, self))
        batch, targets = self._read(vectors, self._texts({"caption": texts}, len(tokens), split=False))
        return self.language.log_likelihood(batch, targets, "max_text_tokens")

    def _texts(self, batch: Batch, count: int | None = None, split: bool = True) -> list[tuple[str, str]]:
        """Pairs of the words that are given and those that are learned, one per image.

        Args:
            batch: with ``text_input`` and ``text_output``, or ``question`` and ``answer``, or ``caption``.
            count: of the images; None does not compare.
            split: divide captions at random where an encoder reads the first part.

        Raises:
            ValueError: for a batch without texts, or a text without words.
        """
        if batch.get("text_output") is not None:
            given, learned = (texts_of(batch, name, self, count) for name in ("text_input", "text_output"))
            pairs = list(zip(given, learned, strict=True))
        elif batch.get("answer") is not None:
            asked, answers = (texts_of(batch, name, self, count) for name in ("question", "answer"))
            prompts = [f"Question: {clean_question(question)} Short answer:" for question in asked]
            pairs = list(zip(prompts, answers, strict=True))
        else:
            captions = [clean_caption(caption) for caption in captions_of(batch, self, count)]
            if split and self.training and self.language.encoder_decoder and not self.prompt:
                pairs = [_split(caption) for caption in captions]
            else:
                pairs = [(self.prompt, caption) for caption in captions]
        for i, (_, text) in enumerate(pairs):
            if not text.strip():
                raise ValueError(f"text {i} of the batch has no words: remove such images")
        return pairs

    def _read(self, tokens: Tensor, pairs: list[tuple[str, str]]) -> tuple[Any, Int[Tensor, "b t"] | None]:
        """The batch for the language model, and what its decoder writes where it has one."""
        text, most = self.language.text, self.max_text_tokens
        samples: list[list[Piece]] = []
        if self.language.encoder_decoder:
            samples = [[Image(i), Text((*text.ids(given)[: most - 1], text.end))] for i, (given, _) in enumerate(pairs)]
            written = [text.ids(learned) for _, learned in pairs]
            rows = [(*ids[: most - 1], text.end) for ids in written]
            longest = max(map(len, rows))
            targets = [[*row, *[IGNORED] * (longest - len(row))] for row in rows]
            cut = sum(len(ids) > most - 1 for ids in written)
            spliced = replace(splice(samples, tokens, self.language.embed), answers=len(pairs), partly_cut=cut)
            return spliced, torch.tensor(targets, device=tokens.device)
        for i, (given, learned) in enumerate(pairs):
            ids, spans = text.ids_and_spans(f"{given} {learned}{self.end}" if given else f"{learned}{self.end}")
            # As published, the start id is learned where no prompt is given.
            flags = [*[not given] * len(text.start), *[end > len(given) for _, end in spans]]
            samples.append([Image(i), Text((*text.start, *ids), tuple(flags))])
        return splice(samples, tokens, self.language.embed, max_length=tokens.shape[1] + most), None


def _split(caption: str) -> tuple[str, str]:
    """A caption divided at a random word; what is learned is never empty."""
    words = caption.split()
    at = int(torch.randint(max(1, len(words)), ()))
    return " ".join(words[:at]), " ".join(words[at:])


BLIP2Stage2.formats = (lavis.STAGE2, lavis.FIRST, lavis.OWN, hf_blip2.CONDITIONAL)

PAPER = "arXiv:2301.12597"
LAVIS = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/blip2_pretrained_{}.pth"
register(
    "blip2_stage2_tiny", BLIP2Stage2, paper=PAPER, image_size=32, vision="tiny_random", language_model="tiny_opt",
    prompt="a photo of", max_text_tokens=16, qformer=QFormerSizes(4, 24, 2, 2, 48, dropout=0.0), optim=Optim(lr=3e-3),
)  # fmt: skip
register(
    "blip2_stage2_emoji", BLIP2Stage2, paper=PAPER, recipe="blip2_stage2.yaml", image_size=128, vision="lite0",
    language_model="smollm2_135m", language_dtype="bfloat16", prompt="This emoji shows", max_text_tokens=24,
    qformer=QFormerSizes(queries=8, width=384, depth=6, mlp_width=1536), bridge_lr=0.2,
    optim=Optim(lr=1e-3, min_lr=1e-5, betas=(0.9, 0.98), warmup_steps=30),
)  # fmt: skip
register(
    "blip2_opt2_7b", BLIP2Stage2, paper=PAPER, recipe="paper/blip2_stage2_coco.yaml", language_dtype="bfloat16",
    optim=Optim(
        lr=1e-4, min_lr=5e-5, betas=(0.9, 0.98), weight_decay=0.05, warmup_steps=2000, total_steps=80_000
    ),
    weights={"lavis": Weights(origin=LAVIS.format("opt2.7b"), licence="BSD-3 (salesforce/LAVIS)", note="second stage")},
)  # fmt: skip
for name, language, file in (
    ("blip2_opt6_7b", "opt_6.7b", "opt6.7b"),
    ("blip2_flant5_xl", "flan_t5_xl", "flant5xl"),
    ("blip2_flant5_xxl", "flan_t5_xxl", "flant5xxl"),
):
    register(
        name, BLIP2Stage2, paper=PAPER, language_model=language,
        weights={"lavis": Weights(origin=LAVIS.format(file), licence="BSD-3 (salesforce/LAVIS)", note="second stage")},
    )  # fmt: skip
