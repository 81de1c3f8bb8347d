"""Counts of the mask schedules, re-derived."""

import math

import pytest
import torch

from zoo.sampling.mask_schedule import kept_after, mask_ratio


@pytest.mark.parametrize("steps", [1, 8, 16, 20])
@pytest.mark.parametrize(
    ("schedule", "ratio"),
    [("arccos", lambda t: math.acos(t) / (math.pi / 2)), ("cosine", lambda t: math.cos(math.pi * t / 2))],
)
def test_in_an_order_every_step_keeps_one_more_at_least(schedule, ratio, steps):
    """The cosine keeps none of 16 tokens in the first of 16 steps; valeoai's code keeps one."""
    count = torch.tensor([16, 5])
    for step in range(steps):
        expected = [
            n if step + 1 == steps else min(n, max(step + 1, math.floor(n * (1 - ratio((step + 1) / steps)) + 1e-6)))
            for n in count.tolist()
        ]
        assert kept_after(schedule, step, steps, count).tolist() == expected
    if steps == 16 and schedule == "cosine":
        assert math.floor(16 * (1 - ratio(1 / 16))) == 0
        assert kept_after("cosine", 0, 16, count)[0] == 1


def test_published_counts():
    """Section 5.2 of the appendix: 32 steps of 256 tokens."""
    expected = (
        "5 10 15 20 25 30 35 41 46 51 57 62 68 73 79 85 91 97 103 110 116 123 130 138 146 154 163 173 184 198 215 256"
    )
    found = [int(kept_after("arccos", step, 32, torch.tensor([256]))) for step in range(32)]
    assert found == [int(x) for x in expected.split()]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", lambda t, n: 1 - t),
        ("square", lambda t, n: 1 - t**2),
        ("cubic", lambda t, n: 1 - t**3),
        ("sqrt", lambda t, n: 1 - t**0.5),
        ("cosine", lambda t, n: math.cos(math.pi * t / 2)),
        ("log", lambda t, n: -math.log2(t) / math.log2(n)),
        ("exp", lambda t, n: 1 - 2 ** (-math.log2(n) * (1 - t))),
        ("arccos", lambda t, n: math.acos(t) / (math.pi / 2)),
    ],
)
def test_schedules_are_their_formulas(schedule, expected):
    t = torch.tensor([0.01, 0.25, 0.5, 0.9, 1.0])
    found = mask_ratio(schedule, t, torch.full((5,), 256))
    assert found.tolist() == pytest.approx(
        [min(1.0, max(1e-6, expected(float(x), 256))) for x in t], rel=1e-4, abs=2e-6
    )
