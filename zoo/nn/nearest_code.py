"""The nearest code of each vector."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_NUMBERS = {"cpu": 2**22, "cuda": 2**26}  # float32 scores held at once: 16 MiB, and 256 MiB


@contextmanager
def without_tf32() -> Iterator[None]:
    """Products and convolutions of float32 with all their digits, whatever the run allows elsewhere."""
    changed: list[tuple[Callable[[str], None], str]] = []
    for get, change, exact in _switches():
        if (before := get()) != exact:
            change(exact)
            changed.append((change, before))
    try:
        yield
    finally:
        for change, before in changed:
            change(before)


def _switches() -> Iterator[tuple[Callable[[], str], Callable[[str], None], str]]:
    """How to read and to set what float32 products and cuDNN's convolutions may leave out, and its exact setting."""
    # Of the older and the newer switches torch refuses to read the one where the other was used.
    cudnn = torch.backends.cudnn
    try:
        torch.get_float32_matmul_precision()
        yield torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"
    except RuntimeError:
        yield from _newer(torch.backends.cuda.matmul)
    try:
        _ = cudnn.allow_tf32
        yield (lambda: str(cudnn.allow_tf32)), (lambda value: setattr(cudnn, "allow_tf32", value == "True")), "False"
    except RuntimeError:
        yield from _newer(cudnn.conv)


def _newer(switch: Any) -> Iterator[tuple[Callable[[], str], Callable[[str], None], str]]:
    yield (lambda: switch.fp32_precision), partial(setattr, switch, "fp32_precision"), "ieee"


@torch.compiler.disable
@torch.no_grad()
def nearest_code(z: Float[Tensor, "n d"], codebook: Float[Tensor, "k d"], chunk: int | None = None) -> Int[Tensor, "n"]:
    """Argmin_k |z - e_k|^2 as argmax_k (z.e_k - |e_k|^2 / 2), in float32 whatever autocast and TF32 say.

    |z|^2 is the same for all codes; adding it costs float32 its last digits, and half precision everything: with codes
    in U(-1/K, 1/K) bfloat16 then gives every vector the same code. Scores are computed for some rows at a time and
    never kept.

    Args:
        z: vectors.
        codebook: one code per row.
        chunk: rows at a time; by default as many as keep the scores within ``CHUNK_NUMBERS``.

    Returns:
        Ids, int64; the lowest one where two codes are equally near.
    """
    with torch.autocast(z.device.type, enabled=False), without_tf32():
        z, codes = z.float(), codebook.float().t()
        offset = codes.square().sum(0).mul_(-0.5)
        ids = torch.empty(len(z), dtype=torch.int64, device=z.device)
        numbers = CHUNK_NUMBERS.get(z.device.type, CHUNK_NUMBERS["cpu"])
        chunk = min(chunk or max(1, numbers // codes.shape[1]), max(1, len(z)))
        scores = torch.empty(chunk, codes.shape[1], device=z.device)
        for rows, found in zip(z.split(chunk), ids.split(chunk), strict=True):
            torch.argmax(torch.addmm(offset, rows, codes, out=scores[: len(rows)]), dim=1, out=found)
        return ids
