"""One step of DDP over gloo: equal parameters on both ranks; where no noise is drawn, those of the joint batch.

Both ranks are started once for many presets: to start a process costs more than a step of a tiny model.
"""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from patience import run_two_ranks

import zoo

TINY = zoo.list_models("*_tiny")
NOISE = ("drop_path", "mixup", "cutmix", "label_smoothing")


def without_noise(name):
    return {key: 0.0 for key in NOISE if key in zoo.create_model(name).hparams}


def arguments(name, folder, devices, batch_size):
    args = [
        "fit", "--config", str(folder / f"{name}.yaml"), f"--trainer.devices={devices}",
        f"--data.batch_size={batch_size}", f"--trainer.default_root_dir={folder / name / f'out{devices}'}",
    ]  # fmt: skip
    return args + (["--trainer.strategy=ddp", "--trainer.callbacks+=toys.SameOnEveryRank"] if devices == 2 else [])


def write_recipe(name, folder):
    from test_models import recipe_for

    path = recipe_for(name, folder)
    recipe = yaml.safe_load(path.read_text())
    # epsilon 1 makes the first step of Adam proportional to the gradient instead of to its sign
    recipe["model"]["init_args"] |= without_noise(name)
    recipe["model"]["init_args"]["optim"] |= {"eps": 1.0, "warmup_steps": 0, "lr": 0.1}
    recipe["trainer"] |= {"num_sanity_val_steps": 0, "limit_val_batches": 0, "limit_train_batches": 1}
    path.write_text(yaml.safe_dump(recipe))


def state(path):
    return dict(torch.load(path, weights_only=True)["state_dict"])


@pytest.mark.slow
@pytest.mark.timeout(0)  # run_two_ranks ends what hangs
@pytest.mark.parametrize("names", [TINY[0::2], TINY[1::2]], ids=["even", "odd"])
def test_two_processes_agree_and_equal_one_with_their_batches(names, tmp_path, run_cli):
    from test_models import batch_for

    for name in names:
        write_recipe(name, tmp_path)
    said = run_two_ranks(__file__, [str(tmp_path), *names], tmp_path)
    assert re.findall(r"^(?:== (\w+)|RANKS AGREE)$", said, re.M) == [part for name in names for part in (name, "")]
    compared = []
    for name in names:
        model = zoo.create_model(name, **without_noise(name)).train()
        batch = batch_for(model, 8)
        losses = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            losses.append(model.losses(batch)["loss"].item())
        if losses[0] == losses[1]:
            code, _, err = run_cli(*arguments(name, tmp_path, 1, 8))
            assert code == 0, err
            one, two = (state(tmp_path / name / f"out{n}" / "last.ckpt") for n in (1, 2))
            torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
            compared.append(name)
    assert len(compared) > len(names) // 3, compared


if __name__ == "__main__":
    from zoo.cli import main

    torch.set_num_threads(1)
    for preset in sys.argv[2:]:
        print("==", preset, flush=True)
        main(arguments(preset, Path(sys.argv[1]), 2, 4))
