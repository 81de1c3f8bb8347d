"""A tokenizer and a data module of a few lines, for tests of what is built around models."""

from typing import Any

import lightning.pytorch as pl
import torch
from einops import rearrange
from torch.utils.data import DataLoader, Dataset

from zoo.module import ZooModule
from zoo.optim import Optim
from zoo.tokens import Segment, Tokens, TokenSpec, as_pixels


class TinyTokenizer(ZooModule):
    """Patches of 4 px to the nearest of a few learned colours."""

    def __init__(self, vocab_size: int = 16, image_size: int = 16, optim: Optim = Optim(lr=1e-2, schedule="constant")):
        super().__init__(optim)
        self.codes = torch.nn.Parameter(torch.rand(vocab_size, 3, generator=torch.Generator().manual_seed(1)))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        side = image_size // 4
        self.spec = TokenSpec((Segment("grid", (side, side), 0, vocab_size),), dim=3)

    def encode(self, images):
        colours = rearrange(
            torch.nn.functional.avg_pool2d(as_pixels(images, multiple_of=4), 4), "b c gh gw -> b (gh gw) c"
        )
        ids = (colours.unsqueeze(2) - self.codes).square().sum(-1).argmin(-1)
        return Tokens(ids, None, self.spec)

    def decode(self, tokens):
        colours = rearrange(self.embed(tokens.grid()), "b gh gw c -> b c gh gw")
        return torch.nn.functional.interpolate(colours, scale_factor=4, mode="nearest")

    def embed(self, ids):
        return self.codes[ids]

    def losses(self, batch):
        if self.training:
            self.calls += 1
        images = as_pixels(batch["image"])
        return {"loss": (self.decode(self.encode(images)) - images).square().mean()}


class RandomImages(Dataset):
    """Blurred random images, always the same."""

    def __init__(self, num_images: int, image_size: int, seed: int):
        noise = torch.rand(num_images, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        images = torch.nn.functional.interpolate(noise, (image_size, image_size), mode="bilinear")
        self.images = (images * 255).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": index % 3, "index": index}


class RandomImageData(pl.LightningDataModule):
    def __init__(self, num_images: int = 22, image_size: int = 16, batch_size: int = 8):
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.predict_split = "val"

    def _loader(self, seed: int) -> DataLoader:
        return DataLoader(
            RandomImages(self.hparams.num_images, self.hparams.image_size, seed), batch_size=self.hparams.batch_size
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
