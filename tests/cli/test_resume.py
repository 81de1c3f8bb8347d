"""``--ckpt_path`` takes the checkpoint of a run, and says what else it was given."""

from pathlib import Path

import pytest
import torch
from command_line import fit, message

from zoo.cli.resume import find_checkpoint

WITHOUT_OPTIMIZER = {"state_dict": {"a": torch.ones(2)}, "pytorch-lightning_version": "2.6.6", "global_step": 1}


def test_missing_checkpoint_names_those_that_exist(run_cli, recipe):
    fit(run_cli)
    said = message(run_cli, "test", "--config", recipe, "--ckpt_path=runs/toy/lst.ckpt", code=1)
    assert "runs/toy/lst.ckpt" in said
    assert "runs/toy/last.ckpt" in said


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
    assert find_checkpoint(str(in_tmp / "sharded"), "fit", in_tmp) == str(in_tmp / "sharded")
    for path in (None, "last", "hpc"):
        assert find_checkpoint(path, "fit", in_tmp) == path
    torch.save(WITHOUT_OPTIMIZER, "weights_only.ckpt")
    assert find_checkpoint("weights_only.ckpt", "test", in_tmp) == "weights_only.ckpt"


def test_best_checkpoint_of_a_new_process_is_refused(run_cli, recipe):
    fit(run_cli)
    said = message(run_cli, "test", "--config", recipe, "--ckpt_path=best", code=1)
    assert "best means nothing before a run has monitored a metric" in said
    assert "runs/toy/last.ckpt" in said
