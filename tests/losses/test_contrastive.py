"""Contrast, negatives, matching and generation against loops and torch's own cross entropy."""

import math

import pytest
import torch
import torch.nn.functional as F

from zoo.losses.contrastive import contrastive_loss, draw_negatives, find_same_image, image_text_similarity
from zoo.losses.image_text import generation_loss, matching_loss

CPU = torch.device("cpu")


def features():
    torch.manual_seed(0)
    return F.normalize(torch.randn(4, 3, 6), dim=-1), F.normalize(torch.randn(4, 6), dim=-1), torch.tensor(0.07)


def test_similarity_is_the_best_query():
    image, text, _ = features()
    found = image_text_similarity(image, text)
    for i in range(4):
        for j in range(4):
            assert found[i, j] == pytest.approx(max(float(q @ text[j]) for q in image[i]), abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_without_ids_is_smoothed_cross_entropy(smoothing):
    image, text, temperature = features()
    loss, i2t, t2i = contrastive_loss(image, text, temperature, find_same_image(4, None, CPU), smoothing)
    torch.testing.assert_close(i2t, t2i.T)  # one rank: one matrix
    torch.testing.assert_close(i2t, image_text_similarity(image, text) / temperature)
    expected = [F.cross_entropy(sim, torch.arange(4), label_smoothing=smoothing) for sim in (i2t, t2i)]
    torch.testing.assert_close(loss, sum(expected) / 2)


def test_captions_of_one_image_share_the_target():
    image, text, temperature = features()
    ids = torch.tensor([7, 3, 7, 9])
    loss, i2t, t2i = contrastive_loss(image, text, temperature, find_same_image(4, ids, CPU))
    expected = 0.0
    for sim in (i2t, t2i):
        for i in range(4):
            log_p = sim[i] - sim[i].logsumexp(0)
            twins = [j for j in range(4) if ids[j] == ids[i]]
            for j in range(4):
                expected -= (0.9 * (j in twins) / len(twins) + 0.1 / 4) * float(log_p[j]) / 8
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_gradient_of_the_gathered_side():
    """Equal values; the reference's gradients lack the gathered side of each direction."""
    norms = {}
    for full in (False, True):
        image, text, temperature = features()
        image.requires_grad_()
        loss, *_ = contrastive_loss(image, text, temperature, find_same_image(4, None, CPU), gather_gradient=full)
        loss.backward()
        norms[full] = (loss.item(), image.grad)
    assert norms[False][0] == norms[True][0]
    local = features()[0].requires_grad_()
    _, text, temperature = features()
    i2t = image_text_similarity(local, text) / temperature
    (F.cross_entropy(i2t, torch.arange(4), label_smoothing=0.1) / 2).backward()
    torch.testing.assert_close(norms[False][1], local.grad, rtol=1e-4, atol=1e-6)
    assert norms[True][1].norm() > 1.3 * norms[False][1].norm()


def test_negatives_are_never_of_the_same_image_and_hard_ones_come_first():
    torch.manual_seed(0)
    ids = torch.tensor([1, 1, 2, 3])
    same = find_same_image(4, ids, CPU)
    sim = torch.zeros(4, 4)
    sim[2, 3] = 3.0
    counts = torch.zeros(4, 4)
    for _ in range(600):
        images, texts = draw_negatives(sim, sim, same)
        assert not same[torch.arange(4), images].any()
        assert not same[torch.arange(4), texts].any()
        counts[torch.arange(4), texts] += 1
    hard = math.exp(3) / (math.exp(3) + 2)
    assert float(counts[2, 3] / 600) == pytest.approx(hard, abs=0.05)
    assert float(counts[0, 2] / 600) == pytest.approx(0.5, abs=0.08)


def test_draws_come_in_the_order_of_the_reference():
    torch.manual_seed(1)
    i2t, t2i = torch.randn(3, 3), torch.randn(3, 3)
    images, texts = draw_negatives(i2t, t2i, torch.eye(3).bool(), torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    for sim, found in ((t2i, images), (i2t, texts)):
        for b in range(3):
            row = sim[b].clone()
            row[b] = -10000
            assert found[b] == torch.multinomial(row.softmax(0), 1, generator=generator)


def test_one_image_alone_has_no_negatives():
    assert draw_negatives(torch.zeros(1, 1), torch.zeros(1, 1), find_same_image(1, None, CPU)) is None
    ids = torch.tensor([4, 4])
    assert draw_negatives(torch.zeros(2, 2), torch.zeros(2, 2), find_same_image(2, ids, CPU)) is None


def test_matching_by_hand():
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0], [3.0, 0.0]])
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-3))) / 3
    assert float(matching_loss(logits, 1)) == pytest.approx(expected, rel=1e-5)


def test_generation_by_hand():
    """Shifted by one, padding is no target, the first token is none, the mean is over tokens of the batch."""
    torch.manual_seed(2)
    logits, ids = torch.randn(2, 4, 5), torch.tensor([[4, 1, 2, 0], [4, 3, 0, 0]])
    mask = (ids > 0).long()
    expected = []
    for b, t in ((0, 0), (0, 1), (1, 0)):
        log_p = logits[b, t].log_softmax(0)
        expected.append(-0.9 * log_p[ids[b, t + 1]] - 0.1 * log_p.mean())
    assert float(generation_loss(logits, ids, mask)) == pytest.approx(float(sum(expected) / 3), rel=1e-5)
