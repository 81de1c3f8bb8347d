"""Mask schedules of MaskGIT: which fraction of the tokens is hidden, as a function of how far decoding has come.

Source: google-research/maskgit ``libml/mask_schedule.py`` (names there: ``uniform`` for linear, ``pow2`` for square,
``pow3`` for cubic, ``pow.5`` for sqrt); Section 3.3 of arXiv:2202.04200. ``arccos`` is of valeoai/Halton-MaskGIT.
"""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.choices import one_of

MaskSchedule = Literal["cosine", "linear", "square", "cubic", "sqrt", "log", "exp", "arccos"]
POWERS = {"linear": 1.0, "square": 2.0, "cubic": 3.0, "sqrt": 0.5}
LOWEST = 1e-6


def mask_ratio(schedule: str, progress: Float[Tensor, " b"], count: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Fraction of tokens that are hidden, gamma(t), clipped to [1e-6, 1]. Computed in float32, as the source does.

    Args:
        schedule: ``cosine``, ``linear``, ``square``, ``cubic``, ``sqrt``, ``log``, ``exp`` or ``arccos``.
        progress: t in [0, 1].
        count: number of tokens that are hidden at t = 0; only ``log`` and ``exp`` depend on it.
    """
    one_of("schedule", schedule, get_args(MaskSchedule))
    t = progress.float()
    if schedule in POWERS:
        ratio = 1 - t ** POWERS[schedule]
    elif schedule == "cosine":
        ratio = (t * math.pi * 0.5).cos()
    elif schedule == "arccos":
        ratio = t.clamp(0, 1).arccos() / (math.pi / 2)
    else:
        bits = count.float().clamp_min(2).log2()
        ratio = -t.log2() / bits if schedule == "log" else 1 - (-bits * (1 - t)).exp2()
    return ratio.clamp(LOWEST, 1.0)


def masked_after(schedule: str, step: int, steps: int, count: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Number of tokens, of ``count``, that the schedule hides after a step of decoding by confidence.

    ``floor(count * gamma((step + 1) / steps))`` in float32: 12 steps of the cosine leave 127 of 256 tokens after the
    eighth, where exact arithmetic gives 128.

    Args:
        schedule: see :func:`mask_ratio`.
        step: counted from 0.
        steps: of the whole decoding.
        count: tokens hidden at the start.
    """
    return (count.float() * _ratio_after(schedule, step, steps, count)).floor().long()


def kept_after(schedule: str, step: int, steps: int, count: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Number of tokens, of ``count``, that are kept after a step of decoding in an order: all, after the last one.

    ``max(step + 1, floor(count * (1 - gamma((step + 1) / steps))))``, as valeoai/Halton-MaskGIT has it.

    Args:
        schedule: see :func:`mask_ratio`.
        step: counted from 0.
        steps: of the whole decoding.
        count: tokens hidden at the start.
    """
    if step + 1 == steps:
        return count
    kept = (count.float() * (1 - _ratio_after(schedule, step, steps, count))).floor().long()
    return kept.clamp_min(step + 1).minimum(count)


def _ratio_after(schedule: str, step: int, steps: int, count: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    # on the CPU: another device may round the cosine another way, and 127 would become 128
    progress = torch.full(count.shape, (step + 1) / steps, dtype=torch.float32)
    return mask_ratio(schedule, progress, count.cpu()).to(count.device)
