"""Settings that cannot work end with one sentence that says what to do; bugs keep their traceback."""

import errno
import os
import re
from datetime import timedelta
from pathlib import Path

import pytest
from command_line import RECIPE, message

import zoo
from zoo.cli.recipes import resolve_arguments
from zoo.cli.sentences import find_sentence
from zoo.cli.settings import check_run_folder, check_trainer
from zoo.files import recipes as recipe_files

# ---------------------------------------------------------------- settings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model.optim.lr=-1"], "optim.lr must be a number and not negative, got -1.0"),
        (["--trainer.logger=WandbLogger"], "pip install -U 'wandb"),
        (["--trainer.logger=CometLogger"], "pip install -U 'comet-ml"),
        (
            ["--trainer.logger+=WandbLogger"],
            "lightning.pytorch.loggers.WandbLogger cannot be built: Requirement 'wandb",
        ),
        (["--trainer.logger=MLFlowLogger"], "pip install -U 'mlflow"),
        (["--trainer.val_check_interval=5"], "val_check_interval=5 is longer than an epoch, which has 2 batches"),
        (["--trainer.val_check_interval=1.5"], "val_check_interval"),
        (["--trainer.limit_train_batches=-1"], "limit_train_batches"),
        (["--trainer.limit_val_batches=2.5"], "limit_val_batches"),
        (["--trainer.devices=foo"], "`devices` selected with `CPUAccelerator` should be an int > 0"),
        (["--trainer.accelerator=gpu"], "no GPU here that torch can use: leave --trainer.accelerator and"),
        (["--trainer.accelerator=cuda"], "no CUDA device here that torch can use: leave --trainer.accelerator"),
        (["--trainer.accelerator=mps"], "no MPS device here that torch can use: leave --trainer.accelerator"),
        (["--trainer.accelerator=tpu"], "torch_xla"),
        (["--trainer.accelerator=foo"], "Available names are: auto"),
        (["--trainer.strategy=foo"], "invalid strategy name"),
        (["--trainer.strategy=fsdp"], "requires a GPU"),
        (["--trainer.gradient_clip_algorithm=foo", "--trainer.gradient_clip_val=1"], "Allowed algorithms"),
        (["--trainer.max_time=abc"], "DD:HH:MM:SS"),
        (["--trainer.profiler=foo"], "can only be one of"),
        (
            ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val/no"],
            "could not find the",
        ),
        (["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_top_k=-7"], "save_top_k=-7"),
        (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/no"], "val/no"),
        (["--seed_everything=-1"], "-1 is not in bounds"),
        (["--model.width=-1"], "toys.Toy cannot be built with width=-1"),
        (["--trainer.default_root_dir=a_file"], "nothing can be written to a_file"),
        (["--trainer.default_root_dir=a_file/x"], "a_file is a file"),
        (["--trainer.default_root_dir=/proc/x"], "written to /proc/x"),
        (["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=a_file"], "a_file"),
        (["--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=a_file"], "a_file"),
        (["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath=a_file"], "a_file"),
        (["--trainer.max_steps=0"], "trainer.max_steps=0 trains nothing"),
    ],
)
def test_settings_that_cannot_work(run_cli, recipe, flags, said):
    Path("a_file").touch()
    quiet = ("--trainer.enable_progress_bar=false", "--trainer.num_sanity_val_steps=0")
    assert said in message(run_cli, "fit", "--config", recipe, *quiet, *flags, code=1)


GOOD = {"max_steps": 3, "devices": "auto", "num_nodes": 1, "val_check_interval": 0.5, "limit_train_batches": None}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"max_steps": 0}, "max_steps=0 trains nothing"),
        ({"max_epochs": 0}, "max_epochs=0 trains nothing"),
        ({"limit_train_batches": 0}, "limit_train_batches=0 trains nothing"),
        ({"limit_train_batches": 0.0}, "limit_train_batches=0.0 trains nothing|limit_train_batches=0 trains nothing"),
        ({"max_steps": -5}, "cannot be -5"),
        ({"max_epochs": -3}, "cannot be -3"),
        ({"min_epochs": -3}, "cannot be -3"),
        ({"num_sanity_val_steps": -2}, "cannot be -2"),
        ({"val_check_interval": 0}, "limit_val_batches=0 switches validation off"),
        ({"val_check_interval": -1.0}, "above 0"),
        ({"check_val_every_n_epoch": 0}, "limit_val_batches=0 switches validation off"),
        ({"accumulate_grad_batches": 0}, "above 0"),
        ({"num_nodes": -1}, "above 0"),
        ({"gradient_clip_val": -1.0}, "not be negative"),
        ({"log_every_n_steps": -1}, "not be negative"),
        ({"devices": 0}, "nothing to run on"),
        ({"devices": "0"}, "nothing to run on"),
        ({"devices": "-5"}, "nothing to run on"),
        ({"devices": []}, "nothing to run on"),
        ({"devices": "640", "accelerator": "cpu"}, "would start 640 processes on .* CPU.*--oversubscribe"),
        ({"devices": 640, "accelerator": "cpu"}, "would start 640 processes"),
        ({"max_time": "00:00:00:00"}, "max_time=00:00:00:00 trains nothing"),
        ({"max_time": {"minutes": 0}}, "trains nothing"),
        ({"max_time": timedelta(seconds=-3)}, "trains nothing"),
        ({"barebones": True}, "fast_dev_run"),
    ],
)
def test_numbers_of_the_trainer(setting, said):
    with pytest.raises(ValueError, match=said):
        check_trainer(GOOD | setting, "fit")


@pytest.mark.parametrize(
    "setting",
    [{}, {"max_steps": -1}, {"devices": "-1"}, {"devices": [0, 1]}, {"devices": "1"}, {"gradient_clip_val": 0.0},
     {"val_check_interval": None}, {"check_val_every_n_epoch": None}, {"fast_dev_run": True, "max_steps": 0},
     {"limit_val_batches": 0}, {"max_time": "00:00:01:00"}, {"num_sanity_val_steps": -1}],
)  # fmt: skip
def test_settings_that_work_are_left_alone(setting):
    check_trainer(GOOD | setting, "fit")


def test_more_processes_than_cpus_where_that_is_meant():
    check_trainer(GOOD | {"devices": "640", "accelerator": "cpu"}, "fit", oversubscribe=True)
    check_trainer(GOOD | {"devices": "2", "accelerator": "cpu"}, "fit")


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_command_without_batches_has_nothing_to_do(command):
    check_trainer(GOOD | {"max_steps": 0}, command)
    limit = "limit_val_batches" if command == "validate" else f"limit_{command}_batches"
    with pytest.raises(ValueError, match=f"{limit}=0 leaves nothing to {command}"):
        check_trainer(GOOD | {limit: 0}, command)


def test_nothing_is_made_where_a_folder_is_checked(in_tmp):
    check_run_folder("a/b/c")
    check_run_folder(None)
    check_run_folder("s3://bucket/run")
    assert list(in_tmp.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else(in_tmp):
    (in_tmp / "theirs").mkdir(mode=0o500)
    with pytest.raises(ValueError, match="theirs may not be written to"):
        check_run_folder("theirs/run")


# ---------------------------------------------------------------- which errors are for the user


def raised(code, namespace=None):
    try:
        exec(compile(code, "a_library.py", "exec"), {"__name__": "a_library"} | (namespace or {}))
    except Exception as error:
        return error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST])
def test_what_the_machine_refuses_is_a_sentence_wherever_it_happens(number):
    error = raised("raise OSError(number, os.strerror(number), 'runs/x/last.ckpt')", {"os": os, "number": number})
    assert re.match(rf"runs/x/last.ckpt: {os.strerror(number)}: .+--trainer.default_root_dir=DIR", find_sentence(error))
    nameless = raised("raise OSError(number, os.strerror(number))", {"os": os, "number": number})
    assert find_sentence(nameless).startswith(os.strerror(number))


def test_a_full_disk_under_torch_save():
    message = "PytorchStreamWriter failed writing file data/3: file write failed"
    assert "free some space" in find_sentence(raised(f"raise RuntimeError({message!r})"))
    message = "[enforce fail at inline_container.cc:664] . unexpected pos 384 vs 266"
    assert "free some space" in find_sentence(raised(f"raise RuntimeError({message!r})"))


@pytest.mark.parametrize(
    "code",
    [
        "raise ValueError('bad luck')",
        "raise RuntimeError('mat1 and mat2 shapes cannot be multiplied')",
        "{}['key']",
        "open('/nowhere/at/all')",
        "raise TypeError('a bug')",
    ],
)
def test_other_errors_keep_their_traceback(code):
    assert find_sentence(raised(code)) is None


def test_errors_of_lightning_inside_our_own_code_are_bugs():
    from lightning.pytorch import Trainer

    code = "import lightning.pytorch as pl\npl.Trainer(profiler='foo', logger=False)"
    assert find_sentence(raised(code, {"Trainer": Trainer})) is not None  # it says MisconfigurationException itself
    code = "from lightning.pytorch.callbacks import Timer\nTimer(duration=3.5)"
    assert find_sentence(raised(code, {"__name__": "zoo.models.dvae"})) is None


# ---------------------------------------------------------------- recipes in the wrong place


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        (["fit", "recipes/dvae.yaml"], "lightning fit --config recipes/dvae.yaml"),
        (["fit", "toy.yaml"], "lightning fit --config toy.yaml"),
        (["fit", "dvae"], "lightning fit --config recipes/dvae.yaml"),
        (["fit", "toy.yaml", "--trainer.max_steps=3"], "lightning fit --config toy.yaml --trainer.max_steps=3"),
        (["test", "toy.yaml", "--ckpt_path", "a b"], "lightning test --config toy.yaml --ckpt_path 'a b'"),
        (["fit", "--config", "toy.yaml", "more.yml"], "lightning fit --config toy.yaml --config more.yml"),
        (["recipes/dvae.yaml"], "lightning fit --config recipes/dvae.yaml"),
        (["fit", "-config", "toy.yaml"], "lightning fit --config toy.yaml"),
        (["fit", "-config=toy.yaml"], "lightning fit --config=toy.yaml"),
    ],
)
def test_a_recipe_without_its_flag_is_told_the_right_command(run_cli, recipe, arguments, right):
    assert message(run_cli, *arguments) == f"error: a recipe stands behind --config: write {right}"


def test_values_that_look_like_recipes_stay_where_they_are(in_tmp):
    arguments = ["fit", "--config", "toy.yaml", "--data.annotations", "my.yaml", "--data.root=x.yaml"]
    Path("toy.yaml").write_text(RECIPE)
    assert resolve_arguments(arguments, {}) == arguments


def test_a_file_that_is_no_configuration(run_cli, in_tmp):
    Path("notes.txt").write_text("some words")
    assert "holds no settings" in message(run_cli, "fit", "--config", "notes.txt")


def test_a_recipe_that_is_no_text(run_cli, in_tmp):
    Path("picture.yaml").write_bytes(b"\x89PNG\r\n")
    assert "picture.yaml is no text in UTF-8" in message(run_cli, "fit", "--config", "picture.yaml")


def test_loggers_that_this_lightning_does_not_have(run_cli, recipe):
    said = message(run_cli, "fit", "--config", recipe, "--trainer.logger=LitLogger")
    assert "LitLogger needs a package that is not installed" in said


# ---------------------------------------------------------------- recipes that need the file of another one

FILES = sorted(
    {(name, path) for name, file in recipe_files.packaged_recipes().items()
     for path in re.findall(r"^(?!#).*?(runs/[\w/.-]+\.ckpt)", file.read_text(), re.MULTILINE)}
)  # fmt: skip


def test_some_recipes_need_others():
    assert {"blip2_stage2", "seed_stage2", "minigpt4", "llava_finetune"} <= {name for name, _ in FILES}


@pytest.mark.parametrize(("name", "path"), FILES)
def test_the_command_that_makes_a_file_is_named(in_tmp, name, path):
    said = recipe_files.suggest_recipe(path)
    maker = Path(path).parts[1]
    assert re.search(rf"lightning fit --config recipes/(paper/)?{maker}\.yaml", said), said
    Path(path).parent.mkdir(parents=True)
    Path(path).touch()
    assert recipe_files.suggest_recipe(path) == ""


def test_a_chain_of_recipes_stands_in_order(in_tmp):
    said = recipe_files.suggest_recipe("runs/blip2_stage2/last.ckpt")
    one, two = "lightning fit --config recipes/blip2_stage1.yaml", "lightning fit --config recipes/blip2_stage2.yaml"
    assert said == f"; make it with {one} and then {two}"
    Path("runs/blip2_stage1").mkdir(parents=True)
    Path("runs/blip2_stage1/last.ckpt").touch()
    assert recipe_files.suggest_recipe("runs/blip2_stage2/last.ckpt") == f"; make it with {two}"
    assert recipe_files.suggest_recipe("runs/my_own/last.ckpt") == recipe_files.suggest_recipe("elsewhere.ckpt") == ""


@pytest.mark.parametrize("weights", ["runs/dvae/last.ckpt", "ckpt:runs/dvae/last.ckpt"])
def test_missing_weights_of_a_recipe_name_its_command(in_tmp, weights):
    command = "lightning fit --config recipes/dvae.yaml"
    with pytest.raises(FileNotFoundError, match=f"make it with {command}"):
        zoo.create_model("dvae_tiny", weights=weights)
    with pytest.raises(FileNotFoundError, match=f"make it with {command}"):
        zoo.create_model("dvae_tiny:runs/dvae/last.ckpt")
    with pytest.raises(FileNotFoundError, match=f"make it with {command}"):
        zoo.create_model("ckpt:runs/dvae/last.ckpt")


def test_a_missing_checkpoint_of_a_recipe_names_its_command(run_cli, recipe):
    said = message(run_cli, "test", "--config", recipe, "--ckpt_path=runs/dvae/last.ckpt", code=1)
    assert "make it with lightning fit --config recipes/dvae.yaml" in said
