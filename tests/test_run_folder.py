"""What a run finds in its folder: checkpoints that it can go on from, files of an earlier run."""

from pathlib import Path

import pytest
import torch
from command_line import fit, message
from lightning.pytorch.utilities import rank_zero_only

from zoo import run_folder

WITHOUT_OPTIMIZER = {"state_dict": {"a": torch.ones(2)}, "pytorch-lightning_version": "2.6.6", "global_step": 1}


def test_a_second_run_keeps_the_metrics_of_the_first(run_cli, recipe):
    fit(run_cli)
    first = Path("runs/toy/metrics.csv").read_text()
    fit(run_cli, "--model.optim.lr=0.1")
    assert Path("runs/toy/metrics-1.csv").read_text() == first
    assert Path("runs/toy/metrics.csv").read_text() != first


def test_a_second_run_keeps_the_checkpoint_of_the_first(run_cli, recipe):
    run = Path("runs/toy")
    fit(run_cli)
    first, metrics = (run / "last.ckpt").read_bytes(), (run / "metrics.csv").read_text()
    fit(run_cli, "--ckpt_path=runs/toy/last.ckpt", "--trainer.max_steps=4")  # goes on: the file is replaced
    assert not list(run.glob("last-*.ckpt")) and (run / "metrics-1.csv").read_text() == metrics
    second, metrics = (run / "last.ckpt").read_bytes(), (run / "metrics.csv").read_text()
    assert second != first
    fit(run_cli, "--trainer.fast_dev_run=true")
    message(run_cli, "fit", "--config", recipe, "--data.batch_size=99", code=1)  # ends before its first step
    assert (run / "last.ckpt").read_bytes() == second and not list(run.glob("last-*.ckpt"))
    fit(run_cli, "--model.optim.lr=0.1")
    assert (run / "last-2.ckpt").read_bytes() == second and (run / "metrics-2.csv").read_text() == metrics
    assert (run / "last.ckpt").read_bytes() != second
    metrics = (run / "metrics.csv").read_text()
    fit(run_cli, "--trainer.logger=false")
    assert {p.name for p in run.glob("last*.ckpt")} == {"last.ckpt", "last-2.ckpt", "last-3.ckpt"}
    assert (run / "metrics-3.csv").read_text() == metrics
    fit(run_cli)
    assert (run / "last-4.ckpt").exists() and not (run / "metrics-4.csv").exists()


def test_only_the_first_rank_moves_files(tmp_path, monkeypatch):
    for name in ("last.ckpt", "metrics.csv"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    run_folder.keep_old_metrics(tmp_path)
    run_folder.keep_old_checkpoint(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"last.ckpt", "metrics.csv"}
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    run_folder.keep_old_metrics(tmp_path)
    run_folder.keep_old_checkpoint(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"last-1.ckpt", "metrics-1.csv"}


def test_missing_checkpoint_names_those_that_exist(run_cli, recipe):
    fit(run_cli)
    said = message(run_cli, "test", "--config", recipe, "--ckpt_path=runs/toy/lst.ckpt", code=1)
    assert "runs/toy/lst.ckpt" in said and "runs/toy/last.ckpt" in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("w.safetensors", "is no checkpoint of a run"),
        ("README.md", "is damaged, or no checkpoint of a run"),
        ("cut.ckpt", "is damaged, or no checkpoint of a run"),
        ("unilm.pth", "is no checkpoint of a run"),
        ("list.pt", "is no checkpoint of a run"),
        ("folder", "is a folder and no sharded checkpoint"),
        ("weights_only.ckpt", "holds no optimizer, so no run can go on from it"),
    ],
)
def test_what_is_no_checkpoint_of_a_run_is_refused_with_the_place_for_weights(run_cli, recipe, name, said):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, "w.safetensors")
    Path("README.md").write_text("# Weights\n")
    torch.save(WITHOUT_OPTIMIZER | {"optimizer_states": []}, "cut.ckpt")
    Path("cut.ckpt").write_bytes(Path("cut.ckpt").read_bytes()[:-200])
    torch.save({"model": {"cls_token": torch.ones(2)}, "epoch": 3}, "unilm.pth")
    torch.save([torch.ones(1)], "list.pt")
    Path("folder").mkdir()
    torch.save(WITHOUT_OPTIMIZER, "weights_only.ckpt")
    line = message(run_cli, "fit", "--config", recipe, f"--ckpt_path={name}", code=1)
    assert line.startswith(f"error: {name} {said}: ")
    assert line.endswith(f"weights go to --model.init_args.weights={name}")


def test_checkpoints_that_are_no_single_file_or_have_no_optimizer_are_let_through(in_tmp):
    (in_tmp / "sharded").mkdir()
    torch.save({"global_step": 1}, in_tmp / "sharded" / "meta.pt")
    (in_tmp / "hpc_ckpt_1.ckpt").touch()
    assert run_folder.find_checkpoint(str(in_tmp / "sharded"), "fit", in_tmp) == str(in_tmp / "sharded")
    for path in (None, "last", "hpc"):
        assert run_folder.find_checkpoint(path, "fit", in_tmp) == path
    torch.save(WITHOUT_OPTIMIZER, "weights_only.ckpt")
    assert run_folder.find_checkpoint("weights_only.ckpt", "test", in_tmp) == "weights_only.ckpt"


def test_best_checkpoint_of_a_new_process_is_refused(run_cli, recipe):
    fit(run_cli)
    said = message(run_cli, "test", "--config", recipe, "--ckpt_path=best", code=1)
    assert "best means nothing before a run has monitored a metric" in said and "runs/toy/last.ckpt" in said
