"""What a run shows: the networks, one bar over all steps with the time left, and a word when it will not validate."""

import io
import re
import sys

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichModelSummary, TQDMProgressBar
from toys import BlurredImageData, TinyTokenizer, Toy, ToyData, quiet_trainer

import zoo
from zoo.callbacks import progress
from zoo.callbacks.progress import RunProgress, RunStart, count, networks_table, no_validation


class Terminal(io.StringIO):
    def isatty(self):
        return True


def train(tmp_path, **options):
    """12 steps of 2 per epoch; gives the trainer."""
    options = {"max_steps": 12, "enable_progress_bar": True} | options
    trainer = quiet_trainer(tmp_path, callbacks=[RunProgress(every=0.0)], **options)
    trainer.fit(Toy(), ToyData())
    return trainer


def test_one_bar_over_all_steps_with_rate_and_time_left(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(progress, "FRESH", 0.0)
    train(tmp_path)
    shown = re.split(r"[\r\n]", sys.stdout.getvalue())
    steps = [int(m[1]) for line in shown if (m := re.match(r"step +(\d+)/12 \|", line))]
    assert steps == sorted(steps)
    assert {1, 5, 12} <= set(steps)
    middle = next(line for line in shown if re.match(r"step +7/12 ", line))
    assert re.search(r"(steps/s|s/step), 00:0\d left, epoch 4, loss [\d.e-]+", middle), middle
    assert "Epoch" not in sys.stdout.getvalue()
    assert "-2" not in sys.stdout.getvalue()
    assert re.search(
        r"step +12/12 \|\S{24}\|, .*epoch 6, loss", next(line for line in reversed(shown) if "12/12" in line)
    )
    assert any(re.match(r"validation +\d+/2 ", line) for line in shown)


def test_without_a_terminal_there_are_lines(tmp_path, capsys):
    train(tmp_path, max_steps=-1, max_epochs=3)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split(",")[0] for line in lines] == [f"step {n}/6" for n in range(1, 7)]
    assert re.fullmatch(r"step 4/6, [\d.]+ (steps/s|s/step), 00:0\d left, epoch 2/3, loss [\d.e-]+", lines[3])


def test_lines_come_now_and_then(tmp_path, capsys):
    trainer = quiet_trainer(tmp_path, max_steps=12, enable_progress_bar=True, callbacks=[RunProgress(every=1000)])
    trainer.fit(Toy(), ToyData())
    assert "step " not in capsys.readouterr().out


def test_steps_are_those_of_the_optimizer(tmp_path, capsys):
    train(tmp_path, max_steps=3, accumulate_grad_batches=2)
    numbers = [line.split(",")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert sorted(set(numbers)) == ["step 0/3", "step 1/3", "step 2/3", "step 3/3"]


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_other_commands_count_batches(tmp_path, monkeypatch, command):
    monkeypatch.setattr(sys, "stdout", Terminal())
    trainer = quiet_trainer(tmp_path, enable_progress_bar=True, callbacks=[RunProgress()])
    getattr(trainer, command)(TinyTokenizer(), BlurredImageData())
    assert re.search(rf"{command} +(\d+)/\1 ", sys.stdout.getvalue())


def test_a_failed_run_leaves_no_bar_open(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    bar = RunProgress()

    class Failing(Toy):
        def losses(self, batch):
            raise RuntimeError("failed")

    with pytest.raises(RuntimeError, match="failed"):
        quiet_trainer(tmp_path, enable_progress_bar=True, num_sanity_val_steps=0, callbacks=[bar], max_steps=2).fit(
            Failing(), ToyData()
        )
    assert bar._bars == []


@pytest.mark.parametrize(
    ("number", "words"), [(7, "7"), (252_900, "253 K"), (86_530_000, "86.5 M"), (7_100_000_000, "7.1 G")]
)
def test_numbers_of_parameters(number, words):
    assert count(number) == words


def test_the_networks_of_a_model(capsys):
    lines = networks_table(zoo.create_model("beit_tiny")).splitlines()
    rows = {line.split()[0]: line for line in lines}
    assert lines[0].split() == ["network", "class", "parameters"]
    assert rows["tokenizer"].split()[1] == "DVAE"
    assert rows["tokenizer"].endswith("frozen")
    model = zoo.create_model("beit_tiny")
    own = count(sum(p.numel() for p in model.parameters()))
    tower = count(sum(p.numel() for p in model.frozen["tokenizer"].parameters()))
    assert lines[-1] == f"{own} parameters are trained, {tower} are frozen"
    assert "FLOPs" not in "\n".join(lines)
    assert max(map(len, lines)) < 80


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_steps": 2}, None),
        ({"max_epochs": 1}, None),
        ({"max_steps": 4, "check_val_every_n_epoch": 2}, None),
        ({"max_steps": 3, "val_check_interval": 2, "check_val_every_n_epoch": None}, None),
        ({"max_steps": 1}, "ends at step 1 without validating, which would first happen after step 2"),
        ({"max_steps": 3, "check_val_every_n_epoch": 2}, "ends at step 3 .* after step 4"),
        ({"max_epochs": 2, "check_val_every_n_epoch": 3}, "ends at step 4 .* after step 6"),
        ({"max_steps": 9, "val_check_interval": 10, "check_val_every_n_epoch": None}, "step 9 .* after step 10"),
        ({"max_steps": 2, "limit_val_batches": 0}, "limit_val_batches is 0"),
    ],
)
def test_a_run_that_never_validates_says_so(tmp_path, options, said):
    found = []

    class Ask(RunStart):
        def on_train_start(self, trainer, pl_module):
            found.append(no_validation(trainer))

    validations = []

    class Model(Toy):
        def on_validation_start(self):
            validations.append(self.trainer.sanity_checking)

    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[Ask()],
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip
    trainer.fit(Model(), ToyData())
    assert (found[0] is None) == bool(validations), (found, validations)
    assert re.search(said, found[0]) if said else found[0] is None


def test_the_command_line_shows_ours_unless_told_otherwise(run_cli, recipe, monkeypatch):
    from zoo.cli import ZooCLI

    made = []
    instantiate = ZooCLI.instantiate_trainer

    def keep(self, **options):
        made.append(instantiate(self, **options))
        return made[-1]

    monkeypatch.setattr(ZooCLI, "instantiate_trainer", keep)
    code, out, err = run_cli("fit", "--config", recipe)
    assert code == 0, err
    assert "parameters are trained" in out, err
    assert "FLOPs" not in out, err
    assert "Epoch 0" not in out, err
    assert isinstance(made[0].progress_bar_callback, RunProgress)
    off = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
    code, out, err = run_cli("fit", "--config", recipe, *off)
    assert code == 0, err
    assert "parameters are trained" not in out, err
    assert made[1].progress_bar_callback is None
    own = ("--trainer.callbacks+=TQDMProgressBar", "--trainer.callbacks+=RichModelSummary")
    assert run_cli("fit", "--config", recipe, *own)[0] == 0
    assert isinstance(made[2].progress_bar_callback, TQDMProgressBar)
    assert [type(c) for c in made[2].callbacks if isinstance(c, (RichModelSummary, RunStart))] == [RichModelSummary]


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")  # Lightning's own word
def test_a_run_without_images_for_validation_says_so(tmp_path, caplog):
    class NoValidation(ToyData):
        def setup(self, stage):
            super().setup(stage)
            self.val = None

    with caplog.at_level("INFO"):
        quiet_trainer(tmp_path, max_steps=2, callbacks=[RunStart()]).fit(Toy(), NoValidation())
    assert "this run does not validate: there are no images for it" in caplog.text


def test_a_smaller_run_through_the_command_line_says_that_it_does_not_validate(run_cli, recipe, caplog):
    with caplog.at_level("INFO"):
        assert run_cli("fit", "--config", recipe, "--trainer.max_steps=1")[0] == 0
    assert "without validating" in caplog.text
    torch.load("runs/toy/last.ckpt", weights_only=True)
