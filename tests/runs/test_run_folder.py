"""The folder of a run: the record of an earlier one is kept, one process writes at a time, a full disk is said."""

import contextlib
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import fit, message, rows
from patience import meeting
from small_disk import small_disk  # noqa: F401 - a fixture

from zoo.checkpoints import pickles
from zoo.files import lock as folder_lock
from zoo.files.lock import FolderLock

ROOT = str(Path(__file__).parents[2])


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_second_run_keeps_the_record_of_the_first_under_one_number(run_cli, recipe, caplog):
    run = Path("runs/toy")
    fit(run_cli)
    first = contents(run)
    caplog.set_level("INFO")
    fit(run_cli, "--model.optim.lr=0.1")
    second = contents(run)
    for name in ("last.ckpt", "config.yaml", "metrics.csv", "hparams.yaml"):
        kept = Path(f"{Path(name).stem}-1{Path(name).suffix}")
        assert second[kept] == first[Path(name)]
        assert second[Path(name)] != first[Path(name)]
        assert f"runs/toy/{kept}" in caplog.text
    events = [name for name in first if "tfevents" in name.name]
    assert len(events) == 1
    assert second[Path("tensorboard-1") / events[0]] == first[events[0]]
    assert len([name for name in second if "tfevents" in name.name and name.parent == Path()]) == 1
    fit(run_cli, "--trainer.logger=false", "--model.optim.lr=0.2")
    assert contents(run)[Path("last-2.ckpt")] == second[Path("last.ckpt")]
    assert contents(run)[Path("config-2.yaml")] == second[Path("config.yaml")]
    assert b"lr: 0.2" in contents(run)[Path("config.yaml")]
    assert not (run / "metrics.csv").exists()


OWN = "{class_path: CSVLogger, init_args: {save_dir: runs/toy, name: '', version: ''}}"
BAD = {
    "parsing": ["--model.optim.lr=x"],
    "the model": ["--model.optim.lr=-1"],
    "the checkpoint": ["--ckpt_path=nothing.ckpt"],
    "the data": ["--data.batch_size=99"],
    "the sanity check": ["--trainer.callbacks+=toys.FailsInValidation"],
    "another command": ["--trainer.fast_dev_run=true"],
}


@pytest.mark.slow
@pytest.mark.parametrize("what", BAD)
def test_a_command_that_does_not_train_leaves_the_record_as_it_is(run_cli, recipe, what):
    fit(run_cli)
    before = contents("runs")
    for own in (
        [],
        ["--trainer.logger={class_path: CSVLogger, init_args: {save_dir: runs/toy, name: '', version: ''}}"],
    ):
        with contextlib.suppress(Exception):  # of a bug
            run_cli("fit", "--config", recipe, *own, *BAD[what])
        assert contents("runs") == before


@pytest.mark.parametrize("own", [False, True])
def test_testing_leaves_the_record_of_the_training_as_it_is(run_cli, recipe, own):
    fit(run_cli)
    before = contents("runs/toy")
    logger = OWN if own else "false"
    for command in ("test", "validate"):
        code, _, err = run_cli(
            command, "--config", recipe, f"--trainer.logger={logger}", "--ckpt_path=runs/toy/last.ckpt"
        )
        assert code == 0, err
        after = contents("runs/toy")
        assert Path(command) / "config.yaml" in after
        assert after[Path("config.yaml")] == before[Path("config.yaml")]
        assert after[Path("metrics.csv")].startswith(before[Path("metrics.csv")]) or own
        assert [r["step"] for r in rows("runs/toy/metrics.csv")][:2] == ["0", "1"]


def test_a_test_that_fails_leaves_the_record_of_the_last_one(run_cli, recipe):
    fit(run_cli)
    assert run_cli("test", "--config", recipe, "--ckpt_path=runs/toy/last.ckpt")[0] == 0
    before = contents("runs")
    assert Path("toy/test/metrics.csv") in before
    assert run_cli("test", "--config", recipe, "--data.batch_size=99", "--ckpt_path=runs/toy/none.ckpt")[0] == 1
    assert contents("runs") == before


def test_a_run_that_goes_on_has_one_file_of_metrics_and_one_checkpoint(run_cli, recipe):
    quiet = ("--data.count=40", "--trainer.enable_progress_bar=false")
    run_cli("fit", "--config", recipe, *quiet, "--trainer.max_steps=20", "--trainer.default_root_dir=runs/whole")
    run_cli("fit", "--config", recipe, *quiet, "--trainer.max_steps=10")
    run_cli("fit", "--config", recipe, *quiet, "--trainer.max_steps=20", "--ckpt_path=runs/toy/last.ckpt")
    names = {p.name for p in Path("runs/toy").iterdir() if "tfevents" not in p.name}
    assert names == {"last.ckpt", "config.yaml", "config-1.yaml", "metrics.csv", "hparams.yaml"}  # of 10 and 20 steps
    assert [r["step"] for r in rows("runs/toy/metrics.csv")] == [r["step"] for r in rows("runs/whole/metrics.csv")]
    assert "max_steps: 20" in Path("runs/toy/config.yaml").read_text()
    assert "max_steps: 10" in Path("runs/toy/config-1.yaml").read_text()


def test_rows_after_the_checkpoint_are_written_by_the_run_that_goes_on(run_cli, recipe):
    killed = "--trainer.callbacks+={class_path: toys.KilledAt, init_args: {step: 130}}"
    quiet = ("--data.count=800", "--trainer.enable_progress_bar=false", "--trainer.max_steps=140")
    assert run_cli("fit", "--config", recipe, *quiet, killed)[0] == 9
    assert len(rows("runs/toy/metrics.csv")) == 130
    lost = Path("runs/toy/metrics.csv").read_bytes()
    Path("runs/toy/metrics.csv").write_bytes(lost[:-7])  # killed while it was writing
    assert run_cli("fit", "--config", recipe, *quiet, "--ckpt_path=runs/toy/last.ckpt")[0] == 0
    train = [r["step"] for r in rows("runs/toy/metrics.csv") if r["train/loss"]]
    assert train == [str(step) for step in range(140)]
    assert not list(Path("runs/toy").glob("metrics-*"))


def test_going_on_from_an_old_checkpoint_keeps_what_came_after_it(run_cli, recipe):
    fit(run_cli, "--trainer.max_steps=2")
    old = Path("runs/toy/last.ckpt").rename("old.ckpt")
    fit(run_cli, "--trainer.max_steps=4", f"--ckpt_path={old}")
    four = contents("runs/toy")
    fit(run_cli, "--trainer.max_steps=6", f"--ckpt_path={old}")
    after = contents("runs/toy")
    assert after[Path("last-2.ckpt")] == four[Path("last.ckpt")]
    assert after[Path("metrics-2.csv")] == four[Path("metrics.csv")]
    steps = [r["step"] for r in rows("runs/toy/metrics.csv") if r["train/loss"]]
    assert steps == list("012345")
    assert old.exists()


def test_a_run_that_goes_on_but_fails_before_it_saves_leaves_configuration_and_checkpoint_together(run_cli, recipe):
    fit(run_cli)
    before = contents("runs/toy")
    killed = "--trainer.callbacks+={class_path: toys.KilledAt, init_args: {step: 2}}"
    go_on = ("--trainer.max_steps=9", "--ckpt_path=runs/toy/last.ckpt")
    assert run_cli("fit", "--config", recipe, *go_on, killed)[0] == 9
    after = contents("runs/toy")
    assert after[Path("last.ckpt")] == before[Path("last.ckpt")]
    assert after[Path("config.yaml")] == before[Path("config.yaml")]


def test_a_checkpoint_that_cannot_be_written_leaves_the_configuration_of_the_one_before(run_cli, recipe, monkeypatch):
    fit(run_cli)
    before = contents("runs/toy")

    def fail(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("zoo.checkpoints.lightning_io.torch.save", fail)
    go_on = ("--trainer.max_steps=9", "--ckpt_path=runs/toy/last.ckpt")
    assert "No space left" in message(run_cli, "fit", "--config", recipe, *go_on, code=1)
    after = contents("runs/toy")
    assert [after[Path(name)] == before[Path(name)] for name in ("last.ckpt", "config.yaml")] == [True, True]


def test_a_folder_in_use_is_refused_by_name_of_its_process_and_lasts_as_long_as_that(run_cli, recipe):
    fit(run_cli)
    before = contents("runs")
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, "runs/toy"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": ROOT},
    )
    try:
        assert child.stdout.readline() == "held\n"
        line = message(run_cli, "fit", "--config", recipe, code=1)
        assert line.startswith(f"error: runs/toy is in use by process {child.pid} on {socket.gethostname()} since 20")
        assert line.endswith("or give this one a folder of its own, --trainer.default_root_dir=FOLDER")
        assert {k: v for k, v in contents("runs").items() if k.name != FolderLock.NAME} == before
        assert run_cli("test", "--config", recipe, "--ckpt_path=runs/toy/last.ckpt")[0] == 0  # writes elsewhere
    finally:
        child.kill()
        child.communicate()
    assert (Path("runs/toy") / FolderLock.NAME).exists()  # left behind, but nobody has it
    fit(run_cli)
    assert not (Path("runs/toy") / FolderLock.NAME).exists()


HOLD = """
import sys, time
from zoo.files.lock import FolderLock
lock = FolderLock(sys.argv[1], "")
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("content", "free"),
    [
        ("", True),
        (f"999999999 {socket.gethostname()} 2026-01-01 10:00:00", True),
        (f"{os.getppid()} {socket.gethostname()} 2026-01-01 10:00:00", False),
        ("1 elsewhere 2026-01-01 10:00:00", False),
    ],
)
def test_without_locks_the_process_is_looked_for(in_tmp, monkeypatch, content, free):
    monkeypatch.setattr(folder_lock, "fcntl", None)
    Path("run").mkdir()
    (Path("run") / FolderLock.NAME).write_text(content)
    lock = FolderLock("run", "wait")
    if free:
        lock.acquire()
        assert (Path("run") / FolderLock.NAME).read_text().split()[:2] == [str(os.getpid()), socket.gethostname()]
        lock.release()
        assert not Path("run").exists()
    else:
        with pytest.raises(FileExistsError, match=r"run is in use by process \d+ on \S+ since 2026.*remove run/"):
            lock.acquire()


def test_a_folder_that_cannot_be_written_to_is_one_sentence(run_cli, recipe):
    Path("taken").write_text("")
    said = message(run_cli, "fit", "--config", recipe, "--trainer.default_root_dir=taken", code=1)
    assert (
        said == "error: nothing can be written to taken: taken is a file: name a folder, --trainer.default_root_dir=DIR"
    )


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_a_full_disk_ends_two_processes_in_one_sentence(recipe, small_disk):  # noqa: F811
    done = subprocess.run(
        [
            sys.executable, "-m", "zoo", "fit", "--config", recipe, f"--trainer.default_root_dir={small_disk / 'run'}",
            "--trainer.logger=false", "--model.width=400", "--trainer.devices=2", "--trainer.strategy=ddp",
            "--trainer.enable_progress_bar=false",
        ],
        capture_output=True, text=True, env=os.environ | meeting(), timeout=280,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-3000:]
    assert done.stderr.count("error: ") == done.stderr.count("last.ckpt was not written: No space left on device") == 1
    assert "Traceback" not in done.stderr


def test_a_full_disk_that_the_loggers_meet_first_is_one_sentence_too(run_cli, recipe, small_disk):  # noqa: F811
    code, _, err = run_cli(
        "fit", "--config", recipe, f"--trainer.default_root_dir={small_disk / 'run'}", "--trainer.max_steps=150",
        "--data.count=8", "--trainer.callbacks+=toys.FillsDisk", f"--trainer.callbacks.folder={small_disk}",
    )  # fmt: skip
    lines = [line for line in err.splitlines() if line and not line.startswith("Seed set")]
    assert code == 1, err
    assert len(lines) == 1, err
    assert "No space left on device" in lines[0], err
    assert pickles.load(small_disk / "run" / "last.ckpt")["global_step"] == 2
    steps = [row["step"] for row in rows(small_disk / "run" / "metrics.csv")]
    assert steps == sorted(steps, key=int)


def test_a_full_disk_ends_a_run_in_one_sentence_and_the_record_before_it_is_whole(run_cli, recipe, small_disk):  # noqa: F811
    to_disk = ("--config", recipe, f"--trainer.default_root_dir={small_disk / 'run'}", "--trainer.logger=false")
    assert run_cli("fit", *to_disk)[0] == 0
    line = message(run_cli, "fit", *to_disk, "--model.width=400", code=1)
    assert "last.ckpt was not written: No space left on device" in line
    assert pickles.load(small_disk / "run" / "last-1.ckpt")["global_step"] == 2
    assert not (small_disk / "run" / "last.ckpt").exists()


@pytest.mark.parametrize(("folder", "there"), [("~/my run", "home/my run"), ("runs/$HOME", "runs/$HOME")])
def test_a_folder_below_home_or_with_a_dollar_holds_the_whole_record(run_cli, recipe, monkeypatch, folder, there):
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    before = {path.name for path in Path().iterdir()}
    assert run_cli("fit", "--config", recipe, f"--trainer.default_root_dir={folder}")[0] == 0
    found = {path.name.partition(".1")[0] for path in Path(there).iterdir() if path.is_file()}
    assert found == {"config.yaml", "events.out.tfevents", "hparams.yaml", "last.ckpt", "metrics.csv"}
    assert {path.name for path in Path().iterdir()} - before == {there.partition("/")[0]}
    code, _, err = run_cli("test", "--config", recipe, f"--ckpt_path={folder}/last.ckpt")
    assert code == 0, err
