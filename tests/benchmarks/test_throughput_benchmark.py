"""The throughput benchmark runs both sides on equal inputs and keeps the schema."""

import pytest


@pytest.fixture
def throughput(script, monkeypatch):
    pytest.importorskip("dall_e")
    module = script("throughput")
    monkeypatch.setattr(module, "peak_memory", lambda case, side, *rest: {"ours": 10.0, "reference": 40.0}[side])
    return module


@pytest.mark.slow
@pytest.mark.parametrize("case", ["dvae", "beit"])
def test_a_tiny_run_compares_both_sides(throughput, script, case):
    record = throughput.compare(case, threads=1, size=32, batch=1, repeats=2)
    script("_record").check(record)
    metrics, seconds = record["metrics"], record["protocol"]["all_seconds"]
    assert len(seconds["ours"]) == len(seconds["reference"]) == record["n"] == 2
    assert metrics["seconds_ours"] == pytest.approx(sum(seconds["ours"]) / 2)
    assert metrics["seconds_ours"] > 0
    assert metrics["speedup"] == pytest.approx(metrics["seconds_reference"] / metrics["seconds_ours"])
    assert (metrics["peak_mib_ours"], metrics["peak_mib_reference"]) == (10.0, 40.0)
    assert record["data"] == "random images, 32 px, batch 1"
    assert record["protocol"]["ids"] == ("identical" if case == "dvae" else "given")


def test_sides_that_disagree_are_no_benchmark(throughput, monkeypatch):
    import torch

    sides = tuple((lambda size, batch, i=i: lambda: torch.tensor([i])) for i in range(2))
    monkeypatch.setitem(throughput.CASES, "dvae", (*sides, "DALL-E", {}))
    with pytest.raises(AssertionError, match="the ids differ"):
        throughput.compare("dvae", threads=1, size=32, batch=1, repeats=1)
