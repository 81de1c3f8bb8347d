"""Checkpoints of runs with entries that no run writes: each command and the trainer end with one sentence."""

import lightning.pytorch as pl
import pytest
import torch
from command_line import RECIPE
from toys import Toy, ToyData

from zoo.checkpoints.run_state import KINDS, check_run

QUIET = "--trainer.enable_progress_bar=false"
WRONG = ([1], {"a": 1}, "x", None, 3, torch.zeros(2))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Toy(image_size=16, width=3), datamodule=ToyData(image_size=16, batch_size=4, count=8))
    trainer.save_checkpoint(folder / "whole.ckpt")
    return torch.load(folder / "whole.ckpt", weights_only=True)


def deeper(content):
    """Entries of the right kind whose inside is wrong."""
    yield "a version that is none", content | {"pytorch-lightning_version": "garbage"}
    yield "an old version", content | {"pytorch-lightning_version": "0.0.1"}
    yield "no parameters", content | {"optimizer_states": [{"state": {}, "param_groups": []}]}
    yield "two optimizers", content | {"optimizer_states": content["optimizer_states"] * 2}
    yield "a schedule without its state", content | {"lr_schedulers": [{"x": 1}]}
    yield "loops without theirs", content | {"loops": {"fit_loop": {"x": 1}}}
    yield "no loops", {name: value for name, value in content.items() if name != "loops"}
    yield "no schedules", {name: value for name, value in content.items() if name != "lr_schedulers"}


@pytest.mark.parametrize("name", [*KINDS, "ToyData", "pytorch-lightning_version"])
def test_an_entry_of_another_kind_is_named(whole, tmp_path, name):
    assert check_run(dict(whole), tmp_path) == whole
    for wrong in WRONG:
        if isinstance(wrong, KINDS.get(name, (dict,) if name == "ToyData" else ())):
            continue
        with pytest.raises(ValueError, match=f"is damaged: .*{name}|which version of Lightning"):
            check_run(whole | {name: wrong}, tmp_path)


def test_whatever_is_wrong_a_command_says_it_in_a_sentence(whole, run_cli, in_tmp):
    (in_tmp / "toy.yaml").write_text(RECIPE)
    cases = [*deeper(whole), *((f"another {name}", whole | {name: "x"}) for name in ("loops", "state_dict", "zoo_run"))]
    failed = 0
    for name, content in cases:
        torch.save(content, "f.ckpt")
        for command in ("fit",) if failed else ("fit", "test"):
            code, _, err = run_cli(
                command, "--config", "toy.yaml", "--ckpt_path=f.ckpt", "--trainer.max_steps=3", QUIET
            )
            last = (err.strip().splitlines() or [""])[-1]
            assert code in (0, 1), (name, command, err)
            assert "Traceback" not in err, (name, command, err)
            assert code == 0 or (last.startswith("error: ") and "f.ckpt" in last), (name, command, last)
            failed += code
    assert failed >= len(cases)  # a fit reads all of it


@pytest.mark.filterwarnings("ignore:Be aware that when using")
def test_a_trainer_of_python_names_the_file_too(whole, tmp_path):
    for name, content in deeper(whole):
        if name == "two optimizers":  # Lightning takes the first
            continue
        torch.save(content, tmp_path / "f.ckpt")
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        data = ToyData(image_size=16, batch_size=4, count=8)
        with pytest.raises(ValueError, match=r"f\.ckpt (could not be restored|is damaged)"):
            trainer.fit(Toy(image_size=16, width=3), datamodule=data, ckpt_path=tmp_path / "f.ckpt")
