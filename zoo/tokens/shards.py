"""Token shards: tokens of many images on disk, written once by a tokenizer and read by any second stage.

A folder per split (``train/``, ``val/``) holds ``header.json`` and shards ``tokens-RANK-NNNNN.safetensors`` with
``ids`` (int32, ``n`` images x tokens), ``index`` (int64, the image's place in its data set) and, where known,
``label`` (int64), ``image`` (uint8) and texts: ``caption``, ``file`` (the image's path in its data set, with ``/``)
and ``image_id`` (of its record in an annotation file). A text is stored as ``NAME_bytes``, UTF-8 one after the other,
and ``NAME_ends``, where each ends in bytes; :func:`read_text` reads one. The header is written last: a folder without
one is an unfinished dump.
It says which tokenizer the ids belong to, down to its weights, so that they are never read by another, and what they
are: :func:`spec_from_header` makes the :class:`~zoo.tokens.interface.TokenSpec` of it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, UInt8
from lightning.pytorch.utilities import rank_zero_warn
from safetensors.torch import save_file
from torch import Tensor

from zoo.checkpoints.files import read_safetensors
from zoo.files.atomic import write_text_whole, write_whole
from zoo.files.strict_json import dump_json
from zoo.fingerprints import fingerprint
from zoo.tokens import Segment, TokenSpec, Vocabulary
from zoo.tokens.precision import ID_PRECISION

FORMAT = 1
HEADER = "header.json"
NEEDED = ("class", "count", "fingerprint", "model", "num_tokens", "vocab_size")  # of every header
TEXTS = ("caption", "file", "image_id")  # what a shard may hold in words


def make_header(
    tokenizer: Any,
    *,
    split: str,
    count: int,
    model: str = "",
    spec: TokenSpec | None = None,
    precision: str = ID_PRECISION,
    num_classes: int | None = None,
) -> dict[str, Any]:
    """Describe a dump: which tokenizer wrote it, and what its tokens are.

    Args:
        tokenizer: the module that made the ids, with a ``spec``.
        split: name of the set of images, e.g. ``train``.
        count: number of images over all shards.
        model: registry name or checkpoint of the tokenizer, for the reader.
        spec: of the ids, where they are of another image size than the tokenizer's own.
        precision: in which the ids were computed; models of the zoo compute in float32 alone.
        num_classes: of the labels, where they are known.

    Raises:
        ValueError: for a tokenizer without ids.
    """
    from zoo.version import __version__

    spec = spec or tokenizer.spec
    if spec is None or spec.vocab_size == 0:
        raise ValueError(f"{type(tokenizer).__name__} has no discrete tokens that could be written as ids")
    return {
        "format": FORMAT,
        "zoo": __version__,
        "model": model,
        "class": f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}",
        "fingerprint": fingerprint(tokenizer),
        "precision": precision,
        "num_classes": num_classes,
        "vocab_size": spec.vocab_size,
        "num_tokens": spec.num_tokens,
        "segments": [
            {"name": s.name, "shape": list(s.shape), "offset": s.offset, "size": s.size} for s in spec.segments
        ],
        "dim": spec.dim,
        "order": spec.order,
        "decodes": spec.decodes,
        "prefix_of": spec.prefix_of,
        "vocabulary": _vocabulary_entry(spec),
        "split": split,
        "count": count,
    }


def _vocabulary_entry(spec: TokenSpec) -> dict[str, Any]:
    """The kind of ids and, of words, their name and fingerprint in place of some 50,000 strings."""
    entry: dict[str, Any] = {"kind": spec.vocabulary}
    if spec.words is not None:
        entry |= {"name": spec.words.name, "size": len(spec.words), "fingerprint": spec.words.fingerprint}
    return entry


def spec_from_header(header: Mapping[str, Any]) -> TokenSpec:
    """The spec of a dump's tokens, equal to the tokenizer's for the image size of the dump.

    The header names the vocabulary of words and does not list it: ``Tokens.words`` needs the tokenizer's own spec.

    Args:
        header: of the shards.

    Raises:
        ValueError: for a header that does not say all of it, as those of earlier versions.
    """
    try:
        vocabulary = header["vocabulary"]
        words = None
        if "fingerprint" in vocabulary:
            words = Vocabulary.unread(vocabulary["name"], vocabulary["size"], vocabulary["fingerprint"])
        return TokenSpec(
            tuple(Segment(s["name"], tuple(s["shape"]), s["offset"], s["size"]) for s in header["segments"]),
            header["dim"], header["order"], vocabulary["kind"], header["decodes"], words, header["prefix_of"],
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        lacking = error.args[0] if isinstance(error, KeyError) else "what its tokens are"
        raise ValueError(
            f"the header of these token shards does not say {lacking}, as those of earlier versions: take the spec of "
            "the tokenizer that wrote them"
        ) from None


def write_header(folder: str | Path, header: dict[str, Any]) -> Path:
    """Write the header of a folder, after all of its shards."""
    return write_text_whole(Path(folder) / HEADER, dump_json(header) + "\n")


def read_header(folder: str | Path) -> dict[str, Any]:
    """The header of a folder.

    Raises:
        FileNotFoundError: without folder or header.
        ValueError: for a header that this version cannot read.
    """
    path = Path(folder) / HEADER
    if not path.exists():
        what = "has no header.json: the dump was not finished" if path.parent.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path.parent} {what}; write token shards with lightning predict first")
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        written = header["format"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise ValueError(f"{path} is not a header of token shards: write the shards again") from None
    if written != FORMAT:
        raise ValueError(f"{path} has format {written}, this version reads {FORMAT}: write the shards again")
    if lacking := [name for name in NEEDED if name not in header]:
        raise ValueError(f"{path} does not say {', '.join(lacking)}: write the shards again")
    return header


def check_header(header: dict[str, Any], tokenizer: Any) -> None:
    """Refuse tokens that this tokenizer did not write, or that are not as many as it makes by itself.

    Args:
        header: of the shards.
        tokenizer: the module that is to decode them, with a ``spec``.

    Raises:
        ValueError: saying what differs.
    """
    check_length(header, tokenizer.spec.num_tokens, type(tokenizer).__name__)
    check_tokenizer(header, tokenizer)


def check_precision(header: dict[str, Any], folder: str | Path) -> None:
    """Refuse ids that were computed in another precision than those of ``encode``, and warn where it is unknown.

    Args:
        header: of the shards.
        folder: of the shards, for the message.

    Raises:
        ValueError: naming both precisions.
    """
    found = header.get("precision", "unknown")
    if found == "unknown":  # written before the header said it
        rank_zero_warn(
            f"{folder} does not say in which precision its ids were computed; in bfloat16 some percent of them are "
            f"others than those of encode, which computes in {ID_PRECISION}: if in doubt, write the shards again"
        )
    elif found != ID_PRECISION:
        raise ValueError(
            f"{folder} holds ids of {found}, of which some percent are others than those of encode, which computes in "
            f"{ID_PRECISION}: write the shards again with lightning predict"
        )


def check_length(header: dict[str, Any], num_tokens: int, whose: str) -> None:
    """Refuse shards whose images have another number of tokens than their reader has positions.

    Args:
        header: of the shards.
        num_tokens: per image, of the reader.
        whose: name of the reader, for the message.

    Raises:
        ValueError: naming both numbers.
    """
    if header["num_tokens"] != num_tokens:
        raise ValueError(
            f"the token shards were written by {_source(header)} with num_tokens {header['num_tokens']}, but {whose} "
            f"has {num_tokens}: write the shards again at the image size that gives {num_tokens} tokens"
        )


def check_tokenizer(header: dict[str, Any], tokenizer: Any) -> None:
    """Refuse tokens of another tokenizer, at any image size.

    Args:
        header: of the shards.
        tokenizer: the module that a second stage was built for, with a ``spec``.

    Raises:
        ValueError: saying what differs.
    """
    remedy = "use that tokenizer, or write the shards again with this one"
    if tokenizer.spec.vocab_size != header["vocab_size"]:
        raise ValueError(
            f"the token shards were written by {_source(header)} with vocab_size {header['vocab_size']}, but "
            f"{type(tokenizer).__name__} has {tokenizer.spec.vocab_size}: {remedy}"
        )
    words, stored = tokenizer.spec.words, header.get("vocabulary", {}).get("fingerprint")
    if words is not None and stored is not None and words.fingerprint != stored:
        raise ValueError(
            f"the token shards were written by {_source(header)} with other words (fingerprint {stored[:12]}) than "
            f"this {type(tokenizer).__name__} has ({words.fingerprint[:12]}): {remedy}"
        )
    own = fingerprint(tokenizer)
    if own != header["fingerprint"]:
        raise ValueError(
            f"the token shards were written by {_source(header)} with other weights (fingerprint "
            f"{header['fingerprint'][:12]}) than this {type(tokenizer).__name__} has ({own[:12]}): {remedy}"
        )


def _source(header: dict[str, Any]) -> str:
    return header["model"] or header["class"]


def write_shard(
    folder: str | Path,
    ids: Int[Tensor, "n t"],
    index: Int[Tensor, " n"],
    *,
    rank: int = 0,
    number: int = 0,
    label: Int[Tensor, " n"] | None = None,
    image: UInt8[Tensor, "n 3 h w"] | None = None,
    caption: Sequence[str] | None = None,
    file: Sequence[str] | None = None,
    image_id: Sequence[str] | None = None,
) -> Path:
    """Write one shard.

    Args:
        folder: of the split; made if need be.
        ids: flat sequences in the tokenizer's one id space.
        index: place of each image in its data set.
        rank: of the process that writes.
        number: of the shard, counted from 0 by each process.
        label: class of each image.
        image: the images themselves, for models that read pixels too.
        caption: of each image, for models that read and write text.
        file: path of each image in its data set.
        image_id: of the record of each image in its annotation file.

    Returns:
        The file.
    """
    tensors = {"ids": ids.to(torch.int32), "index": index.to(torch.int64)}
    if label is not None:
        tensors["label"] = label.to(torch.int64)
    if image is not None:
        tensors["image"] = image
    for name, texts in zip(TEXTS, (caption, file, image_id), strict=True):
        if texts is not None:
            if len(texts) != len(ids):
                raise ValueError(f"there are {len(texts)} entries of {name} for the ids of {len(ids)} images")
            encoded = [text.encode("utf-8", "surrogateescape") for text in texts]  # file names may be any bytes
            tensors[f"{name}_bytes"] = torch.tensor(list(b"".join(encoded)), dtype=torch.uint8)
            tensors[f"{name}_ends"] = torch.tensor([len(text) for text in encoded], dtype=torch.int64).cumsum(0)
    path = Path(folder) / f"tokens-{rank}-{number:05d}.safetensors"
    with write_whole(path) as part:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part)
    return path


def read_text(shard: dict[str, Tensor], row: int, name: str = "caption") -> str:
    """One of the :data:`TEXTS` of one image of a shard that has them."""
    ends = shard[f"{name}_ends"]
    start = int(ends[row - 1]) if row else 0
    return bytes(shard[f"{name}_bytes"][start : int(ends[row])].tolist()).decode("utf-8", "surrogateescape")


def read_shards(folder: str | Path) -> list[dict[str, Tensor]]:
    """All shards of a folder, mapped into memory and read when touched.

    Raises:
        FileNotFoundError: for an unfinished dump.
        ValueError: where the shards do not hold what the header says.
    """
    header = read_header(folder)
    shards = [read_safetensors(path).state for path in sorted(Path(folder).glob("tokens-*.safetensors"))]
    check_shards(header, shards, folder)
    return shards


def check_shards(header: dict[str, Any], shards: Sequence[dict[str, Tensor]], folder: str | Path) -> None:
    """Refuse shards that do not match their header.

    Raises:
        ValueError: naming the counts that differ.
    """
    if any(name not in shard or shard[name].ndim < 1 for shard in shards for name in ("ids", "index")):
        raise ValueError(f"{folder} holds shards without ids or index, which are no tokens: remove the foreign ones")
    found = sum(len(shard["ids"]) for shard in shards)
    if found != header["count"]:
        raise ValueError(f"{folder} holds tokens of {found} images, its header says {header['count']}: write it again")
    for shard in shards:
        if shard["ids"].shape[1:] != (header["num_tokens"],):
            raise ValueError(
                f"{folder} has {shard['ids'].shape[-1]} tokens per image, its header says {header['num_tokens']}: "
                f"remove the foreign shards"
            )
