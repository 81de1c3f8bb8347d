"""The tables of the command line: quick, true, and no wider than the terminal."""

import json
import os
import subprocess
import sys

import pytest
from toys import Toy

import zoo
from zoo import presets
from zoo.cli import catalog, entry
from zoo.cli import entry as cli
from zoo.runs.table import format_table

HEAVY = (
    "torch", "lightning", "jsonargparse", "omegaconf", "torchmetrics", "transformers", "torchvision", "torch_fidelity",
    "timm", "tensorboard", "scipy", "sympy", "numpy", "PIL", "skimage", "sklearn",
)  # fmt: skip


@pytest.mark.parametrize(
    "code",
    [
        "import zoo; dir(zoo)",
        "import zoo.cli; zoo.cli.main(['--version'])",
        "import zoo.cli; zoo.cli.main(['--help'])",
        "import zoo.cli; zoo.cli.main(['list'])",
        "import zoo.cli; zoo.cli.main(['list', 'beit*'])",
        "import zoo.cli; zoo.cli.main(['recipes'])",
    ],
)
def test_what_needs_no_model_imports_no_heavy_library(code):
    end = f"; import sys; sys.stderr.write(' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code + end], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_first_line_comes_before_the_libraries(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('torch is imported')\n")
    (tmp_path / "lightning.py").write_text("raise ImportError('lightning is imported')\n")
    arguments = ["fit", "--config", "a b.yaml"]
    code = f"import sys; sys.path.insert(0, '.'); sys.argv[1:] = {arguments}; import zoo.cli as c; c.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr.startswith(f"tokenzoo {zoo.__version__}: fit --config 'a b.yaml' ... loading the libraries\n")
    assert "is imported" in done.stderr


def test_without_a_command_the_help_says_which_there_are(run_cli):
    code, out, err = run_cli()
    assert (code, out) == (2, "")
    assert err == run_cli("--help")[1] == cli.HELP
    for command in ("fit", "validate", "test", "predict", "list", "recipes", "copy"):
        assert f" {command} " in err.replace("\n", " ")


@pytest.mark.parametrize("arguments", [["fit", "--print_config"], ["fit", "--help"], ["fit", "--model.help=BEiT"]])
def test_no_line_about_the_start_beside_help_and_configurations(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lightning", *arguments])
    with pytest.raises(SystemExit):
        cli.main()
    assert "loading" not in capsys.readouterr().err


def test_the_table_that_travels_has_every_paper_with_its_presets():
    """Without them ``lightning list`` builds models, which takes seconds."""
    stored = json.loads(catalog.TABLE.read_text(encoding="utf-8"))
    known = {module: paper["registrations"] for module, paper in stored.items()}
    assert known == {module: catalog._digest(path) for module, path in catalog._find_papers().items()}, (
        "registrations changed: run python -c 'import zoo.cli.catalog as c; c.write_table()'"
    )


@pytest.mark.slow
def test_the_table_that_travels_is_that_of_the_registry():
    """A change of sizes needs ``catalog.write_table()``, which builds every model on the meta device."""
    shown = {line.split()[0]: line for line in catalog.format_models().splitlines()[1:]}
    built = format_table(catalog.COLUMNS, [catalog._build_row(name) for name in zoo.list_models()])
    assert shown == {line.split()[0]: line for line in built.splitlines()[1:]}
    assert None not in catalog._read_rows().values(), (
        "registrations changed: run python -c 'import zoo.cli.catalog as c; c.write_table()'"
    )


def test_presets_that_a_program_registered_are_in_the_table(monkeypatch):
    monkeypatch.setattr(presets, "_PRESETS", dict(presets.presets()))
    zoo.register("toy_of_mine", Toy, paper="none", image_size=4, width=2)
    assert "toy_of_mine" in catalog.format_models("*of_mine")
    assert "toy_of_mine" in catalog.format_models()


def test_a_paper_that_changed_its_presets_is_built_anew(monkeypatch):
    monkeypatch.setattr(catalog, "_digest", lambda path: "another")
    assert set(catalog._read_rows()) == set(zoo.list_models())
    assert not any(catalog._read_rows().values())


ROWS = [("a", "x" * 30, "y" * 60), ("bbb", "x", "y")]


@pytest.mark.parametrize(
    ("width", "second"),
    [
        (None, "a     " + "x" * 30 + "  " + "y" * 60),
        (98, "a     " + "x" * 30 + "  " + "y" * 60),
        (80, "a     " + "x" * 30 + "  " + "y" * 41 + "…"),
        (60, "a     " + "x" * 25 + "…  " + "y" * 25 + "…"),
        (40, "a     " + "x" * 30),
        (30, "a     " + "x" * 23 + "…"),
        (10, "a"),
    ],
)
def test_tables_fit_the_terminal(width, second):
    lines = format_table(("name", "title", "expect"), ROWS, width).splitlines()
    assert lines[1] == second
    assert width is None or max(map(len, lines)) <= width


@pytest.mark.parametrize("command", ["list", "recipes"])
def test_the_commands_ask_the_terminal_and_pipes_get_everything(command, run_cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    _, whole, said = run_cli(command)
    assert max(map(len, whole.splitlines())) > 120
    assert said == ""
    monkeypatch.setattr(entry, "terminal_width", lambda: 70)
    narrow = run_cli(command)[1]
    assert max(map(len, narrow.splitlines())) <= 70
    assert len(narrow.splitlines()) == len(whole.splitlines())


@pytest.mark.parametrize(
    ("command", "missing"), [(["list", "vqvae*"], "weights, recipe, paper"), (["recipes"], "expect")]
)
def test_columns_that_a_terminal_has_no_room_for_are_named(command, missing, run_cli, monkeypatch):
    monkeypatch.setattr(entry, "terminal_width", lambda: 80)
    said = run_cli(*command)[2]
    assert said == f"not shown: {missing}; lightning {command[0]} | cat prints all\n"


@pytest.mark.parametrize("arguments", [["help"], ["list", "--help"], ["recipes", "-h"], ["copy", "--help"]])
def test_help_is_there_wherever_it_is_looked_for(arguments, run_cli):
    assert run_cli(*arguments) == (0, cli.HELP, "")


@pytest.mark.parametrize("command", ["list", "recipes", "--help", "--version"])
def test_output_that_nobody_reads_or_that_has_no_room_is_no_traceback(command):
    code = f"import sys; sys.argv[1:] = [{command!r}]; import zoo.cli as c; c.main()"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("arguments", [["list", "zzz*"], ["copy", "nothing"], ["copy", "beit", "/proc/x/y"]])
def test_errors_of_the_quick_commands_are_quick_sentences(arguments):
    code = f"import sys; sys.argv[1:] = {arguments}; import zoo.cli as c\ntry: c.main()\n"
    end = f"finally: sys.stdout.write(' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code + end], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
