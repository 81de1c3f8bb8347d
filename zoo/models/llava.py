"""LLaVA: image patches through a small projector into a language model (Liu et al. 2023).

arXiv:2304.08485 (1.0, one linear layer) and arXiv:2310.03744 (1.5, two layers). Official code: haotian-liu/LLaVA
(commit c121f04, Apache-2.0).

Implemented: features before the last block of CLIP ViT-L/14; linear and MLP projectors; the first stage (projector
alone), the second with the whole language model or with LoRA, a learning rate of its own for the projector;
conversation layouts with labels on the answers only; text-only samples; answers and captions; reading of the published
projectors, LoRA folders and transformers' folders; writing of transformers' layout.
Not implemented: several images in a conversation, higher resolutions by tiles (1.6), training of the image encoder,
batches grouped by length.
Deviations: labels are marked while a conversation is put together; the published code counts ids, and learns nothing of
a sample where its count fails, such as one with an answer without words or with the sign of an answer's end inside.

Equations: 1.0, Section 4.1, Eq. 1 -> `LLaVA.language_inputs`; Eq. 2 sequence -> `zoo.language.conversations.render`;
Eq. 3 likelihood -> `LLaVA.losses`; 1.5, Section 3.2 MLP -> `zoo.nn.bridges.MLPBridge`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from zoo.checkpoints.published import llava, llava_config
from zoo.choices import one_of
from zoo.init_args import Moved
from zoo.language.by_name import find_language_model
from zoo.language.conversations import IMAGE, TemplateName, Turn, put_image_first, render, to_pieces
from zoo.language.lora import LoRA, add_lora
from zoo.language.splice import Spliced, splice
from zoo.module import ZooModule
from zoo.nn.bridges import MLPBridge
from zoo.optim import Optim
from zoo.presets import register
from zoo.runs.untrained import warn_if_untrained
from zoo.tokens import NotInvertible, Segment, Tokens, TokenSpec, as_pixels, evaluating
from zoo.tokens.batch import (
    Batch,
    captions_of,
    check_words,
    images_of,
    missing,
    one_question_each,
    texts_to_score,
    turns_of,
    vectors_of,
)
from zoo.vision.encoders import vision_tower


class LLaVA(ZooModule):
    """Image patches, projected, as words of a language model that is frozen, tuned whole, or by LoRA.

    Args:
        image_size: side of the images in pixels.
        vision: frozen image encoder, see :func:`zoo.vision.encoders.vision_tower`.
        select: all tokens of the image encoder (``cls_patch``), or those without the class token (``patch``). None
            takes what the ``config.json`` of a LLaVA that ``vision`` or ``language_model`` names says, else ``patch``.
        language_model: see :func:`zoo.language.by_name.find_language_model`.
        language_dtype: of its weights where it is frozen or has LoRA.
        projector_depth: linear layers: 1 in LLaVA-1.0, 2 in 1.5.
        conversation: layout of the text: ``plain`` in the first stage, that of the language model in the second.
        system: sentence in front; None takes the layout's own.
        question: asked where the data has captions and no conversation, and by :meth:`caption`.
        max_length: longest sequence, image tokens included; what is behind it is cut off (``answers_cut_off``).
        tuning: the ``projector`` alone, or also the ``full`` language model, or ``lora`` matrices in it.
        lora: rank, scale and dropout of these matrices.
        projector_lr: learning rate of the projector as a fraction of ``optim.lr``.
        gradient_checkpointing: compute the language model's activations twice rather than keep them.
        vision_cache: images whose features are kept, for data without augmentation.
        optim: optimizer and schedule; that of 1.5's first stage by default.
        weights: start from these: a registry name or a path.
        vision_layer: hidden state of CLIP that is taken: -1 comes out of the last block. None takes what the
            ``config.json`` of a LLaVA that ``vision`` or ``language_model`` names says, else -2, as published.
    """

    must_match = ("lora.rank", "lora.alpha")
    moved = (
        Moved(
            "lora", {"lora_rank": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"},
            without_effect=lambda args: () if args.get("lora_rank") or args.get("tuning") == "lora" else ("lora_rank",),
        ),
    )  # fmt: skip

    spec: TokenSpec

    def __init__(
        self,
        image_size: int = 336,
        vision: str = "clip_vit_l14",
        select: Literal["patch", "cls_patch"] | None = None,
        language_model: str = "vicuna_7b",
        language_dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        projector_depth: int = 2,
        conversation: TemplateName = "plain",
        system: str | None = None,
        question: str = "What does this image show?",
        max_length: int = 2048,
        tuning: Literal["projector", "full", "lora"] = "projector",
        lora: LoRA = LoRA(rank=128, alpha=256),
        projector_lr: float = 1.0,
        gradient_checkpointing: bool = False,
        vision_cache: int = 0,
        optim: Optim = Optim(lr=1e-3, weight_decay=0.0),
        weights: str | None = None,
        vision_layer: int | None = None,
    ):
        super().__init__(optim)
        self.tuning = one_of("tuning", tuning, ("projector", "full", "lora"))
        self.image_size, self.max_length, self.projector_lr = image_size, max_length, projector_lr
        self.conversation = one_of("conversation", conversation, get_args(TemplateName))
        self.system, self.question = system, question
        said = llava_config.read_folder_settings(vision, language_model)
        self.select = one_of("select", select or said.get("select", "patch"), ("patch", "cls_patch"))
        tower = vision_tower(
            vision, image_size, vision_cache, said.get("vision_layer") if vision_layer is None else vision_layer
        )
        self.add_frozen("vision", tower, role="vectors")
        if said:  # a checkpoint says what it was trained with, wherever that came from
            layer = vision_layer if tower.clip is None else tower.clip.taken
            self.hparams.update({"select": self.select, "vision_layer": layer})
        #: of the tokens that are taken: behind the class token, or that one too
        self.first_token = int(tower.class_token and self.select == "patch")
        count = tower.num_tokens - self.first_token
        if max_length <= count:
            raise ValueError(f"max_length {max_length} leaves no room behind {count} image tokens: raise it")
        language = find_language_model(language_model, "float32" if tuning == "full" else language_dtype)
        language.check_writes_on(language_model)
        self._add_language(language)
        if tuning == "lora":
            add_lora(self.language, lora)
        if gradient_checkpointing and tuning != "projector":
            self.language.checkpoint_activations()
        self.mm_projector = MLPBridge(tower.width, self.language.width, count, projector_depth)
        self.spec = TokenSpec(
            segments=(Segment("patches", (count,)),), dim=self.language.width, order="raster", vocabulary=None,
            decodes=None,
        )  # fmt: skip
        self.load_weights(weights)

    def _add_language(self, language: Any) -> None:
        if self.tuning == "projector":
            self.add_frozen("language_model", language, role="vectors")
        elif self.tuning == "lora":
            self.add_partly_frozen("language_model", language, role="vectors")
        else:
            self.language_model = language.requires_grad_(True)

    @property
    def language(self) -> Any:
        """The language model."""
        return self.frozen["language_model"] if self.tuning == "projector" else self.language_model

    def lr_scale(self, name: str) -> float:
        return self.projector_lr if name.startswith("mm_projector.") else 1.0

    # ------------------------------------------------------------------ tokens

    def encode(self, images: Shaped[Tensor, "b 3 h w"]) -> Tokens:
        """Features of the patches, projected to the width of the language model's words."""
        return Tokens(None, self.language_inputs(images), self.spec)

    def decode(self, tokens: Tokens) -> Tensor:
        """Refuse: LLaVA has no decoder.

        Raises:
            NotInvertible: always.
        """
        raise NotInvertible(
            "LLaVA projects CLIP's patch features into the space of a language model's words (Section 4.1) and has no "
            "way back to pixels: look at what answer() says of them"
        )

    def language_inputs(self, images: Shaped[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        """Features of the patches, projected to the width of the language model's words.

        Eq. 1: H = W Z; the MLP of version 1.5.
        """
        return self.mm_projector(self.frozen["vision"](as_pixels(images, size=self.image_size))[:, self.first_token :])

    # ------------------------------------------------------------------ writing

    def caption(self, images: Shaped[Tensor, "b 3 h w"], **writing: Any) -> list[str]:
        """Say what is in the images: the answer to ``question``, or what follows the image in the ``plain`` layout.

        Args:
            images: in [0, 1] or uint8.
            writing: see :meth:`zoo.language.language_model.LanguageModel.write`.
        """
        return self.answer(images, [self.question] * len(images), **writing)

    @torch.no_grad()
    def answer(
        self, images: Shaped[Tensor, "b 3 h w"], questions: Sequence[str | Sequence[Turn]], **writing: Any
    ) -> list[str]:
        """Answer one question per image.

        Args:
            images: in [0, 1] or uint8.
            questions: one per image, or a conversation that ends with one. The ``plain`` layout knows none.
            writing: see :meth:`zoo.language.language_model.LanguageModel.write`; greedy by default, as published.

        Raises:
            ValueError: for another number of questions than images, or more words than the language model has
                places for.
        """
        questions = one_question_each(questions, len(images))
        warn_if_untrained(self, "writes")
        turns = [[{"from": "human", "value": f"{IMAGE}\n{q}"}] if isinstance(q, str) else list(q) for q in questions]
        # chatml ends a turn with a token of its own, which is some tokenizers' end; v0 and plain end with text
        stop = {"plain": ("\n",), "v0": ("###",), "chatml": ("<|im_end|>",)}.get(self.conversation, ())
        with evaluating(self):
            batch = self._read(self.language_inputs(images), turns, "left")
            ids = self.language.text.ids(stop[0]) if stop else ()
            # a sign that is one word of its own may be special, and is then not in the text
            return self.language.write(batch, **{"stop_text": stop, "stop": ids if len(ids) == 1 else ()} | writing)

    # ------------------------------------------------------------------ training

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 3: cross entropy of the answers of each conversation.

        The batch holds ``image`` and ``conversation`` (LLaVA's turns), or ``caption``, which becomes the answer to
        ``question``. A conversation without ``<image>`` is one about text alone.
        """
        images = images_of(batch, self)
        turns = self._turns(batch, len(images))
        tokens = self.language_inputs(images)
        spliced = self._read(tokens, turns)
        cut = torch.tensor(spliced.cut_share, device=tokens.device)
        return {"loss": self.language.loss(spliced), "answers_cut_off": cut}

    def log_likelihood(self, tokens: Tokens, texts: Sequence[str]) -> Float[Tensor, " b"]:
        """Natural logarithm of the probability of each caption as the answer to ``question`` about its image.

        Args:
            tokens: of :meth:`encode`.
            texts: one caption per image.

        Raises:
            ValueError: for tokens without vectors, or captions that ``max_length`` cuts off.
        """
        vectors = vectors_of(tokens, self)
        turns = [self._about(text) for text in check_words(texts_to_score(texts, tokens, self))]
        batch = self._read(vectors, turns, answers_only=True)
        return self.language.log_likelihood(batch)

    def _turns(self, batch: Batch, count: int) -> list[list[Turn]]:
        """Turns about each image: its ``conversation``, or ``question`` with its ``caption`` as the answer."""
        if batch.get("conversation") is not None:
            return turns_of(batch, self, count)
        if batch.get("caption") is None:
            remedy = "bring one of them, as ConversationData and CaptionData do"
            raise missing(batch, "neither 'conversation' nor 'caption'", self, "learns from what is said", remedy)
        return [self._about(caption) for caption in check_words(captions_of(batch, self, count))]

    def _about(self, caption: str) -> list[Turn]:
        return [{"from": "human", "value": f"{IMAGE}\n{self.question}"}, {"from": "gpt", "value": caption.strip()}]

    def _read(
        self,
        tokens: Tensor,
        conversations: Sequence[Sequence[Turn]],
        side: Literal["right", "left"] = "right",
        answers_only: bool = False,
    ) -> Spliced:
        """The batch for the language model; ``answers_only`` learns no sign between turns either."""
        codec = self.language.text
        end = str(codec.tokenizer.eos_token)
        samples = []
        for i, turns in enumerate(conversations):
            parts = render(put_image_first(turns), self.conversation, end, self.system)
            if answers_only:
                parts = [replace(part, learn=part.answer is not None and part.learn) for part in parts]
            samples.append(to_pieces(parts, codec, i))
        # the end of what is to be gone on with must not be cut off: the language model's own limit is what counts then
        return splice(samples, tokens, self.language.embed, side, self.max_length if side == "right" else None)


LLaVA.formats = (llava.ORIGINAL, llava.LORA, llava.HUGGING_FACE)

PAPER = "arXiv:2310.03744"
TINY: dict[str, Any] = {
    "image_size": 32,
    "vision": "tiny_clip",
    "language_model": "tiny_llama",
    "max_length": 200,
    "optim": Optim(lr=1e-2),
}
register("llava_tiny", LLaVA, paper=PAPER, **TINY)
register("llava_lora_tiny", LLaVA, paper=PAPER, **TINY | {
    "conversation": "v1", "system": "", "tuning": "lora", "lora": LoRA(rank=4, alpha=8, dropout=0.0),
})  # fmt: skip
EMOJI: dict[str, Any] = {
    "image_size": 128, "vision": "lite0", "language_model": "smollm2_135m", "language_dtype": "bfloat16",
    "question": "Which emoji is this?", "max_length": 128,
}  # fmt: skip
register(
    "llava_emoji", LLaVA, paper=PAPER, recipe="llava.yaml", **EMOJI,
    optim=Optim(lr=1e-3, weight_decay=0.0, warmup_steps=20),
)  # fmt: skip
register(
    "llava_emoji_lora", LLaVA, paper=PAPER, recipe="llava_finetune.yaml", **EMOJI, conversation="chatml", tuning="lora",
    lora=LoRA(rank=16, alpha=32), projector_lr=0.5, optim=Optim(lr=4e-4, weight_decay=0.0, warmup_steps=20),
)  # fmt: skip
for size in (7, 13):
    register(
        f"llava_1_0_{size}b", LLaVA, paper="arXiv:2304.08485", image_size=224, language_model=f"vicuna_{size}b",
        projector_depth=1, optim=Optim(lr=2e-3, weight_decay=0.0, warmup_steps=140),  # 3 % of 595,375 / 128
    )  # fmt: skip
register(
    "llava_1_5_7b", LLaVA, paper=PAPER, recipe="paper/llava_1_5_7b_pretrain.yaml", language_dtype="bfloat16",
    optim=Optim(lr=1e-3, weight_decay=0.0, warmup_steps=66),  # 3 % of 558,128 / 256
)  # fmt: skip
register(
    "llava_1_5_7b_finetune", LLaVA, paper=PAPER, recipe="paper/llava_1_5_7b_finetune.yaml", conversation="v1",
    tuning="full", gradient_checkpointing=True, optim=Optim(lr=2e-5, weight_decay=0.0, warmup_steps=156),
)  # fmt: skip
register(
    "llava_1_5_13b", LLaVA, paper=PAPER, language_model="vicuna_13b", language_dtype="bfloat16",
    optim=Optim(lr=1e-3, weight_decay=0.0, warmup_steps=66),
)  # fmt: skip
