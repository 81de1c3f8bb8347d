"""Models on the tokens of another one: the base class of those that predict ids, and tokenizers by name."""

import inspect
from typing import Any, get_args

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from zoo.init_args import check_overrides
from zoo.module import ZooModule
from zoo.registry import class_of, model_from
from zoo.sampling.labels import wanted_labels
from zoo.tokens import Tokens, TokenSpec, evaluating
from zoo.tokens.allowed import allowed_ids, keep_allowed
from zoo.tokens.batch import Batch, ids_of, labels_of


class SecondStage(ZooModule):
    """Base of models on the ids of a frozen discrete tokenizer: any one of the registry, whatever its layout.

    The model is a tokenizer itself, since it encodes, decodes and embeds through the frozen one. A subclass calls
    :meth:`add_tokenizer` in its constructor, builds its network for ``self.spec``, and reads ``self.tokenize(batch)``
    in ``losses``. Where it draws ids one position at a time, :meth:`add_allowed_ids` and :meth:`keep_allowed` leave
    out those that may not stand there, as each segment of a tokenizer has a range of its own. One that knows classes
    sets ``num_classes``, and ``has_null`` where it knows images without one as well.
    """

    encodes_by_tokenizer = True
    spec: TokenSpec
    #: classes of the condition, 0 for none; set by models that generate images
    num_classes: int
    #: whether it knows images without a class beside those with one, for classifier-free guidance
    has_null: bool = False
    #: which ids may stand at each position, or None where all may
    allowed: Tensor | None

    def add_tokenizer(self, reference: str, **overrides: Any) -> None:
        """Hold the frozen tokenizer, and take its ``spec``.

        Args:
            reference: as for :func:`discrete_tokenizer`.
            overrides: likewise.

        Raises:
            ValueError: for a tokenizer without ids, or one that is not whole.
        """
        self.add_frozen("tokenizer", discrete_tokenizer(reference, **overrides), role="ids")
        self.spec = self.tokenizer.spec

    def add_allowed_ids(self, order: Int[Tensor, " n"] | None = None) -> None:
        """Note which ids may stand at each position of ``spec``.

        Args:
            order: position that is predicted first, second, and so on; None takes them as they are.
        """
        allowed = allowed_ids(self.spec)
        if allowed is not None and order is not None:
            allowed = allowed[order]
        self.register_buffer("allowed", allowed, persistent=False)

    def keep_allowed(self, logits: Float[Tensor, "*b n k"]) -> Float[Tensor, "*b n k"]:
        """Logits of all positions, ``-inf`` where an id may not stand."""
        return keep_allowed(logits, self.allowed)

    @property
    def tokenizer(self) -> Any:
        """The frozen tokenizer."""
        return self.frozen["tokenizer"]

    # ------------------------------------------------------------------ tokens

    def encode(self, images: Shaped[Tensor, "b 3 h w"]) -> Tokens:
        """Ids of the frozen tokenizer.

        Args:
            images: in [0, 1] or uint8, of the tokenizer's size.
        """
        return self.tokenizer.encode(images)

    def decode(self, tokens: Tokens) -> Float[Tensor, "b ..."]:
        """Pixels in [0, 1] or a generation embedding, as ``spec.decodes`` says, by the frozen tokenizer."""
        return self.tokenizer.decode(tokens)

    def embed(self, ids: Int[Tensor, "b *n"]) -> Float[Tensor, "b *n d"]:
        """Vectors of the frozen tokenizer behind the ids."""
        return self.tokenizer.embed(ids)

    def tokenize(self, batch: Batch) -> Int[Tensor, "b n"]:
        """The tokenizer's ids of a batch: its precomputed ``ids``, else of ``token_image``, else of ``image``.

        Raises:
            ValueError: for a batch without any of them, or with those of another tokenizer or image size.
        """
        return ids_of(batch, self.tokenizer, self)

    # ------------------------------------------------------------------ classes

    def labels_of(self, batch: Batch) -> Int[Tensor, " b"] | None:
        """The batch's classes to learn from, or None for an unconditional model.

        Raises:
            ValueError: where they are missing or out of range.
        """
        return labels_of(batch, self.num_classes, self)

    def wanted_labels(
        self, labels: Any, num_images: int | None, device: torch.device | None = None
    ) -> tuple[Int[Tensor, " b"] | None, int]:
        """Classes of the images to be made, and the number of images; see :func:`zoo.sampling.labels.wanted_labels`.

        Args:
            labels: a number, a list or a tensor of numbers, or None for an unconditional model.
            num_images: how many; with one label, that many of it.
            device: of the result; None takes the model's.

        Raises:
            ValueError: where labels are missing, no classes, or not as many as images.
        """
        where = self.device if device is None else device
        return wanted_labels(labels, num_images, self.num_classes, self.has_null, where)


# ---------------------------------------------------------------- tokenizers by name


def discrete_tokenizer(reference: str, **overrides: Any) -> Any:
    """The tokenizer of that name.

    Args:
        reference: as for :func:`zoo.registry.model_from`.
        overrides: constructor arguments; those that are None are left as they are.

    Raises:
        ValueError: for one without ids, one that does not take the overrides, or weights without its codes.
        TypeError: for a reference that is no string.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    if given:
        check_overrides(class_of(reference), given)
    tokenizer = model_from(reference, **given)
    if tokenizer.spec is None or not tokenizer.spec.vocab_size:
        raise ValueError(f"{reference!r} has no discrete tokens that could be predicted: take a tokenizer with ids")
    refuse_newly_initialised(tokenizer, reference)
    return tokenizer


def refuse_newly_initialised(tokenizer: Any, reference: str) -> None:
    """Refuse a tokenizer of which a part would stay random for ever, as nobody trains it.

    Raises:
        ValueError: naming the parts, and why the weights had none.
    """
    if parts := [name for name in tokenizer.newly_initialised if not name.startswith(tokenizer.training_only)]:
        why = tokenizer.newly_initialised[parts[0]]
        raise ValueError(
            f"{reference!r} is no whole tokenizer: {why}, so {', '.join(parts)} would stay "
            "random; train it first, or take other weights"
        )


def continuous_tokenizer(reference: str, **overrides: Any) -> Any:
    """The tokenizer of that name, without a language model behind it.

    Args:
        reference: as for :func:`zoo.registry.model_from`.
        overrides: constructor arguments; those that are None or 0 are left as they are.

    Raises:
        ValueError: for one without vectors, or one that does not take the overrides.
    """
    cls = class_of(reference)
    given = {name: value for name, value in overrides.items() if value}
    language = inspect.signature(cls).parameters.get("language_model")
    if language is not None and type(None) in get_args(language.annotation):
        given["language_model"] = None  # its own comes behind the vectors and is not needed
    check_overrides(cls, given)
    tokenizer = model_from(reference, **given)
    if tokenizer.spec is None or tokenizer.spec.vocab_size:
        raise ValueError(f"{reference!r} has no continuous tokens: take one like BLIP-2, whose tokens are vectors")
    return tokenizer


@torch.no_grad()
def embedding_shape(tokenizer: Any, device: torch.device | None = None) -> tuple[int, ...]:
    """Shape of what the tokens of one image decode to: (width,) of one vector, (count, width) of several.

    Args:
        tokenizer: of which ``spec.decodes`` is ``embedding``.
        device: of the tokenizer.
    """
    blank = torch.zeros(1, tokenizer.spec.num_tokens, dtype=torch.long, device=device)
    with evaluating(tokenizer):
        return tuple(tokenizer.decode(Tokens(blank, None, tokenizer.spec)).shape[1:])
