"""The pixel likelihood of DALL-E: a Laplace distribution on the logit of a pixel (Ramesh et al. 2021, Section A.3)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

EPSILON = 0.1  # pixels are squeezed to [0.1, 0.9], where the logit is bounded by 2.2


def map_pixels(images: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """[0, 1] to [0.1, 0.9], the support on which the likelihood is well behaved."""
    return (1 - 2 * EPSILON) * images + EPSILON


def unmap_pixels(values: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Inverse of :func:`map_pixels`, clamped to [0, 1]."""
    return ((values - EPSILON) / (1 - 2 * EPSILON)).clamp(0, 1)


def logit_laplace_nll(
    values: Float[Tensor, "*b"], mu: Float[Tensor, "*b"], log_scale: Float[Tensor, "*b"]
) -> Float[Tensor, "*b"]:
    """Negative log-density per value, in nats: ln 2b + ln x + ln(1 - x) + |logit x - mu| / b.

    It is a density, so it becomes negative where the scale is small.

    Args:
        values: mapped pixels, inside (0, 1).
        mu: location, on the logit scale.
        log_scale: ln b.
    """
    logit = torch.logit(values)
    jacobian = torch.log(values * (1 - values))
    return math.log(2) + log_scale + jacobian + (logit - mu).abs() * torch.exp(-log_scale)
