"""The quantizer that the settings of a codebook name."""

from typing import Any

from zoo.quantizers.base import Quantizer
from zoo.quantizers.codebook import Codebook
from zoo.quantizers.ema import EMAQuantizer
from zoo.quantizers.fsq import FSQ
from zoo.quantizers.gradient import VectorQuantizer
from zoo.quantizers.gumbel import GumbelQuantizer
from zoo.quantizers.lfq import LFQ
from zoo.quantizers.normalised import NormalisedQuantizer


def make_quantizer(codebook: Codebook) -> Quantizer:
    """Build the quantizer of a codebook.

    Args:
        codebook: its settings. ``weight`` and all of ``tau`` but its start are the model's to apply.
    """
    c = codebook
    restarts: dict[str, Any] = {"kmeans_init": c.init == "kmeans", "restart_threshold": c.restart_threshold}
    match c.quantizer:
        case "vq" | "l2":
            kind = VectorQuantizer if c.quantizer == "vq" else NormalisedQuantizer
            entropy = (c.entropy_weight, c.entropy_temperature)
            return kind(c.vocab_size, c.width, c.beta, c.legacy, *entropy, decay=c.decay, **restarts)
        case "ema":
            return EMAQuantizer(c.vocab_size, c.width, c.beta, c.decay, **restarts)
        case "gumbel":
            return GumbelQuantizer(c.vocab_size, c.width, tau=c.tau[0], kl_weight=c.kl_weight)
        case "fsq":
            return FSQ(c.levels)
        case "lfq":
            return LFQ(c.width, c.entropy_weight, beta=c.beta, temperature=c.entropy_temperature)
