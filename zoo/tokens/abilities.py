"""Abilities: what a model or a data module can do beyond the tokenizer interface, as protocols.

Callbacks, metrics and benchmarks ask ``isinstance(model, Captioner)`` and call the method with the signature below;
they never look for a method by its name. A class has an ability by having its methods; it inherits nothing. The
contract tests check that every registered model with a method of one of these names has that signature and keeps what
is said here, so a name means one thing in the whole zoo.

``b`` is the batch, ``h w`` are pixels, ``n`` tokens, ``d`` the width of a vector; images are floats in [0, 1] or uint8.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int, Shaped
from torch import Tensor

from zoo.tokens.interface import Tokenizer, Tokens, TokenSpec


class Scores(NamedTuple):
    """Scores of all pairs of n images and m texts; larger is better.

    Args:
        contrast: cosine of the vectors of image and text.
        image_to_text: for finding texts of an image; the contrast, or re-ranked.
        text_to_image: for finding images of a text; the contrast, or re-ranked.
    """

    contrast: Float[Tensor, "n m"]
    image_to_text: Float[Tensor, "n m"]
    text_to_image: Float[Tensor, "n m"]


# ---------------------------------------------------------------- models that read and write text


@runtime_checkable
class Captioner(Protocol):
    """Describes images in words: BLIP-2's second stage, MiniGPT-4, LLaVA, SEED's language model."""

    def caption(self, images: Shaped[Tensor, "b 3 h w"], **writing: Any) -> list[str]:
        """Write one caption per image, without gradients and in eval mode.

        Args:
            images: of the model's size.
            writing: settings of the language model, see
                :meth:`zoo.language.language_model.LanguageModel.continue_ids`; every captioner takes
                ``num_beams`` and ``max_new_tokens``.

        Raises:
            ValueError: for no image at all, or a model without its language model.
        """
        ...


@runtime_checkable
class TokenCaptioner(Protocol):
    """Describes images that are token ids already, such as those of token shards: SEED's language model."""

    def caption_tokens(self, tokens: Tokens, **writing: Any) -> list[str]:
        """Write one caption per row of ids; ``caption(images)`` equals ``caption_tokens(encode(images))``.

        Args:
            tokens: with ids, of the model's ``spec``.
            writing: as for :meth:`Captioner.caption`.
        """
        ...


@runtime_checkable
class Answerer(Protocol):
    """Answers questions about images."""

    def answer(self, images: Shaped[Tensor, "b 3 h w"], questions: Sequence[Any], **writing: Any) -> list[str]:
        """Answer one question per image, without gradients and in eval mode.

        Args:
            images: of the model's size.
            questions: one string per image; a model of conversations (LLaVA) also takes lists of turns.
            writing: as for :meth:`Captioner.caption`.

        Raises:
            ValueError: for another number of questions than images, or no image at all.
        """
        ...


@runtime_checkable
class Scorer(Protocol):
    """Says how likely texts are, given the tokens that its own ``encode`` makes of images."""

    @property
    def spec(self) -> TokenSpec | None:
        """Of the tokens that are scored against."""
        ...

    def encode(self, images: Shaped[Tensor, "b 3 h w"]) -> Tokens:
        """Turn images into the tokens that :meth:`log_likelihood` reads: ids or vectors, as the model has them."""
        ...

    def log_likelihood(self, tokens: Tokens, texts: Sequence[str]) -> Float[Tensor, " b"]:
        """Natural logarithm of the probability of each text given the image in the same row.

        Encode once and score many texts: ``model.log_likelihood(model.encode(images), texts)``.

        Args:
            tokens: of this model's ``encode``; whether they hold ids or vectors is the model's own matter.
            texts: one caption per row.

        Raises:
            ValueError: for tokens of another model, or texts of which nothing is left to score.
        """
        ...


@runtime_checkable
class Retriever(Protocol):
    """Scores images against texts: BLIP-2's and SEED's first stages."""

    def retrieve(
        self, images: Shaped[Tensor, "n 3 h w"], texts: Sequence[str], rerank: int = 0, batch_size: int = 64
    ) -> Scores:
        """Score all n x m pairs in both directions, without gradients and in eval mode.

        Args:
            images: n of them.
            texts: m of them.
            rerank: score so many of the best candidates of each row and column again, where the model can; the others
                get a lower score than any of them. 0 leaves it out.
            batch_size: images, texts or pairs at once.
        """
        ...


@runtime_checkable
class TextToImage(Protocol):
    """Makes images of captions: SEED's language model, DALL-E."""

    def generate_images(
        self, captions: Sequence[str], decoder: Any = None, *, as_tokens: bool = False, seed: int | None = None,
        **sampling: Any,
    ) -> Any:  # fmt: skip
        """Make one image per caption, without gradients and in eval mode.

        Args:
            captions: one per image, none of them empty.
            decoder: draws the generation embeddings of tokens that do not decode to pixels, see
                :func:`zoo.vision.unclip.find_decoder`.
            as_tokens: return :class:`~zoo.tokens.Tokens` instead of images.
            seed: of the noise; the same seed gives the same images.
            sampling: the model's own settings.

        Returns:
            Images ``b 3 h w`` in [0, 1], or tokens.
        """
        ...


# ---------------------------------------------------------------- models that make images


@runtime_checkable
class Generator(Protocol):
    """Makes new images, of classes where it knows any: MaskGIT, the autoregressive transformer."""

    @property
    def spec(self) -> TokenSpec:
        """Of the tokens that are drawn."""
        ...

    @property
    def num_classes(self) -> int:
        """Classes of the condition; 0 for an unconditional model."""
        ...

    @property
    def has_null(self) -> bool:
        """True where it knows images without a class as well, which is what classifier-free guidance needs."""
        ...

    def generate(
        self, labels: Any = None, num_images: int | None = None, *, as_tokens: bool = False, **sampling: Any
    ) -> Any:
        """Make images, without gradients and in eval mode.

        Args:
            labels: class of each image (a number, a list or a tensor); None for an unconditional model.
            num_images: how many; with one label, that many of it.
            as_tokens: return :class:`~zoo.tokens.Tokens` instead of what the tokenizer makes of them.
            sampling: those of :meth:`sampling_settings`, and ``seed`` or ``generator`` of the noise: the same one gives
                the same images.

        Returns:
            Images ``b 3 h w`` in [0, 1] (or what else ``spec.decodes`` says), or tokens.

        Raises:
            ValueError: naming the setting that is wrong.
            TypeError: naming a setting that there is not.
        """
        ...

    def sampling_settings(self) -> dict[str, Any]:
        """Name and default of every setting of :meth:`generate` that decides how tokens are drawn.

        Plain data, for protocols of measurements; see :func:`default_settings`.
        """
        ...


@runtime_checkable
class StepwiseGenerator(Protocol):
    """Shows what its images looked like after each step of the decoding: MaskGIT."""

    def decoding_steps(
        self, labels: Any = None, num_images: int | None = None, **sampling: Any
    ) -> dict[str, Float[Tensor, "s 3 h w"]]:
        """One row of pictures per image, name -> images after each of the s steps; arguments as for ``generate``."""
        ...


@runtime_checkable
class ConditionalGenerator(Protocol):
    """Goes on from the tokens of a condition, such as a depth map: the autoregressive transformer.

    A model of this class need not be built with a condition: ``condition_tokens`` is 0 then.
    """

    @property
    def condition_tokens(self) -> int:
        """Number of condition tokens in front of those of an image; 0 for none."""
        ...

    def generate(
        self, labels: Any = None, num_images: int | None = None, *, condition: Any = None, **sampling: Any
    ) -> Any:
        """Make images as :meth:`Generator.generate` does, behind ``condition``: images or ids, one per image."""
        ...


@runtime_checkable
class Inpainter(Protocol):
    """Fills in hidden parts of images: MaskGIT."""

    def inpaint(
        self, images: Shaped[Tensor, "b 3 h w"], mask: Shaped[Tensor, "..."], labels: Any = None, **sampling: Any
    ) -> Any:
        """Make images ``b 3 h w`` in [0, 1] in which what was hidden is filled in.

        Args:
            images: of the tokenizer's size.
            mask: bool, True where hidden, ``h w`` for all images or ``b h w``.
            labels: class of each image, for a class-conditional model.
            sampling: as for :meth:`Generator.generate`.

        Raises:
            ValueError: for a mask of another size, or tokens without a grid.
        """
        ...


@runtime_checkable
class ImageDecoder(Protocol):
    """Draws generation embeddings, such as those of SEED's tokenizer: SEEDPixels."""

    def images_of(self, embedding: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 h w"]:
        """Images of generation embeddings, about in [0, 1].

        Raises:
            ValueError: for vectors of another width.
        """
        ...


# ---------------------------------------------------------------- looking into a model


@runtime_checkable
class PictureRows(Protocol):
    """Says which rows the picture grid shows, in place of originals and reconstructions: BEiT."""

    def picture_rows(
        self, images: Shaped[Tensor, "b 3 h w"], batch: dict[str, Any]
    ) -> dict[str, Float[Tensor, "b 3 h w"]]:
        """Rows of pictures by name, all of one size, without gradients and in eval mode.

        Args:
            images: the first b of the batch.
            batch: whose other entries may be used for as many images.
        """
        ...


@runtime_checkable
class CodeSources(Protocol):
    """Names modules that choose codes without being a :class:`zoo.quantizers.base.Quantizer`: the dVAE."""

    def code_sources(self) -> dict[str, tuple[int, Callable[[Tensor], Int[Tensor, "..."]]]]:
        """Name of a module -> (number of codes, function from the module's output to the ids that it chose)."""
        ...


# ---------------------------------------------------------------- facts of models and of data


@runtime_checkable
class BuiltOnTokenizer(Protocol):
    """Was built for the tokens of a frozen tokenizer: every second stage on ids."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The frozen tokenizer."""
        ...


@runtime_checkable
class TakesOneSize(Protocol):
    """Takes images of one size."""

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Side in pixels, or (height, width) of images that are no squares."""
        ...


@runtime_checkable
class KnowsClasses(Protocol):
    """Has labels 0 to ``num_classes - 1``: classifiers, generators, labelled data."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes; 0 or None where it has none after all."""
        ...


@runtime_checkable
class NamesClasses(Protocol):
    """Data whose classes have names."""

    @property
    def class_names(self) -> list[str] | None:
        """Name of each class, in the order of the labels; None where it has none after all."""
        ...


@runtime_checkable
class LaysOutConversations(Protocol):
    """Writes conversations in a layout: LLaVA."""

    #: name of the layout, of :data:`zoo.language.conversations.TemplateName`; ``plain`` is about images alone
    conversation: str


@runtime_checkable
class Views(Protocol):
    """Data that shows each split without augmentation and in a fixed order: every data module of the zoo."""

    def view(self, split: Any) -> Any:
        """Data set of the images of ``train``, ``val``, ``test`` or ``all``."""
        ...

    def view_loader(self, split: Any) -> Any:
        """Batches of what :meth:`view` returns."""
        ...


@runtime_checkable
class SaysCaptions(Protocol):
    """Data that can say all captions of its training images without reading an image."""

    def train_captions(self) -> list[str]:
        """All captions, several of one image included; none where the images have none, or nobody knows them."""
        ...


@runtime_checkable
class PredictsSplit(Protocol):
    """Data that can be told which split ``predict`` goes through."""

    #: ``train``, ``val``, ``test`` or ``all``; may be set
    predict_split: Any


@runtime_checkable
class StartsAnew(Protocol):
    """Data that remembers where a checkpoint left it, and can forget that: every data module of the zoo."""

    def start_anew(self) -> None:
        """Forget what a checkpoint said."""
        ...


@runtime_checkable
class EntersEpochs(Protocol):
    """A sampler that enters an epoch behind the images that were seen before a checkpoint."""

    def skipped(self, epoch: int) -> int:
        """Batches that the epoch lacks because it is entered."""
        ...


#: what a sampler is told beside its settings: what to draw, from which noise, and what to return
NO_SETTINGS = (
    "labels", "num_images", "ids", "condition", "known", "as_tokens", "return_steps", "seed", "generator", "noise",
)  # fmt: skip


def default_settings(sampler: Callable[..., Any]) -> dict[str, Any]:
    """Name and default of the settings that a sampler takes, from its signature, without :data:`NO_SETTINGS`.

    Args:
        sampler: a method such as ``generate``, all of whose settings have plain defaults.
    """
    parameters = inspect.signature(sampler).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in NO_SETTINGS and p.default is not p.empty}


def image_size_of(model: Any) -> int | tuple[int, int] | None:
    """Side in pixels of the images that a model or its tokenizer takes, or (height, width); None where neither says."""
    if isinstance(model, TakesOneSize) and model.image_size:
        return model.image_size
    return image_size_of(model.tokenizer) if isinstance(model, BuiltOnTokenizer) else None
