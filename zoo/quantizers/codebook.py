"""Settings of a codebook: codes, how vectors become codes, and what keeps the codes in use."""

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from zoo.choices import check_number, one_of

QUANTIZERS = ("vq", "ema", "gumbel", "l2", "fsq", "lfq")
#: settings that are off by default -> (value that is off, quantizers that they are for)
APPLIES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "init": ("random", ("vq", "ema", "l2")),
    "restart_threshold": (0.0, ("vq", "ema", "l2")),
    "entropy_weight": (0.0, ("vq", "l2", "lfq")),
    "levels": ((), ("fsq",)),
}


@dataclass(frozen=True)
class Codebook:
    """A codebook and its quantizer; :func:`zoo.quantizers.by_name.make_quantizer` builds it.

    Args:
        vocab_size: codes.
        width: of a code.
        quantizer: ``vq`` (codes trained by gradients), ``ema`` (running means), ``gumbel``, ``l2`` (vq on the unit
            sphere), ``fsq`` or ``lfq``.
        beta: weight of the commitment loss of ``vq``, ``l2``, ``ema`` and ``lfq``.
        legacy: put beta on the codebook loss of ``vq`` and ``l2`` instead, as in all published weights of taming and
            LDM.
        levels: of ``fsq``, per channel.
        entropy_weight: of the entropy loss of ``vq``, ``l2`` and ``lfq``.
        entropy_temperature: of the soft assignments in it; squared distances to the codes are divided by it.
        kl_weight: of the KL divergence of ``gumbel``.
        tau: temperature of ``gumbel``: start, end, steps of the cosine between them.
        decay: of the running means of ``ema``, and of the uses of a code that ``restart_threshold`` looks at.
        init: ``random`` as published, or ``kmeans`` on the first training batch.
        restart_threshold: codes that are used less often per step than this move to a vector of the batch; 0 for
            never, as published.
        weight: of the quantizer's loss among the model's.
    """

    vocab_size: int = 1024
    width: int = 256
    quantizer: Literal["vq", "ema", "gumbel", "l2", "fsq", "lfq"] = "vq"
    beta: float = 0.25
    legacy: bool = False
    levels: tuple[int, ...] = ()
    entropy_weight: float = 0.0
    entropy_temperature: float = 0.01
    kl_weight: float = 5e-4
    tau: tuple[float, float, int] = (1.0, 1.0, 0)
    decay: float = 0.99
    init: Literal["random", "kmeans"] = "random"
    restart_threshold: float = 0.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        one_of("codebook.quantizer", self.quantizer, QUANTIZERS)
        one_of("codebook.init", self.init, ("random", "kmeans"))
        for name in ("vocab_size", "width"):
            check_number(f"codebook.{name}", getattr(self, name), least=1, whole=True)
        for name in ("beta", "entropy_weight", "kl_weight", "restart_threshold", "weight"):
            check_number(f"codebook.{name}", getattr(self, name), least=0)
        check_number("codebook.decay", self.decay, least=0, below=1)
        check_number("codebook.entropy_temperature", self.entropy_temperature, above=0)
        for name, (off, kinds) in APPLIES.items():
            value = tuple(self.levels) if name == "levels" else getattr(self, name)
            if value != off and self.quantizer not in kinds:
                raise ValueError(
                    f"codebook.{name} {value!r} does nothing with quantizer {self.quantizer}, it is for "
                    f"{', '.join(kinds)}: leave it at {off!r}"
                )
        if self.quantizer == "gumbel" and min(self.tau[:2]) <= 0:
            raise ValueError(
                f"the temperature codebook.tau divides the logits and must stay above 0, got {self.tau[0]} to "
                f"{self.tau[1]}: end at a small one such as 1e-6"
            )
        if self.quantizer == "fsq" and (prod(self.levels), len(self.levels)) != (self.vocab_size, self.width):
            raise ValueError(
                f"fsq with levels {tuple(self.levels)} has {prod(self.levels)} codes of width {len(self.levels)}: set "
                f"codebook.vocab_size and codebook.width to these instead of {self.vocab_size} and {self.width}"
            )
        if self.quantizer == "lfq" and 2**self.width != self.vocab_size:
            raise ValueError(
                f"lfq with codebook.width {self.width} has {2**self.width} codes, not {self.vocab_size}: set "
                "codebook.vocab_size to that"
            )
