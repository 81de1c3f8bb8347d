"""What a batch holds: one reader for each entry, and one sentence where it is missing."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from zoo.tokens.interface import Tokens, TokenSpec, as_pixels, id_range

Batch = dict[str, Any]


@torch.no_grad()
def ids_of(batch: Batch, tokenizer: Any) -> Int[Tensor, "b n"]:
    """Precomputed ``ids`` of the batch, else those of ``token_image``, else those of ``image``.

    Raises:
        ValueError: for ids that are not of this tokenizer, or an image size with another layout of tokens.
    """
    spec: TokenSpec = tokenizer.spec
    if (ids := batch.get("ids")) is not None:
        return _given(ids, spec)
    images = batch.get("token_image", batch.get("image"))
    if images is None:
        raise ValueError(f"the batch has neither 'ids' nor 'image', but {', '.join(batch)}: bring one of them")
    return same_layout(tokenizer.encode(images), spec, images)


@torch.no_grad()
def view_ids_of(batch: Batch, tokenizer: Any, spec: TokenSpec, size: tuple[int, int]) -> Int[Tensor, "b n"]:
    """Precomputed ``ids`` of the batch, else of ``token_image``, else of ``image`` resized to the tokenizer's view.

    Args:
        batch: with ``image``.
        tokenizer: fully convolutional where ``size`` is not its own.
        spec: of the model that predicts the ids.
        size: height and width of the tokenizer's view.

    Raises:
        ValueError: for ids or views that do not fit the model's grid.
    """
    images = images_of(batch)
    if (ids := batch.get("ids")) is not None:
        return _given(ids, spec, len(images))
    if (view := batch.get("token_image")) is not None:
        if view.ndim == 4 and tuple(view.shape[-2:]) != size:
            height, width = view.shape[-2:]
            raise ValueError(
                f"batch['token_image'] is {height}x{width}, this model needs {size[0]}x{size[1]} for its "
                f"{_layout([s.shape for s in spec.segments])} tokens: set data.token_image_size to {size[1]}"
            )
        view = as_pixels(view)
    else:
        view = as_pixels(images)
        if tuple(view.shape[-2:]) != size:
            view = F.interpolate(view.float(), size, mode="bicubic", antialias=True).clamp(0, 1)
    tokens = tokenizer.encode(view)
    if tokens.spec.grid_shape != spec.grid_shape:
        raise ValueError(
            f"the tokenizer makes a grid of {tokens.spec.grid_shape} from {size[0]}x{size[1]} pixels, but the model "
            f"has {spec.grid_shape} patches: change image_size or patch_size, or take a fully convolutional tokenizer"
        )
    return tokens.ids


def images_of(batch: Batch) -> Shaped[Tensor, "b c h w"]:
    """The batch's ``image``, for models that read pixels as well as ids.

    Raises:
        ValueError: where there is none, as in token shards that were written without images.
    """
    if "image" not in batch:
        raise ValueError(
            f"the batch has no 'image', but {', '.join(batch)}, and this model reads pixels: write the token shards "
            "with --trainer.callbacks.with_images=true"
        )
    return batch["image"]


def _given(ids: Int[Tensor, "b n"], spec: TokenSpec, count: int | None = None) -> Int[Tensor, "b n"]:
    shape = (len(ids) if count is None else count, spec.num_tokens)
    low, high = id_range(ids)
    if ids.shape != shape or low < 0 or high >= spec.vocab_size:
        raise ValueError(
            f"batch['ids'] has shape {tuple(ids.shape)} and ids in {low}..{high}; this model needs "
            f"{spec.num_tokens} ids in 0..{spec.vocab_size - 1}: write them with its own tokenizer"
        )
    return ids


def same_layout(tokens: Tokens, spec: TokenSpec, images: Tensor) -> Int[Tensor, "b n"]:
    """The ids, if each stands at the place that its position means.

    Raises:
        ValueError: naming the image size.
    """
    assert tokens.ids is not None
    found, own = ([s.shape for s in x.segments] for x in (tokens.spec, spec))
    if found != own:
        height, width = images.shape[-2:]
        raise ValueError(
            f"images of {height}x{width} give {tokens.spec.num_tokens} tokens, this model has positions for "
            f"{spec.num_tokens} in another layout ({_layout(own)}, not {_layout(found)}): resize the images to the "
            "tokenizer's image_size"
        )
    return tokens.ids


def _layout(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join("x".join(map(str, shape)) for shape in shapes)


def check_classes(model: Any, data: Any) -> None:
    """Refuse data whose classes are not as many as the model has: the labels would mean others than were learned.

    Args:
        model: with ``num_classes``, where it knows classes at all; 0 for an unconditional one.
        data: a data module with ``num_classes``, where it knows them.

    Raises:
        ValueError: naming both numbers.
    """
    own, given = getattr(model, "num_classes", None), getattr(data, "num_classes", None)
    if own and given and own != given:
        raise ValueError(
            f"{type(data).__name__} has {given} classes and this {type(model).__name__} has {own}, so its labels would "
            f"mean other classes: set --model.init_args.num_classes={given}, or bring data of the model's classes"
        )


def labels_of(batch: Batch, num_classes: int) -> Int[Tensor, " b"] | None:
    """The batch's ``label`` for a class-conditional model, None for others.

    Raises:
        ValueError: where it is missing or out of range.
    """
    return class_labels(batch, num_classes, ", or set num_classes to 0") if num_classes else None


def class_labels(batch: Batch, num_classes: int, otherwise: str = "") -> Int[Tensor, " b"]:
    """The batch's ``label`` for a model that needs one.

    Args:
        batch: of a data module.
        num_classes: of the model.
        otherwise: what else the model can do, for the message.

    Raises:
        ValueError: where it is missing or out of range.
    """
    if (labels := batch.get("label")) is None:
        raise ValueError(
            f"the batch has no 'label', but the model has {num_classes} classes: sort the images into one sub-folder "
            f"per class{otherwise}"
        )
    return in_range(labels, num_classes)


def in_range(labels: Int[Tensor, " b"], num_classes: int, lowest: int = 0) -> Int[Tensor, " b"]:
    """The labels, checked.

    Raises:
        ValueError: naming those that are not classes.
    """
    if labels.numel() and not torch.compiler.is_compiling():
        low, high = (int(x) for x in labels.aminmax())
        if low < lowest or high >= num_classes:
            raise ValueError(f"labels must lie in {lowest}..{num_classes - 1}, got {low}..{high}: set num_classes")
    return labels.long()


def token_images_of(batch: Batch) -> Shaped[Tensor, "b c h w"]:
    """The tokenizer's own view of the images where the data has one, else the images."""
    return batch["token_image"] if "token_image" in batch else images_of(batch)


def check_tokens(tokens: Tokens, model: Any) -> None:
    """Refuse tokens that are not of the kind that a model reads.

    Args:
        tokens: that are to be of the model's own ``encode``.
        model: with a ``spec``, for ids where that has a vocabulary, else for vectors.

    Raises:
        ValueError: naming what differs.
    """
    name, spec, remedy = type(model).__name__, model.spec, "take those of its own encode"
    if spec.vocab_size:
        if tokens.ids is None:
            raise ValueError(f"{name} reads ids, and these tokens have none: {remedy}")
        if (found := tokens.spec.vocab_size) != spec.vocab_size:
            raise ValueError(f"{name} reads ids of {spec.vocab_size}, and these tokens are of {found}: {remedy}")
    elif tokens.embeddings is None:
        raise ValueError(f"{name} reads vectors, and these tokens have none: {remedy}")
    elif (width := tokens.embeddings.shape[-1]) != spec.dim:
        raise ValueError(f"{name} reads vectors of width {spec.dim}, and these have {width}: {remedy}")


def vectors_of(tokens: Tokens, model: Any) -> Float[Tensor, "b n d"]:
    """The vectors of tokens, for a model that reads such.

    Raises:
        ValueError: for tokens without vectors, or with those of another model.
    """
    check_tokens(tokens, model)
    assert tokens.embeddings is not None
    return tokens.embeddings


def rows_of(tokens: Tokens) -> list[Tokens]:
    """The tokens of each image by itself, as batches of one."""
    rows = [slice(i, i + 1) for i in range(len(tokens))]
    ids, vectors = tokens.ids, tokens.embeddings
    return [Tokens(None if ids is None else ids[r], None if vectors is None else vectors[r], tokens.spec) for r in rows]


def repeated(tokens: Tokens, count: int) -> Tokens:
    """The tokens of one image, as a batch of so many."""
    ids = None if tokens.ids is None else tokens.ids.expand(count, -1)
    vectors = None if tokens.embeddings is None else tokens.embeddings.expand(count, -1, -1)
    return Tokens(ids, vectors, tokens.spec)


def batch_size_of(batch: Batch) -> int:
    """Number of images, or of their token sequences where they come without images."""
    return len(batch["image"] if "image" in batch else batch["ids"])
