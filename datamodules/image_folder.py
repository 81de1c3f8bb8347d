"""ImageFolderData: a folder of images of any nesting, with labels from its sub-folders if it has them."""

import hashlib
import os
import tempfile
import time
import uuid
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info

from datamodules.base import Sample, Samples, Split, ZooDataModule
from datamodules.image_files import Unreadable, find_images, read_image, shown
from datamodules.transforms import (
    EVAL_TRANSFORMS,
    EvalTransform,
    ImageTooSmall,
    TrainTransform,
    Transform,
    make_eval_transform,
    make_train_transform,
)
from zoo.choices import one_of

SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test"}
_NAMED = 50  # so many broken images are named in the error itself
_LOOK = 60.0  # seconds for which the rest of a folder is looked through once too much of it is broken


class TooManyBroken(RuntimeError):
    """More images cannot be used than ``max_broken`` allows."""


class ImageFolderDataset(Samples):
    """Images of one split. A broken image is left out in evaluation and stands aside for the next one in training.

    Args:
        root: folder that the paths start from.
        paths: images, relative to ``root``.
        index: number of each image in its folder.
        labels: class of each image, or None.
        transform: what happens to an image.
        replace: whether the next image takes the place of a broken one, so that batches keep their size.
        max_broken: fraction of the images that may be broken.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        index: Sequence[int],
        labels: Sequence[int] | None,
        transform: Transform,
        replace: bool,
        max_broken: float,
    ):
        self.root, self.paths, self.index, self.labels = root, paths, index, labels
        self.transform, self.replace, self.max_broken = transform, replace, max_broken
        self._broken = torch.zeros(len(paths), dtype=torch.bool).share_memory_()  # one count for all worker processes
        #: the other splits, which are looked through as well before a run ends
        self.others: list[ImageFolderDataset] = []
        self._looked = torch.zeros(3, dtype=torch.int64).share_memory_()  # through so many; of how many; whether done
        self._list = Path(tempfile.gettempdir()) / f"tokenzoo-broken-{uuid.uuid4().hex[:8]}.txt"

    @property
    def broken(self) -> list[Path]:
        """Images that could not be used so far, seen by any worker."""
        return [self.root / self.paths[i] for i in self._broken.nonzero().flatten().tolist()]

    def __len__(self) -> int:
        return len(self.paths)

    def sample(self, i: int) -> Sample | None:
        for step in range(len(self) if self.replace else 1):
            j = (i + step) % len(self)
            if self._broken[j]:
                continue
            try:
                sample = self._read(j)
            except (Unreadable, ImageTooSmall) as error:
                self._report(j, error)
                continue
            sample |= {"index": self.index[j], "file": self.paths[j]}
            if self.labels is not None:
                sample["label"] = self.labels[j]
            return sample
        return None

    def _read(self, i: int) -> Sample:
        return dict(self.transform(read_image(self.root / self.paths[i])))

    def _report(self, i: int, error: Exception) -> None:
        self._broken[i] = True
        count = int(self._broken.sum())
        if count <= self.max_broken * len(self):
            path = shown(self.root / self.paths[i])
            warnings.warn(f"skipping {path}: {error} ({count} broken so far)", stacklevel=2)
            return
        self._look_through()
        raise TooManyBroken(self._too_many(error)) from error

    def _look_through(self) -> None:
        """Find the other broken images, so that a run need not be started again for each of them."""
        end = time.monotonic() + _LOOK
        if int(self._looked[1]):  # another worker is at it
            while not int(self._looked[2]) and time.monotonic() < end + 5:
                time.sleep(0.05)
            return
        places = {os.path.join(d.root, path): (d, i) for d in self._all() for i, path in enumerate(d.paths)}
        self._looked[1] = len(places)
        rank_zero_info(f"looking for broken images among all {len(places):,}")
        reasons = {}
        for place, (dataset, i) in places.items():
            if time.monotonic() > end:
                break
            try:
                dataset._read(i)
            except (Unreadable, ImageTooSmall) as error:
                dataset._broken[i] = True
                reasons[place] = error
            self._looked[0] += 1
        if len(reasons) > _NAMED:
            lines = [f"{shown(place)}\t{error}\n" for place, error in reasons.items()]
            with suppress(OSError):  # the first ones are named all the same
                self._list.write_text("".join(lines), encoding="utf-8")
        self._looked[2] = 1

    def _all(self) -> list["ImageFolderDataset"]:
        """The data sets that are looked through; an image that several have is looked at once."""
        return [*self.others, self]

    def _too_many(self, error: Exception) -> str:
        broken = self.broken
        seen, total = self._looked[:2].tolist()
        elsewhere = dict.fromkeys(path for dataset in self.others for path in dataset.broken)
        more = sorted(elsewhere.keys() - set(broken))
        said = f"{len(broken)} of {len(self)} images cannot be used"
        said += f" (the first {seen:,} of {total:,} were looked at)" if seen < total else ""
        said += (
            f", more than max_broken={self.max_broken:g} allows: {self._names(broken, _NAMED)} in {shown(self.root)}"
        )
        said += f" (the last: {error})"
        if more:
            said += f", and {len(more)} in the other splits"
            said += f": {self._names(more, room)}" if (room := _NAMED - len(broken)) > 0 else ""
        if len(broken) + len(more) > _NAMED and self._list.exists():
            said += f" (all of them: {self._list})"
        return f"{said}; repair or remove them, or raise max_broken"

    def _names(self, paths: list[Path], most: int) -> str:
        names = [path.relative_to(self.root) if path.is_relative_to(self.root) else path for path in paths[:most]]
        return ", ".join(map(shown, names)) + (", ..." if len(paths) > most else "")


class ImageFolderData(ZooDataModule):
    """A folder of images, nested as it likes. Sub-folders of the first level are the classes, if there are any.

    Args:
        root: folder of the training images.
        image_size: side of the images in a batch, or (height, width), in pixels.
        batch_size: images per training batch and per process.
        val_root: folder of the validation images, with the same sub-folders; None sets ``val_fraction`` aside.
        test_root: folder of the test images; None tests on the validation images.
        val_fraction: part of ``root`` that is set aside for validation, chosen by a hash of the path, so that an
            image stays on its side when others come or go.
        labels: True takes labels from the sub-folders, False ignores them, None takes them if every image is in one.
        train_transform: augmentation, see ``datamodules.transforms``.
        eval_transform: crop for evaluation: ``beit`` or ``dalle``.
        token_image_size: the same of ``token_image``, the tokenizer's own view; None leaves it out.
        crop_scale: area of the random crops of ``beit`` and ``finetune``, as a fraction of the image.
        max_broken: fraction of the images of a split that may be unreadable (or too small for ``dalle``). They are
            skipped and named; more of them end the run.
        eval_batch_size: images per batch elsewhere; None takes ``batch_size``.
        num_workers: processes that load images.
        predict_split: the images that ``predict`` goes through.
        seed: of the order of the training images; None takes the seed of the run.
    """

    def __init__(
        self,
        root: str,
        image_size: int | tuple[int, int] = 256,
        batch_size: int = 32,
        val_root: str | None = None,
        test_root: str | None = None,
        val_fraction: float = 0.05,
        labels: bool | None = None,
        train_transform: TrainTransform = "dalle",
        eval_transform: EvalTransform = "beit",
        token_image_size: int | tuple[int, int] | None = None,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        max_broken: float = 0.01,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        predict_split: Split = "val",
        seed: int | None = None,
    ):
        super().__init__(batch_size, eval_batch_size, num_workers, predict_split, seed)
        for name, value in (("val_fraction", val_fraction), ("max_broken", max_broken)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be a fraction in [0, 1), got {value}")
        self.root, self.roots = Path(root), {"train": Path(root), "val": _path(val_root), "test": _path(test_root)}
        self.image_size, self.val_fraction, self.labels, self.max_broken = image_size, val_fraction, labels, max_broken
        one_of("eval_transform", eval_transform, EVAL_TRANSFORMS)
        self._train_transform = make_train_transform(
            train_transform, image_size, token_image_size, tuple(crop_scale), resting=eval_transform
        )
        self._eval_transform = make_eval_transform(eval_transform, image_size, token_image_size)
        self.class_names: list[str] | None = None

    @property
    def num_classes(self) -> int | None:
        """Number of classes after ``setup``; None without labels."""
        return None if self.class_names is None else len(self.class_names)

    @property
    def broken(self) -> list[Path]:
        """Images that could not be used so far."""
        datasets = [self.train, *self._views.values()]
        return sorted({path for d in datasets if isinstance(d, ImageFolderDataset) for path in d.broken})

    def setup(self, stage: str | None = None) -> None:
        if self._views:
            return
        root = self.root
        files = {split: find_images(folder) for split, folder in self.roots.items() if folder is not None}
        numbered = list(enumerate(files["train"]))
        # what is validated on is not trained on, where a folder lies inside of the other or is linked from there
        elsewhere = {real for split in files if split != "train" for real in files[split].values()}
        own = [(i, path) for i, path in numbered if files["train"][path] not in elsewhere]
        if not own:
            raise ValueError(f"every image of {shown(root)} is in val_root or test_root, too: none is left to train on")
        paths = [path for _, path in own]
        self.class_names = self._classes(root, paths)
        held_out = set() if self.roots["val"] else set(hold_out(paths, self.val_fraction))
        kept = [(i, path) for i, path in own if path not in held_out]
        self.train = self._dataset(root, kept, self._train_transform, replace=True)
        self._views["train"] = self._dataset(root, kept, self._eval_transform)
        for split in ("val", "test"):
            if (folder := self.roots[split]) is not None:
                found = list(enumerate(files[split]))
            elif split == "val":
                folder, found = root, [(i, path) for i, path in own if path in held_out]
            else:
                self._views[split] = self._views["val"]
                continue
            self._views[split] = self._dataset(folder, found, self._eval_transform)
        self.val, self.test = self._views["val"], self._views["test"]
        look_through_together([self.train, *self._views.values()])
        classes = "no labels" if self.class_names is None else f"{len(self.class_names):,} classes"
        tested = f"test {len(self.test):,}" if self.roots["test"] else "test = val"
        if away := len(numbered) - len(own):
            tested += f"; {away:,} images of val_root or test_root are in root, too, and are not trained on"
        rank_zero_info(
            f"ImageFolderData: {shown(root)}, {len(numbered):,} images, {classes}; train {len(self.train):,}, "
            f"val {len(self.val):,}, {tested}"
        )

    def _dataset(
        self, root: Path, found: list[tuple[int, str]], transform: Transform, replace: bool = False
    ) -> ImageFolderDataset:
        labels = None
        if self.class_names is not None:
            number = {name: i for i, name in enumerate(self.class_names)}
            if strange := sorted({path.split("/")[0] for _, path in found} - set(number)):
                raise ValueError(
                    f"{shown(root)} has classes that {shown(self.root)} lacks: "
                    f"{', '.join(map(shown, strange[:5]))}; give both the same sub-folders, or set labels to false"
                )
            labels = [number[path.split("/")[0]] for _, path in found]
        index, paths = [i for i, _ in found], [path for _, path in found]
        return ImageFolderDataset(root, paths, index, labels, transform, replace, self.max_broken)

    def _classes(self, root: Path, paths: list[str]) -> list[str] | None:
        loose = [path for path in paths if "/" not in path]
        folders = sorted({path.split("/")[0] for path in paths if "/" in path})
        if self.labels and loose:
            raise ValueError(
                f"{shown(loose[0])} and {len(loose) - 1} more images lie directly in {shown(root)} and have no class: "
                f"move every image into the sub-folder of its class, or set labels to false"
            )
        if self.labels is False or loose:
            return None
        if self.labels is None and len(folders) > 1 and {name.lower() for name in folders} <= SPLIT_NAMES:
            raise ValueError(
                f"the sub-folders of {shown(root)} are splits, not classes ({', '.join(folders)}): set root, val_root "
                f"and test_root to them"
            )
        return folders


def look_through_together(datasets: Sequence[ImageFolderDataset]) -> None:
    """Let the broken images of all of these be named once one of them has too many."""
    for dataset in datasets:
        dataset.others = [other for other in datasets if other is not dataset]


def hold_out(paths: Sequence[str], fraction: float) -> list[str]:
    """The paths whose hash falls into the fraction, and at least one if the fraction is above 0.

    Raises:
        ValueError: where nothing would be left to train on.
    """
    if fraction == 0:
        return []
    # names that are no UTF-8 hold lone surrogates
    place = {
        path: int(hashlib.sha256(path.encode(errors="surrogatepass")).hexdigest()[:13], 16) / 16**13 for path in paths
    }
    chosen = [path for path in paths if place[path] < fraction] or [min(paths, key=place.__getitem__)]
    if len(chosen) == len(paths):
        raise ValueError(
            f"{len(paths)} images cannot be divided for training and validation: bring more, or set val_root or "
            f"val_fraction=0"
        )
    return chosen


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)
