"""Words that look like numbers stay words, from the command line to the configuration that a run writes and back."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command_line import RECIPE, fit, message
from jsonargparse._loaders_dumpers import yaml_load
from lightning.pytorch import Callback
from lightning.pytorch.cli import SaveConfigCallback
from omegaconf import OmegaConf

import datamodules
import zoo.callbacks
from zoo.cli.yaml_text import dump_yaml

WORDS = [
    "1e-4", "1e3", "1E5", "-1e-4", "+1e6", "1.", ".5", "-.5e-3", "007", "0o17", "0x1F", "0b11", "1_000", "12:30:45",
    "1:2", "2024-01-01", "2024-01-01 10:00:00", "2024-01-01T10:00:00Z", "yes", "No", "ON", "off", "y", "n", "true",
    "False", "null", "NULL", "~", "None", "nan", "NaN", ".nan", "inf", "-inf", ".inf", "=", "<<", "", " ", "a: b",
    "a #b", "- x", "[a]", "{a: b}", "'q'", '"q"', "a\nb", "%d", "!tag", "&a", "*a", "@a", "`", "runs/1e-4", "1e-4x",
    "16-mixed", "3", "-7", "3.0", "1,2", "ü", "C:\\runs", "a ", "?", "|", ">",
]  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_every_reader_reads_the_word(word):
    text = dump_yaml({"a": {"b": word, "c": [word, 1e-4, None, True]}})
    expected = {"a": {"b": word, "c": [word, 1e-4, None, True]}}
    assert yaml.safe_load(text) == expected
    assert yaml_load(text) == expected
    assert OmegaConf.to_container(OmegaConf.create(text)) == expected


def test_numbers_and_ordinary_words_have_no_quotes():
    data = {"lr": 1e-4, "steps": 3, "weights": None, "compile": True, "class": "zoo.DVAE", "root": "runs/dvae"}
    assert "'" not in dump_yaml(data)


@pytest.mark.slow
@pytest.mark.parametrize("word", ["1e-4", "1e3", "007", "0x1F", "1_000", "12:30:45", "2024-01-01", ".5", "yes", "0o17"])
def test_a_word_of_the_command_line_stays_a_word(run_cli, recipe, word):
    flags = (f"--trainer.default_root_dir={word}", f"--model.tokenizer={word}", f"--trainer.profiler={word}")
    code, out, err = run_cli("fit", "--config", recipe, *flags, "--print_config")
    assert code == 0, err
    again = yaml.safe_load(out)
    assert again["trainer"]["default_root_dir"] == again["model"]["init_args"]["tokenizer"] == word
    Path("again.yaml").write_text(out)
    assert run_cli("fit", "--config", "again.yaml", "--print_config")[1] == out


@pytest.mark.parametrize("data", ["ImageFolderData", "CaptionData", "ConversationData", "TokenData"])
def test_a_folder_that_is_called_like_a_number(run_cli, recipe, data):
    captions = data in ("CaptionData", "ConversationData")
    flags = ["--data.root=1e3", *(["--data.annotations=1e-4"] if captions else [])]
    seed = "seed_everything: ${trainer.max_steps}"  # values are written and read again where one names another
    text = RECIPE.replace("${data.init_args.image_size}", "16").replace("seed_everything: 0", seed)
    text = text[: text.index("data:\n")] + text[text.index("trainer:\n") :]
    Path("toy.yaml").write_text(text)
    code, out, err = run_cli("fit", "--config", "toy.yaml", f"--data={data}", *flags, "--print_config")
    assert code == 0, err
    found = yaml.safe_load(out)["data"]["init_args"]
    assert found["root"] == "1e3"
    assert found.get("annotations", "1e-4") == "1e-4"


def test_a_run_in_a_folder_that_is_called_like_a_number(run_cli, recipe):
    fit(run_cli, "--trainer.default_root_dir=1e-4")
    assert yaml.safe_load(Path("1e-4/config.yaml").read_text())["trainer"]["default_root_dir"] == "1e-4"
    code, _, err = run_cli("test", "--config", "1e-4/config.yaml", "--ckpt_path=1e-4/last.ckpt")
    assert code == 0, err
    assert Path("1e-4/test/metrics.csv").exists(), err


# ---------------------------------------------------------------- short names of classes


def own_callbacks():
    """Names of the callbacks in ``zoo.callbacks``, but for the one that Lightning makes itself."""
    for module in pkgutil.iter_modules(zoo.callbacks.__path__):
        for name, value in vars(importlib.import_module(f"zoo.callbacks.{module.name}")).items():
            own = isinstance(value, type) and value.__module__.startswith("zoo.callbacks.")
            if own and issubclass(value, Callback) and not issubclass(value, SaveConfigCallback):
                yield name


TRY = """
import sys
sys.path[:0] = {where}
from zoo.cli import main
for name in {names}:
    try:
        main(["fit", "--config", "toy.yaml", "--trainer.callbacks+=" + name, "--print_config"])
    except SystemExit as stop:
        print("EXIT", name, stop.code)
"""


@pytest.mark.slow
def test_every_callback_of_ours_has_a_short_name(recipe):
    """In a process that has imported none of them: others would know the names by then."""
    names = sorted(set(own_callbacks()))
    assert {"EMA", "TokenDump", "CollapseGuard"} <= set(names)
    where = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    code = TRY.format(where=where, names=names)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    codes = dict(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("EXIT"))
    needs = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert set(codes) == set(names), done.stderr
    assert set(codes.values()) <= {"0", "2"}, done.stderr
    assert all(" needs " in line for line in needs), done.stderr  # TokenDump needs out_dir
    assert list(codes.values()).count("2") == len(needs) < len(names) / 2


@pytest.mark.parametrize("name", [n for n in datamodules.__all__ if n != "ZooDataModule"])
def test_every_data_module_has_a_short_name(run_cli, recipe, name):
    code, _, err = run_cli("fit", "--config", recipe, f"--data={name}", "--print_config")
    assert code == 0 or " needs " in err or "missing" in err, err
    assert "there is no class" not in err


def test_a_name_that_nobody_has_names_the_nearest(run_cli, recipe):
    assert "'TokenDump'" in message(run_cli, "fit", "--config", recipe, "--trainer.callbacks+=TokenDumps")
