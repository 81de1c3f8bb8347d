"""CaptionData and ConversationData: your images with captions, or with conversations about them."""

import os
import posixpath
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info

from datamodules.annotations import Annotated, read_captions, read_conversations
from datamodules.base import Sample, Samples, Split, ZooDataModule
from datamodules.image_files import shown
from datamodules.image_folder import ImageFolderDataset, hold_out, look_through_together
from datamodules.transforms import (
    EVAL_TRANSFORMS,
    EvalTransform,
    TrainTransform,
    Transform,
    make_eval_transform,
    make_train_transform,
)
from zoo.choices import one_of
from zoo.tokens.abilities import LaysOutConversations

SPLITS = ("train", "val", "test")


class AnnotatedDataset(Samples):
    """Images with what is said of them. In training, every caption of an image is a sample of its own.

    Args:
        root: folder that the paths start from.
        entries: images with captions or a conversation.
        transform: what happens to an image.
        image_size: side of the grey image of a sample about text alone.
        train: one sample per caption, and the next image in place of a broken one; otherwise one sample per image.
        max_broken: fraction of the images that may be broken.
    """

    def __init__(
        self,
        root: Path,
        entries: Sequence[Annotated],
        transform: Transform,
        image_size: int,
        train: bool,
        max_broken: float,
    ):
        self.entries, self.image_size = entries, image_size
        seen = [i for i, entry in enumerate(entries) if entry.path is not None]
        paths = [str(entries[i].path) for i in seen]
        self.images = ImageFolderDataset(root, paths, seen, None, transform, replace=train, max_broken=max_broken)
        self._place = {entry: number for number, entry in enumerate(seen)}
        many = [(i, c) for i, entry in enumerate(entries) for c in range(max(1, len(entry.captions)))]
        self.samples = many if train else [(i, 0) for i in range(len(entries))]

    def __len__(self) -> int:
        return len(self.samples)

    def captions(self) -> list[str]:
        """Every caption of all images."""
        return [caption for entry in self.entries for caption in entry.captions]

    def sample(self, i: int) -> Sample | None:
        number, chosen = self.samples[i]
        if self.entries[number].path is None:
            grey = torch.full((3, self.image_size, self.image_size), 128, dtype=torch.uint8)
            return self._words(number, 0) | {"image": grey, "index": number, "file": ""}
        sample = self.images[self._place[number]]
        if sample is None:
            return None
        seen = int(sample["index"])  # another one, where this is broken
        return sample | self._words(seen, chosen if seen == number else 0)

    def _words(self, number: int, chosen: int) -> Sample:
        entry = self.entries[number]
        if entry.conversation:
            return {"conversation": entry.conversation, "image_id": entry.image_id}
        return {"caption": entry.captions[chosen], "captions": entry.captions, "image_id": entry.image_id}


class _AnnotatedData(ZooDataModule):
    """Base of both data modules: three annotation files, or one that is divided."""

    reads: Callable[[Path], list[Annotated]]

    def __init__(
        self,
        root: str,
        annotations: str,
        image_size: int,
        batch_size: int,
        val_annotations: str | None,
        test_annotations: str | None,
        val_fraction: float,
        train_transform: TrainTransform,
        eval_transform: EvalTransform,
        crop_scale: tuple[float, float],
        max_broken: float,
        eval_batch_size: int | None,
        num_workers: int,
        predict_split: Split,
        seed: int | None,
    ):
        super().__init__(batch_size, eval_batch_size, num_workers, predict_split, seed)
        for name, value in (("val_fraction", val_fraction), ("max_broken", max_broken)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be a fraction in [0, 1), got {value}")
        self.root, self.image_size = Path(root), image_size
        self.files = {"train": annotations, "val": val_annotations, "test": test_annotations}
        self.val_fraction, self.max_broken = val_fraction, max_broken
        one_of("eval_transform", eval_transform, EVAL_TRANSFORMS)
        self._train_transform = make_train_transform(
            train_transform, image_size, None, tuple(crop_scale), resting=eval_transform
        )
        self._eval_transform = make_eval_transform(eval_transform, image_size)
        self._folders: dict[str, str] = {}  # folder of images -> its real path

    def setup(self, stage: str | None = None) -> None:
        if self._views:
            return
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"the image folder {shown(self.root)} does not exist: give the folder of the images"
            )
        entries = self._entries()
        if not entries["train"] and stage in (None, "fit"):
            raise ValueError(f"{shown(self.files['train'])} leaves no image to train on")
        if stage in (None, "fit"):
            self._say_trained_on(entries)
        self.train = self._dataset(entries["train"], train=True)
        self._views = {split: self._dataset(entries[split]) for split in SPLITS}
        if entries["test"] is entries["val"]:
            self._views["test"] = self._views["val"]  # so that "all" has each image once
        self.val, self.test = self._views["val"], self._views["test"]
        look_through_together([dataset.images for dataset in (self.train, *self._views.values())])
        sizes = ", ".join(f"{split} {len(entries[split]):,}" for split in SPLITS)
        rank_zero_info(
            f"{type(self).__name__}: {shown(self.files['train'])}, images: {sizes}; {len(self.train):,} samples"
        )

    def _entries(self) -> dict[str, list[Annotated]]:
        every = type(self).reads(Path(str(self.files["train"])))
        said = {split: [e for e in every if e.split == split] for split in SPLITS}
        if any(said.values()):  # Karpathy's file says so itself
            if silent := [e for e in every if e.split is None]:
                raise ValueError(
                    f"{shown(self.files['train'])} names no split of {len(silent):,} images, such as "
                    f"{shown(silent[0].path)}, and one of others: name it of all, or of none"
                )
            found = said | {"test": said["test"] or said["val"]}
        elif self.files["val"]:
            found = {"train": every}
        else:
            # records of one image stay on one side, whatever their ids
            first: dict[str, str] = {}
            sides = [e.image_id if e.path is None else first.setdefault(self._real(e), e.image_id) for e in every]
            held = set(hold_out(list(dict.fromkeys(sides)), self.val_fraction))
            found = {"train": [e for e, side in zip(every, sides, strict=True) if side not in held]}
            found["val"] = [e for e, side in zip(every, sides, strict=True) if side in held]
            found["test"] = found["val"]
        for split in ("val", "test"):
            if (file := self.files[split]) is not None:
                found[split] = type(self).reads(Path(file))
                if split == "val" and self.files["test"] is None:
                    found["test"] = found["val"]
        return found

    def _say_trained_on(self, entries: dict[str, list[Annotated]]) -> None:
        """Tell of images that a file of its own names and the training file, too."""
        given = [split for split in ("val", "test") if self.files[split]]
        # the disk is asked about every place
        places = {self._real(entry) for entry in entries["train"] if entry.path is not None} if given else set()
        for split in given:
            seen = [entry for entry in entries[split] if entry.path is not None]
            known = [entry for entry in seen if self._real(entry) in places]
            if known:
                rank_zero_info(
                    f"{len(known):,} of {len(seen):,} images of {shown(self.files[split])} are trained on, too, such "
                    f"as {shown(known[0].path)}: the numbers will be better than those of new images"
                )

    def _real(self, entry: Annotated) -> str:
        """The file behind an image, by whatever links it is named."""
        folder, name = posixpath.split(str(entry.file))
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(self.root / folder)
        place = os.path.join(self._folders[folder], name)
        return os.path.realpath(place) if os.path.islink(place) else place

    def _dataset(self, entries: Sequence[Annotated], train: bool = False) -> AnnotatedDataset:
        transform = self._train_transform if train else self._eval_transform
        return AnnotatedDataset(self.root, entries, transform, self.image_size, train, self.max_broken)


class CaptionData(_AnnotatedData):
    """Images with captions: JSON, JSONL, CSV or TSV, COCO's ``captions_*.json``, Karpathy's ``dataset_coco.json``.

    In training every caption is a sample, with an ``image_id`` that tells captions of one image; elsewhere every image
    is one, with all of its ``captions``.

    Args:
        root: folder of the images.
        annotations: file of the training captions.
        image_size: side of the images in a batch, in pixels.
        batch_size: samples per training batch and per process.
        val_annotations: file of the validation captions; None sets ``val_fraction`` of the images aside.
        test_annotations: file of the test captions; None tests on the validation images.
        val_fraction: part of the images that is set aside, by a hash of their id.
        train_transform: augmentation, see ``datamodules.transforms``.
        eval_transform: for evaluation, likewise.
        crop_scale: area of the random crops, as a fraction of the image.
        max_broken: fraction of the images of a split that may be unreadable; they are skipped and named.
        eval_batch_size: images per batch elsewhere; None takes ``batch_size``.
        num_workers: processes that load images.
        predict_split: the images that ``predict`` goes through.
        seed: of the order of the training samples; None takes the seed of the run.
    """

    reads = staticmethod(read_captions)

    def __init__(
        self,
        root: str,
        annotations: str,
        image_size: int = 224,
        batch_size: int = 32,
        val_annotations: str | None = None,
        test_annotations: str | None = None,
        val_fraction: float = 0.05,
        train_transform: TrainTransform = "blip",
        eval_transform: EvalTransform = "squash",
        crop_scale: tuple[float, float] = (0.5, 1.0),
        max_broken: float = 0.01,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        predict_split: Split = "val",
        seed: int | None = None,
    ):
        super().__init__(
            root, annotations, image_size, batch_size, val_annotations, test_annotations, val_fraction, train_transform,
            eval_transform, crop_scale, max_broken, eval_batch_size, num_workers, predict_split, seed,
        )  # fmt: skip


class ConversationData(_AnnotatedData):
    """Conversations about images, in LLaVA's JSON; those without an image are about text alone.

    Args:
        root: folder of the images.
        annotations: file of the training conversations.
        image_size: side of the images in a batch, in pixels.
        batch_size: conversations per training batch and per process.
        val_annotations: file of the validation conversations; None sets ``val_fraction`` aside.
        test_annotations: file of the test conversations; None tests on the validation ones.
        val_fraction: part that is set aside, by a hash of the id.
        train_transform: augmentation, see ``datamodules.transforms``; none in LLaVA.
        eval_transform: ``pad`` in LLaVA-1.5, ``beit`` (shorter side and centre crop) is closest to 1.0.
        crop_scale: area of random crops, as a fraction of the image.
        max_broken: fraction of the images of a split that may be unreadable; they are skipped and named.
        eval_batch_size: conversations per batch elsewhere; None takes ``batch_size``.
        num_workers: processes that load images.
        predict_split: the images that ``predict`` goes through.
        seed: of the order of the training conversations; None takes the seed of the run.
    """

    reads = staticmethod(read_conversations)

    def __init__(
        self,
        root: str,
        annotations: str,
        image_size: int = 336,
        batch_size: int = 16,
        val_annotations: str | None = None,
        test_annotations: str | None = None,
        val_fraction: float = 0.01,
        train_transform: TrainTransform = "none",
        eval_transform: EvalTransform = "pad",
        crop_scale: tuple[float, float] = (0.5, 1.0),
        max_broken: float = 0.01,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        predict_split: Split = "val",
        seed: int | None = None,
    ):
        super().__init__(
            root, annotations, image_size, batch_size, val_annotations, test_annotations, val_fraction, train_transform,
            eval_transform, crop_scale, max_broken, eval_batch_size, num_workers, predict_split, seed,
        )  # fmt: skip

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        trained = getattr(self.trainer, "lightning_module", None)
        datasets = [d for d in (self.train, self.val, self.test) if isinstance(d, AnnotatedDataset)]
        blind = {e.image_id for d in datasets for e in d.entries if e.path is None}
        if blind and isinstance(trained, LaysOutConversations) and trained.conversation == "plain":
            raise ValueError(
                f"{len(blind):,} conversations have no image, such as {shown(min(blind))}, and the plain layout of "
                f"{type(trained).__name__} is about images alone: set model.conversation to another, or leave them out"
            )
