"""Runs that are stopped and resumed: a model and data that draw from every generator, and how two runs are compared."""

import random

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from toys import RandomImages, Toy, ToyData

from zoo.callbacks.ema import EMA
from zoo.optim import Optim

CONSTANT = Optim(lr=1e-2, schedule="constant", warmup_steps=2)


class Noisy(Toy):
    """Draws from every generator in training, and keeps statistics in buffers."""

    def __init__(self, image_size: int = 8, optim: Optim = CONSTANT):
        super().__init__(image_size, optim=optim)
        self.norm = nn.BatchNorm1d(4)
        self.seen: list[int] = []

    def losses(self, batch):
        if self.training:
            self.seen += batch["index"].tolist()
        pixels = batch["image"].float().flatten(1) / 255
        noise = torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002
        hidden = nn.functional.dropout(self.norm(self.net[0](pixels)), 0.3, self.training)
        return {"loss": (self.net[1](hidden)[:, 0] - pixels.mean(1) * noise).square().mean()}


class Plain(Noisy):
    """Takes batches of one image."""

    def __init__(self, image_size: int = 8, optim: Optim = CONSTANT):
        super().__init__(image_size, optim)
        self.norm = nn.Identity()


class Augmented(RandomImages):
    def __getitem__(self, i):
        sample = super().__getitem__(i)
        roll = int(torch.randint(8, ())) + int(np.random.randint(8)) + random.randrange(8)  # noqa: NPY002
        return sample | {"image": sample["image"].roll(roll, -1)}


class NoisyData(ToyData):
    def __init__(self, count: int = 22, batch_size: int = 4, num_workers: int = 0, seed: int | None = None):
        super().__init__(8, batch_size, count)
        self.num_workers, self.seed = num_workers, seed

    def setup(self, stage):
        self.train, self.val = Augmented(self.count, 8, 2), RandomImages(6, 8, 2)


class Rows(Logger):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.rows = []

    name = version = "rows"

    @rank_zero_only
    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def log_hyperparams(self, params, *args, **kwargs):
        pass


class SaveEverywhere(Checkpoint):
    """Writes a checkpoint in every hook where one may be written."""

    def __init__(self, folder):
        self.folder, self.saved = folder, []

    def save(self, trainer, hook):
        if self.folder is not None and not trainer.sanity_checking:
            path = self.folder / f"{len(self.saved)}_{hook}.ckpt"
            trainer.save_checkpoint(path)
            self.saved.append((path, len(trainer.logger.rows), len(trainer.lightning_module.seen)))

    def on_train_batch_end(self, trainer, *args):
        self.save(trainer, f"batch{trainer.fit_loop.batch_idx}")

    def on_validation_end(self, trainer, *args):
        self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer, *args):
        self.save(trainer, "epoch")


def run(data, path=None, folder=None, seed=0, model=None, callbacks=(), averaged=True, **options):
    """A run, its model and what it saved."""
    pl.seed_everything(seed, verbose=False)
    model = Noisy() if model is None else model
    saver = SaveEverywhere(folder)
    trainer = pl.Trainer(**({
        "max_epochs": 3, "accelerator": "cpu", "devices": 1, "logger": Rows(), "log_every_n_steps": 1,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder,
        "callbacks": [*([EMA(decay=0.5)] if averaged else []), *callbacks, saver],
    } | options))  # fmt: skip
    trainer.fit(model, data, ckpt_path=path)
    return trainer, model, saver.saved


def equal(a, b, where=""):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            equal(x, y, f"{where}.{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b or (a != a and b != b), f"{where}: {a} {b}"


def content(trainer, path):
    trainer.save_checkpoint(path)
    found = torch.load(path, weights_only=True)
    assert {"zoo_run", "optimizer_states", "lr_schedulers"} <= found.keys()
    found.pop("callbacks")
    found["zoo_run"]["noise"].pop("python")  # to write a file draws its temporary name
    if trainer.world_size > 1:
        found["zoo_run"].pop("noise")  # what is left between two steps; each of them draws its own
    for kind in ("batch_progress", "state_dict"):  # how far the last validation was is of no use
        found["loops"]["fit_loop"].pop(f"epoch_loop.val_loop.{kind}")
    found["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]["optimizer"].pop("zero_grad")
    return found


def assert_goes_on(whole, saved, tmp_path, make_data, every=1, **options):
    """Each of the checkpoints leads to the run that wrote it."""
    trainer, model, _ = whole
    end = content(trainer, tmp_path / "end.ckpt")
    for path, rows, seen in saved[::every]:
        if len(model.seen) == seen and ("epoch" in path.name or options.get("max_steps")):
            continue  # nothing is left to do
        again, other, _ = run(make_data(), path, seed=99, **options)
        try:
            assert other.seen == model.seen[len(model.seen) - len(other.seen) :]
            assert 0 <= len(other.seen) - (len(model.seen) - seen) < 4 * options.get("accumulate_grad_batches", 1)
            equal(again.logger.rows, trainer.logger.rows[rows:], "rows")
            equal(end, content(again, tmp_path / "again.ckpt"))
        except AssertionError as error:
            raise AssertionError(f"{path.name}: {error}") from error
