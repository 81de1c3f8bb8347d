"""Reading the bytes of ``flax.serialization`` without JAX, into one flat state dict.

The format is msgpack with one extension: type 1 is an array, packed again as ``(shape, dtype name, bytes)``. Arrays
above a gigabyte are split into ``{"__msgpack_chunked_array__": True, "shape": {...}, "chunks": {...}}``. Nothing in it
can run code; what is not a tree of arrays is refused.
"""

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.pickles import damage

ARRAY = 1  # flax's extension type of an array; 2 (complex numbers) and 3 (scalars) do not occur in weights
CHUNKED = "__msgpack_chunked_array__"
DTYPES = {
    "bfloat16": torch.bfloat16,
    "bool": torch.bool,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
    "int32": torch.int32,
    "int64": torch.int64,
    "int8": torch.int8,
    "uint8": torch.uint8,
}


def begins_flax_file(start: bytes) -> bool:
    """Tell whether these first bytes are a msgpack map whose first key is text, which no pickle or zip begins with."""
    if len(start) < 2:
        return False
    key = {0xDE: 3, 0xDF: 5}.get(start[0], 1 if 0x81 <= start[0] <= 0x8F else len(start))
    return key < len(start) and (0xA1 <= start[key] <= 0xBF or start[key] == 0xD9)


def read_flax(path: Path) -> dict[str, Tensor]:
    """Read the arrays of a file of ``flax.serialization``.

    Args:
        path: the file.

    Returns:
        Arrays by the path of their leaf, joined with ``/``, without the outer level ``params`` where that is all
        there is. Layouts are as stored: convolution kernels (height, width, in, out), dense kernels (in, out).

    Raises:
        ModuleNotFoundError: without the package ``msgpack``.
        ValueError: for damaged bytes, or content other than a tree of arrays.
    """
    return read_flax_set(path)[0]


def read_flax_set(path: Path, wanted: str | None = None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Read arrays as :func:`read_flax` does, one of several sets of them, and say which was chosen.

    Args:
        path: the file.
        wanted: one of several sets of weights at the top of the tree; None takes the averaged one.

    Raises:
        ModuleNotFoundError: without the package ``msgpack``.
        ValueError: for damaged bytes, content other than a tree of arrays, or a set that is not there.
    """
    try:
        import msgpack
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"{path} is a Flax checkpoint, whose bytes need: pip install msgpack") from None
    data = path.read_bytes()
    try:
        tree = msgpack.unpackb(
            data, ext_hook=_decode_array, raw=False, strict_map_key=True, max_ext_len=len(data), max_array_len=2**16
        )
    except RefusedContent as error:
        raise ValueError(f"{path} was not read: {error}; save the parameters alone") from None
    except Exception as error:  # msgpack raises whatever the damaged bytes lead to
        raise ValueError(damage(path, error)) from None
    notes: tuple[str, ...] = ()
    if isinstance(tree, Mapping):
        tree, notes = _choose_set(tree, path, wanted)
    while isinstance(tree, Mapping) and tree.keys() == {"params"}:
        tree = tree["params"]
    if not isinstance(tree, Mapping):
        raise ValueError(f"{path} was not read: it holds a {type(tree).__name__}, not a tree of arrays")
    try:
        return dict(_iterate_leaves(tree)), notes
    except RefusedContent as error:
        raise ValueError(f"{path} was not read: {error}; save the parameters alone") from None


def _choose_set(tree: Mapping[str, Any], path: Path, wanted: str | None) -> tuple[Any, tuple[str, ...]]:
    """Choose the wanted set of a training state, else the averaged one, else the tree as it is."""
    sets = [key for key, value in tree.items() if isinstance(value, Mapping) and "params" in key]
    if wanted is not None:
        if wanted not in sets:
            raise ValueError(f"{path} holds no weights called {wanted!r}: it holds {', '.join(sets) or 'one set'}")
        return tree[wanted], ()
    averaged = next((key for key in sets if "ema" in key), None)
    if averaged is None or len(sets) < 2:
        return tree, ()
    raw = next(key for key in sets if key != averaged)
    return tree[averaged], (f"read the averaged weights {averaged!r} of {path}; {path}#{raw} are the raw ones",)


class RefusedContent(ValueError):
    """Something in a Flax file that is no array."""


def _decode_array(code: int, data: bytes) -> Tensor:
    import msgpack

    if code != ARRAY:
        raise RefusedContent(f"it holds the msgpack extension type {code}, and only arrays (type {ARRAY}) are read")
    shape, dtype, values = msgpack.unpackb(data, raw=False)
    name = dtype.decode() if isinstance(dtype, bytes) else dtype
    if name not in DTYPES:
        raise RefusedContent(f"it holds an array of type {name}, and only {', '.join(DTYPES)} are read")
    wanted = prod(shape) * DTYPES[name].itemsize
    if len(values) != wanted:
        raise ValueError(f"an array of shape {tuple(shape)} has {len(values)} bytes instead of {wanted}")
    if not values:
        return torch.empty(tuple(shape), dtype=DTYPES[name])
    return torch.frombuffer(bytearray(values), dtype=DTYPES[name]).reshape(tuple(shape))


def _iterate_leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in tree.items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, Mapping) and CHUNKED in value:
            yield prefix + name, _join_chunks(value, prefix + name)
        elif isinstance(value, Mapping):
            yield from _iterate_leaves(value, f"{prefix}{name}/")
        else:
            raise RefusedContent(f"{prefix}{name} is a {type(value).__name__} and no array")


def _join_chunks(value: Mapping[str, Any], name: str) -> Tensor:
    """Join an array from its chunks, which are keyed by their number."""
    shape, chunks = value.get("shape"), value.get("chunks")
    if not isinstance(shape, Mapping) or not isinstance(chunks, Mapping) or not chunks:
        raise RefusedContent(f"{name} is a chunked array without shape or chunks")
    parts = [part for i in range(len(chunks)) if isinstance(part := chunks.get(str(i)), Tensor)]
    sizes = [size for i in range(len(shape)) if isinstance(size := shape.get(str(i)), int)]
    whole = len(parts) == len(chunks) and len(sizes) == len(shape)
    if not whole or sum(part.numel() for part in parts) != prod(sizes):
        raise RefusedContent(f"the chunks of {name} do not make up its shape")
    return torch.cat([part.flatten() for part in parts]).reshape(sizes)
