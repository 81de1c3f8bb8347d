"""A run that is told to stop saves, says how to go on, and its exit code says that it was interrupted."""

import json
import os
import shlex
import signal
import sys
from pathlib import Path

import pytest
import torch
from command_line import RECIPE
from patience import meeting
from toys import SignalAt

from zoo.callbacks.interrupt import StopOnSignal
from zoo.checkpoints import pickles

LONG = ("--trainer.enable_progress_bar=false", "--data.count=400", "--trainer.max_steps=20")


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal():
    """A background process starts with some of them ignored."""
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def signalled(step, **settings):
    settings = {"step": step, **settings}
    return "--trainer.callbacks+=" + json.dumps({"class_path": "toys.SignalAt", "init_args": settings})


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129)])
def test_a_signal_saves_after_the_step_and_the_printed_command_goes_on(run_cli, recipe, name, code):
    os.rename("toy.yaml", "my toy.yaml")
    typed = [
        "fit",
        "--config",
        "my toy.yaml",
        *LONG,
        "--trainer.default_root_dir=runs/my toy",
        "--model.optim.lr",
        "0.1",
    ]
    got, _, err = run_cli(*typed, signalled(3, name=name))
    assert got == code
    assert pickles.load(Path("runs/my toy/last.ckpt"))["global_step"] == 4
    line = next(line for line in err.splitlines() if line.startswith("interrupted by"))
    before, _, command = line.partition("; go on with: ")
    assert before == f"interrupted by {name} after step 4, saved runs/my toy/last.ckpt"
    words = shlex.split(command)
    assert words == ["lightning", *typed, signalled(3, name=name), "--ckpt_path", "runs/my toy/last.ckpt"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert run_cli(*words[1:])[0] == 0
    assert pickles.load(Path("runs/my toy/last.ckpt"))["global_step"] == 20


def test_the_command_names_one_checkpoint_however_the_last_one_was_given():
    for given in (["--ckpt_path", "a.ckpt"], ["--ckpt_path=a.ckpt"], []):
        stop = StopOnSignal(["fit", "--config", "a.yaml", *given, "--data.root=a b"])
        said = "lightning fit --config a.yaml '--data.root=a b' --ckpt_path 'runs/a b/last.ckpt'"
        assert stop.command(Path("runs/a b/last.ckpt")) == said


@pytest.mark.slow
def test_a_signal_in_validation_saves_the_trained_weights_and_validates_again(run_cli, recipe):
    every = (*LONG, "--trainer.val_check_interval=5", "--trainer.callbacks+=EMA", "--trainer.callbacks+=ImageGrids")
    fit = ("fit", "--config", recipe, *every)
    got, _, err = run_cli(*fit, signalled(10, where="validation"))
    assert got == 143
    assert "interrupted by SIGTERM after step 10, saved runs/toy/last.ckpt" in err
    stopped = pickles.load(Path("runs/toy/last.ckpt"))
    assert run_cli(*fit, signalled(9), "--trainer.default_root_dir=runs/other")[0] == 143
    whole = pickles.load(Path("runs/other/last.ckpt"))
    for key in ("state_dict", "current_model_state"):
        assert stopped[key].keys() == whole[key].keys()
        assert all(torch.equal(stopped[key][name], whole[key][name]) for name in whole[key])
    assert run_cli(*fit, "--ckpt_path=runs/toy/last.ckpt")[0] == 0
    assert run_cli(*fit, "--trainer.default_root_dir=runs/whole")[0] == 0
    assert Path("runs/toy/metrics.csv").read_text() == Path("runs/whole/metrics.csv").read_text()
    grids = [pickles.load(Path(f"runs/{run}/last.ckpt"))["callbacks"]["ImageGrids"] for run in ("toy", "whole")]
    assert grids[0] == grids[1]
    assert grids[0]["validations"] > 2


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_data_workers_that_get_the_signal_as_well_bring_the_images_that_are_waited_for(run_cli, recipe, name):
    Path(recipe).write_text(Path(recipe).read_text().replace("toys.ToyData", "toys.SignallingData"))
    got, _, err = run_cli("fit", "--config", recipe, *LONG, "--data.batch_size=1", f"--data.name={name}")
    assert got == 128 + getattr(signal, name), err
    assert pickles.load(Path("runs/toy/last.ckpt"))["global_step"] in (4, 5, 6)  # a worker reads ahead


def test_a_second_signal_ends_at_once(run_cli, recipe, monkeypatch):
    monkeypatch.setattr(os, "_exit", lambda code: (_ for _ in ()).throw(SystemExit(1000 + code)))
    got, _, _ = run_cli("fit", "--config", recipe, *LONG, signalled(3, name="SIGINT", times=2))
    assert got == 1130
    assert not Path("runs/toy/last.ckpt").exists()


@pytest.mark.parametrize("where", ["sanity", "test"])
def test_before_training_and_in_a_test_nothing_is_saved_and_the_exit_code_says_so(run_cli, recipe, where):
    command = "test" if where == "test" else "fit"
    random = ["--untrained"] if where == "test" else []
    got, _, err = run_cli(command, "--config", recipe, *LONG, *random, signalled(0, where=where))
    assert got == 143
    assert "interrupted by SIGTERM, nothing was saved" in err
    assert not Path("runs/toy/last.ckpt").exists()
    got, _, err = run_cli(command, "--config", recipe, *LONG, *random, signalled(0, where=where, name="SIGINT"))
    assert got == 130
    assert "nothing was saved" in err


def test_ctrl_c_while_the_data_is_prepared_ends_without_a_traceback(run_cli, recipe, monkeypatch):
    def interrupted(self, stage):
        raise KeyboardInterrupt

    monkeypatch.setattr("toys.ToyData.setup", interrupted)
    got, _, err = run_cli("fit", "--config", recipe)
    assert got == 130
    assert err.strip().splitlines()[-1] == "interrupted before anything was trained"


def test_without_checkpoints_nothing_is_saved_and_the_line_says_so(run_cli, recipe):
    got, _, err = run_cli("fit", "--config", recipe, *LONG, "--trainer.enable_checkpointing=false", signalled(3))
    assert got == 143
    assert "interrupted by SIGTERM after step 4, nothing was saved" in err
    assert not list(Path().glob("**/*.ckpt"))


def test_slurm_requeues_from_the_state_between_two_steps(run_cli, recipe, monkeypatch):
    Path("bin").mkdir()
    Path("bin/scontrol").write_text('#!/bin/sh\necho "$@" >> requeued\n')
    Path("bin/scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path('bin').resolve()}:{os.environ['PATH']}")
    slurm = {"NTASKS": "1", "JOB_NAME": "train", "JOB_ID": "12", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in (slurm | {"NODELIST": "localhost"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    fit = ("fit", "--config", recipe, *LONG)
    got, _, _ = run_cli(*fit, signalled(3, name="SIGUSR1"), signalled(5))
    assert got == 143
    assert Path("requeued").read_text() == "requeue 12\n"
    assert pickles.load(Path("runs/toy/hpc_ckpt_1.ckpt"))["global_step"] == 4
    assert pickles.load(Path("runs/toy/last.ckpt"))["global_step"] == 6
    got, _, err = run_cli(*fit)  # the same command, which the job runs again
    assert got == 0, err
    assert pickles.load(Path("runs/toy/last.ckpt"))["global_step"] == 20
    assert {p.name for p in Path("runs/toy").glob("*-*")} == {"config-1.yaml"}  # the job went on with its record


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_stop_after_the_same_step_whichever_gets_the_signal(in_tmp, rank):
    import subprocess

    Path("toy.yaml").write_text(RECIPE)
    two = ("--trainer.devices=2", "--trainer.strategy=ddp", "--data.count=800")
    command = [sys.executable, "-m", "zoo", "fit", "--config", "toy.yaml", *LONG, *two, signalled(3, rank=rank)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | meeting(), timeout=280)
    assert done.returncode == 143, done.stderr[-3000:]
    assert done.stderr.count("interrupted by SIGTERM after step 4, saved runs/toy/last.ckpt") == 1
    assert pickles.load(Path("runs/toy/last.ckpt"))["global_step"] == 4


def test_signals_that_are_ignored_stay_ignored(run_cli, recipe):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    assert run_cli("fit", "--config", recipe, *LONG, signalled(3, name="SIGHUP"))[0] == 0


def test_the_toy_that_sends_signals_sends_them(tmp_path):
    got = []
    signal.signal(signal.SIGTERM, lambda *received: got.append(received[0]))
    from types import SimpleNamespace

    trainer = SimpleNamespace(global_step=3, global_rank=0)
    SignalAt(2).on_train_batch_start(trainer)
    SignalAt(3, times=2).on_train_batch_start(trainer)
    assert got == [signal.SIGTERM] * 2
