"""Mixed precision where the hardware computes with bfloat16, float32 elsewhere, and a word about it."""

from pathlib import Path

import pytest
import torch
import yaml

from zoo.cli.precision import explain_language_dtype, explain_precision, fast_precision

ROOT = Path(__file__).parents[2]
SMALL, PAPER = sorted(ROOT.glob("recipes/*.yaml")), sorted(ROOT.glob("recipes/paper/*.yaml"))
AVX2 = {"avx2": True, "avx512_bf16": False, "amx_bf16": False, "architecture": "x86_64"}


@pytest.fixture
def hardware(monkeypatch):
    def pretend(capabilities, kind="AVX512", cuda=None, mps=False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)  # none in torch 2.6
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: kind)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or cuda
        )
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("capabilities", "kind", "expected"),
    [
        (AVX2, "AVX2", False),
        (AVX2 | {"avx512_f": True}, "AVX512", False),
        (AVX2 | {"avx512_bf16": True}, "AVX512", True),
        (AVX2 | {"amx_bf16": True}, "AMX", True),
        (AVX2 | {"avx512_bf16": True}, "AVX2", False),  # held to less than it has
        ({"neon": True, "bf16": False, "architecture": "aarch64"}, "DEFAULT", False),
        ({"neon": True, "bf16": True, "architecture": "aarch64"}, "DEFAULT", True),
        ({"sve_bf16": True}, "SVE256", True),
    ],
)
def test_processors_with_instructions_for_bfloat16_use_them(hardware, capabilities, kind, expected):
    hardware(capabilities, kind)
    for accelerator in ("auto", "cpu"):
        assert fast_precision(accelerator) == ("bf16-mixed" if expected else "32-true")


def test_accelerators_count_where_they_will_train(hardware):
    hardware(AVX2, "AVX2", cuda=True)
    assert [fast_precision(a) for a in ("auto", "gpu", "cuda", "cpu")] == ["bf16-mixed"] * 3 + ["32-true"]
    hardware(AVX2 | {"avx512_bf16": True}, cuda=False)  # a card that emulates them
    assert [fast_precision(a) for a in ("auto", "cpu")] == ["32-true", "bf16-mixed"]
    hardware({"bf16": True}, "DEFAULT", mps=True)
    assert [fast_precision(a) for a in ("auto", "mps", "cpu")] == ["32-true", "32-true", "bf16-mixed"]


def test_what_is_said_of_a_precision(hardware):
    hardware(AVX2, "AVX2")
    assert explain_precision("32-true", "auto", True) == "32-true, since the hardware lacks instructions for bfloat16"
    slow = "which is emulated here, slower than float32: --trainer.precision=32-true"
    assert explain_precision("bf16-mixed", "auto", True) == f"bf16-mixed, {slow}"
    assert slow in explain_precision("bf16-true", "cpu", False)
    assert explain_precision("32-true", "auto", False) is None
    assert explain_precision("16-mixed", "auto", True) is None
    hardware({"bf16": True}, "DEFAULT")
    has = "bf16-mixed, since the hardware has instructions for bfloat16"
    assert explain_precision("bf16-mixed", "auto", True) == has
    assert explain_precision("bf16-mixed", "auto", False) is None


def test_recipes_for_a_processor_never_demand_bfloat16():
    asked = {}
    for path in SMALL:
        precision = yaml.safe_load(path.read_text(encoding="utf-8"))["trainer"].get("precision", "32-true")
        asked[path.stem] = precision
        assert precision in ("32-true", "${fast_precision:${trainer.accelerator}}"), path
        dtype = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["init_args"].get("language_dtype", "float32")
        assert dtype in ("float32", "${fast_dtype:${trainer.accelerator}}"), path
    assert list(asked.values()).count("32-true") < len(asked)
    for path in PAPER:
        assert "${fast_" not in path.read_text(encoding="utf-8"), "the published scale is no processor's"


def test_recipes_choose_when_they_are_read_and_flags_win(monkeypatch, run_cli):
    args = ("fit", "--config", ROOT / "recipes" / "blip2_stage1.yaml", "--print_config")
    asked = []
    for fast, expected in ((False, "32-true"), (True, "bf16-mixed")):
        monkeypatch.setattr(
            "zoo.cli.precision.computes_in_bfloat16", lambda kind, fast=fast: asked.append(kind) or fast
        )
        code, out, err = run_cli(*args, "--trainer.accelerator=cpu")
        assert code == 0, err
        assert yaml.safe_load(out)["trainer"]["precision"] == expected
    code, out, _ = run_cli(*args, "--trainer.precision=64-true")
    assert yaml.safe_load(out)["trainer"]["precision"] == "64-true"
    assert set(asked[:2]) == {"cpu"}


def test_language_models_of_recipes_have_the_type_that_is_fast_and_it_is_said(monkeypatch, run_cli):
    args = ("fit", "--config", ROOT / "recipes" / "llava.yaml", "--print_config")
    for fast, expected in ((False, "float32"), (True, "bfloat16")):
        monkeypatch.setattr("zoo.cli.precision.computes_in_bfloat16", lambda kind, fast=fast: fast)
        code, out, err = run_cli(*args)
        assert code == 0, err
        assert yaml.safe_load(out)["model"]["init_args"]["language_dtype"] == expected
        had = "has" if fast else "lacks"
        said = f"language model in {expected}, since the hardware {had} instructions for bfloat16"
        assert explain_language_dtype(expected, "auto", True) == said
        assert explain_language_dtype(None, "auto", True) is None
        assert explain_language_dtype("float32", "auto", False) is None
    monkeypatch.setattr("zoo.cli.precision.computes_in_bfloat16", lambda kind: False)
    assert "emulated here, slower: --model.language_dtype=float32" in explain_language_dtype("bfloat16", "cpu", False)
    code, out, _ = run_cli(*args, "--model.language_dtype=float16")
    assert yaml.safe_load(out)["model"]["init_args"]["language_dtype"] == "float16"
