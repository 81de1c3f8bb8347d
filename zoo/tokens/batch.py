"""Batches: one reader for each entry, and one sentence where it is missing.

A batch is a dictionary of ``image`` (``b 3 h w``), ``token_image`` (the tokenizer's own view), ``ids`` (``b n``),
``label`` (``b``), ``caption`` (a list of texts) or ``captions`` (a list of lists), ``conversation`` (lists of turns),
``index`` and ``image_id``. No model needs all of them, and none reads an entry without its reader here. A reader is
told who reads (``reader``: a model, or a name such as "the callback Captions"), so that the sentence says whose need it
is.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from zoo.tokens.abilities import KnowsClasses
from zoo.tokens.interface import Tokens, TokenSpec, id_range
from zoo.tokens.pixels import as_pixels

Batch = dict[str, Any]
SOMEONE = "this model"  # who reads, where nobody says


def missing(batch: Batch, wanted: str, reader: Any, need: str, remedy: str) -> ValueError:
    """The error of a batch that lacks what is needed, in one sentence.

    Args:
        batch: whose entries are named.
        wanted: what it does not have, e.g. ``no 'image'`` or ``neither 'ids' nor 'image'``.
        reader: a model, or the name of what reads.
        need: what the reader does with it, e.g. ``reads pixels``.
        remedy: what to do.
    """
    held = ", ".join(name for name, value in batch.items() if value is not None) or "nothing"
    who = reader if isinstance(reader, str) else type(reader).__name__
    return ValueError(f"the batch has {wanted}, but {held}, and {who} {need}: {remedy}")


def check_batch(batch: Any, reader: Any) -> None:
    """Refuse a batch that is no dictionary, such as the pairs of torchvision's data sets.

    Raises:
        ValueError: naming what it is.
    """
    if not isinstance(batch, Mapping):
        who = reader if isinstance(reader, str) else type(reader).__name__
        raise ValueError(
            f"the batch is a {type(batch).__name__}, and {who} reads dictionaries: let the data set return them, such "
            "as {'image': image, 'label': label}"
        )


# ---------------------------------------------------------------- pixels and ids


@torch.no_grad()
def ids_of(batch: Batch, tokenizer: Any, reader: Any = SOMEONE) -> Int[Tensor, "b n"]:
    """Precomputed ``ids`` of the batch, else those of ``token_image``, else those of ``image``.

    Args:
        batch: of a data module.
        tokenizer: whose ids they are.
        reader: who reads, for the message.

    Raises:
        ValueError: for a batch without any of the three, ids that are not of this tokenizer, or an image size with
            another layout of tokens.
    """
    check_batch(batch, reader)
    spec: TokenSpec = tokenizer.spec
    if (ids := batch.get("ids")) is not None:
        return _given(ids, spec)
    images = batch.get("token_image")
    if images is None and (images := batch.get("image")) is None:
        need = f"reads tokens of {type(tokenizer).__name__}"
        raise missing(batch, "neither 'ids' nor 'image'", reader, need, "bring images, or token shards of it")
    return same_layout(tokenizer.encode(images), spec, images)


@torch.no_grad()
def view_ids_of(
    batch: Batch, tokenizer: Any, spec: TokenSpec, size: tuple[int, int], reader: Any = SOMEONE
) -> Int[Tensor, "b n"]:
    """Precomputed ``ids`` of the batch, else of ``token_image``, else of ``image`` resized to the tokenizer's view.

    Args:
        batch: with ``image``.
        tokenizer: fully convolutional where ``size`` is not its own.
        spec: of the model that predicts the ids.
        size: height and width of the tokenizer's view.
        reader: who reads, for the message.

    Raises:
        ValueError: for ids or views that do not fit the model's grid.
    """
    images = images_of(batch, reader)
    if (ids := batch.get("ids")) is not None:
        return _given(ids, spec, len(images))
    if (view := batch.get("token_image")) is not None:
        if view.ndim == 4 and tuple(view.shape[-2:]) != size:
            height, width = view.shape[-2:]
            raise ValueError(
                f"batch['token_image'] is {height}x{width}, this model needs {size[0]}x{size[1]} for its "
                f"{_layout([s.shape for s in spec.segments])} tokens: set data.token_image_size to "
                f"{size[1] if size[0] == size[1] else list(size)}"
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


def images_of(batch: Batch, reader: Any = SOMEONE) -> Shaped[Tensor, "b c h w"]:
    """The batch's ``image``.

    Args:
        batch: of a data module.
        reader: who reads, for the message.

    Raises:
        ValueError: where there is none, as in token shards that were written without images.
    """
    check_batch(batch, reader)
    if (images := batch.get("image")) is None:
        shards = "write the token shards with --trainer.callbacks.with_images=true"
        remedy = shards if batch.get("ids") is not None else "bring images"
        raise missing(batch, "no 'image'", reader, "reads pixels", remedy)
    return images


def token_images_of(batch: Batch, reader: Any = SOMEONE) -> Shaped[Tensor, "b c h w"]:
    """The tokenizer's own view of the images where the data has one, else the images.

    Raises:
        ValueError: where there are neither.
    """
    check_batch(batch, reader)
    return images_of(batch, reader) if (view := batch.get("token_image")) is None else view


def batch_size_of(batch: Batch) -> int:
    """Number of images, or of their token sequences where they come without images.

    Raises:
        ValueError: where there are neither.
    """
    check_batch(batch, SOMEONE)
    for name in ("image", "ids"):
        if (values := batch.get(name)) is not None:
            return len(values)
    raise missing(batch, "neither 'image' nor 'ids'", SOMEONE, "counts by them", "bring one of them")


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


# ---------------------------------------------------------------- labels


def check_classes(model: Any, data: Any) -> None:
    """Refuse data whose classes are not as many as the model has: the labels would mean others than were learned.

    Args:
        model: with ``num_classes``, where it knows classes at all; 0 for an unconditional one.
        data: a data module with ``num_classes``, where it knows them.

    Raises:
        ValueError: naming both numbers.
    """
    own, given = (known.num_classes if isinstance(known, KnowsClasses) else None for known in (model, data))
    if own and given and own != given:
        raise ValueError(
            f"{type(data).__name__} has {given} classes and this {type(model).__name__} has {own}, so its labels would "
            f"mean other classes: set --model.init_args.num_classes={given}, or bring data of the model's classes"
        )


def labels_of(batch: Batch, num_classes: int, reader: Any = SOMEONE) -> Int[Tensor, " b"] | None:
    """The batch's ``label`` for a class-conditional model, None for others.

    Raises:
        ValueError: where it is missing or out of range.
    """
    return class_labels(batch, num_classes, reader, ", or set num_classes to 0") if num_classes else None


def class_labels(batch: Batch, num_classes: int, reader: Any = SOMEONE, otherwise: str = "") -> Int[Tensor, " b"]:
    """The batch's ``label`` for a model that needs one.

    Args:
        batch: of a data module.
        num_classes: of the model.
        reader: who reads, for the message.
        otherwise: what else the model can do, for the message.

    Raises:
        ValueError: where it is missing or out of range.
    """
    if (labels := batch.get("label")) is None:
        remedy = f"sort the images into one sub-folder per class{otherwise}"
        raise missing(batch, "no 'label'", reader, f"has {num_classes} classes", remedy)
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


# ---------------------------------------------------------------- texts


def texts_of(batch: Batch, name: str, reader: Any = SOMEONE, count: int | None = None) -> list[str]:
    """An entry of one text per image, such as ``caption``, ``question`` or ``answer``.

    Args:
        batch: of a data module.
        name: of the entry.
        reader: who reads, for the message.
        count: of the images; None does not compare.

    Raises:
        ValueError: where it is missing, no list of texts, or not one per image.
    """
    if (texts := batch.get(name)) is None:
        remedy = f"bring a {name} per image" + (", as CaptionData does" if name == "caption" else "")
        raise missing(batch, f"no {name!r}", reader, "learns from images with texts", remedy)
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name!r} must be a list of texts, one per image, got {_kind(texts)}: make it one")
    _check_count(texts, name, count)
    return list(texts)


def captions_of(batch: Batch, reader: Any = SOMEONE, count: int | None = None) -> list[str]:
    """The batch's ``caption``, one text per image; see :func:`texts_of`."""
    return texts_of(batch, "caption", reader, count)


def references_of(batch: Batch, reader: Any = SOMEONE) -> list[list[str]]:
    """All captions of each image: its ``captions``, or its one ``caption``.

    Raises:
        ValueError: where there are neither.
    """
    if (captions := batch.get("captions")) is not None:
        return [list(some) for some in captions]
    if batch.get("caption") is None:
        raise missing(batch, "no 'caption'", reader, "compares with captions", "leave it out, or bring captions")
    return [[caption] for caption in captions_of(batch, reader)]


def turns_of(batch: Batch, reader: Any = SOMEONE, count: int | None = None) -> list[list[dict[str, str]]]:
    """The batch's ``conversation``: turns ``{"from": "human" or "gpt", "value": text}`` of each image.

    Raises:
        ValueError: where it is missing, or not one per image.
    """
    if (turns := batch.get("conversation")) is None:
        remedy = "bring conversations, as ConversationData does"
        raise missing(batch, "no 'conversation'", reader, "learns from turns", remedy)
    _check_count(turns, "conversation", count)
    return [list(said) for said in turns]


def texts_to_score(texts: Sequence[str], tokens: Tokens, reader: Any) -> list[str]:
    """The texts whose likelihood is asked for, one per row of tokens.

    Raises:
        ValueError: for another number of them, or no list of texts.
    """
    return captions_of({"caption": texts}, reader, len(tokens))


def one_question_each(questions: Sequence[Any], count: int) -> list[Any]:
    """The questions, one per image; a string is the question about one image.

    Raises:
        ValueError: for another number of questions than images.
    """
    asked = [questions] if isinstance(questions, str) else list(questions)
    if len(asked) != count:
        raise ValueError(f"there are {len(asked)} questions for {count} images: give one per image")
    return asked


def check_words(texts: Sequence[str], name: str = "caption") -> Sequence[str]:
    """The texts, if each of them says something.

    Raises:
        ValueError: naming the first that does not.
    """
    for i, text in enumerate(texts):
        if not text.strip():
            raise ValueError(f"{name} {i} of the batch is empty: remove such images")
    return texts


def _kind(texts: Any) -> str:
    strange = [] if isinstance(texts, str) else [type(text).__name__ for text in texts if not isinstance(text, str)]
    return f"one of type {strange[0]}" if strange else f"the text {texts[:20]!r}"


def _check_count(values: Sequence[Any], name: str, count: int | None) -> None:
    if count is not None and len(values) != count:
        raise ValueError(f"the batch has {len(values)} {name}s for {count} images: give one per image")


# ---------------------------------------------------------------- places


def indices_of(batch: Batch, count: int) -> Sequence[int]:
    """Place of each image in its data set, or in the batch where nobody knows it: what evaluation seeds masks with."""
    index = batch.get("index")
    return range(count) if index is None else index.tolist()


def image_ids_of(batch: Batch) -> Int[Tensor, " b"] | None:
    """The batch's ``image_id``, equal for captions of one image, as numbers; None where it has none.

    Numbers stay as they are; strings become 60 bits of their hash, which every rank computes alike.
    """
    if (given := batch.get("image_id")) is None:
        return None
    if not isinstance(given, Tensor):
        hashes = [int.from_bytes(blake2b(str(i).encode(), digest_size=8).digest(), "big") >> 4 for i in given]
        given = torch.tensor(hashes, dtype=torch.int64)
    return given.reshape(len(given), -1)[:, 0]


# ---------------------------------------------------------------- tokens that a model is given


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
