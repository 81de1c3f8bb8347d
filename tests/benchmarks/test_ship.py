"""Shipping a checkpoint: the card says what the record of the run says."""

import json
import sys

import pytest

import zoo
from benchmarks import ship
from benchmarks._stored import facts_of_card, read_by_name


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A run of the tiny VQGAN that ended at step 5, and its record."""
    record = {
        "command": "lightning fit --config x.yaml",
        "commit": "abc",
        "date": "2026-11-28",
        "seed": 3,
        "steps": 5,
        "minutes": 0.5,
        "machine": "a CPU",
        "metrics": {"val/psnr": 12.5},
        "weights": "vqgan_tiny",
        "benchmarks": ["one"],
    }
    model = zoo.create_model("vqgan_tiny")
    monkeypatch.setattr(ship.zoo, "create_model", lambda name: model)
    monkeypatch.setattr(ship.pickles, "load", lambda path: {"global_step": 5})
    monkeypatch.setattr(ship, "read_by_name", lambda: {"runs/x": record, "one": {"metrics": {"psnr": 12.0}}})
    monkeypatch.setattr(ship, "WEIGHTS_DIR", tmp_path)
    monkeypatch.setattr(sys, "argv", ["ship", "vqgan_tiny", "--checkpoint", "last.ckpt"])
    return record


def test_a_card_repeats_the_records(trained, tmp_path):
    ship.main()
    card = json.loads((tmp_path / "vqgan_tiny.json").read_text())
    assert tuple(card) == ship.CARD
    assert (card["command"], card["commit"], card["seed"]) == ("lightning fit --config x.yaml", "abc", 3)
    assert (card["steps"], card["minutes"], card["hardware"]) == (5, 0.5, "a CPU")
    assert card["metrics"] == [{"metrics": {"psnr": 12.0}}]
    assert card["bytes"] == (tmp_path / "vqgan_tiny.safetensors").stat().st_size


def test_a_checkpoint_of_another_step_than_the_record_says_is_refused(trained):
    trained["steps"] = 6
    with pytest.raises(ValueError, match=r"last\.ckpt holds step 5, and the record of the run says 6"):
        ship.main()


def test_weights_without_a_record_are_named():
    with pytest.raises(ValueError, match="dvae_new: one record in benchmarks/results/runs must have it"):
        facts_of_card("dvae_new", read_by_name())
