"""The nearest code of each vector."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.tokens.precision import without_tf32

CHUNK_NUMBERS = {"cpu": 2**22, "cuda": 2**26}  # float32 scores held at once: 16 MiB, and 256 MiB


@torch.compiler.disable  # type: ignore[untyped-decorator]
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
