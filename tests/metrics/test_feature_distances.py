"""Kernel distance, precision and recall, and the Inception score against torchmetrics and plain NumPy."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import zoo.metrics.feature_distances as module
from zoo.metrics.feature_distances import inception_score, kernel_distance, precision_recall


def pair(n=30, m=24, d=5, shift=0.5):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=generator), torch.randn(m, d, generator=generator) + shift


def mmd_by_loops(x, y):
    def kernel(a, b):
        return (float(np.dot(a, b)) / len(a) + 1) ** 3

    x, y = x.double().numpy(), y.double().numpy()
    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_kernel_distance_by_its_definition():
    x, y = pair()
    expected = mmd_by_loops(x, y)
    assert expected > 0.1
    assert kernel_distance(x, y).item() == pytest.approx(expected, rel=1e-9)
    assert kernel_distance(x, y).dtype == torch.float64


def test_kernel_distance_is_the_one_of_torchmetrics():
    from torchmetrics.image.kid import poly_mmd

    x, y = (z.double() for z in pair(20, 20))
    assert kernel_distance(x, y).item() == pytest.approx(poly_mmd(x, y).item(), rel=1e-9)


def test_kernel_distance_is_unbiased():
    generator = torch.Generator().manual_seed(0)
    values = [kernel_distance(*torch.randn(2, 10, 4, generator=generator)).item() for _ in range(400)]
    assert min(values) < 0
    assert abs(np.mean(values)) < 4 * np.std(values) / 20


def test_subsets_of_large_sets_have_nearly_the_distance_of_the_whole(monkeypatch):
    x, y = pair(400, 300)
    whole = kernel_distance(x, y).item()
    monkeypatch.setattr(module, "SUBSET_SIZE", 100)
    parts = kernel_distance(x, y, full=200).item()
    assert parts != whole
    assert parts == pytest.approx(whole, rel=0.1)
    assert kernel_distance(x, y, full=200).item() == parts
    assert kernel_distance(x, y, full=200, seed=1).item() != parts


def coverage_by_loops(generated, real, k):
    def inside(points, centres):
        radii = [sorted(np.linalg.norm(c - o) for j, o in enumerate(centres) if j != i)[k - 1]
                 for i, c in enumerate(centres)]  # fmt: skip
        return np.mean([any(np.linalg.norm(p - c) <= r for c, r in zip(centres, radii, strict=True)) for p in points])

    generated, real = generated.double().numpy(), real.double().numpy()
    return inside(generated, real), inside(real, generated)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("chunk", [1, 2**24])
def test_precision_and_recall_by_brute_force(k, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    real, generated = pair(40, 30, d=2, shift=1.5)
    precision, recall = precision_recall(generated, real, k)
    expected = coverage_by_loops(generated, real, k)
    assert 0 < expected[0] < 1
    assert 0 < expected[1] < 1
    assert expected[0] != expected[1]
    assert (precision.item(), recall.item()) == pytest.approx(expected)


def test_precision_and_recall_of_what_is_known():
    real, _ = pair(50, d=3)
    assert [v.item() for v in precision_recall(real, real)] == [1, 1]
    assert [v.item() for v in precision_recall(real + 100, real)] == [0, 0]
    one_place = real[:1].expand(20, -1)  # all samples are the same good image
    precision, recall = precision_recall(one_place, real)
    assert precision == 1
    assert recall == pytest.approx(1 / 50)


def test_inception_score_is_the_one_of_torchmetrics(monkeypatch):
    from torchmetrics.image.inception import InceptionScore

    logits = 3 * torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="buffer"):
        theirs = InceptionScore(feature=nn.Identity(), splits=4)
    theirs.update(logits)
    monkeypatch.setattr(torch, "randperm", lambda n, **options: torch.arange(n))  # their order has no seed
    assert inception_score(logits, splits=4).item() == pytest.approx(theirs.compute()[0].item(), rel=1e-5)


def test_inception_score_of_what_is_known():
    certain = 1000.0 * torch.eye(5).repeat_interleave(200, dim=0)
    assert inception_score(certain, splits=1).item() == pytest.approx(5)
    assert 4.5 < inception_score(certain, splits=10).item() < 5  # splits of 100 hold the classes unevenly
    assert inception_score(torch.zeros(20, 7)).item() == pytest.approx(1)
    p = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    entropy = -(p * p.log()).sum(1).mean() - -(p.mean(0) * p.mean(0).log()).sum()
    assert inception_score(p.log(), splits=1).item() == pytest.approx(math.exp(-entropy), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: kernel_distance(x[:1], x), "at least two images on each side, got 1 and 30"),
        (lambda x: precision_recall(x[:3], x), "3 neighbours need more images than that on each side, got 3"),
        (lambda x: precision_recall(x, x, 0), "0 neighbours"),
        (lambda x: inception_score(x[:9]), "at least 10 images, got 9"),
    ],
)
def test_too_few_images_end_with_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call(pair()[0])
