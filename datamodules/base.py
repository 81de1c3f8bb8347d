"""ZooDataModule, the base of every data module: loaders, seeds and the batch contract."""

import operator
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from datamodules.order import OwnNoise, TrainOrder
from zoo import assets
from zoo.choices import one_of
from zoo.distributed import world_size
from zoo.runs.data_workers import shield_new_workers
from zoo.runs.resuming import find_place

Split = Literal["train", "val", "test", "all"]
Sample = dict[str, Any]


class SizedDataset(Protocol):
    """A data set of known length, read by place."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: Any) -> Any: ...


class Samples(Dataset):
    """A data set that can be used as a list can: ``for``, negative places, slices, an IndexError past the end.

    A subclass implements ``__len__`` and :meth:`sample`. A loop leaves broken images out; a place or a slice has None
    for them.
    """

    def __len__(self) -> int:
        raise NotImplementedError

    def sample(self, i: int) -> Sample | None:
        """The sample at a place from 0 to the end, or None where its image is broken."""
        raise NotImplementedError

    def captions(self) -> list[str]:
        """Every text that samples have as ``caption``, without reading an image; none for images without texts."""
        return []

    def __getitem__(self, i: Any) -> Any:
        size = len(self)
        if isinstance(i, slice):
            return [self.sample(place) for place in range(*i.indices(size))]
        place = operator.index(i)
        if not -size <= place < size:
            raise IndexError(f"there is no sample {place}: the data set has {size}")
        return self.sample(place % size)

    def __iter__(self) -> Iterator[Sample]:
        for place in range(len(self)):
            if (sample := self.sample(place)) is not None:
                yield sample


class Joined(Samples):
    """Data sets one behind the other.

    Args:
        parts: in order.
    """

    def __init__(self, parts: Sequence[Samples]):
        self.parts, self.ends = list(parts), list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def captions(self) -> list[str]:
        """Every text of all parts."""
        return [caption for part in self.parts for caption in part.captions()]

    def sample(self, i: int) -> Sample | None:
        number = bisect_right(self.ends, i)
        return self.parts[number].sample(i - (self.ends[number - 1] if number else 0))


class ZooDataModule(pl.LightningDataModule):
    """Base of the data modules. Constructor arguments are plain data.

    A subclass fills ``train``, ``val`` and ``test`` in ``setup``, and there ``_views``, or implements :meth:`view`.
    ``val``, ``test`` and the predict loader go through their images in a fixed order and augment nothing. Order and
    augmentation of the training images follow from the seed and the epoch, whatever the number of workers, and a
    checkpoint says how many images of the epoch were seen.

    Args:
        batch_size: images per training batch and per process.
        eval_batch_size: images per batch elsewhere; None takes ``batch_size``.
        num_workers: processes that load images; 0 loads them in the main process.
        predict_split: the images that ``predict`` goes through, without augmentation.
        seed: of the order of the training images; None takes the seed of the run.
    """

    train: SizedDataset | None = None
    val: SizedDataset | None = None
    test: SizedDataset | None = None

    def __init__(
        self,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        predict_split: Split = "val",
        seed: int | None = None,
    ):
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {num_workers}")
        self.batch_size = batch_size  # read and written by Lightning's batch size finder
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.predict_split = one_of("predict_split", predict_split, get_args(Split))
        self.seed = seed
        self._views: dict[str, Any] = {}  # split -> its images without augmentation
        self._asked = batch_size
        self._order: TrainOrder | None = None
        self._saved: dict[str, Any] | None = None
        # logger=False: Lightning refuses to log a model and a data module that share an argument name
        self.save_hyperparameters(logger=False)

    @property
    def trainer(self) -> Any:
        """The trainer, which from the moment it meets this data reads checkpoints safely."""
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: Any) -> None:
        from zoo.checkpoints.lightning_io import read_safely

        self._trainer = trainer
        if isinstance(trainer, pl.Trainer):
            read_safely(trainer)

    @_restricted_classmethod  # type: ignore[untyped-decorator]
    def load_from_checkpoint(
        cls, checkpoint_path: Any, map_location: Any = None, hparams_file: Any = None, weights_only: Any = None,
        **overrides: Any,
    ) -> Any:  # fmt: skip
        """Lightning's way to read the settings in a checkpoint, which never runs what the file asks for."""
        from zoo.checkpoints.lightning_io import load_from_checkpoint

        return load_from_checkpoint(cls, checkpoint_path, None, hparams_file, **overrides)

    def train_captions(self) -> list[str]:
        """All captions of the training images, from which a model learns its pieces of words; none where unknown."""
        self._need_setup()
        return self.train.captions() if isinstance(self.train, Samples) else []

    def view(self, split: Split) -> Dataset:
        """The images of a split without augmentation, in a fixed order."""
        split = self._known(split)
        if not self._views:
            raise NotImplementedError(f"{type(self).__name__} has no views: its setup has to fill _views")
        if split == "all":
            return Joined(list(dict.fromkeys(self._views.values())))
        return self._views[split]

    def train_dataloader(self) -> DataLoader:
        self._need_setup()
        assert self.train is not None
        ranks, rank = self._processes()
        self._fit_batch_size(len(self.train), ranks)
        self._order = TrainOrder(len(self.train), self.batch_size, self._seed(), ranks, rank)
        if (saved := self._saved) is not None:
            self._order.go_on(saved["epoch"], saved["seen"], saved["seed"])
        # later than that where loaders are made anew; earlier where they are made before the loops are restored
        reached = 0 if self.trainer is None else self.trainer.fit_loop.epoch_progress.current.processed
        self._order.set_epoch(max(reached, self._order.epoch))
        return self._loader(
            OwnNoise(self.train, self._order.seed), self.batch_size, train=True, sampler=self._order, drop_last=True
        )

    def state_dict(self) -> dict[str, Any]:
        """The part of the epoch that was seen; Lightning asks for it for every checkpoint."""
        if self._order is None or self.trainer is None:
            return {}
        epoch, batches = find_place(self.trainer)
        seen, seed = self._order.seen(epoch, batches), self._order.seed_of(epoch)
        return {"epoch": epoch, "seen": seen, "seed": seed, "size": self._order.size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the images that were seen, in the order that their epoch began with."""
        self._saved = dict(state_dict) or None
        if self._saved is not None and self.train is not None and self._saved["size"] != len(self.train):
            rank_zero_warn(
                f"there are {len(self.train):,} training images, and there were {self._saved['size']:,} when the "
                "checkpoint was written: their order is another, and the rest of this epoch may repeat some of them"
            )

    def val_dataloader(self) -> DataLoader | list:
        self._need_setup()
        return self._eval_loader(self.val)

    def test_dataloader(self) -> DataLoader | list:
        self._need_setup()
        return self._eval_loader(self.test)

    def predict_dataloader(self) -> DataLoader | list:
        self._need_setup()
        return self.view_loader(self.predict_split)

    def view_loader(self, split: Split) -> DataLoader | list:
        """Batches of the images that :meth:`view` returns."""
        return self._eval_loader(self.view(split))

    def start_anew(self) -> None:
        """Forget what a checkpoint said; called when a run begins, before it is told where to go on."""
        self._saved = None

    def _known(self, split: Split) -> Split:
        """The split, of data that is set up.

        Raises:
            ValueError: for another name.
        """
        self._need_setup()
        return one_of("split", split, get_args(Split))

    def _need_setup(self) -> None:
        if self.train is None:
            self.prepare_data()
            self.setup("fit")

    def _processes(self) -> tuple[int, int]:
        """The number of processes that divide the training images, and the rank of this one."""
        if self.trainer is None or not self.trainer._accelerator_connector.use_distributed_sampler:
            return 1, 0
        said = self.trainer.distributed_sampler_kwargs or {}
        return said.get("num_replicas", 1), said.get("rank", 0)

    def _seed(self) -> int:
        """Seed of the epochs, the same on every rank; a run that goes on keeps its own unless ``seed`` says one."""
        if self.seed is not None:
            return self.seed
        if self._saved is not None:
            return self._saved["seed"]
        seed = torch.initial_seed()
        return seed if self.trainer is None else self.trainer.strategy.broadcast(seed)

    def _fit_batch_size(self, size: int, ranks: int) -> None:
        """Refuse a batch of more images than there are; Lightning's search for a size ends there."""
        if self.batch_size * ranks <= size:
            return
        if self.batch_size == self._asked or self.batch_size != self.hparams["batch_size"]:  # a search sets both
            raise ValueError(
                f"there are {size} training images, fewer than one batch of {self.batch_size}"
                f"{f' on each of {ranks} processes' if ranks > 1 else ''}: lower batch_size or bring more images"
            )
        found = size // ranks
        rank_zero_info(f"batch_size {self.batch_size} is more than the {size} training images: it is now {found}")
        self.batch_size = self.hparams["batch_size"] = found

    def _eval_loader(self, dataset: Any) -> DataLoader | list:
        if dataset is None or len(dataset) == 0:
            return []
        return self._loader(dataset, self.eval_batch_size or self.batch_size, shuffle=False)

    def _loader(self, dataset: Any, batch_size: int, train: bool = False, **options: Any) -> DataLoader:
        return (OrderedLoader if train else GoodBatches)(
            dataset,
            batch_size=batch_size,  # by name: Lightning passes it again when it makes the predict loader
            num_workers=self.num_workers,
            collate_fn=collate_found,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator().manual_seed(0),  # its own: to begin an iteration draws a number
            **options,
        )


class GoodBatches(DataLoader):
    """A loader that leaves out a batch of which every image is broken.

    Ranks that evaluate together must take the same number of steps. There the nearest good image stands in, as
    samplers of several processes repeat images anyway to give all of them as many.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        with shield_new_workers(self):
            batches = super().__iter__()
        return self._found(batches)

    def _found(self, batches: Iterator[dict[str, Any] | None]) -> Iterator[dict[str, Any]]:
        # Lightning's sampler for predict repeats nothing and sits in batch_sampler
        in_step = world_size() > 1 and isinstance(self.sampler, DistributedSampler)
        nearest: dict[str, Any] | None = None
        missing = place = 0
        for batch in batches:
            if batch is None:
                missing += 1
            elif in_step:
                nearest = {key: value[:1] for key, value in batch.items()}
            if missing and nearest is not None:
                warnings.warn("every image of a batch is broken: another image stands in", stacklevel=2)
                for _ in range(missing):
                    yield nearest
                missing = 0
            if batch is not None:
                place += 1
                yield batch
            elif seen := getattr(self.batch_sampler, "seen_batch_indices", None):
                del seen[place]  # Lightning counts what predict has seen by the batches that come


class OrderedLoader(GoodBatches):
    """A loader that can be entered in the middle of an epoch.

    Lightning takes the two methods as the sign of it; the place is kept by the data module, whose state is restored
    wherever a run goes on.
    """

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def collate_found(samples: Sequence[Sample | None]) -> dict[str, Any] | None:
    """:func:`collate`, or None where every image is broken."""
    return collate(samples) if any(sample is not None for sample in samples) else None


def collate(samples: Sequence[Sample | None]) -> dict[str, Any]:
    """Stack samples into a batch; None stands for a broken image and is left out.

    Raises:
        RuntimeError: where nothing is left.
    """
    found = [s for s in samples if s is not None]
    if not found:
        raise RuntimeError("every image of a batch is broken: remove the files named above, or use larger batches")
    batch: dict[str, Any] = {}
    for key, first in found[0].items():
        values = [s[key] for s in found]
        if isinstance(first, torch.Tensor):
            batch[key] = torch.stack(values)
        elif isinstance(first, int):
            batch[key] = torch.tensor(values, dtype=torch.int64)
        else:
            batch[key] = values
    return batch


def find_package(module: str, needed_by: str, extra: str = "demo") -> Path:
    """Find the folder of a package of an extra, see :func:`zoo.assets.find_package`.

    Raises:
        ModuleNotFoundError: with the pip line.
    """
    return assets.find_package(module, missing_package(module, needed_by, extra))


def missing_package(module: str, needed_by: str, extra: str = "demo") -> ModuleNotFoundError:
    """The error for a package of an extra that is not installed."""
    return ModuleNotFoundError(f"{needed_by} needs the package {module}: pip install 'tokenzoo[{extra}]'")
