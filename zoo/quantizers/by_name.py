"""A quantizer by name, and which settings it takes."""

from math import prod
from typing import Any

from zoo.choices import one_of
from zoo.quantizers.base import Quantizer
from zoo.quantizers.ema import EMAQuantizer
from zoo.quantizers.fsq import FSQ
from zoo.quantizers.gradient import VectorQuantizer
from zoo.quantizers.gumbel import GumbelQuantizer
from zoo.quantizers.lfq import LFQ
from zoo.quantizers.normalised import NormalisedQuantizer

KINDS = ("vq", "ema", "gumbel", "l2", "fsq", "lfq")
#: settings that are off by default -> the quantizers that they are for
APPLIES = {
    "codebook_init": ("vq", "ema", "l2"),
    "restart_threshold": ("vq", "ema", "l2"),
    "entropy_weight": ("vq", "l2", "lfq"),
    "levels": ("fsq",),
}
OFF: dict[str, Any] = {"codebook_init": "random", "restart_threshold": 0.0, "entropy_weight": 0.0, "levels": ()}


def make_quantizer(
    kind: str,
    vocab_size: int,
    code_width: int,
    *,
    beta: float = 0.25,
    legacy: bool = False,
    levels: tuple[int, ...] = (),
    entropy_weight: float = 0.0,
    kl_weight: float = 5e-4,
    tau: tuple[float, float, int] = (1.0, 1.0, 0),
    decay: float = 0.99,
    codebook_init: str = "random",
    restart_threshold: float = 0.0,
) -> Quantizer:
    """Build a quantizer.

    Args:
        kind: one of ``KINDS``.
        vocab_size: codes.
        code_width: width of a code.
        beta: weight of the commitment loss of ``vq``, ``l2``, ``ema`` and ``lfq``.
        legacy: put beta on the codebook loss of ``vq`` and ``l2`` instead.
        levels: of ``fsq``, per channel.
        entropy_weight: of the entropy loss of ``vq``, ``l2`` and ``lfq``.
        kl_weight: of the KL divergence of ``gumbel``.
        tau: temperature of ``gumbel``: start, end, steps.
        decay: of the running means of ``ema``.
        codebook_init: ``random``, or ``kmeans`` on the first training batch for ``vq``, ``l2`` and ``ema``.
        restart_threshold: of codes of the same three that are not used; 0 for never.

    Raises:
        ValueError: for settings that do not apply to this quantizer, or that do not fit together.
    """
    one_of("quantizer", kind, KINDS)
    kmeans = one_of("codebook_init", codebook_init, ("random", "kmeans")) == "kmeans"
    given = {
        "codebook_init": codebook_init, "restart_threshold": restart_threshold, "entropy_weight": entropy_weight,
        "levels": tuple(levels),
    }  # fmt: skip
    for name, value in given.items():
        if value != OFF[name] and kind not in APPLIES[name]:
            raise ValueError(
                f"{name} {value!r} does nothing with quantizer {kind}, it is for {', '.join(APPLIES[name])}: "
                f"leave it at {OFF[name]!r}"
            )
    restarts: dict[str, Any] = {"kmeans_init": kmeans, "restart_threshold": restart_threshold}
    match kind:
        case "vq":
            return VectorQuantizer(vocab_size, code_width, beta, legacy, entropy_weight, **restarts)
        case "l2":
            return NormalisedQuantizer(vocab_size, code_width, beta, legacy, entropy_weight, **restarts)
        case "ema":
            return EMAQuantizer(vocab_size, code_width, beta, decay, **restarts)
        case "gumbel":
            if min(tau[:2]) <= 0:
                raise ValueError(
                    f"the temperature tau divides the logits and must stay above 0, got {tau[0]} to {tau[1]}: "
                    "end at a small one such as 1e-6"
                )
            return GumbelQuantizer(vocab_size, code_width, tau=tau[0], kl_weight=kl_weight)
        case "fsq":
            if (prod(levels), len(levels)) != (vocab_size, code_width):
                raise ValueError(
                    f"fsq with levels {tuple(levels)} has {prod(levels)} codes of width {len(levels)}: set "
                    f"vocab_size and code_width to these instead of {vocab_size} and {code_width}"
                )
            return FSQ(levels)
    if 2**code_width != vocab_size:
        raise ValueError(f"lfq with code_width {code_width} has {2**code_width} codes, not {vocab_size}")
    return LFQ(code_width, entropy_weight, beta=beta)
