"""The lookup benchmark compares equal things and keeps the schema."""

import importlib.util
import json
import mmap
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RECORDS = sorted((BENCHMARKS / "results").glob("vq_lookup_*.json"))


@pytest.fixture
def script(monkeypatch):
    pytest.importorskip("vector_quantize_pytorch")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("vq_lookup", BENCHMARKS / "vq_lookup.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "vq_lookup", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_both_sides_give_the_same_ids_step_after_step(script, mode):
    steps = {side: script.make(side, 32, mode, (2, 20, 4)) for side in script.SIDES}
    for _ in range(3):  # in training the codebook moves, on both sides alike
        ids = {side: step() for side, step in steps.items()}
        assert torch.equal(ids["ours"], ids["reference"])
        assert len(ids["ours"].unique()) > 10


def test_a_record_holds_ratios_of_seconds_and_memory(script, monkeypatch, tmp_path):
    memory = {"ours": b"10\n", "reference": b"40\n"}

    def only(command, **_):
        side = command[command.index("--only") + 1]
        return type("Done", (), {"stdout": memory[side].decode()})

    monkeypatch.setattr(script.subprocess, "run", only)
    monkeypatch.setattr(script, "environment", lambda: dict.fromkeys(sys.modules["_record"].ENVIRONMENT, ""))
    arguments = ["--codes", "32", "--mode", "eval", "--repeats", "1", "--shape", "2", "20", "4", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["vq_lookup.py", *arguments, "--out", str(tmp_path)])
    script.main()
    metrics = json.loads((tmp_path / "vq_lookup_32_eval.json").read_text())["metrics"]
    assert metrics["memory_ratio"] == 4.0
    assert metrics["ids_equal"] == 1.0
    assert metrics["speedup"] == metrics["seconds_reference"] / metrics["seconds_ours"]


def test_resident_set_is_measured(script):
    before = script.resident("VmRSS")
    with mmap.mmap(-1, 2**26) as block:  # 64 MiB of new pages; torch may reuse those of a test before
        block.write(b"x" * 2**26)
        assert 50 < script.resident("VmRSS") - before < 80
