"""Images, order and noise of a training epoch: a function of its number and the seed alone."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler

from zoo.distributed import keep_rng_states

Place = tuple[int, int]  # an image and the seed of its augmentation


class TrainOrder(DistributedSampler):
    """A new order of all images in every epoch, in whole batches, divided among the processes.

    Order and seeds depend on the seed and on the epoch alone: not on the processes that train or load, nor on what
    was drawn before. Hence an epoch can be entered at any place. Every iteration begins the next epoch, unless
    ``set_epoch`` says another one.

    Args:
        size: number of images.
        batch_size: images per batch and process.
        seed: of all epochs.
        ranks: processes that train together.
        rank: number of this one.
    """

    def __init__(self, size: int, batch_size: int, seed: int, ranks: int = 1, rank: int = 0):
        super().__init__(range(size), num_replicas=ranks, rank=rank, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.size, self.batch_size, self.joint = size, batch_size, batch_size * ranks
        self._entered: tuple[int, int, int] | None = None

    def go_on(self, epoch: int, seen: int, seed: int) -> None:
        """Enter an epoch after the images that a run has seen of it.

        Args:
            epoch: that was interrupted.
            seen: images of it, over all processes.
            seed: that it began with.
        """
        self.epoch, self._entered = epoch, (epoch, min(seen, self.size), seed)

    def skipped(self, epoch: int) -> int:
        """Batches of this size that an epoch lacks because it is entered: every epoch counts as many in all."""
        return self.size // self.joint - (self.size - self._start(epoch)[0]) // self.joint

    def seen(self, epoch: int, batches: int) -> int:
        """Images that all processes have seen after so many batches of an epoch."""
        return self._start(epoch)[0] + max(0, batches - self.skipped(epoch)) * self.joint

    def seed_of(self, epoch: int) -> int:
        """Seed of an epoch: the one that it began with, where it was entered."""
        return self._start(epoch)[1]

    def __iter__(self) -> Iterator[Place]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        start, seed = self._start(epoch)
        generator = torch.Generator().manual_seed(_mixed(seed, epoch))
        order = torch.randperm(self.size, generator=generator)
        seeds = torch.randint(2**62, (self.size,), generator=generator)  # of each image, wherever it stands
        whole = (self.size - start) // self.joint * self.joint
        mine = order[start : start + whole][self.rank :: self.num_replicas]
        yield from zip(mine.tolist(), seeds[mine].tolist(), strict=True)

    def __len__(self) -> int:
        return self.size // self.joint * self.batch_size

    def _start(self, epoch: int) -> tuple[int, int]:
        if self._entered is not None and self._entered[0] == epoch:
            return self._entered[1:]
        return 0, self.seed


def _mixed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed % 2**63, epoch]).generate_state(1, np.uint64)[0] >> 1)


class OwnNoise(Dataset):
    """A dataset whose samples are augmented by the seed that comes with them, in whichever process they are read.

    The generators of that process are left as they were.

    Args:
        dataset: its augmentation draws from torch, NumPy or ``random``.
        seed: for places without one, which Lightning's ``overfit_batches`` brings; they are augmented alike each time.
    """

    def __init__(self, dataset: Any, seed: int = 0):
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: int | Place) -> Any:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: list[int | Place]) -> list[Any]:
        with keep_rng_states():
            return [self._read(place) for place in places]

    def _read(self, place: int | Place) -> Any:
        index, seed = place if isinstance(place, tuple) else (place, _mixed(self.seed, place))
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        return self.dataset[index]
