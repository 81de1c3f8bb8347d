"""A model whose numbers are NaN never gets a good mark: an error says so, or the mark is NaN too."""

import math

import pytest
import torch
from torch import nn

import zoo
from zoo.losses.mixing import top_k_accuracy
from zoo.metrics.extractors import quantise
from zoo.metrics.feature_distances import inception_score, kernel_distance, precision_recall
from zoo.metrics.frechet import FrechetDistance, frechet_distance
from zoo.metrics.generation_report import GenerationReport
from zoo.metrics.image_quality import PSNR
from zoo.metrics.reconstruction import ReconstructionReport
from zoo.metrics.retrieval import pointwise_mutual_information, recalls, retrieval_recall

NAN = float("nan")


class Means(nn.Module):
    name = "fd_means"
    num_features = 3

    def forward(self, images):
        return images.float().mean((2, 3)) * self.factor

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def protocol(self):
        return {}


def spoiled(name, **overrides):
    """An untrained model one of whose weights is NaN in every entry."""
    torch.manual_seed(0)
    model = zoo.create_model(name, **overrides).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.fill_(NAN)
    return model


@pytest.mark.parametrize("where", ["all", "one", "of the right one"])
def test_retrieval_refuses_scores_that_are_no_numbers(where):
    scores, belongs = torch.randn(4, 4), torch.eye(4, dtype=torch.bool)
    if where == "all":
        scores.fill_(NAN)
    else:
        scores[(1, 1) if where == "of the right one" else (1, 2)] = NAN
    wrong = 16 if where == "all" else 1
    with pytest.raises(ValueError, match=rf"{wrong} of 16 scores are NaN.*diverged"):
        retrieval_recall(scores, belongs)
    for both in ((scores, torch.randn(4, 4)), (torch.randn(4, 4), scores)):
        with pytest.raises(ValueError, match="NaN"):
            recalls(*both, belongs)
    with pytest.raises(ValueError, match="NaN"):
        recalls(pointwise_mutual_information(scores), pointwise_mutual_information(scores), belongs)
    scores = scores.nan_to_num(-math.inf)
    assert retrieval_recall(scores, belongs)["r@1"] < 1


def test_a_likeliest_class_among_nan_scores_is_nobody():
    logits, label = torch.tensor([[NAN, NAN, NAN], [5.0, 1.0, 0.0]]), torch.tensor([0, 0])
    assert top_k_accuracy(logits[1:], label[1:], 1) == 1
    for k in (1, 2, 3):
        assert top_k_accuracy(logits, label, k).isnan(), k


BATCH = {
    "image": torch.rand(4, 3, 32, 32),
    "label": torch.zeros(4, dtype=torch.int64),
    "caption": ["a", "b", "c", "d"],
    "index": torch.arange(4),
}


@pytest.mark.parametrize(
    ("name", "overrides", "names"),
    [
        ("beit_classifier_tiny", {}, ["accuracy", "accuracy_top5"]),
        ("beit_classifier_tiny", {"linear_probe": True}, ["accuracy", "accuracy_block1"]),
        ("beit_tiny", {}, ["accuracy"]),
        ("maskgit_tiny", {}, ["accuracy"]),
        ("ar_transformer_tiny", {}, ["accuracy"]),
        ("blip2_stage1_tiny", {}, ["itm_accuracy", "i2t_recall", "t2i_recall"]),
        ("seed_stage1_tiny", {}, ["i2t_recall", "t2i_recall"]),
        ("seed_stage2_tiny", {}, ["generation_cosine"]),
    ],
)
def test_accuracies_of_a_model_of_nan_weights_are_nan(name, overrides, names, monkeypatch):
    model = spoiled(name, **overrides)
    if "tokenizer" in model.frozen:  # the right answer is what argmax makes of NaN
        ids = torch.zeros(4, model.spec.num_tokens, dtype=torch.int64)
        batch = BATCH | {"ids": ids}
    else:
        batch = BATCH
    if name == "blip2_stage1_tiny":  # whose negatives are drawn from the similarities
        negatives = (torch.tensor([1, 2, 3, 0]), torch.tensor([1, 2, 3, 0]))
        monkeypatch.setattr(model, "_negatives", lambda *args: negatives)
    with torch.no_grad():
        terms = model.losses(batch)
    for term in names:
        assert torch.as_tensor(terms[term]).isnan(), term


@pytest.mark.parametrize(
    "name", [n for n in zoo.list_models("*_tiny") if (s := zoo.model_info(n).spec) is not None and s.vocab_size]
)
def test_a_tokenizer_of_nan_weights_makes_no_ids(name):
    model = zoo.create_model(name).eval()
    tower = model.frozen.get("tokenizer", model)
    first = next(iter(tower.parameters()))
    with torch.no_grad():
        first[(0,) * first.ndim] = NAN
        with pytest.raises(ValueError, match=r"no longer finite.*earlier checkpoint"):
            model.encode(torch.rand(1, 3, 32, 32))
        first[(0,) * first.ndim] = 0.0
        model.encode(torch.rand(1, 3, 32, 32))


def test_parts_that_no_id_depends_on_may_be_anything():
    """A discriminator, a teacher, a mask of minus infinity; and a tokenizer without weights has none to look at."""
    images = torch.rand(1, 3, 32, 32)
    vqgan, seed = zoo.create_model("vqgan_tiny").eval(), zoo.create_model("seed_stage2_tiny").eval()
    expected = [model.encode(images).ids for model in (vqgan, seed)]
    with torch.no_grad():
        next(vqgan.discriminator.parameters()).fill_(NAN)
        next(seed.frozen["teacher"].parameters()).fill_(NAN)
    vqgan.register_buffer("mask", torch.full((2,), -math.inf))
    for model, ids in zip((vqgan, seed), expected, strict=True):
        assert torch.equal(model.encode(images).ids, ids)

    class Brightness(zoo.ZooModule):
        spec = zoo.model_info("dvae_tiny").spec

        def encode(self, images):
            ids = torch.nn.functional.avg_pool2d(images, 4).mean(1).mul(63).long().flatten(1)
            return zoo.Tokens(ids, None, self.spec)

    assert Brightness().encode(images).ids.shape == (1, 64)


def test_pictures_of_nan_become_no_black_ones():
    images = torch.rand(2, 3, 8, 8)
    images[0, 0, 0, 0] = NAN
    with pytest.raises(ValueError, match="NaN"):
        quantise(images)
    with pytest.raises(ValueError, match="NaN"):
        FrechetDistance(Means()).update(images, real=False)
    report = ReconstructionReport(zoo.model_info("dvae_tiny").spec, full=False)
    report.update(torch.rand(2, 3, 8, 8), images, torch.zeros(2, 64, dtype=torch.int64))
    values = report.compute()
    assert math.isnan(values["psnr"])
    metric = PSNR(foreground=True)
    metric.update(torch.rand(2, 3, 8, 8), images)
    assert metric.compute().isnan()


@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_distances_refuse_features_that_are_no_numbers(bad):
    good, spoilt = torch.randn(12, 3), torch.randn(12, 3)
    spoilt[3, 1] = bad
    for x, y in ((good, spoilt), (spoilt, good)):
        with pytest.raises(ValueError, match=r"features.*not finite"):
            kernel_distance(x, y)
        with pytest.raises(ValueError, match=r"features.*not finite"):
            precision_recall(x, y)
    with pytest.raises(ValueError, match="not finite"):
        inception_score(spoilt)
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(torch.zeros(3), torch.full((3, 3), bad), torch.zeros(3), torch.eye(3))
    metric = FrechetDistance(Means(bad))
    for real in (True, False):
        metric.update(torch.rand(4, 3, 8, 8), real=real)
    with pytest.raises(ValueError, match="not finite"):
        metric.compute()
    report = GenerationReport(extractor=Means(bad))
    with pytest.raises(ValueError, match="not finite"):
        report.set_reference(iter([torch.rand(4, 3, 8, 8)]))
