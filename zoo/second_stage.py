"""What models on top of a tokenizer share: its ids, class labels, and which ids may stand where."""

import inspect
from typing import Any, get_args

from zoo.init_args import check_overrides
from zoo.registry import class_of, model_from


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
    refuse_fresh(tokenizer, reference)
    return tokenizer


def refuse_fresh(tokenizer: Any, reference: str) -> None:
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
