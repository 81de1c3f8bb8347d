"""Random weights are measured, written and drawn with only where somebody means it."""

import warnings
from pathlib import Path

import pytest
import torch
from command_line import message
from toys import ToyData, quiet_trainer

import zoo
from zoo.callbacks import Evaluation, TokenDump
from zoo.callbacks.ema import EMA
from zoo.registry import model_from
from zoo.runs.untrained import find_untrained_parts, refuse_lost_predictions, refuse_untrained

DVAE = Path(__file__).parents[2] / "recipes" / "dvae.yaml"
IMAGES = torch.rand(2, 3, 32, 32)


@pytest.mark.parametrize("command", ["validate", "test"])
def test_random_weights_are_not_measured_unless_asked_for(run_cli, recipe, command):
    said = message(run_cli, command, "--config", recipe, code=1)
    assert said.startswith(f"error: {command} has no trained Toy: its weights are random; give the checkpoint of a run")
    assert "--ckpt_path=runs/NAME/last.ckpt; --untrained takes random weights on purpose" in said
    assert not Path("runs").exists(), "nothing was made"
    code, out, err = run_cli(command, "--config", recipe, "--untrained", "--trainer.enable_progress_bar=false")
    assert code == 0, err
    assert "/loss" in out, err
    assert run_cli(command, "--config", recipe, "--trainer.fast_dev_run=true")[0] == 0, "a try-out measures nothing"


def test_predictions_of_random_weights_or_for_nobody_are_refused(run_cli):
    predict = ["predict", "--config", DVAE, "--trainer.accelerator=cpu", "--trainer.limit_predict_batches=1"]
    said = message(run_cli, *predict, "--model.init_args.weights=dvae_emoji", code=1)
    assert "predict would throw everything away" in said
    assert "--trainer.callbacks+=TokenDump" in said
    dump = ["--trainer.callbacks+=TokenDump", "--trainer.callbacks.out_dir=tokens"]
    said = message(run_cli, *predict, *dump, code=1)
    assert "predict has no trained DVAE: its weights are random" in said
    assert "or weights with --model.init_args.weights=NAME_OR_PATH" in said
    assert not Path("tokens").exists()


def test_parts_that_loaded_weights_lack_count_as_random():
    model = zoo.create_model("beit_emoji_classifier", weights="beit_emoji")
    assert any("head" in said and "random" in said for said in find_untrained_parts(model))
    with pytest.raises(ValueError, match=r"test has no trained BEiTClassifier: .* is random"):
        refuse_untrained(model, "test")
    assert find_untrained_parts(zoo.create_model("beit_emoji", weights=True)) == []
    vqgan = zoo.create_model("vqgan_emoji", weights=True)  # shipped without its discriminator, which measures nothing
    assert find_untrained_parts(vqgan) == []


def test_models_that_pass_on_the_ids_of_their_tokenizer_need_no_weights_for_them():
    for name in ("maskgit_tiny", "ar_transformer_tiny", "seed_llm_tiny"):
        refuse_untrained(zoo.create_model(name), "predict")
        with pytest.raises(ValueError, match="test has no trained"):
            refuse_untrained(zoo.create_model(name), "test")
    with pytest.raises(ValueError, match="predict has no trained BEiT"):
        refuse_untrained(zoo.create_model("beit_tiny"), "predict")


def test_only_callbacks_that_take_predictions_save_them():
    class Mine(Evaluation):
        def on_predict_batch_end(self, *args):
            pass

    refuse_lost_predictions([EMA(), TokenDump("tokens")])
    refuse_lost_predictions([Mine()])
    for callbacks in ([], [EMA(), Evaluation()]):
        with pytest.raises(ValueError, match="throw everything away"):
            refuse_lost_predictions(callbacks)


WRITERS = {
    "llava_tiny": lambda m: m.caption(IMAGES, max_new_tokens=1),
    "minigpt4_tiny": lambda m: m.caption(IMAGES, max_new_tokens=1),
    "blip2_stage2_tiny": lambda m: m.answer(IMAGES, ["What?", "Who?"], max_new_tokens=1),
    "seed_llm_tiny": lambda m: m.caption(IMAGES, max_new_tokens=1),
    "blip2_stage1_tiny": lambda m: m.retrieve(IMAGES, ["a", "b"]),
    "seed_stage1_tiny": lambda m: m.retrieve(IMAGES, ["a", "b"]),
    "maskgit_tiny": lambda m: m.generate(0, 1, steps=1),
    "ar_transformer_tiny": lambda m: m.generate(0, 1),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_an_untrained_model_writes_draws_or_ranks_is_said_to_mean_nothing(name, tmp_path):
    write = WRITERS[name]
    model = zoo.create_model(name)
    with pytest.warns(UserWarning, match=r"is untrained, its weights are random, so what it \w+ means nothing"):
        write(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*untrained")
        write(model)  # once is enough
        write(model_from(f"{name}:random"))  # asked for
        write(zoo.create_model(f"{name}:random"))
        loaded = zoo.create_model(name)
        loaded.load_state_dict(model.state_dict())
        write(loaded)
        trained = zoo.create_model(name)
        trained.losses({"image": IMAGES, "label": torch.tensor([0, 1]), "caption": ["a", "b"]})["loss"].backward()
        write(trained)
        fitted = zoo.create_model(name)
        quiet_trainer(tmp_path, max_steps=1).fit(fitted, ToyData(32, num_classes=9))
        write(fitted)


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_random_weights_are_said_to_be_measured_from_python(command, tmp_path):
    model, data = zoo.create_model("dvae_tiny"), ToyData(32)
    trainer = quiet_trainer(tmp_path, max_steps=1)
    with pytest.warns(UserWarning, match=r"this DVAE is untrained, its weights are random, so what it"):
        getattr(trainer, command)(model, data)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*untrained")
        fresh = zoo.create_model("dvae_tiny")
        trainer.fit(fresh, data)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        getattr(trainer, command)(fresh, data)
        getattr(trainer, command)(zoo.create_model("dvae_tiny"), data, ckpt_path=str(tmp_path / "last.ckpt"))
        again = zoo.create_model(f"ckpt:{tmp_path / 'last.ckpt'}")
        getattr(trainer, command)(again, data)


def test_the_data_must_have_as_many_classes_as_the_model(tmp_path):
    def run(model, classes, command="fit", **overrides):
        getattr(quiet_trainer(tmp_path, max_steps=1), command)(
            zoo.create_model(model, **overrides), ToyData(32, num_classes=classes)
        )

    for model in ("beit_classifier_tiny", "maskgit_tiny", "ar_transformer_tiny"):
        for command in ("fit", "validate", "test"):
            for classes in (5, 10):
                with pytest.raises(ValueError, match=rf"has {classes} classes and this \w+ has 9.*classes={classes}"):
                    run(model, classes, command)
    run("beit_classifier_tiny", 9)
    run("maskgit_tiny", 5, num_classes=0, class_dropout=0.0)  # unconditional: it reads no labels
    run("beit_tiny", 5)


def test_token_shards_know_how_many_classes_their_labels_have(tmp_path):
    from datamodules import TokenData

    model = zoo.create_model("maskgit_tiny")
    for split in ("train", "val"):
        quiet_trainer(tmp_path, callbacks=[TokenDump(str(tmp_path), split)]).predict(model, ToyData(32, num_classes=5))
    data = TokenData(str(tmp_path), batch_size=2)
    with pytest.raises(ValueError, match="TokenData has 5 classes and this MaskGIT has 9"):
        quiet_trainer(tmp_path, max_steps=1).fit(model, data)
    assert data.num_classes == 5
