"""ZooDataModule, the base of every data module: loaders, seeds and the batch contract."""

import importlib.util
import operator
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from zoo.choices import one_of
from zoo.nn.ranks import world_size

Split = Literal["train", "val", "test", "all"]
Sample = dict[str, Any]


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

    def sample(self, i: int) -> Sample | None:
        number = bisect_right(self.ends, i)
        return self.parts[number].sample(i - (self.ends[number - 1] if number else 0))


class ZooDataModule(pl.LightningDataModule):
    """Base of the data modules. Constructor arguments are plain data.

    A subclass fills ``train``, ``val`` and ``test`` in ``setup`` and implements :meth:`view`. ``val``, ``test`` and
    the predict loader go through their images in a fixed order and augment nothing.

    Args:
        batch_size: images per training batch and per process.
        eval_batch_size: images per batch elsewhere; None takes ``batch_size``.
        num_workers: processes that load images; 0 loads them in the main process.
        predict_split: the images that ``predict`` goes through, without augmentation.
        seed: of the order of the training images; None takes the seed of the run.
    """

    train: Dataset | None = None
    val: Dataset | None = None
    test: Dataset | None = None

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
        # logger=False: Lightning refuses to log a model and a data module that share an argument name
        self.save_hyperparameters(logger=False)

    @property
    def trainer(self) -> pl.Trainer | None:
        """The trainer, which from the moment it meets this data reads checkpoints safely."""
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: Any) -> None:
        from zoo.checkpoints.io import read_safely

        self._trainer = trainer
        if isinstance(trainer, pl.Trainer):
            read_safely(trainer)

    @_restricted_classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: Any, map_location: Any = None, hparams_file: Any = None, weights_only: Any = None,
        **overrides: Any,
    ) -> Any:  # fmt: skip
        """Lightning's way to read the settings in a checkpoint, which never runs what the file asks for."""
        from zoo.checkpoints.io import load_from_checkpoint

        return load_from_checkpoint(cls, checkpoint_path, None, hparams_file, **overrides)

    def view(self, split: Split) -> Dataset:
        """The images of a split without augmentation, in a fixed order."""
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader:
        self._need_setup()
        size = len(self.train)  # type: ignore[arg-type]
        if size < self.batch_size:
            raise ValueError(
                f"there are {size} training images, fewer than one batch of {self.batch_size}: lower "
                f"batch_size or bring more images"
            )
        generator = torch.Generator().manual_seed(self._seed())
        return self._loader(self.train, self.batch_size, shuffle=True, drop_last=True, generator=generator)

    def val_dataloader(self) -> DataLoader | list:
        self._need_setup()
        return self._eval_loader(self.val)

    def test_dataloader(self) -> DataLoader | list:
        self._need_setup()
        return self._eval_loader(self.test)

    def predict_dataloader(self) -> DataLoader | list:
        self._need_setup()
        return self._eval_loader(self.view(self.predict_split))

    def _need_setup(self) -> None:
        if self.train is None:
            self.prepare_data()
            self.setup("fit")

    def _seed(self) -> int:
        # the rank keeps augmentations of different processes apart: worker seeds are drawn from this generator
        # the epoch gives a resumed run new batches instead of those of the first epoch again
        rank, epoch = (self.trainer.global_rank, self.trainer.current_epoch) if self.trainer is not None else (0, 0)
        return ((torch.initial_seed() if self.seed is None else self.seed) + rank + 1_000_003 * epoch) % 2**63

    def _eval_loader(self, dataset: Dataset | None) -> DataLoader | list:
        if dataset is None or len(dataset) == 0:  # type: ignore[arg-type]
            return []
        return self._loader(dataset, self.eval_batch_size or self.batch_size, shuffle=False)

    def _loader(self, dataset: Any, batch_size: int, **options: Any) -> DataLoader:
        return GoodBatches(
            dataset,
            batch_size=batch_size,  # by name: Lightning passes it again when it makes the predict loader
            num_workers=self.num_workers,
            collate_fn=collate_found,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            **options,
        )


class GoodBatches(DataLoader):
    """A loader that leaves out a batch of which every image is broken.

    Ranks that evaluate together must take the same number of steps. There the nearest good image stands in, as
    samplers of several processes repeat images anyway to give all of them as many.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        return self._found(super().__iter__())

    def _found(self, batches: Iterator[dict[str, Any] | None]) -> Iterator[dict[str, Any]]:
        # Lightning's sampler for predict repeats nothing and sits in batch_sampler
        in_step = world_size() > 1 and isinstance(self.sampler, DistributedSampler)
        nearest: dict[str, Any] | None = None
        missing = place = 0
        for batch in batches:
            if batch is None:
                missing += 1
            else:
                nearest = {key: value[:1] for key, value in batch.items()}
            if in_step and missing and nearest is not None:
                warnings.warn(f"every image of {missing} batches is broken: another image stands in", stacklevel=2)
                for _ in range(missing):
                    yield nearest
                missing = 0
            if batch is not None:
                place += 1
                yield batch
            elif seen := getattr(self.batch_sampler, "seen_batch_indices", None):
                del seen[place]  # Lightning counts what predict has seen by the batches that come


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


def package_folder(module: str, needed_by: str, extra: str = "demo") -> Path:
    """Where an installed package keeps its files; the package itself is not imported.

    Raises:
        ModuleNotFoundError: with the pip line.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise missing(module, needed_by, extra)
    return Path(spec.submodule_search_locations[0])


def missing(module: str, needed_by: str, extra: str = "demo") -> ModuleNotFoundError:
    """The error for a package of an extra that is not installed."""
    return ModuleNotFoundError(f"{needed_by} needs the package {module}: pip install 'tokenzoo[{extra}]'")
