"""The evaluation of second stages: metrics, baselines, labels and protocol."""

import numpy as np
import pytest
import torch
from torch import nn
from toys import TinyTokenizer, ToyData

import zoo
from zoo.metrics.extractors import InceptionFeatures, quantise
from zoo.metrics.feature_distances import kernel_distance, precision_recall
from zoo.metrics.frechet import FrechetDistance
from zoo.metrics.generation import (
    evaluate_generation,
    labels_like,
    random_tokens,
    sampler_settings,
    token_frequencies,
)
from zoo.metrics.generation_report import GenerationReport
from zoo.tokens import Segment, Tokens, TokenSpec

LEVELS = TokenSpec((Segment("top", (2, 1), 0, 3), Segment("bottom", (2, 2), 3, 5)), dim=1, order="pyramid")


class MeanColours(nn.Module):
    """Twelve features: mean colour of each quadrant."""

    name = "colours"
    num_features = 12

    def forward(self, images):
        assert images.dtype == torch.uint8
        return nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)

    def protocol(self):
        return {"extractor": "mean colours"}


class Stub(TinyTokenizer):
    """A second stage that generates ids of one size, whatever it is asked for, and remembers what that was."""

    def __init__(self, num_classes=3, lowest=0):
        super().__init__(vocab_size=16, image_size=16)
        self.num_classes, self.lowest, self.asked = num_classes, lowest, []

    has_null = False

    def sampling_settings(self):
        return {"steps": 5, "heat": 1.5}

    def generate(self, labels=None, num_images=None, *, steps: int = 5, heat: float = 1.5, generator=None):
        self.asked.append((None if labels is None else labels.tolist(), num_images, steps))
        ids = torch.randint(self.lowest, 16, (num_images, self.spec.num_tokens), generator=generator)
        return self.decode(Tokens(ids, None, self.spec))


def images(n, seed, size=4):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def data(**changes):
    return ToyData(**{"image_size": 16, "count": 40, "num_classes": 3} | changes)


def test_distance_of_a_scaled_and_shifted_set_in_closed_form():
    report = GenerationReport(extractor=MeanColours())
    x = torch.randn(60, 12, generator=torch.Generator().manual_seed(0))
    report.reference = x
    shift = torch.linspace(-1, 1, 12)
    found = report.compare(2 * x + shift)["colours"]
    x = x.double()
    expected = (x.mean(0) + shift).square().sum() + x.T.cov().trace()  # (2 - 1)^2 tr C
    assert found == pytest.approx(expected.item(), rel=1e-6)


def test_distances_are_those_of_the_single_metrics():
    real, fake = images(50, 0), images(40, 1) ** 2
    report = GenerationReport(extractor=MeanColours())
    report.set_reference(iter(real.split(9)))
    features, facts = report.features(iter(fake.split(7)))
    found = report.compare(features)
    single = FrechetDistance(MeanColours())
    single.update(real, real=True)
    single.update(fake, real=False)
    x, y = (MeanColours()(quantise(z)) for z in (fake, real))
    precision, recall = precision_recall(x, y)
    assert found == pytest.approx(
        {
            "colours": single.compute().item(), "kd_colours": kernel_distance(x, y).item(),
            "precision_colours": precision.item(), "recall_colours": recall.item(),
        }, rel=1e-5
    )  # fmt: skip
    assert found["colours"] > 0.1
    assert facts["num_images"] == 40
    assert facts["image_shape"] == [4, 4]
    again, same = report.features(iter(quantise(fake).split(40)))
    assert torch.equal(again, features), "uint8 once; batches do not matter"
    assert same == facts


def test_lite0_metrics_have_names_of_their_own(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # no Inception weights there
    report = GenerationReport()
    report.set_reference(iter([images(12, 0, 32)]))
    found = report.compare(report.features(iter([images(12, 1, 32)]))[0])
    assert list(found) == ["fd_lite0", "kd_lite0", "precision_lite0", "recall_lite0"]
    protocol = report.protocol()
    assert protocol["extractor"]["sha256"]
    assert protocol["reference"]["num_images"] == 12
    assert {"torch", "tokenzoo"} <= set(protocol["packages"])


@pytest.mark.slow
def test_inception_metrics_have_the_published_names_and_logits(random_inception):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    report = GenerationReport(str(random_inception))
    report.set_reference(iter([images(12, 0, 32)]))
    features, _ = report.features(iter([images(12, 1, 32)]))
    found = report.compare(features)
    assert list(found) == ["fid", "kid", "precision_inception", "recall_inception", "inception_score"]
    assert 1 <= found["inception_score"] <= 12
    assert report.protocol()["extractor"]["published_weights"] is False
    patch = pytest.MonkeyPatch()
    state = torch.load(random_inception, weights_only=True)
    patch.setattr(
        "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *a, **k: state, raising=True
    )
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["logits_unbiased"])
    patch.undo()
    expected = theirs(quantise(images(12, 1, 32)))[0]
    assert isinstance(report.extractor, InceptionFeatures)
    assert expected.std() > 0
    torch.testing.assert_close(
        report.extractor.logits(features), expected, rtol=1e-4, atol=1e-4 * expected.std().item()
    )


def test_labels_keep_the_proportions():
    given = torch.tensor([0] * 5 + [2] * 3 + [7] * 2)
    assert labels_like(given, 10).bincount().tolist() == [5, 0, 3, 0, 0, 0, 0, 2]
    assert labels_like(given, 7).bincount().tolist() == [4, 0, 2, 0, 0, 0, 0, 1]  # 3.5, 2.1, 1.4
    assert len(labels_like(given, 1)) == 1
    assert not torch.equal(labels_like(given, 100, seed=0), labels_like(given, 100, seed=1))


def test_random_tokens_keep_segments_and_frequencies():
    ids = torch.tensor([[0, 2, 3, 3, 7, 4], [0, 0, 3, 4, 7, 7]])
    weights = token_frequencies(ids, LEVELS)
    assert weights["top"].tolist() == [3, 0, 1]
    assert weights["bottom"].tolist() == [3, 2, 0, 0, 3]
    generator = torch.Generator().manual_seed(0)
    drawn = random_tokens(LEVELS, 4000, weights, generator)
    assert drawn.shape == (4000, 6)
    assert (drawn[:, :2] == 0).float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert set(drawn[:, :2].unique().tolist()) == {0, 2}
    assert set(drawn[:, 2:].unique().tolist()) == {3, 4, 7}
    even = random_tokens(LEVELS, 4000, None, generator)
    assert torch.bincount(even[:, 2:].flatten()) / 16000 == pytest.approx(np.array([0] * 3 + [0.2] * 5), abs=0.02)
    assert set(even[:, :2].unique().tolist()) == {0, 1, 2}


def test_settings_of_the_sampler_are_written_down_with_their_defaults():
    assert sampler_settings(Stub(), {"steps": 3}) == {"steps": 3, "heat": 1.5}
    found = sampler_settings(zoo.create_model("maskgit_tiny"), {"choice_temperature": 2.0})
    assert found["steps"] == 8
    assert found["choice_temperature"] == 2.0
    assert found["sampling_temperature"] == 1.0
    assert "generator" not in found
    assert "labels" not in found
    with pytest.raises(ValueError, match="generate takes no colour: it takes steps, heat"):
        sampler_settings(Stub(), {"colour": 1})


def test_all_together():
    model = Stub()
    result = evaluate_generation(
        model, data(), num_images=30, batch_size=8, sampling={"steps": 2}, extractor=MeanColours()
    )
    assert [count for _, count, _ in model.asked] == [8, 8, 8, 6]
    assert {s for _, _, s in model.asked} == {2}
    labels = [label for batch, _, _ in model.asked for label in batch]
    assert np.bincount(labels).tolist() == [10, 10, 10]  # of 14, 13 and 13 in 40: 10.5, 9.75 and 9.75
    protocol = result["protocol"]
    assert protocol["generated"]["num_images"] == 30
    assert protocol["generated"]["sampler"] == {"steps": 2, "heat": 1.5}
    assert protocol["generated"]["seed"] == 0
    assert protocol["generated"]["batch_size"] == 8
    assert protocol["reference"]["num_images"] == 40
    assert protocol["reference"]["split"] == "test"
    assert protocol["data"]["class"] == "ToyData"
    assert protocol["data"]["batch_size"] == 4
    rows = result["baselines"]
    assert set(rows) == {"uniform_tokens", "unigram_tokens", "reconstructions", "train_images"}
    assert all(set(row) == set(result["metrics"]) for row in rows.values())
    # the toy data has one split, so a subset of it is a good sample of it
    assert rows["train_images"]["colours"] < 0.1 * rows["uniform_tokens"]["colours"]
    assert rows["train_images"]["precision_colours"] == 1
    report = GenerationReport(extractor=MeanColours())
    real = torch.stack([s["image"] for s in data_view()])
    report.set_reference(iter([real]))
    with torch.no_grad():
        decoded = model.decode(model.encode(real))
    assert rows["reconstructions"] == pytest.approx(report.compare(report.features(iter([decoded]))[0]), rel=1e-6)


def data_view():
    module = data()
    module.setup("test")
    return [module.view("test")[i] for i in range(40)]


def test_frequent_tokens_are_closer_than_any_tokens():
    """Random images have mean colours, which a few of the codes are near to."""
    rows = evaluate_generation(Stub(), data(), batch_size=40, extractor=MeanColours())["baselines"]
    assert rows["unigram_tokens"]["colours"] < 0.5 * rows["uniform_tokens"]["colours"]


def test_a_seed_gives_the_same_images_again_and_another_one_others():
    digests = [
        evaluate_generation(Stub(), data(), num_images=9, seed=seed, baselines=False, extractor=MeanColours())[
            "protocol"
        ]["generated"]["images_sha256"]
        for seed in (3, 3, 4)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_an_unconditional_model_gets_no_labels():
    model = Stub(num_classes=0)
    result = evaluate_generation(model, data(), num_images=9, baselines=False, extractor=MeanColours())
    assert model.asked == [(None, 9, 5)]
    assert result["baselines"] == {}
    assert result["protocol"]["generated"]["labels"] == "none"


@pytest.mark.parametrize("tokenizer", ["dvae_tiny:random", "vqvae2_tiny:random"])
@pytest.mark.parametrize("name", ["maskgit_tiny", "ar_transformer_tiny"])
def test_second_stages_of_the_registry(name, tokenizer):
    model = zoo.create_model(name, tokenizer=tokenizer)
    module = data(image_size=32, count=12, num_classes=9)
    result = evaluate_generation(model, module, num_images=6, batch_size=4, extractor=MeanColours())
    assert set(result["metrics"]) == {"colours", "kd_colours", "precision_colours", "recall_colours"}
    assert result["metrics"]["colours"] > 0
    assert len(result["baselines"]) == 4


@pytest.mark.parametrize(
    ("model", "changes", "options", "message"),
    [
        (lambda: TinyTokenizer(), {}, {}, "TinyTokenizer generates nothing: take a second stage"),
        (lambda: Stub(num_classes=2), {}, {}, "labels of the reference reach 2, but the model has 2 classes"),
        (lambda: Stub(), {"image_size": 32}, {}, r"model has images of \[16, 16\], the reference of \[32, 32\]"),
        (lambda: Stub(), {}, {"num_images": 0}, "num_images must be at least 1, got 0"),
        (lambda: Stub(), {}, {"num_images": 3}, "more than 3 images on each side, got 3 and 40"),
        (lambda: Stub(), {}, {"reference": "night"}, "train, val or test, got 'night'"),
        (lambda: Stub(), {}, {"precision": "8"}, "precision must be one of"),
        (lambda: Stub(), {}, {"sampling": {"colour": 1}}, "takes no colour"),
        (lambda: Stub(), {}, {"inception_weights": "nowhere.pth", "extractor": None}, r"nowhere\.pth does not exist"),
    ],
)
def test_what_does_not_fit_ends_with_one_sentence(model, changes, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        evaluate_generation(model(), data(**changes), **{"extractor": MeanColours()} | options)
    assert "\n" not in str(caught.value)


def test_what_decodes_to_no_pixels_is_refused():
    model = Stub()
    model.spec = TokenSpec(model.spec.segments, dim=3, decodes="embedding")
    with pytest.raises(zoo.NotInvertible, match="does not decode to pixels"):
        evaluate_generation(model, data(), extractor=MeanColours())


def test_labels_are_needed_where_the_model_has_classes():
    module = data()
    module.setup("test")
    bare = [{"image": s["image"]} for s in data_view()]
    module.view = lambda split: bare
    with pytest.raises(ValueError, match="the data has no labels, but the model has 3 classes"):
        evaluate_generation(Stub(), module, extractor=MeanColours())
