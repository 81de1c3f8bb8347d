"""Pictures of generators: which files, which rows, with which weights, and without touching the noise of training."""

import numpy as np
import pytest
import torch
from PIL import Image
from toys import Toy, ToyData, quiet_trainer

import zoo
from zoo.callbacks import EMA, Samples
from zoo.callbacks.pictures import LABEL_HEIGHT

ROW = LABEL_HEIGHT + 32 + 4


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def run(folder, model, callbacks, **options):
    from lightning.pytorch.loggers import CSVLogger

    trainer = quiet_trainer(
        folder, max_epochs=2, logger=CSVLogger(folder, name="", version=""), callbacks=callbacks, **options
    )
    trainer.fit(model, ToyData(32, num_classes=9))
    return sorted(p.name for p in (folder / "samples").iterdir())


def test_pictures_of_a_masked_model(tmp_path):
    torch.manual_seed(0)
    files = run(tmp_path, zoo.create_model("maskgit_tiny"), [Samples(3, completions=2, steps=5, every_n_validations=2)])
    assert files == [f"step_000002_{name}.png" for name in ("classes", "completion", "steps")]
    sizes = {n: read(tmp_path / "samples" / f"step_000002_{n}.png").shape[:2] for n in ("classes", "steps")}
    assert sizes["classes"] == (9 * ROW, 3 * 34 + 2)
    assert sizes["steps"] == (3 * ROW, 5 * 34 + 2)
    completion = read(tmp_path / "samples" / "step_000002_completion.png")
    assert completion.shape[:2] == (5 * ROW, 2 * 34 + 2)
    hidden = completion[2 * ROW + LABEL_HEIGHT + 2 :][:32, 2:34]
    assert (hidden[:, 16:] == 128).all()
    assert not (hidden[:, :16] == 128).all()


def test_pictures_of_an_autoregressive_model(tmp_path):
    assert run(tmp_path, zoo.create_model("ar_transformer_tiny"), [Samples(1, max_classes=2)]) == [
        "step_000002_classes.png", "step_000004_classes.png",
    ]  # fmt: skip


def test_pictures_of_what_follows_a_condition():
    """As the data module of a user gives it: images for the condition's tokenizer, or their ids."""
    model = zoo.create_model("ar_transformer_tiny", num_classes=0, condition_tokenizer="dvae_tiny:random").eval()
    images = torch.rand(4, 3, 32, 32)
    rows = Samples(3).draw(model, {"image": images, "condition": images})["conditions"]
    assert list(rows) == ["condition", "samples"]
    assert torch.equal(rows["condition"], images[:3])
    ids = model.frozen["condition_tokenizer"].encode(images).ids
    assert torch.equal(Samples(3).draw(model, {"condition_ids": ids})["conditions"]["samples"], rows["samples"])
    with pytest.raises(ValueError, match="the batch has no condition, but image: leave the callback Samples out"):
        Samples(3).draw(model, {"image": images})


def test_the_averaged_weights_draw(tmp_path, monkeypatch):
    model, seen = zoo.create_model("maskgit_tiny"), []
    generate = type(model).generate
    monkeypatch.setattr(
        type(model), "generate",
        lambda self, *a, **k: seen.append(self.network.head_bias.detach().clone()) or generate(self, *a, **k),
    )  # fmt: skip
    run(tmp_path, model, [EMA(decay=0.999, warmup=False), Samples(1, max_classes=1, completions=0)], max_steps=2)
    fast = zoo.create_model("maskgit_tiny").network.head_bias
    assert (seen[0] - fast).abs().max() > 0
    torch.testing.assert_close(seen[0], model.network.head_bias.detach())  # fit ends with the averaged weights in place


def test_training_is_the_same_with_and_without_pictures(tmp_path):
    states = []
    for number, callbacks in enumerate(([], [Samples(2, completions=2)])):
        torch.manual_seed(0)
        model = zoo.create_model("maskgit_tiny")
        trainer = quiet_trainer(tmp_path / str(number), max_epochs=2, callbacks=callbacks)
        trainer.fit(model, ToyData(32, num_classes=9))
        states.append({k: v.clone() for k, v in model.state_dict().items()})
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("maskgit_tiny", {"class_dropout": 0.0}),
        ("maskgit_tiny", {"class_dropout": 0.0, "num_classes": 0}),
        ("ar_transformer_tiny", {}),
    ],
)
def test_models_without_a_null_class_are_drawn_without_guidance(tmp_path, caplog, name, settings):
    """What recipes/maskgit.yaml with --model.class_dropout=0 does: its pictures, said once, instead of an error."""
    samples = Samples(1, max_classes=1, completions=1, guidance=1.0)
    files = run(tmp_path, zoo.create_model(name, **settings), [samples], max_steps=2)
    assert "step_000002_classes.png" in files
    said = [r.message for r in caplog.records if "without guidance 1.0" in r.message]
    assert len(said) == 1
    assert "class_dropout > 0" in said[0]
    assert "\n" not in said[0]


def test_guidance_reaches_models_that_know_a_null_class(tmp_path, caplog, monkeypatch):
    model, seen = zoo.create_model("maskgit_tiny"), []
    complete = type(model).complete
    monkeypatch.setattr(type(model), "complete", lambda self, *a, **k: seen.append(k) or complete(self, *a, **k))
    run(tmp_path, model, [Samples(1, max_classes=1, completions=0, guidance=1.5)], max_steps=2)
    assert seen
    assert all(options["guidance"] == 1.5 for options in seen)
    assert "without guidance" not in caplog.text


def test_models_and_settings_that_draw_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Toy generates nothing"):
        run(tmp_path, Toy(), [Samples()])
    with pytest.raises(ValueError, match="per_class"):
        Samples(per_class=0)
