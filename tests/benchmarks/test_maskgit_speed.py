"""The speed comparison on a tiny pair: its record keeps the schema, and its curve is a picture."""

import importlib
import sys
from pathlib import Path

import pytest
from PIL import Image

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIZES = {"width": 16, "depth": 1, "heads": 2}


@pytest.fixture
def benchmark(monkeypatch):
    from zoo.presets import presets

    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    before = set(presets())
    yield importlib.import_module("maskgit_speed")
    for name in set(presets()) - before:
        del presets()[name]


def test_a_record_holds_the_ratio_of_its_seconds(benchmark):
    from _record import check

    record = benchmark.measure(16, 2, 4, 2, SIZES)
    check(record)
    seconds = record["metrics"]
    assert seconds["speedup"] == pytest.approx(seconds["seconds_ar_cached"] / seconds["seconds_maskgit"])
    assert len(record["protocol"]["all_seconds"]["maskgit"]) == 2


def test_a_curve_has_a_point_per_setting(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "COUNTS", (4, 16))
    monkeypatch.setattr(benchmark, "CODEBOOKS", (16, 32))
    monkeypatch.setattr(benchmark, "STEPS", (1, 2))
    series = benchmark.curve(tmp_path / "c.png", 1, 1, SIZES)
    assert [x for x, _ in series["maskgit/seconds by steps"]] == [1, 2]
    assert [x for x, _ in series["ar_cached/seconds by tokens"]] == [4, 16]
    assert [x for x, _ in series["maskgit/seconds by codes"]] == [16, 32]
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.size[0] > 300


@pytest.mark.parametrize(("count", "near"), [("60", "49 or 64"), ("2", "1 or 4"), ("0", "1 or 4"), ("-4", "1 or 4")])
def test_counts_that_fill_no_square_are_refused(benchmark, count, near, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["maskgit_speed.py", f"--tokens={count}"])
    with pytest.raises(SystemExit) as stop:
        benchmark.main()
    assert stop.value.code == 2
    assert f"{count} tokens fill no square grid: take {near}" in capsys.readouterr().err
    assert benchmark.square("64") == 64
