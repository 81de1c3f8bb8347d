"""The shipped weights: every file has a card that is true."""

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch

import zoo
from zoo.metrics.evaluate import evaluate
from zoo.presets import WEIGHTS_DIR, presets

ROOT = Path(__file__).parents[2]
FILES = sorted(WEIGHTS_DIR.glob("*.safetensors"))
sys.path.append(str(ROOT / "benchmarks"))


@pytest.fixture(params=FILES, ids=lambda p: p.stem)
def card(request):
    return json.loads(request.param.with_suffix(".json").read_text())


def test_presets_and_files_name_each_other():
    named = {w.file for preset in presets().values() for w in preset.weights.values() if w.file}
    assert named == {path.name for path in FILES}


@pytest.mark.parametrize(
    ("names", "limit"), [(("dvae", "beit"), 12e6), (("vqgan", "maskgit"), 15e6), (("seed",), 15e6)]
)
def test_they_stay_small(names, limit):
    sizes = [path.stat().st_size for path in FILES if path.stem.split("_")[0] in names]
    assert sizes
    assert sum(sizes) <= limit


def test_card_describes_the_file(card):
    from ship import CARD

    path = WEIGHTS_DIR / card["file"]
    assert tuple(card) == CARD
    assert card["metrics"]
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card["bytes"] == path.stat().st_size
    assert card["recipe"] == presets()[card["name"]].recipe
    assert f"recipes/{card['recipe']}" in card["command"]


def test_weights_fit_their_preset_exactly(card):
    model = zoo.create_model(card["name"], weights=True)
    assert sum(p.numel() for p in model.parameters()) == card["parameters"]
    again = zoo.create_model(f"ckpt:{WEIGHTS_DIR / card['file']}")
    assert type(again) is type(model)
    assert again.init_args() == model.init_args()
    absent = tuple(model.not_in_file)  # stays as it was drawn
    for (name, a), b in zip(again.named_parameters(), model.parameters(), strict=True):
        assert name.startswith(absent) or torch.equal(a, b), name


@pytest.mark.slow
def test_reconstruction_is_as_good_as_the_card_says(card):
    """The deterministic part of the card, measured again; FD-lite0 is left to the benchmark, which takes longer."""
    from datamodules import EmojiData

    record = next((r for r in card["metrics"] if r["benchmark"] == "rfid"), None)
    if record is None:
        pytest.skip("no tokenizer, so nothing to reconstruct")
    model = zoo.create_model(card["name"], weights=True)
    data = EmojiData(image_size=record["protocol"]["image_shape"][0], batch_size=32)
    metrics = evaluate(model, data, split="test", full=False)["metrics"]
    codes = ("codebook_usage", "perplexity") if model.spec.vocab_size else ()
    for name in ("psnr", *codes):
        assert metrics[name] == pytest.approx(record["metrics"][name], rel=2e-3), name
