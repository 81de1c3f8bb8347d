"""Checkpoints survive what happens while they are saved."""

import multiprocessing
import os
import random
import signal
import time
import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from small_disk import fill, small_disk  # noqa: F401 - a fixture
from toys import Toy, ToyData

from zoo.checkpoints import pickles
from zoo.checkpoints.lightning_io import SafeCheckpointIO

KILLS = 50


def save_forever(path, step, saved):
    while True:
        step += 1
        SafeCheckpointIO().save_checkpoint({"step": step, "weights": torch.full((100_000,), step)}, path)
        saved.set()


def killed_saves(path):
    """Kill a process that saves, at many random moments; the step that each kill left."""
    chance, steps = random.Random(0), []
    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fork.*")
        for i in range(KILLS):
            saved = context.Event()
            process = context.Process(target=save_forever, args=(path, 1000 * i, saved))
            process.start()
            assert saved.wait(30)
            time.sleep(chance.uniform(0, 0.02))
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            content = pickles.load(path)
            assert (content["weights"] == content["step"]).all()
            steps.append(content["step"])
    return steps


@pytest.mark.slow
def test_a_checkpoint_is_whole_after_kills_at_many_moments_of_saving(tmp_path):
    steps = killed_saves(tmp_path / "last.ckpt")
    assert [step // 1000 for step in steps] == list(range(KILLS))
    assert len(os.listdir(tmp_path)) <= 2  # with what the last kill left, at most


@pytest.mark.slow
def test_a_checkpoint_on_another_file_system_is_whole_after_kills_at_many_moments_of_saving(small_disk):  # noqa: F811
    steps = killed_saves(small_disk / "last.ckpt")
    assert [step // 1000 for step in steps] == list(range(KILLS))
    assert len(os.listdir(small_disk)) <= 2


def trainer(**settings):
    return pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def test_a_trainer_from_python_saves_beside_and_keeps_the_old_file_on_a_full_disk(small_disk):  # noqa: F811
    run = trainer()
    run.fit(Toy(), ToyData())
    path = small_disk / "a.ckpt"
    run.save_checkpoint(path)
    old = path.read_bytes()
    fill(small_disk)
    with pytest.raises(OSError, match=r"a\.ckpt was not written: No space left on device; what was there"):
        run.save_checkpoint(path)
    assert path.read_bytes() == old
    assert pickles.load(path)["global_step"] == 1


class Sharded(SingleDeviceStrategy):
    """Writes a folder, and dies in the middle of it when told to."""

    dies = False

    def save_checkpoint(self, checkpoint, filepath, storage_options=None):
        filepath.mkdir(exist_ok=True)
        torch.save(checkpoint["state_dict"], filepath / "shard.pt")
        if self.dies:
            raise RuntimeError("killed")
        torch.save(checkpoint["global_step"], filepath / "meta.pt")


def test_a_sharded_checkpoint_is_replaced_as_a_whole(tmp_path):
    strategy = Sharded("cpu")
    run = trainer(strategy=strategy)
    run.fit(Toy(), ToyData())
    path = tmp_path / "last.ckpt"
    run.save_checkpoint(path)
    old = (path / "shard.pt").read_bytes()
    strategy.dies = True
    with torch.no_grad():
        for parameter in run.lightning_module.parameters():
            parameter.zero_()
    with pytest.raises(RuntimeError, match="killed"):
        run.save_checkpoint(path)
    assert (path / "shard.pt").read_bytes() == old
    assert os.listdir(tmp_path) == ["last.ckpt"]
    strategy.dies = False
    run.save_checkpoint(path)
    assert (path / "shard.pt").read_bytes() != old
    assert pickles.load(path / "meta.pt") == 1
