"""The toys that tests share: a model, a tokenizer, data and callbacks, as small as what is around them allows."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.data import DataLoader

import zoo
from datamodules.base import ZooDataModule
from zoo.module import ZooModule
from zoo.optim import Optim
from zoo.tokens import Segment, Tokens, TokenSpec, as_pixels


class Toy(ZooModule):
    """One linear layer that predicts the brightness of an image.

    Args:
        image_size: side of the images.
        width: hidden units.
        tokenizer: the name of nothing.
        optim: optimizer and schedule.
    """

    def __init__(self, image_size: int = 8, width: int = 4, tokenizer: str = "none", optim: Optim = Optim(lr=1e-2)):
        super().__init__(optim)
        self.image_size = image_size
        self.net = nn.Sequential(nn.Linear(3 * image_size**2, width), nn.Linear(width, 1))

    def losses(self, batch) -> dict[str, Tensor]:
        pixels = batch["image"].float().flatten(1) / 255
        return {"loss": (self.net(pixels)[:, 0] - pixels.mean(1)).square().mean()}


class Exploding(Toy):
    """Its loss is NaN from the third step on."""

    def losses(self, batch) -> dict[str, Tensor]:
        terms = super().losses(batch)
        return terms | {"loss": terms["loss"] * (float("nan") if self.global_step >= 2 else 1)}


class Buggy(Toy):
    """Has a bug that only shows in training."""

    def losses(self, batch) -> dict[str, Tensor]:
        return {"loss": torch.zeros(2) @ torch.zeros(3)}


class RandomImages(torch.utils.data.Dataset):
    """The same random images each time."""

    def __init__(self, count: int, image_size: int, num_classes: int):
        self.count, self.image_size, self.num_classes = count, image_size, num_classes

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        shape = (3, self.image_size, self.image_size)
        image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return {"image": image, "label": i % self.num_classes, "caption": f"image {i}", "index": i}


class ToyData(ZooDataModule):
    """Random images.

    Args:
        image_size: side of the images.
        batch_size: images per batch.
        count: images per epoch.
        num_classes: of the labels.
        num_workers: that read them.
    """

    def __init__(
        self, image_size: int = 8, batch_size: int = 4, count: int = 8, num_classes: int = 2, num_workers: int = 0
    ):
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=0)
        self.image_size, self.count, self.num_classes = image_size, count, num_classes

    def setup(self, stage: str) -> None:
        self.train = self.val = self.test = RandomImages(self.count, self.image_size, self.num_classes)

    def view(self, split: str):
        return self.train


class BuggyImages(RandomImages):
    """Fail when they are read: by a bug, or by an error that the zoo did not raise."""

    raises = False

    def __getitem__(self, i):
        if self.raises:
            raise ValueError("no zoo has raised this")
        return [][i]


class BuggyData(ToyData):
    """Fails in its worker process.

    Args:
        image_size: side of the images.
        batch_size: images per batch.
        count: images per epoch.
        num_classes: of the labels.
        raises: a ValueError of its own.
    """

    def __init__(
        self, image_size: int = 8, batch_size: int = 4, count: int = 8, num_classes: int = 2, raises: bool = False
    ):
        super().__init__(image_size, batch_size, count, num_classes)
        self.num_workers, self.raises = 1, raises

    def setup(self, stage: str) -> None:
        self.train = self.val = self.test = BuggyImages(self.count, self.image_size, self.num_classes)
        self.train.raises = self.raises


class SignallingImages(RandomImages):
    """The data worker and its process get a signal while that waits for the image."""

    calls, number = 0, 0

    def __getitem__(self, i):
        self.calls += 1
        if self.calls == 6 and torch.utils.data.get_worker_info() is not None:
            time.sleep(0.5)  # so that this image is waited for
            os.kill(os.getppid(), self.number)
            os.kill(os.getpid(), self.number)
            time.sleep(0.5)  # so that it is gone if that ends it
        return super().__getitem__(i)


class SignallingData(ToyData):
    """A terminal sends a signal to all processes of a run.

    Args:
        image_size: side of the images.
        batch_size: images per batch.
        count: images per epoch.
        num_classes: of the labels.
        name: of the signal.
    """

    def __init__(
        self, image_size: int = 8, batch_size: int = 1, count: int = 8, num_classes: int = 2, name: str = "SIGTERM"
    ):
        super().__init__(image_size, batch_size, count, num_classes, num_workers=1)
        self.number = getattr(signal, name)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.train = SignallingImages(self.count, self.image_size, self.num_classes)
        self.train.number = self.number
        self.val = self.test = RandomImages(4, self.image_size, self.num_classes)


# ---------------------------------------------------------------- a tokenizer and its images


class TinyTokenizer(ZooModule):
    """Patches of 4 px to the nearest of a few learned colours."""

    def __init__(self, vocab_size: int = 16, image_size: int = 16, optim: Optim = Optim(lr=1e-2, schedule="constant")):
        super().__init__(optim)
        self.codes = nn.Parameter(torch.rand(vocab_size, 3, generator=torch.Generator().manual_seed(1)))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        side = image_size // 4
        self.spec = TokenSpec((Segment("grid", (side, side), 0, vocab_size),), dim=3)

    def encode(self, images):
        colours = rearrange(nn.functional.avg_pool2d(as_pixels(images, multiple_of=4), 4), "b c gh gw -> b (gh gw) c")
        ids = (colours.unsqueeze(2) - self.codes).square().sum(-1).argmin(-1)
        return Tokens(ids, None, self.spec)

    def decode(self, tokens):
        colours = rearrange(self.embed(tokens.grid()), "b gh gw c -> b c gh gw")
        return nn.functional.interpolate(colours, scale_factor=4, mode="nearest")

    def embed(self, ids):
        return self.codes[ids]

    def losses(self, batch):
        if self.training:
            self.calls += 1
        images = as_pixels(batch["image"])
        return {"loss": (self.decode(self.encode(images)) - images).square().mean()}


class BlurredImages(torch.utils.data.Dataset):
    """Blurred random images, always the same."""

    def __init__(self, num_images: int, image_size: int, seed: int):
        noise = torch.rand(num_images, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        images = nn.functional.interpolate(noise, (image_size, image_size), mode="bilinear")
        self.images = (images * 255).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": index % 3, "index": index}


class BlurredImageData(pl.LightningDataModule):
    def __init__(self, num_images: int = 22, image_size: int = 16, batch_size: int = 8):
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.predict_split = "val"

    def _loader(self, seed: int) -> DataLoader:
        return DataLoader(
            BlurredImages(self.hparams.num_images, self.hparams.image_size, seed), batch_size=self.hparams.batch_size
        )

    def train_dataloader(self) -> DataLoader:
        return self._loader(0)

    def val_dataloader(self) -> DataLoader:
        return self._loader(1)

    def test_dataloader(self) -> DataLoader:
        return self._loader(2)

    def predict_dataloader(self) -> DataLoader:
        return self._loader({"train": 0, "val": 1, "test": 2}[self.predict_split])


def quiet_trainer(folder: Any, **options: Any) -> pl.Trainer:
    """A trainer on the CPU that prints and logs nothing unless asked."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": str(folder),
    }
    return pl.Trainer(**defaults | options)


# ---------------------------------------------------------------- callbacks


class SameOnEveryRank(pl.Callback):
    """Fails where ranks end with different parameters."""

    def on_train_end(self, trainer, pl_module):
        mine = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
        every = pl_module.all_gather(mine)
        if trainer.world_size < 2 or not torch.equal(every[0], every[1]):
            raise AssertionError("the ranks differ")
        if trainer.is_global_zero:
            print("RANKS AGREE")


class KilledAt(pl.Callback):
    """Ends the run without a chance to save.

    Args:
        step: that has begun.
    """

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer, *others):
        if trainer.global_step == self.step:
            raise SystemExit(9)


class FailsInValidation(pl.Callback):
    """Has a bug."""

    def on_validation_batch_start(self, trainer, *others):
        raise AssertionError("a bug in validation")


class FillsDisk(pl.Callback):
    """Leaves no room on a disk after the first epoch.

    Args:
        folder: on that disk.
    """

    def __init__(self, folder: str):
        self.folder = folder

    def on_train_batch_start(self, trainer, *others):
        if trainer.global_step == 2:
            from small_disk import fill

            fill(Path(self.folder))


class SignalAt(pl.Callback):
    """The process gets a signal in the middle of a step, of a batch of validation, or of a test.

    Args:
        step: that has begun.
        name: of the signal.
        where: ``train``, ``validation`` or ``test``.
        times: how often it comes.
        rank: of the process; the others get none.
    """

    def __init__(self, step: int, name: str = "SIGTERM", where: str = "train", times: int = 1, rank: int = 0):
        self.step, self.number, self.where, self.times, self.rank = step, getattr(signal, name), where, times, rank

    def _send(self, trainer, where):
        if where == self.where and trainer.global_step == self.step and trainer.global_rank == self.rank:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer, *others):
        self._send(trainer, "train")

    def on_validation_batch_start(self, trainer, *others):
        self._send(trainer, "sanity" if trainer.sanity_checking else "validation")

    def on_test_batch_start(self, trainer, *others):
        self._send(trainer, "test")


def beit_with_positions():
    """BEiT whose position bias, which starts at zero, tells positions apart; without chance in its depth."""
    model = zoo.create_model("beit_tiny", drop_path=0.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias_table"):
                torch.nn.init.normal_(parameter)
    return model


def labelled_batch():
    """Four images of four classes, from the middle of a data set."""
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    return {"image": images, "label": torch.tensor([0, 1, 2, 3]), "index": torch.tensor([7, 8, 9, 10])}
