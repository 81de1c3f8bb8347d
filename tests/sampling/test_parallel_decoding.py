"""Parallel decoding: what is kept, how much, and from which distribution it is drawn."""

import pytest
import torch

from zoo.sampling.parallel_decoding import least_confident, parallel_decode


def test_the_cut_off_is_strict():
    confidence = torch.tensor([[1.0, 2.0, 2.0, 3.0], [4.0, 3.0, 2.0, torch.inf]])
    assert least_confident(confidence, torch.tensor([2, 1])).tolist() == [
        [True, False, False, False], [False, False, True, False],
    ]  # fmt: skip


def test_known_tokens_stay_and_counts_are_per_image():
    ids = torch.randint(8, (2, 16))
    ids[0, :4] = ids[1, 2:] = 8
    logits = torch.randn(2, 16, 8)
    decoding = parallel_decode(ids, lambda ids, step: logits, 8, steps=4)
    assert torch.equal(decoding.ids[ids != 8], ids[ids != 8])
    assert decoding.ids.max() < 8
    hidden = (decoding.after == 8).sum(-1)
    assert hidden[0].tolist() == [3, 2, 1, 1]
    assert hidden[1].tolist() == [12, 9, 5, 1]
    whole = parallel_decode(decoding.ids, lambda ids, step: logits, 8, steps=4)  # nothing to do
    assert torch.equal(whole.ids, decoding.ids)


def test_one_step_samples_the_distribution():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(1, 20_000, 3)
    ids = torch.full((1, 20_000), 3)
    found = parallel_decode(ids, lambda ids, step: logits, 3, steps=1).ids
    assert (found.bincount(minlength=3) if found.ndim == 1 else found[0].bincount(minlength=3)).div(
        20_000
    ).tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.02)
    cold = parallel_decode(ids, lambda ids, step: logits, 3, steps=1, sampling_temperature=0.5).ids[0]
    assert (cold == 0).float().mean().item() == pytest.approx(0.25 / 0.38, abs=0.02)
