"""The first checkpoint comes early, and the file that is named is there."""

from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from toys import KilledAt, Toy, ToyData

from zoo.callbacks import last_checkpoint
from zoo.callbacks.last_checkpoint import LastCheckpoint
from zoo.checkpoints import pickles

QUIET = "--trainer.enable_progress_bar=false"


class Saves(LastCheckpoint):
    """Notes the steps at which it saves."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.steps = []

    def _save_checkpoint(self, trainer, filepath):
        super()._save_checkpoint(trainer, filepath)
        self.steps.append(trainer.global_step)


def saved_steps(folder, max_steps, count=4000, **settings):
    checkpoint = Saves(folder, **settings)
    trainer = Trainer(
        accelerator="cpu", max_steps=max_steps, logger=False, callbacks=[checkpoint], enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, accumulate_grad_batches=2,
    )  # fmt: skip
    trainer.fit(Toy(), ToyData(count=count))
    return checkpoint.steps


def test_a_run_that_is_killed_in_its_first_epoch_leaves_a_checkpoint(in_tmp):
    trainer = Trainer(
        accelerator="cpu", max_steps=1000, logger=False, callbacks=[LastCheckpoint("run"), KilledAt(130)],
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    with pytest.raises(SystemExit, match=r"^9$"):
        trainer.fit(Toy(), ToyData(count=4000))
    assert pickles.load(Path("run/last.ckpt"))["global_step"] == 100


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_within_an_epoch_saves_come_by_steps_then_by_the_clock_and_at_the_end(tmp_path, monkeypatch):
    assert saved_steps(tmp_path, 150) == [100, 150]
    assert saved_steps(tmp_path, 12, count=40) == [5, 10, 12]  # epochs of five steps
    assert saved_steps(tmp_path, 3) == [3]  # shorter than an epoch
    monkeypatch.setattr(last_checkpoint, "SHARE", 0)
    assert saved_steps(tmp_path, 5, first_minutes=0, every_minutes=1e-7) == [1, 2, 3, 4, 5]


def test_the_clock_is_looked_at_often_enough_and_saving_takes_a_small_share():
    checkpoint = LastCheckpoint("run", first_minutes=0.5, first_steps=100, every_minutes=5)
    checkpoint._first_step, checkpoint._look = 0, 1
    assert checkpoint._plan(1, 0.1) == (False, 11)  # 0.1 s per step, but the first step tells little
    assert checkpoint._plan(1, 31.0) == (True, 10)
    assert checkpoint._plan(1, 3.0) == (False, 10)
    assert checkpoint._plan(100, 1.0) == (True, 200)
    checkpoint._cost, checkpoint._saved = 1.0, 100.0
    assert checkpoint._plan(1000, 100.0 + 299) == (False, 1000 + int(1000 / 399))
    assert checkpoint._plan(1000, 100.0 + 301)[0]
    checkpoint._cost = 60.0  # on a slow disk
    assert not checkpoint._plan(1000, 100.0 + 1199)[0]
    assert checkpoint._plan(1000, 100.0 + 1201)[0]


def test_checkpoints_of_lightnings_callback_go_on(tmp_path):
    assert LastCheckpoint(tmp_path).state_key == ModelCheckpoint(tmp_path).state_key


def test_a_recipe_with_checkpoints_of_its_own_gets_no_others(run_cli, recipe):
    own = "--trainer.callbacks+=" + str(
        {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "own", "filename": "mine", "every_n_train_steps": 1}}
    )
    assert run_cli("fit", "--config", recipe, QUIET, own)[0] == 0
    assert [str(p) for p in Path().glob("**/*.ckpt")] == ["own/mine.ckpt"]


def test_a_recipe_sets_how_often(run_cli, recipe):
    often = ("--trainer.callbacks+=LastCheckpoint", "--trainer.callbacks.first_steps=3")
    killed = "--trainer.callbacks+={class_path: toys.KilledAt, init_args: {step: 5}}"
    assert (
        run_cli("fit", "--config", recipe, QUIET, "--data.count=400", "--trainer.max_steps=9", *often, killed)[0] == 9
    )
    assert pickles.load(Path("runs/toy/last.ckpt"))["global_step"] == 3
    assert [str(p) for p in Path().glob("**/*.ckpt")] == ["runs/toy/last.ckpt"]


def test_no_message_names_a_checkpoint_that_is_not_there(run_cli, recipe):
    text = Path(recipe).read_text().replace("toys.Toy\n", "toys.Exploding\n")
    Path(recipe).write_text(text)
    code, _, err = run_cli("fit", "--config", recipe, QUIET, "--data.count=400", "--trainer.max_steps=9")
    assert code == 1
    assert "the loss is no longer finite at step" in err
    assert "nothing was saved before it" in err
    assert "runs/toy" not in err
    code, _, err = run_cli("fit", "--config", recipe, QUIET, "--data.count=8", "--trainer.max_steps=9")
    assert code == 1
    assert "the last checkpoint before it is runs/toy/last.ckpt" in err
    assert pickles.load(Path("runs/toy/last.ckpt"))["global_step"] == 2
    own = "--trainer.callbacks+={class_path: ModelCheckpoint, init_args: {every_n_epochs: 9}}"
    code, out, _ = run_cli("fit", "--config", recipe, QUIET, "--trainer.max_steps=1", own)
    assert code == 0
    assert ".ckpt" not in out


@pytest.mark.parametrize(("folder", "said"), [("runs/my toy", "runs/my toy"), ("-toy", "{here}/-toy")])
def test_the_last_line_is_quoted_for_a_shell(run_cli, recipe, folder, said):
    import shlex

    out = run_cli("fit", "--config", recipe, QUIET, f"--trainer.default_root_dir={folder}")[1]
    command = out.strip().splitlines()[-1].partition("next: ")[2]
    said = said.format(here=Path.cwd())
    assert shlex.split(command) == [
        "lightning",
        "test",
        "--config",
        f"{said}/config.yaml",
        "--ckpt_path",
        f"{said}/last.ckpt",
    ]
