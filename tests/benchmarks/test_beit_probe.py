"""The probe benchmark on a tiny model."""

import importlib.util
import math
import random
import sys
from pathlib import Path

import pytest
import torch

import zoo

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("beit_probe", BENCHMARKS / "beit_probe.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "beit_probe", module)
    spec.loader.exec_module(module)
    return module


def test_baselines_by_hand(script):
    train = torch.tensor([[1, 2, 5], [1, 2, 1], [3, 3, 1]])  # 1 is the most frequent; per position 1, 2, 1
    ids = torch.tensor([[1, 2, 2], [1, 1, 1]])
    hidden = torch.tensor([[True, True, False], [False, True, True]])
    found = script.frequency_baselines(train, ids, hidden)
    assert found == {"frequency_baseline": 3 / 4, "position_baseline": 3 / 4}
    assert script.frequency_baselines(train, ids, torch.ones(5, 2, 3, dtype=torch.bool))[
        "position_baseline"
    ] == pytest.approx(4 / 6)


def test_masked_accuracy_by_a_loop(script):
    model = zoo.create_model("beit_tiny").eval()
    batch = {"image": torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8), "index": torch.arange(6) + 3}
    found = script.masked_token_accuracy(model, [batch], [batch], masks=2)
    right, count, target = 0, 0, model.tokenize(batch)
    for i in range(6):
        for r in range(2):
            mask = model.draw_mask(random.Random(f"{i + 3} {r}"))
            predicted = model.encode(batch["image"][i : i + 1], mask[None]).ids
            right += int((predicted[0] == target[i])[mask.flatten()].sum())
            count += int(mask.sum())
    assert found["masked_accuracy"] == pytest.approx(right / count)


def test_probe_learns_what_is_linear_in_one_block(script):
    generator = torch.Generator().manual_seed(0)
    y = [torch.randint(3, (n,), generator=generator) for n in (300, 60, 60)]
    x = [torch.stack([torch.randn(len(t), 8, generator=generator), 3 * torch.eye(8)[t]]) for t in y]
    found = script.probe(tuple(x), tuple(y), num_classes=3, steps=200, seed=0)
    assert found["test"][1] == 1
    assert found["val"][0] < 0.7


def test_nan_scores_count_as_nothing(script):
    """argmax would take the first NaN for the largest score, and class 0 for the answer."""
    probes = script
    model = zoo.create_model("beit_classifier_tiny").eval()
    with torch.no_grad():
        model.vit.head.weight.fill_(float("nan"))
    batch = {"image": torch.rand(4, 3, 32, 32), "label": torch.zeros(4, dtype=torch.int64)}
    assert math.isnan(probes.accuracy(model, [batch]))
    x = tuple(torch.full((1, 6, 2), float("nan")) for _ in range(3))
    y = tuple(torch.zeros(6, dtype=torch.int64) for _ in range(3))
    assert all(found.isnan().all() for found in probes.probe(x, y, 2, 1, 0).values())
