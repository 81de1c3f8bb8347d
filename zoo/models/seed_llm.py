"""SEED's language model: it reads images as tokens and writes them as tokens (Ge et al. 2023).

arXiv:2307.08041 (SEED, with OPT) and arXiv:2310.01218 (SEED-LLaMA). Official code: AILab-CVC/SEED (commit 93b3cf4,
Apache-2.0), ``MultiModalLLM``.

Implemented: one vocabulary of text and image ids on any decoder-only language model, with the ids of any discrete
tokenizer of the zoo (DALL-E's idea, in the same code); LoRA and fully trained embeddings and norms; both tasks, image
to text and text to image, mixed by weight; ids in the vocabulary (SEED-LLaMA) or codes through a linear layer
(SEED-OPT); captions, answers, and images whose number of ids is guaranteed while they are written.
Not implemented: interleaved documents with several images, instruction tuning on conversations.
Deviations: the same learning rate for LoRA and embeddings. Captions end with a line break and have a length of their
own, where the released code ends samples with EOS and cuts them at 140 to 200 words in all. In the form of SEED-OPT the
codes go through the linear layer in both directions.

Equations: SEED, Section 4 image-to-text and text-to-image autoregression -> `SEEDLLM.losses`; SEED-LLaMA, Section 3.3
multimodal autoregression -> `SEEDLLM.losses` with `learn="all"`.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from zoo.choices import one_of
from zoo.init_args import Moved
from zoo.language.by_name import DTYPES, find_language_model
from zoo.language.image_vocabulary import CodesAsWords, ImageVocabulary, extend_vocabulary
from zoo.language.lora import LoRA, add_lora
from zoo.language.splice import IGNORED, Piece, Spliced, Text, splice
from zoo.optim import Optim
from zoo.presets import register
from zoo.runs.untrained import warn_if_untrained
from zoo.second_stage import SecondStage, embedding_shape
from zoo.tokens import Tokens, evaluating
from zoo.tokens.batch import Batch, captions_of, check_tokens, check_words, one_question_each, texts_to_score
from zoo.vision.unclip import find_decoder, pixels_of_embedding

FIRST_WORD = "<img_00000>"  # of SEED-LLaMA's published tokenizers


class SEEDLLM(SecondStage):
    """A language model with words for images.

    Args:
        tokenizer: whose ids are the words; any discrete one of the registry, SEED's as published.
        vision: image encoder of the tokenizer, such as ``eva_vit_g:PATH``; None leaves it.
        language_model: a decoder-only one, see :func:`zoo.language.by_name.find_language_model`.
        language_dtype: of its weights that are frozen beside LoRA; what is trained is float32.
        form: ids in the vocabulary (``vocabulary``, SEED-LLaMA), or codes through a linear layer (``embeddings``,
            SEED-OPT); ids are written through the output layer in both.
        image_words: what the new words start from: the tokenizer's ``codes``, so that similar ids are similar words, or
            the ``mean`` of the words of text.
        caption_prompt: between an image and its caption.
        generation_prompt: between a caption and its image.
        generation_share: of the samples that are text to image; the others are image to text.
        learn: ``all`` words, the prompt's and the given ones too (SEED-LLaMA's pre-training), or the ``answer`` alone.
        max_text_tokens: longest caption.
        lora: low-rank matrices, beside which word vectors, output layer and norms are trained; None trains the whole
            language model.
        gradient_checkpointing: compute the language model's activations twice rather than keep them.
        optim: optimizer and schedule; those of SEED-LLaMA's pre-training by default.
        weights: start from these: a registry name or a path.
    """

    must_match = ("lora.rank", "lora.alpha")
    moved = (Moved("lora", {"lora_rank": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"}, none=("rank", 0)),)

    def __init__(
        self,
        tokenizer: str = "seed2",
        vision: str | None = None,
        language_model: str = "vicuna_7b",
        language_dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        form: Literal["vocabulary", "embeddings"] = "vocabulary",
        image_words: Literal["mean", "codes"] = "mean",
        caption_prompt: str = "a photo of",
        generation_prompt: str = "Generate an image",
        generation_share: float = 0.5,
        learn: Literal["all", "answer"] = "all",
        max_text_tokens: int = 64,
        lora: LoRA | None = LoRA(),
        gradient_checkpointing: bool = False,
        optim: Optim = Optim(lr=1.5e-4, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.05, warmup_steps=900),
        weights: str | None = None,
    ):
        super().__init__(optim)
        if not 0 <= generation_share <= 1:
            raise ValueError(f"generation_share must lie in [0, 1], got {generation_share}")
        if max_text_tokens < 1:
            raise ValueError(f"max_text_tokens must be at least 1, got {max_text_tokens}")
        one_of("language_dtype", language_dtype, DTYPES)
        self.form = one_of("form", form, ("vocabulary", "embeddings"))
        self.image_words = one_of("image_words", image_words, ("mean", "codes"))
        self.learn = one_of("learn", learn, ("all", "answer"))
        self.caption_prompt, self.generation_prompt = caption_prompt, generation_prompt
        self.generation_share, self.max_text_tokens = generation_share, max_text_tokens
        self.add_tokenizer(tokenizer, vision=vision)
        language = find_language_model(language_model, language_dtype if lora else "float32")
        if language.encoder_decoder:
            raise ValueError(f"SEED writes images with a decoder, and {language_model!r} has an encoder: take another")
        if language.network is not None and FIRST_WORD in language.text.tokenizer.get_vocab():
            raise ValueError(
                f"{language_model!r} has words for images already, {FIRST_WORD} and so on (SEED-LLaMA's weights), and "
                "this model would add others: take the language model that they were trained from"
            )
        if language.network is not None:
            text = language.text
            prompt = max(len(text.ids(f" {given}")) for given in (caption_prompt, generation_prompt))
            ends = 3  # BOI, EOI, and the line break behind a caption
            language.check_length(len(text.start) + max_text_tokens + prompt + self.spec.num_tokens + ends)
        self._add_language(language, lora)
        if gradient_checkpointing:
            language.checkpoint_activations()
        self.load_weights(weights)

    def _add_language(self, language: Any, lora: LoRA | None) -> None:
        network = language.network
        self.words = ImageVocabulary(
            0 if network is None else network.get_input_embeddings().weight.shape[0], self.spec
        )
        if network is not None:
            codes = self.tokenizer.embed(torch.arange(self.spec.vocab_size)) if self.image_words == "codes" else None
            extend_vocabulary(network, self.words, codes)
            if self.form == "embeddings":
                table = network.get_input_embeddings()
                network.set_input_embeddings(CodesAsWords(table, self.words, self.spec.dim, self.tokenizer.embed))
        if lora is not None:
            self.add_partly_frozen("language_model", language, role="vectors")
            add_lora(language, lora, train_embeddings_and_norms=True)
        else:
            self.language_model = language.requires_grad_(True)

    # ------------------------------------------------------------------ writing

    @torch.no_grad()
    def caption(self, images: Shaped[Tensor, "b 3 h w"], **writing: Any) -> list[str]:
        """Say what is in the images.

        Args:
            images: in [0, 1] or uint8, of the tokenizer's size.
            writing: see :meth:`zoo.language.language_model.LanguageModel.continue_ids`.
        """
        return self.caption_tokens(self.encode(images), **writing)

    @torch.no_grad()
    def caption_tokens(self, tokens: Tokens, prompt: str | None = None, **writing: Any) -> list[str]:
        """Say what is in images that are tokens already.

        Args:
            tokens: of the tokenizer.
            prompt: behind each image; None takes ``caption_prompt``.
            writing: as for :meth:`caption`.
        """
        prompts = [("", self.caption_prompt if prompt is None else prompt)] * len(tokens)
        return self._say(tokens, prompts, writing)

    @torch.no_grad()
    def answer(
        self, images: Shaped[Tensor, "b 3 h w"], questions: Sequence[str], template: str = "{} Answer:", **writing: Any
    ) -> list[str]:
        r"""Answer one question per image.

        Args:
            images: in [0, 1] or uint8, of the tokenizer's size.
            questions: one per image.
            template: ``{}`` stands for the question, ``{image}`` for the image, which comes first where it is left out;
                ``"USER: {image}{}\nASSISTANT:"`` is that of SEED-LLaMA's published 8B.
            writing: as for :meth:`caption`.

        Raises:
            ValueError: for another number of questions than images, or a template without a question.
        """
        before, _, after = template.rpartition("{image}")
        if template.count("{}") != 1 or "{image}" in before:
            raise ValueError(f"template needs one {{}} for the question and at most one {{image}}, got {template!r}")
        questions = one_question_each(questions, len(images))
        prompts = [(before.replace("{}", question), after.replace("{}", question)) for question in questions]
        return self._say(self.encode(images), prompts, writing)

    def _say(self, tokens: Tokens, prompts: Sequence[tuple[str, str]], writing: dict[str, Any]) -> list[str]:
        warn_if_untrained(self, "writes")
        text = self.language_model.text
        samples: list[list[Piece]] = []
        for ids, (before, after) in zip(self._ids(tokens), prompts, strict=True):
            words = text.ids(before) if before else ()
            behind = text.ids(f" {after}") if after else ()
            samples.append([Text((*text.start, *words, *self.words.span(ids), *behind))])
        if not samples:
            raise ValueError("there are no images to speak of: give at least one")
        with evaluating(self):
            batch = self._splice(samples, "left")
            return self.language_model.write(
                batch, stop=text.ids("\n")[-1:], constrain=self.words.allow_only_text, **writing
            )

    @torch.no_grad()
    def generate_images(
        self,
        captions: Sequence[str],
        decoder: Any = None,
        *,
        as_tokens: bool = False,
        num_beams: int = 1,
        top_p: float | None = 0.9,
        temperature: float = 1.0,
        seed: int | None = None,
        **decoding: Any,
    ) -> Any:
        """Images of captions. Exactly as many ids as an image has are written, and nothing else.

        Args:
            captions: one per image.
            decoder: for tokenizers that decode to an embedding, see
                :meth:`zoo.models.seed_stage2.SEEDTokenizer.decode_pixels`.
            as_tokens: return :class:`Tokens` instead.
            num_beams: of the beam search, which is without chance and needs ``top_p=None``: 4 as published.
            top_p: sample from the most likely ids of this total probability; None takes the best.
            temperature: divides the logits of sampling.
            seed: of sampling.
            decoding: handed to a pipeline.

        Raises:
            ValueError: for an empty caption, no list of them, or a tokenizer that needs a decoder.
        """
        if isinstance(captions, str) or not captions:
            raise ValueError(f"captions must be a list with one caption per image, got {captions!r}")
        if as_tokens and decoding:
            raise ValueError(f"there is no setting {', '.join(decoding)} of writing tokens")
        warn_if_untrained(self, "draws")
        if not as_tokens:
            decoder = self._decoder(decoder, decoding)
        text = self.language_model.text
        samples: list[list[Piece]] = []
        for i, caption in enumerate(captions):
            if not caption.strip():
                raise ValueError(f"caption {i} is empty: say what is to be seen")
            samples.append([Text((*text.start, *self._request(caption), self.words.begin))])
        with evaluating(self):
            batch = self._splice(samples, "left")
            rows = self.language_model.continue_ids(
                batch, [self.words.end], max_new_tokens=self.spec.num_tokens + 1, num_beams=num_beams, top_p=top_p,
                temperature=temperature, seed=seed, constrain=self.words.allow_only_images(self.device),
            )  # fmt: skip
            ids = [self.words.images_in([self.words.begin, *row])[0] for row in rows]
            tokens = Tokens(torch.tensor(ids, device=self.device), None, self.spec)
            if as_tokens:
                return tokens
            if self.spec.decodes == "embedding":
                return pixels_of_embedding(self.decode(tokens), decoder, **decoding)
            return self.decode(tokens)

    def _decoder(self, decoder: Any, decoding: dict[str, Any]) -> Any:
        """Find the decoder of images before the ids are written, which takes long."""
        if self.spec.decodes == "embedding":
            return find_decoder(decoder, decoding, embedding_shape(self.tokenizer, self.device), self.device)
        if decoder is not None or decoding:
            given = ", ".join(["decoder"] * (decoder is not None) + list(decoding))
            raise ValueError(f"this tokenizer decodes to pixels by itself: leave out {given}")

    def _request(self, caption: str) -> tuple[int, ...]:
        text = self.language_model.text
        prompt = f" {self.generation_prompt}" if self.generation_prompt else ""
        return (*text.ids(caption.strip())[: self.max_text_tokens], *text.ids(prompt))

    # ------------------------------------------------------------------ training

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy of the next word, of captions behind images and of images behind captions.

        The batch holds ``image`` (or ``ids``) and ``caption``. In evaluation every sample is seen in both directions.
        """
        ids = self.tokenize(batch).tolist()
        captions = check_words(captions_of(batch, self, len(ids)))
        samples = []
        for image, caption in zip(ids, captions, strict=True):
            if self.training:
                samples.append(self._sample(image, caption, bool(torch.rand(()) < self.generation_share)))
            else:
                samples += [self._sample(image, caption, writes) for writes in (False, True)]
        spliced = self._splice(samples)
        terms = self.language_model.score(spliced)
        shifted = spliced.labels[:, 1:]
        shifted = shifted[:, (shifted != IGNORED).any(0)]
        known = shifted != IGNORED
        image = self.words.is_of_image(shifted) & known
        found = {"loss": terms.sum() / known.sum()}
        for name, some in (("image_loss", image), ("text_loss", known & ~image)):
            found[name] = (terms.detach() * some).sum() / some.sum().clamp(min=1)
        return found

    def log_likelihood(self, tokens: Tokens, texts: Sequence[str]) -> Float[Tensor, " b"]:
        """Natural logarithm of the probability of each caption given the ids of its image.

        Args:
            tokens: of :meth:`encode`.
            texts: one caption per image.

        Raises:
            ValueError: for tokens without ids, or captions of which nothing is left to score.
        """
        samples = [
            self._sample(ids, text, writes=False, learn="answer")
            for ids, text in zip(self._ids(tokens), texts_to_score(texts, tokens, self), strict=True)
        ]
        return self.language_model.log_likelihood(self._splice(samples), limit="max_text_tokens")

    def _sample(self, image: Sequence[int], caption: str, writes: bool, learn: str | None = None) -> list[Piece]:
        """Text to image (``writes``), or image to text."""
        text, every = self.language_model.text, (learn or self.learn) == "all"
        if writes:
            return [Text(text.start), Text(self._request(caption), every), Text(self.words.span(image), True)]
        prompt = f" {self.caption_prompt}" if self.caption_prompt else ""
        words, most = text.ids(f" {caption.strip()}"), self.max_text_tokens
        said = Text((*words[:most], *text.ids("\n")), True, lost=len(words[most:]))
        return [Text(text.start), Text((*self.words.span(image), *text.ids(prompt)), every), said]

    def _ids(self, tokens: Tokens) -> list[list[int]]:
        check_tokens(tokens, self)
        assert tokens.ids is not None
        return tokens.ids.tolist()

    def _splice(self, samples: list[list[Piece]], side: Literal["right", "left"] = "right") -> Spliced:
        return splice(samples, None, self.language_model.embed, side, device=self.device)


PAPER = "arXiv:2310.01218"
TINY: dict[str, Any] = {
    "tokenizer": "seed_stage2_tiny:random", "language_model": "tiny_llama", "max_text_tokens": 16,
    "lora": LoRA(rank=4, alpha=8, dropout=0.0), "optim": Optim(lr=1e-2),
}  # fmt: skip
register("seed_llm_tiny", SEEDLLM, paper=PAPER, **TINY)
register(
    "seed_llm_emoji", SEEDLLM, paper=PAPER, recipe="seed_llm.yaml", tokenizer="seed_stage2_emoji",
    language_model="smollm2_135m", caption_prompt="This emoji shows", generation_prompt="Draw it", learn="answer",
    max_text_tokens=24, lora=LoRA(dropout=0.0), image_words="codes",
    optim=Optim(lr=5e-4, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.01, warmup_steps=30),
)  # fmt: skip
register(
    "seed_llama_8b",
    SEEDLLM,
    paper=PAPER,
    recipe="paper/seed_llama_8b_pretrain.yaml",
    language_dtype="bfloat16",
    caption_prompt="",
    generation_prompt="",
    gradient_checkpointing=True,
    optim=Optim(lr=1.5e-4, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.05, warmup_steps=900, min_lr=7.5e-6),
)
register(
    "seed_opt2_7b", SEEDLLM, paper="arXiv:2307.08041", language_model="opt_2.7b", form="embeddings", learn="answer",
    caption_prompt="A photo of",
)  # fmt: skip
