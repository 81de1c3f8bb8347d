"""Retrieval by likelihood: each pair scored as alone, and what a text has in common over the images taken off."""

import pytest
import torch

import zoo
from zoo.metrics.retrieval import caption_log_likelihood, pointwise_mutual_information, recalls

TEXTS = ["a cat", "two dogs", "sun"]


@pytest.mark.parametrize("name", ["blip2_stage2_tiny", "minigpt4_tiny", "llava_tiny"])
def test_each_pair_as_alone(name):
    torch.manual_seed(0)
    model = zoo.create_model(name).train()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    images = torch.rand(2, 3, 32, 32)
    found = caption_log_likelihood(model, images, TEXTS, batch_size=2)
    assert found.shape == (2, 3)
    assert (found < 0).all()
    assert model.training
    model.eval()
    for i in range(2):
        for j in range(3):
            with torch.no_grad():
                alone = model.log_likelihood(model.image_tokens(images[i : i + 1]), TEXTS[j : j + 1])
            assert float(found[i, j]) == pytest.approx(float(alone), rel=1e-4)


def test_frequent_texts_have_no_advantage():
    """Text 0 is likely beside every image; beside image 1, text 1 is what is special."""
    scores = torch.tensor([[-1.0, -9.0], [-1.1, -5.0]])
    assert scores.argmax(1).tolist() == [0, 0]
    assert pointwise_mutual_information(scores).argmax(1).tolist() == [0, 1]
    expected = scores - (scores.exp().mean(0)).log()
    torch.testing.assert_close(pointwise_mutual_information(scores), expected)


def test_recalls_in_both_directions():
    scores = torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, 5.0], [0.0, 0.5, 6.0]])
    found = recalls(scores, scores, torch.eye(3, dtype=torch.bool))
    assert found["i2t_r@1"] == pytest.approx(2 / 3) and found["t2i_r@1"] == pytest.approx(2 / 3)
    assert found["i2t_r@5"] == 1 and found["mean_recall"] == pytest.approx((4 + 2 * 2 / 3) / 6)
