"""The command line: composition, run directory, resume, and errors of one line."""

import inspect
import logging
import subprocess
import sys
import sysconfig
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
import yaml
from command_line import RECIPE, fit, message, rows
from lightning.pytorch.cli import LightningCLI

import zoo
from zoo.cli import ZooCLI, main
from zoo.files import recipes as recipe_files
from zoo.files.recipe_header import parse_header


@pytest.fixture
def parsed(run_cli, recipe):
    """Full configuration after parsing, with every value resolved."""

    def parse(*args):
        code, out, err = run_cli("fit", "--config", recipe, *args, "--print_config")
        assert code == 0, err
        return yaml.safe_load(out)

    return parse


# ---------------------------------------------------------------- one value, one place


def sizes(config):
    return config["model"]["init_args"]["image_size"], config["data"]["init_args"]["image_size"]


@pytest.mark.parametrize(
    ("args", "size"),
    [
        ([], 16),
        (["--data.init_args.image_size=32"], 32),
        (["--data.image_size=32"], 32),
        (["--data.init_args.image_size", "24", "--model.init_args.width=5"], 24),
        (["--config", "more.yaml"], 48),
        (["--config", "more.yaml", "--data.image_size=32"], 32),
        (["--data.image_size=32", "--config", "more.yaml"], 48),
    ],
)
def test_interpolation_follows_overrides_and_further_files(parsed, args, size):
    Path("more.yaml").write_text("data:\n  init_args:\n    image_size: 48\n")
    assert sizes(parsed(*args)) == (size, size)


def test_interpolated_value_can_still_be_overridden_itself(parsed):
    assert sizes(parsed("--model.image_size=8")) == (8, 16)


def test_plain_omegaconf_mode_would_be_wrong(recipe, monkeypatch, capsys):
    """Why the parser mode is what it is: should this test fail one day, the simpler mode has been repaired."""
    init = LightningCLI.__init__

    def plain_mode(self, *args, **kwargs):
        kwargs["parser_kwargs"]["parser_mode"] = "omegaconf"
        init(self, *args, **kwargs)

    monkeypatch.setattr(LightningCLI, "__init__", plain_mode)
    with pytest.raises(SystemExit):
        main(["fit", "--config", recipe, "--data.image_size=32", "--print_config"])
    assert sizes(yaml.safe_load(capsys.readouterr().out)) == (16, 32)


def test_both_spellings_of_an_override_and_nested_ones(parsed):
    args = (
        "--model.init_args.tokenizer=dvae_emoji",
        "--model.width=7",
        "--model.optim.lr=0.5",
        "--model.optim.betas=[0.5,0.6]",
    )
    model = parsed(*args)["model"]["init_args"]
    assert (model["tokenizer"], model["width"], model["optim"]["lr"]) == ("dvae_emoji", 7, 0.5)
    assert model["optim"]["betas"] == [0.5, 0.6]
    assert model["optim"]["weight_decay"] == zoo.Optim().weight_decay


def test_several_files_merge_and_lists_can_grow(parsed):
    Path("more.yaml").write_text(
        "model:\n  init_args:\n    width: 9\ntrainer:\n  callbacks+: [{class_path: RichModelSummary}]\n"
    )
    config = parsed(
        "--config", "more.yaml", "--trainer.callbacks+=DeviceStatsMonitor", "--compile", "--matmul_precision=highest"
    )
    assert config["model"]["init_args"]["width"] == 9
    assert config["model"]["init_args"]["optim"]["lr"] == 1e-3
    kinds = [c["class_path"].rpartition(".")[2] for c in config["trainer"]["callbacks"]]
    assert kinds == ["RichModelSummary", "DeviceStatsMonitor"]
    assert config["compile"] is True
    assert config["matmul_precision"] == "highest"


# ---------------------------------------------------------------- runs


def test_a_run_leaves_checkpoint_logs_and_configuration(run_cli, recipe):
    out = fit(run_cli)
    assert " title: Toy\n        of two lines\nexpect: val/loss = 0\n" in out
    assert "lightning test --config runs/toy/config.yaml --ckpt_path" in out.splitlines()[-1]
    run = Path("runs/toy")
    assert {"last.ckpt", "metrics.csv", "config.yaml"} <= {p.name for p in run.iterdir()}
    assert list(run.glob("events.out.tfevents*"))
    assert not list(run.glob("*-v1.ckpt"))
    assert not list(run.glob("epoch=*"))
    assert {"train/loss", "val/loss"} <= set(rows(run / "metrics.csv")[0])
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 2
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["image_size"] == 16


@pytest.mark.parametrize("own_folder", [True, False])
def test_the_command_that_a_run_prints_works_after_flags(run_cli, recipe, own_folder):
    if not own_folder:
        Path(recipe).write_text(RECIPE.replace("  default_root_dir: runs/toy\n", ""))
    line = fit(run_cli, "--model.width=5", "--data.image_size=8", "--data.count=12").splitlines()[-1]
    command = line.partition("next: lightning ")[2].split()
    assert command[:2] == ["test", "--config"]
    code, out, err = run_cli(*command)
    assert code == 0, err
    assert "test/loss" in out, err
    assert Path("runs/toy/test/metrics.csv").exists()
    assert sorted(p.name for p in Path("runs").iterdir()) == ["toy"]


def test_resume_restores_state_and_flags_decide(run_cli, recipe):
    fit(run_cli)
    before = torch.load("runs/toy/last.ckpt", weights_only=True)
    args = ("--ckpt_path=runs/toy/last.ckpt", "--trainer.max_steps=4", "--model.optim.schedule=constant")
    fit(run_cli, *args)
    after = torch.load("runs/toy/last.ckpt", weights_only=True)
    assert (before["global_step"], after["global_step"]) == (2, 4)
    assert after["zoo"]["init_args"]["optim"]["schedule"] == "constant"
    assert after["optimizer_states"][0]["state"][0]["step"] == 4
    assert not any(torch.equal(a, before["state_dict"][n]) for n, a in after["state_dict"].items())


def test_hyper_parameters_in_a_checkpoint_never_win(run_cli, recipe):
    """Stock Lightning lets them override even explicit flags; ZooCLI makes its hook a no-op."""
    fit(run_cli)
    said = message(run_cli, "validate", "--config", recipe, "--ckpt_path=runs/toy/last.ckpt", "--model.width=5", code=1)
    assert "not of this Toy" in said
    assert "size mismatch for net.0.weight" in said


def test_upstream_still_calls_the_checkpoint_hook():
    assert callable(getattr(LightningCLI, "_parse_ckpt_path", None)), "ZooCLI overrides a hook that is gone"
    assert "self._parse_ckpt_path()" in inspect.getsource(LightningCLI.__init__)
    assert ZooCLI._parse_ckpt_path is not LightningCLI._parse_ckpt_path


def test_validate_and_test_write_beside_the_training_logs(run_cli, recipe):
    fit(run_cli)
    metrics = Path("runs/toy/metrics.csv").read_text()
    for command in ("validate", "test"):
        assert run_cli(command, "--config", recipe, "--ckpt_path=runs/toy/last.ckpt")[0] == 0
        assert Path(f"runs/toy/{command}/metrics.csv").exists()
    assert Path("runs/toy/metrics.csv").read_text() == metrics
    assert run_cli("test", "--config", "runs/toy/config.yaml", "--ckpt_path=runs/toy/last.ckpt")[0] == 0


def test_own_logger_and_checkpoint_replace_the_defaults(run_cli, recipe):
    text = "trainer:\n  logger: false\n  callbacks: [{class_path: ModelCheckpoint, init_args: {filename: mine}}]\n"
    Path("own.yaml").write_text(text)
    fit(run_cli, "--config", "own.yaml")
    found = {p.name for p in Path("runs").rglob("*.*")}
    assert "mine.ckpt" in found
    assert not {"last.ckpt", "metrics.csv"} & found


def test_a_run_without_directory_takes_the_name_of_the_recipe(run_cli, recipe):
    Path("other.yaml").write_text(RECIPE.replace("  default_root_dir: runs/toy\n", ""))
    assert run_cli("fit", "--config", "other.yaml", "--trainer.enable_progress_bar=false")[0] == 0
    assert Path("runs/other/last.ckpt").exists()


def test_compile_in_place(run_cli, recipe, monkeypatch):
    called = []
    monkeypatch.setattr(zoo.ZooModule, "compile_networks", lambda self, **options: called.append(type(self).__name__))
    fit(run_cli, "--compile", "--trainer.fast_dev_run=true")
    assert called == ["Toy"]


def test_no_advertising(run_cli, recipe, caplog):
    caplog.set_level(logging.INFO)
    out = fit(run_cli)
    assert "Tip" not in out + caplog.text
    assert "litlogger" not in out + caplog.text


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("width:", "widht:", ["'widht'", "'width'"]),
        ("max_steps:", "max_step:", ["'trainer.max_step'", "'trainer.max_steps'"]),
        ("lr:", "lrr:", ["'optim.lrr'", "'optim.lr'"]),
        ("toys.Toy\n", "toys.Tyo\n", ["'toys.Tyo'", "'toys.Toy'"]),
        ("toys.Toy\n", "zoo.DVEA\n", ["'zoo.DVEA'", "zoo.DVAE"]),
        ("toys.ToyData", "datamodules.EmojiDate", ["'datamodules.EmojiDate'", "datamodules.EmojiData"]),
        ("width: 3", "width: three", ["model.width", "expected int", "'three'"]),
        ("trainer:", "trainr:", ["'trainr.", "'trainer."]),
        ("batch_size: 4", "batchsize: 4", ["'batchsize'", "'batch_size'"]),
        ("data.init_args.image_size}", "data.init_args.size}", ["data.init_args.size", "not found"]),
        ("accelerator: cpu", "logger: {class_path: CSVLoger}", ["'CSVLoger'", "'CSVLogger'"]),
        (
            "accelerator: cpu",
            "callbacks: [{class_path: Timer, init_args: {intervall: step}}]",
            ["'intervall'", "'interval'"],
        ),
    ],
)
def test_typo_in_yaml(run_cli, in_tmp, old, new, named):
    Path("typo.yaml").write_text(RECIPE.replace(old, new, 1))
    said = message(run_cli, "fit", "--config", "typo.yaml")
    assert all(name in said for name in named), said


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--trainer.max_step=3", ["'trainer.max_step'", "'trainer.max_steps'"]),  # no abbreviations
        ("--model.init_args.widt=3", ["'widt'", "'width'"]),
        ("--model.widt=3", ["'widt'", "'width'"]),
        ("--model.optim.l=3", ["'optim.l'", "'optim.lr'"]),
        ("--data.image_siz=3", ["'image_siz'", "'image_size'"]),
        ("--trainr.max_steps=3", ["'trainr.max_steps'", "'trainer.max_steps'"]),
        ("--trainer.max_steps=abc", ["trainer.max_steps", "expected int", "'abc'"]),
        ("--matmul_precision=hi", ["matmul_precision", "'highest', 'high', 'medium'"]),
        ("--model.nothing_like_it=1", ["'nothing_like_it'", "it takes image_size, optim, tokenizer, width"]),
        ("--optimizer.lr=1", ["'optimizer.lr'"]),
        ("--trainer.callbacks+=LearningRateMonitr", ["'LearningRateMonitr'", "'LearningRateMonitor'"]),
    ],
)
def test_typo_in_a_flag(run_cli, recipe, flag, named):
    said = message(run_cli, "fit", "--config", recipe, flag)
    assert all(name in said for name in named), said


def test_unknown_command_and_nothing_to_do(run_cli):
    assert "'fit'" in message(run_cli, "fitt")
    said = message(run_cli, "fit")
    assert "data and model" in said
    assert "--config recipes/" in said


@pytest.mark.parametrize(
    "early", [["--config", "toy.yaml"], ["--config=toy.yaml"], ["-c", "toy.yaml"], ["--model=toys.Toy"]]
)
def test_options_before_the_command_are_told_where_they_belong(run_cli, recipe, early):
    said = message(run_cli, *early, "fit")
    assert said.startswith("error: 'lightning' takes no 'model")
    assert "after fit" in said
    assert len(said) < 200
    assert said.endswith("as in lightning fit --config recipes/beit.yaml")


@pytest.mark.parametrize(
    ("preset", "how"),
    [
        ("dvae_emoji", "--config recipes/dvae.yaml, or --model DVAE"),
        ("beit_base_patch16_224_in1k", "--config recipes/paper/beit_base_imagenet1k.yaml, or --model BEiT"),
        ("dvae_tiny", "--model DVAE and its settings"),
    ],
)
def test_a_preset_is_no_class(run_cli, recipe, preset, how):
    for flag in ([f"--model={preset}"], ["--model", preset]):
        assert message(run_cli, "fit", *flag) == f"error: model: {preset!r} is a preset, not a class: {how}"
    assert "is a preset" in message(run_cli, "fit", "--config", recipe, f"--model={preset}")


def test_model_errors_are_one_line_unless_asked_for(run_cli, recipe, monkeypatch):
    args = ("fit", "--config", recipe, "--data.batch_size=0")
    assert message(run_cli, *args, code=1) == "error: batch_size must be at least 1, got 0"
    monkeypatch.setenv("TOKENZOO_TRACEBACK", "1")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        main(list(args))


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_images_are_one_line_with_and_without_workers(run_cli, recipe, workers):
    from PIL import Image

    Path("images").mkdir()
    for i in range(20):
        Image.new("RGB", (20, 20), (i, 0, 0)).save(f"images/{i}.png")
    for i in range(10, 20):
        Path(f"images/{i}.png").write_text("no image")
    data = ("--data=ImageFolderData", "--data.root=images", "--data.val_fraction=0.2", f"--data.num_workers={workers}")
    said = message(run_cli, "fit", "--config", recipe, "--trainer.num_sanity_val_steps=0", *data, code=1)
    assert "images cannot be used, more than max_broken=0.01 allows: 1" in said
    assert "Caught" not in said
    assert said.endswith("repair or remove them, or raise max_broken")


def test_bugs_in_a_worker_keep_their_traceback(recipe):
    with pytest.raises(IndexError, match=r"Caught IndexError in DataLoader worker(.|\n)*toys\.py"):
        main(["fit", "--config", recipe, "--data=toys.BuggyData", "--trainer.enable_progress_bar=false"])
    with pytest.raises(ValueError, match=r"Caught ValueError in DataLoader worker(.|\n)*no zoo"):
        main(["fit", "--config", recipe, "--data=toys.BuggyData", "--data.raises=true"])


def test_bugs_keep_their_traceback(recipe):
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        main(["fit", "--config", recipe, "--model=toys.Buggy", "--trainer.enable_progress_bar=false"])


def test_divergence_ends_the_run_and_keeps_the_last_good_checkpoint(run_cli, recipe):
    Path(recipe).write_text(RECIPE.replace("toys.Toy\n", "toys.Exploding\n"))
    said = message(run_cli, "fit", "--config", recipe, "--trainer.max_steps=8", code=1)
    assert "no longer finite at step 3" in said
    assert "runs/toy" in said
    saved = torch.load("runs/toy/last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert all(v.isfinite().all() for v in saved["state_dict"].values())


# ---------------------------------------------------------------- recipes in the package


@pytest.fixture
def package(in_tmp, monkeypatch):
    """A package with two recipes, and an empty working directory."""
    root = in_tmp / "site" / "recipes"
    (root / "paper").mkdir(parents=True)
    (root / "toy.yaml").write_text(RECIPE)
    (root / "paper" / "toy_big.yaml").write_text(RECIPE.replace("width: 3", "width: 30"))
    monkeypatch.setattr(recipe_files, "_PLACES", (root,))
    return root


@pytest.mark.parametrize(
    ("typed", "width"), [("recipes/toy.yaml", 3), ("toy", 3), ("toy.yaml", 3), ("recipes/paper/toy_big.yaml", 30)]
)
@pytest.mark.parametrize("flag", ["--config {}", "--config={}", "-c {}"])
def test_packaged_recipe_is_found_and_said(run_cli, package, typed, width, flag):
    code, out, err = run_cli("fit", *flag.format(typed).split(), "--print_config")
    assert code == 0
    assert yaml.safe_load(out)["model"]["init_args"]["width"] == width
    assert err.strip().splitlines() == [f"{typed} is not here, using the packaged recipe {_found(package, typed)}"]


def _found(package, typed):
    return package / f"{typed.removeprefix('recipes/').removesuffix('.yaml')}.yaml"


def test_local_recipe_wins_silently(run_cli, package):
    Path("recipes").mkdir()
    Path("recipes/toy.yaml").write_text(RECIPE.replace("width: 3", "width: 4"))
    code, out, err = run_cli("fit", "--config", "recipes/toy.yaml", "--print_config")
    assert code == 0
    assert err == ""
    assert yaml.safe_load(out)["model"]["init_args"]["width"] == 4


def test_unknown_recipe(run_cli, package):
    assert "recipes/toy.yaml" in message(run_cli, "fit", "--config", "recipes/tyo.yaml")
    assert "lightning recipes" in message(run_cli, "fit", "--config=something_else.yaml")


def test_recipes_and_copy(run_cli, package):
    _, out, _ = run_cli("recipes")
    assert [line.split()[0] for line in out.splitlines()] == [
        "recipe",
        "recipes/paper/toy_big.yaml",
        "recipes/toy.yaml",
    ]
    assert run_cli("copy", "toy")[1] == "copied to toy.yaml\n"
    assert Path("toy.yaml").read_text() == RECIPE
    assert "toy.yaml exists" in message(run_cli, "copy", "recipes/toy.yaml", code=1)
    assert run_cli("copy", "paper/toy_big", "big.yaml")[0] == 0
    assert Path("big.yaml").exists()
    assert "copy RECIPE" in message(run_cli, "copy")


def test_header_values_may_take_several_lines(tmp_path):
    lines = [
        "# title: A",
        "# run: one",
        "#      two",
        "# (a remark)",
        "#   not more of run",
        "# expect: b: c",
        "",
        "x: 1",
    ]
    (tmp_path / "x.yaml").write_text("\n".join([*lines, "# paper: below the header"]))
    assert parse_header(tmp_path / "x.yaml") == {"title": "A", "run": "one\ntwo", "expect": "b: c"}
    (tmp_path / "y.yaml").write_text("x: 1\n")
    assert parse_header(tmp_path / "y.yaml") == {}


# ---------------------------------------------------------------- table and doors


def test_the_list_shows_every_model_with_its_facts(run_cli):
    code, out, _ = run_cli("list")
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines[1:]] == zoo.list_models()
    row = next(line for line in lines if line.startswith("dvae_openai "))
    for value in ("DVAE", "97.62 M", "1024 x 8192", "pixels", "to download", "arXiv:2102.12092"):
        assert value in row
    assert [line.split()[0] for line in run_cli("list", "dvae*")[1].splitlines()[1:]] == zoo.list_models("dvae*")
    assert "no model matches 'xyz'" in message(run_cli, "list", "xyz", code=1)


def test_three_doors_lead_to_the_same_command():
    scripts = {e.name: e.value for e in entry_points(group="console_scripts") if e.value.startswith("zoo.")}
    assert scripts == {"lightning": "zoo.cli:main", "tokenzoo": "zoo.cli:main"}
    doors = [[Path(sysconfig.get_path("scripts")) / "lightning"], [sys.executable, "-m", "zoo"]]
    for door in doors:  # lightning-sdk and litserve would take the first one over
        done = subprocess.run([*door, "--version"], capture_output=True, text=True, check=True)
        assert f"tokenzoo {zoo.__version__}" in done.stdout


def test_help_of_a_model_shows_its_docstring(run_cli):
    code, out, _ = run_cli("fit", "--model.help=zoo.DVAE")
    assert code == 0
    assert "--model.vocab_size" in out
    assert "temperature of the relaxation" in out


def test_a_module_in_the_working_directory_is_found_but_shadows_nothing(run_cli, recipe):
    Path("mine.py").write_text("import toys\n\n\nclass Mine(toys.Toy):\n    pass\n")
    Path("yaml.py").write_text("raise RuntimeError('shadowed')\n")
    code, out, err = run_cli("fit", "--config", recipe, "--model=mine.Mine", "--print_config")
    assert code == 0, err
    assert yaml.safe_load(out)["model"]["class_path"] == "mine.Mine", err
    sys.modules.pop("mine")


def test_a_missing_argument_of_a_class_is_not_a_missing_recipe(run_cli, recipe):
    out = message(run_cli, "fit", "--config", recipe, "--trainer.callbacks+=zoo.callbacks.TokenDump")
    assert "TokenDump needs out_dir: add --trainer.callbacks.out_dir=VALUE" in out


def test_checkpoint_of_another_model_in_one_short_line(run_cli, recipe):
    fit(run_cli)
    torch.save(
        torch.load("runs/toy/last.ckpt") | {"state_dict": {f"key{i}": torch.ones(1) for i in range(99)}}, "a.ckpt"
    )
    out = message(run_cli, "fit", "--config", recipe, "--trainer.max_steps=9", "--ckpt_path=a.ckpt", code=1)
    assert "is not of this" in out
    assert "use the recipe and flags that made it" in out
    assert len(out) < 400


@pytest.mark.slow
def test_importing_the_zoo_costs_little_more_than_lightning():
    """Heavy libraries are imported where they are used."""

    def seconds(module):
        code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
        runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True) for _ in range(3)]
        return min(float(run.stdout) for run in runs)

    code = "import sys, zoo; print(*sorted({'timm', 'torchvision', 'PIL', 'skimage', 'sklearn'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    baseline = "import sys, lightning; print(*sys.modules)"
    already = subprocess.run([sys.executable, "-c", baseline], capture_output=True, text=True).stdout.split()
    assert set(loaded) <= set(already)
    assert seconds("zoo") < 1.3 * seconds("lightning")


def test_arguments_that_are_no_text_are_refused_in_a_sentence(run_cli):
    """A configuration file could not hold them, and the parser fails on them without naming one."""
    code, out, err = run_cli("fit", "--config", "toy.yaml", "--data.root=d\udce9ta")
    assert code == 2
    assert err.splitlines()[-1] == (
        "error: '--data.root=d\\udce9ta' holds bytes that are no UTF-8, which no configuration can: rename what it "
        "names, or give it a second name by ln -s"
    )
