"""Retrieval by likelihood: each pair scored as alone, and what a text has in common over the images taken off."""

import pytest
import torch

import zoo
from zoo.metrics.retrieval import RetrievalReport, caption_log_likelihood, pointwise_mutual_information, recalls

TEXTS = ["a cat", "two dogs", "sun"]


@pytest.mark.parametrize("name", ["blip2_stage2_tiny", "minigpt4_tiny", "llava_tiny", "seed_llm_tiny"])
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
                alone = model.log_likelihood(model.encode(images[i : i + 1]), TEXTS[j : j + 1])
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
    assert found["i2t_r@1"] == pytest.approx(2 / 3)
    assert found["t2i_r@1"] == pytest.approx(2 / 3)
    assert found["i2t_r@5"] == 1
    assert found["mean_recall"] == pytest.approx((4 + 2 * 2 / 3) / 6)


@pytest.mark.parametrize("name", ["blip2_stage2_tiny", "minigpt4_tiny", "llava_tiny", "seed_llm_tiny"])
def test_the_report_finds_texts_by_mutual_information(name):
    torch.manual_seed(0)
    model, images = zoo.create_model(name).eval(), torch.rand(3, 3, 32, 32)
    report = RetrievalReport(likelihood=True, batch_size=2)
    report.update(images[:2], [TEXTS[:1], TEXTS[1:2]])
    report.update(images[2:], [TEXTS[2:]])
    information = pointwise_mutual_information(caption_log_likelihood(model, images, TEXTS, 2))
    expected = recalls(information, information, torch.eye(3, dtype=torch.bool))
    assert report.compute(model, "cpu") == {f"likelihood_{k}": v for k, v in expected.items()}
    assert report.num_images == 3
    assert report.chance() == pytest.approx(1 / 3)


def test_the_report_scores_again_by_the_matching_head():
    torch.manual_seed(0)
    model, images = zoo.create_model("blip2_stage1_tiny").eval(), torch.rand(3, 3, 32, 32)
    texts = [["a cat", "one cat"], ["two dogs"], ["sun"]]
    report = RetrievalReport(rerank=2)
    report.update(images, texts)
    found, scores = report.compute(model, "cpu"), model.retrieve(images, [t for some in texts for t in some], rerank=2)
    belongs = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).bool()
    again = recalls(scores.image_to_text, scores.text_to_image, belongs)
    assert found == recalls(scores.contrast, scores.contrast, belongs) | {f"rerank_{k}": v for k, v in again.items()}
    assert set(report.compute(model, "cpu", rerank=0)) == set(recalls(scores.contrast, scores.contrast, belongs))


def test_an_empty_report_is_refused():
    with pytest.raises(ValueError, match="there are no images and texts to score: call update first"):
        RetrievalReport().compute(zoo.create_model("blip2_stage1_tiny"), "cpu")
