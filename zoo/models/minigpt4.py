"""MiniGPT-4: one linear layer between a frozen Q-Former and a frozen language model (Zhu et al. 2023).

arXiv:2304.10592. Official code: Vision-CAIR/MiniGPT-4 (commit d94738a, BSD-3).

Implemented: the version of the paper (Q-Former, one linear layer) and the later one without a Q-Former, whose four
neighbouring image tokens become one; both training stages; the prompt template, answers only as labels; answers to
questions; reading of the published projections.
Not implemented: MiniGPT-v2 (tuning of the language model, grounding tasks), several turns in training.
Deviations: the instructions of the second stage are worded by us; the paper's four mean the same.

Equations: Section 3 architecture -> `MiniGPT4.language_inputs`; Sections 3.1 and 3.2, the two stages (without and with
prompts) -> `MiniGPT4.losses`.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from zoo.checkpoints.published import minigpt4
from zoo.language.by_name import find_language_model
from zoo.language.splice import Image, Piece, Spliced, Text, splice
from zoo.language.wordpiece import clean_caption
from zoo.module import ZooModule
from zoo.nn.bridges import merge_tokens
from zoo.optim import Optim
from zoo.presets import register
from zoo.runs.untrained import warn_if_untrained
from zoo.second_stage import continuous_tokenizer
from zoo.tokens import NotInvertible, Segment, Tokens, TokenSpec, as_pixels, evaluating
from zoo.tokens.batch import Batch, captions_of, check_words, images_of, one_question_each, texts_to_score, vectors_of
from zoo.vision.encoders import LN_VISION_EPS, vision_tower

HERE = "<ImageHere>"  # where the image stands in a prompt
PROMPTS = (
    "<Img><ImageHere></Img> Give a detailed description of this image.",
    "<Img><ImageHere></Img> Please tell me what can be seen here, in detail.",
    "<Img><ImageHere></Img> What does this image show? Go into the details.",
    "<Img><ImageHere></Img> Describe everything that you notice in this picture.",
)
SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
    "Please answer my questions."
)


class MiniGPT4(ZooModule):
    r"""One linear layer from frozen image tokens into a frozen language model.

    Args:
        tokenizer: frozen model with continuous tokens: BLIP-2 of either stage (``blip2_flant5_xxl:PATH`` as published),
            or ``ckpt:PATH``; None takes the image encoder ``vision`` alone.
        vision: image encoder, see :func:`zoo.vision.encoders.vision_tower`; beside a tokenizer, in place of its own.
        merge: neighbouring image tokens that become one; 4 in the version without a Q-Former.
        image_size: side of the images in pixels; that of the tokenizer, where there is one.
        language_model: frozen, see :func:`zoo.language.by_name.find_language_model`.
        language_dtype: of its weights.
        prompts: instructions of the second stage, with ``<ImageHere>``; one is drawn for each image. None is the first
            stage, where captions follow the image without a prompt.
        template: around an instruction, and in front of the answer.
        end: of an answer, which the model is to stop at; ``\\n`` in the first stage, ``###`` in the second.
        max_text_tokens: longest answer.
        system: sentence in front of questions.
        vision_cache: images whose features are kept, for data without augmentation.
        optim: optimizer and schedule; that of the first stage by default.
        weights: start from these: a registry name or a path.
    """

    spec: TokenSpec

    def __init__(
        self,
        tokenizer: str | None = "blip2_flant5_xxl",
        vision: str | None = None,
        merge: int = 1,
        image_size: int = 224,
        language_model: str = "vicuna_7b",
        language_dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        prompts: tuple[str, ...] | None = None,
        template: str = "###Human: {} ###Assistant: ",
        end: str = "\n",
        max_text_tokens: int = 32,
        system: str = SYSTEM,
        vision_cache: int = 0,
        optim: Optim = Optim(lr=1e-4, min_lr=8e-5, weight_decay=0.05, warmup_steps=5000),
        weights: str | None = None,
    ):
        super().__init__(optim)
        for prompt in prompts or ():
            if prompt.count(HERE) != 1:
                raise ValueError(f"the prompt {prompt!r} does not say once where the image stands: write {HERE} there")
        if template.count("{}") != 1:
            raise ValueError(f"the template {template!r} does not say once where the instruction stands: write {{}}")
        if not end or max_text_tokens < 1:
            raise ValueError(f"end must not be empty and max_text_tokens be positive, got {end!r}, {max_text_tokens}")
        self.prompts, self.template, self.end = None if prompts is None else tuple(prompts), template, end
        self.image_size, self.system, self.max_text_tokens, self.merge = image_size, system, max_text_tokens, merge
        width, count = self._add_eyes(tokenizer, vision, image_size, vision_cache)
        language = find_language_model(language_model, language_dtype)
        language.check_writes_on(language_model)
        self.add_frozen("language_model", language, role="vectors")
        self.llama_proj = nn.Linear(width * merge, self.language.width)
        self.spec = TokenSpec(
            segments=(Segment("queries", (count // merge,)),), dim=self.language.width, order="set", vocabulary=None,
            decodes=None,
        )  # fmt: skip
        self.load_weights(weights)

    def _add_eyes(self, tokenizer: str | None, vision: str | None, image_size: int, cache: int) -> tuple[int, int]:
        """Build what makes tokens of images; its width and their number."""
        if tokenizer is not None:
            model = continuous_tokenizer(tokenizer, vision=vision, vision_cache=cache)
            if model.image_size != image_size:
                raise ValueError(f"{tokenizer!r} takes images of {model.image_size} pixels: set image_size to that")
            self.add_frozen("tokenizer", model, role="vectors")
            return model.spec.dim, model.spec.num_tokens
        if vision is None:
            raise ValueError("MiniGPT4 needs eyes: set tokenizer, or vision for the version without a Q-Former")
        tower = vision_tower(vision, image_size, cache)
        self.add_frozen("vision", tower, role="vectors")
        # Frozen and in no published file: it is the identity up to normalisation, whatever BLIP-2 has in its place.
        self.add_frozen("ln_vision", nn.LayerNorm(tower.width, LN_VISION_EPS))
        return tower.width, tower.num_tokens - tower.class_token

    @property
    def language(self) -> Any:
        """The frozen language model."""
        return self.frozen["language_model"]

    # ------------------------------------------------------------------ tokens

    def encode(self, images: Shaped[Tensor, "b 3 h w"]) -> Tokens:
        """Frozen image tokens, projected to the width of the language model's words."""
        return Tokens(None, self.language_inputs(images), self.spec)

    def decode(self, tokens: Tokens) -> Tensor:
        """Refuse: MiniGPT-4 has no decoder.

        Raises:
            NotInvertible: always.
        """
        raise NotInvertible(
            "MiniGPT-4 projects image tokens into the space of a language model's words (Section 3) and has no way "
            "back to pixels: look at what answer() says of them"
        )

    def language_inputs(self, images: Shaped[Tensor, "b 3 h w"]) -> Float[Tensor, "b q d"]:
        """Frozen image tokens, projected to the width of the language model's words."""
        images = as_pixels(images, size=self.image_size)
        with torch.no_grad():
            frozen: dict[str, Any] = self.frozen
            if "tokenizer" in frozen:
                features = frozen["tokenizer"].encode(images).embeddings
            else:
                features = frozen["ln_vision"](frozen["vision"](images)[:, int(frozen["vision"].class_token) :])
            features = merge_tokens(features, self.merge)
        return self.llama_proj(features)

    # ------------------------------------------------------------------ writing

    @torch.no_grad()
    def caption(self, images: Shaped[Tensor, "b 3 h w"], **writing: Any) -> list[str]:
        """Say what is in the images, in the way it was trained: without a prompt, or with the first of ``prompts``.

        Args:
            images: in [0, 1] or uint8.
            writing: see :meth:`zoo.language.language_model.LanguageModel.write`.
        """
        samples = [self._prompt(i, self.prompts[0] if self.prompts else None) for i in range(len(images))]
        return self._write(images, samples, writing)

    @torch.no_grad()
    def answer(self, images: Shaped[Tensor, "b 3 h w"], questions: Sequence[str], **writing: Any) -> list[str]:
        """Answer one question per image, behind the system sentence.

        Args:
            images: in [0, 1] or uint8.
            questions: one per image.
            writing: see :meth:`zoo.language.language_model.LanguageModel.write`; the published demo samples with
                ``top_p=0.9, repetition_penalty=1.05, max_new_tokens=300``.

        Raises:
            ValueError: for another number of questions than images.
        """
        questions = one_question_each(questions, len(images))
        if any(HERE in question for question in questions):
            raise ValueError(f"a question holds {HERE}, which stands in front of it already: leave it out")
        frame = self.template.replace("{} ###", "{}###")  # no space before the sign, unlike training
        samples = [
            self._around(i, self.system + frame.format(f"<Img>{HERE}</Img> {question}"))
            for i, question in enumerate(questions)
        ]
        return self._write(images, samples, writing)

    def _write(self, images: Tensor, samples: list[list[Piece]], writing: dict[str, Any]) -> list[str]:
        warn_if_untrained(self, "writes")
        with evaluating(self):
            batch = splice(samples, self.language_inputs(images), self.language.embed, "left")
            return self.language.write(batch, **{"stop_text": (self.end,)} | writing)

    # ------------------------------------------------------------------ training

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy of the answers, each behind its image and, in the second stage, an instruction.

        The batch holds ``image`` and ``caption``, one string per image.
        """
        images = images_of(batch, self)
        captions = captions_of(batch, self, len(images))
        tokens = self.language_inputs(images)
        spliced = self._read(tokens, captions)
        cut = torch.tensor(spliced.cut_share, device=tokens.device)
        return {"loss": self.language.loss(spliced), "answers_cut_off": cut}

    def log_likelihood(self, tokens: Tokens, texts: Sequence[str]) -> Float[Tensor, " b"]:
        """Natural logarithm of the probability of each caption given the tokens of its image.

        Args:
            tokens: of :meth:`encode`.
            texts: one caption per image.

        Raises:
            ValueError: for tokens without vectors, or captions of which nothing is left to score.
        """
        batch = self._read(vectors_of(tokens, self), texts_to_score(texts, tokens, self), draw=False)
        return self.language.log_likelihood(batch, limit="max_text_tokens")

    def _read(self, tokens: Tensor, captions: Sequence[str], draw: bool = True) -> Spliced:
        samples, most = [], self.max_text_tokens
        for i, caption in enumerate(check_words(captions)):
            # the first stage's captions are cleaned, the second's descriptions are not
            said = clean_caption(caption) if self.prompts is None else caption.strip()
            answer = self.language.text.ids(f"{said}{self.end}")
            chosen = int(torch.randint(len(self.prompts), ())) if self.prompts and draw and self.training else 0
            prompt = self.prompts[chosen] if self.prompts else None
            samples.append([*self._prompt(i, prompt), Text(answer[:most], True, lost=len(answer[most:]))])
        return splice(samples, tokens, self.language.embed)

    def _prompt(self, image: int, prompt: str | None) -> list[Piece]:
        if prompt is None:
            return [Text(self.language.text.start), Image(image)]
        return self._around(image, self.template.format(prompt))

    def _around(self, image: int, text: str) -> list[Piece]:
        """A text with its image in place; both sides are tokenised apart, as published."""
        codec = self.language.text
        before, after = text.split(HERE)
        return [Text((*codec.start, *codec.ids(before))), Image(image), Text(codec.ids(after))]


MiniGPT4.formats = (minigpt4.PROJECTION,)

PAPER = "arXiv:2304.10592"
register(
    "minigpt4_tiny", MiniGPT4, paper=PAPER, tokenizer="blip2_stage1_tiny:random", image_size=32,
    language_model="tiny_llama", max_text_tokens=16, optim=Optim(lr=3e-2),
)  # fmt: skip
register(
    "minigpt4_emoji", MiniGPT4, paper=PAPER, recipe="minigpt4.yaml",
    tokenizer="blip2_stage2_emoji:runs/blip2_stage2/last.ckpt", image_size=128, language_model="smollm2_135m",
    language_dtype="bfloat16",
    prompts=("<Img><ImageHere></Img> Which emoji is this?", "<Img><ImageHere></Img> Give this drawing a name."),
    end="###", optim=Optim(lr=1e-3, min_lr=1e-5, warmup_steps=30),
)  # fmt: skip
register(
    "minigpt4_vicuna_7b", MiniGPT4, paper=PAPER, recipe="paper/minigpt4_cc_sbu.yaml", language_dtype="bfloat16",
    optim=Optim(lr=1e-4, min_lr=8e-5, weight_decay=0.05, warmup_steps=5000, total_steps=20_000),
)  # fmt: skip
register(
    "minigpt4_vicuna_7b_align", MiniGPT4, paper=PAPER, recipe="paper/minigpt4_align.yaml", language_dtype="bfloat16",
    prompts=PROMPTS, end="###", max_text_tokens=160,
    optim=Optim(lr=3e-5, min_lr=1e-5, weight_decay=0.05, warmup_steps=200, total_steps=1000),
)  # fmt: skip
register("minigpt4_vicuna_13b", MiniGPT4, paper=PAPER, language_model="vicuna_13b", language_dtype="bfloat16")
register(
    "minigpt4_llama2_7b", MiniGPT4, paper=PAPER, tokenizer=None, vision="eva_vit_g", merge=4,
    language_model="llama2_7b", prompts=PROMPTS, template="[INST] {} [/INST] ", end="</s>", max_text_tokens=160,
    optim=Optim(lr=3e-5, min_lr=1e-5, weight_decay=0.05, warmup_steps=200, total_steps=1000),
)  # fmt: skip
