"""Parallel decoding of masked tokens: predict all, keep some, hide the rest again.

Sources: google-research/maskgit ``libml/parallel_decode.py`` (arXiv:2202.04200, Section 3.2) for the order by
confidence; valeoai/Halton-MaskGIT (arXiv:2503.17076) for the Halton order.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.sampling.mask_schedule import kept_after, masked_after

#: from ids, with the mask id where they are hidden, and the step, to the logits of the codes
LogitsOf = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Noise:
    """Recorded Gumbel noise, to replay a decoding.

    Args:
        sample: added to the logits before the largest is taken.
        choice: added to the log-confidence, times temperature.
    """

    sample: Float[Tensor, "t b n k"]
    choice: Float[Tensor, "t b n"]


@dataclass(frozen=True)
class Decoding:
    """The result of a decoding and its steps.

    Args:
        ids: the result.
        sampled: ids that each step sampled, known tokens kept; steps that were skipped hold the input.
        inputs: ids that the network was given at each executed step, with the mask id where tokens were hidden.
        after: ids that would be the input of the step after each executed one.
    """

    ids: Int[Tensor, "b n"]
    sampled: Int[Tensor, "b t n"]
    inputs: Int[Tensor, "b e n"]
    after: Int[Tensor, "b e n"]


def parallel_decode(
    ids: Int[Tensor, "b n"],
    logits_of: LogitsOf,
    mask_id: int,
    steps: int,
    schedule: str = "cosine",
    choice_temperature: float = 4.5,
    sampling_temperature: float = 1.0,
    start: int = 0,
    order: Int[Tensor, " n"] | None = None,
    noise: Noise | None = None,
    generator: torch.Generator | None = None,
) -> Decoding:
    """Fill in all masked tokens in a few passes.

    In each step every hidden token is sampled. By confidence: those with the lowest ``log p + temperature * (1 -
    ratio) * Gumbel`` are hidden again, ``floor(N * gamma(ratio))`` of them, at least one, and fewer than before. In an
    order: the next ones in it are kept.

    Args:
        ids: tokens, ``mask_id`` where they are to be filled in; others are never changed.
        logits_of: the network, cut to what may be sampled (``-inf`` forbids an id).
        mask_id: see there.
        steps: of the whole schedule.
        schedule: see :func:`zoo.sampling.mask_schedule.mask_ratio`.
        choice_temperature: of the confidence.
        sampling_temperature: divides the logits; 0 takes the most likely id, with its probability at temperature 1.
        start: first step to execute; earlier ones are skipped, which hides fewer tokens again.
        order: positions in the order of being kept, instead of by confidence.
        noise: recorded noise instead of new one.
        generator: of new noise.

    Raises:
        ValueError: for fewer than one step, a first step that is none of them, or a temperature that is negative or no
            number.
    """
    if steps < 1 or not 0 <= start < steps:
        raise ValueError(f"steps must be at least 1 and the first of them in 0..steps - 1, got {steps} and {start}")
    if not all(math.isfinite(t) and t >= 0 for t in (choice_temperature, sampling_temperature)):
        raise ValueError(
            f"temperatures must not be negative, and finite, got {choice_temperature} of the choice, "
            f"{sampling_temperature} of sampling: 0 switches the noise off"
        )
    hidden_first = ids == mask_id
    count = hidden_first.sum(1)
    place = None if order is None else places_in(order, hidden_first)
    sampled, inputs, after = [ids] * start, [], []
    for step in range(start, steps):
        inputs.append(ids)
        hidden = ids == mask_id
        logits = logits_of(ids, step).float()
        found, log_p = draw(logits, sampling_temperature, None if noise is None else noise.sample[step], generator)
        found = torch.where(hidden, found, ids)
        sampled.append(found)
        if place is None:
            left = masked_after(schedule, step, steps, count).minimum(hidden.sum(1) - 1).clamp_min(1)
            temperature = choice_temperature * (1 - (step + 1) / steps)
            if temperature:
                gumbel = noise.choice[step] if noise is not None else gumbel_like(log_p, generator)
                log_p = log_p + temperature * gumbel
            hide = least_confident(log_p.masked_fill(~hidden, torch.inf), left)
        else:
            hide = hidden & (place >= kept_after(schedule, step, steps, count).unsqueeze(1))
        ids = torch.where(hide, mask_id, found)
        after.append(ids)
    return Decoding(sampled[-1], *(torch.stack(rows, 1) for rows in (sampled, inputs, after)))


def draw(
    logits: Float[Tensor, "b n k"],
    temperature: float,
    noise: Float[Tensor, "b n k"] | None,
    generator: torch.Generator | None,
) -> tuple[Int[Tensor, "b n"], Float[Tensor, "b n"]]:
    """Sample an id at each position, and give its log-probability under the distribution that it was drawn from."""
    if temperature > 0:
        logits = logits / temperature
        ids = (logits + (gumbel_like(logits, generator) if noise is None else noise)).argmax(-1)
    else:
        ids = logits.argmax(-1)
    return ids, logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def least_confident(confidence: Float[Tensor, "b n"], count: Int[Tensor, " b"]) -> Bool[Tensor, "b n"]:
    """Positions strictly below the value that stands at place ``count`` of the sorted confidences."""
    place = count.clamp_max(confidence.shape[1] - 1).unsqueeze(1)
    return confidence < confidence.sort(1).values.gather(1, place)


def places_in(order: Int[Tensor, " n"], hidden: Bool[Tensor, "b n"]) -> Int[Tensor, "b n"]:
    """Rank of each position among the hidden ones of its image, in the given order."""
    ordered = hidden[:, order]
    ranks = ordered.cumsum(1) - 1
    return torch.empty_like(ranks).scatter_(1, order.expand_as(ranks), ranks)


def gumbel_like(values: Float[Tensor, "*shape"], generator: torch.Generator | None) -> Float[Tensor, "*shape"]:
    """Standard Gumbel noise."""
    noise = torch.empty_like(values).exponential_(generator=generator)
    return -noise.clamp_min(torch.finfo(noise.dtype).tiny).log()
