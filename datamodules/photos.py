"""PhotoData: the colour photographs inside the scikit-image and scikit-learn packages. Nothing is downloaded."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from datamodules.base import Sample, Samples, Split, ZooDataModule, find_package
from datamodules.image_files import read_image
from datamodules.sizes import square_side
from datamodules.transforms import Transform, make_eval_transform, random_crop, random_flip

# Split by photograph: crops of one photograph are never on two sides. Held out are ordinary scenes; what is
# scientific (retina, stained tissue, deep field) serves training only. motorcycle_right is motorcycle_left again,
# seen from a hand's breadth away, and is not used.
PHOTOS = {
    "train": (
        "skimage/astronaut.png",
        "skimage/hubble_deep_field.jpg",
        "skimage/ihc.png",
        "skimage/motorcycle_left.png",
        "skimage/retina.jpg",
        "skimage/rocket.jpg",
        "sklearn/flower.jpg",
    ),
    "val": ("skimage/chelsea.png",),
    "test": ("skimage/coffee.png", "sklearn/china.jpg"),
}


def find_photo(name: str) -> Path:
    """Find the file of a photograph of ``PHOTOS`` inside its package."""
    module, file = name.split("/")
    folder = find_package(module, "PhotoData")
    return folder / "data" / file if module == "skimage" else folder / "datasets" / "images" / file


class RandomCrops(Samples):
    """Random crops, mirrored half of the time; every photograph is as likely as any other.

    Args:
        photos: the photographs.
        size: side of a crop, in pixels.
        count: crops per epoch.
        transform: what adds ``token_image``.
        names: ``file`` of each photograph.
    """

    def __init__(
        self,
        photos: list[UInt8[Tensor, "3 _ _"]],
        size: int,
        count: int,
        transform: Transform,
        names: Sequence[str] = (),
    ):
        self.photos, self.size, self.count, self.transform, self.names = photos, size, count, transform, names

    def __len__(self) -> int:
        return self.count

    def sample(self, i: int) -> Sample:
        number = int(torch.randint(len(self.photos), ()))
        crop = random_flip(random_crop(self.photos[number], self.size))
        return dict(self.transform(crop)) | {"index": i} | _name(self.names, number)


class GridCrops(Samples):
    """All crops of a fixed grid that do not overlap, centred in each photograph.

    Args:
        photos: the photographs.
        size: side of a crop, in pixels.
        transform: what adds ``token_image``.
        first: ``index`` of the first crop.
        names: ``file`` of each photograph.
    """

    def __init__(
        self,
        photos: list[UInt8[Tensor, "3 _ _"]],
        size: int,
        transform: Transform,
        first: int = 0,
        names: Sequence[str] = (),
    ):
        self.photos, self.size, self.transform, self.first, self.names = photos, size, transform, first, names
        self.places = []
        for number, photo in enumerate(photos):
            rows, columns = (n // size for n in photo.shape[-2:])
            top, left = (n % size // 2 for n in photo.shape[-2:])
            self.places += [(number, top + r * size, left + c * size) for r in range(rows) for c in range(columns)]

    def __len__(self) -> int:
        return len(self.places)

    def sample(self, i: int) -> Sample:
        number, top, left = self.places[i]
        crop = self.photos[number][:, top : top + self.size, left : left + self.size]
        return dict(self.transform(crop)) | {"index": self.first + i} | _name(self.names, number)


def _name(names: Sequence[str], number: int) -> Sample:
    return {"file": names[number]} if names else {}


class PhotoData(ZooDataModule):
    """Crops of ten colour photographs: real texture for a tokenizer, far too few pictures for a generator.

    Args:
        image_size: side of the crops, in pixels.
        batch_size: crops per training batch and per process.
        crops_per_epoch: random crops that count as an epoch.
        token_image_size: side of ``token_image``, a Lanczos reduction of the crop; None leaves it out.
        eval_batch_size: crops per batch elsewhere; None takes ``batch_size``.
        num_workers: processes that load crops.
        predict_split: the crops that ``predict`` goes through; ``train`` is then a fixed grid as well.
        seed: of the order of the training crops; None takes the seed of the run.
    """

    def __init__(
        self,
        image_size: int = 64,
        batch_size: int = 32,
        crops_per_epoch: int = 2048,
        token_image_size: int | None = None,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        predict_split: Split = "val",
        seed: int | None = None,
    ):
        super().__init__(batch_size, eval_batch_size, num_workers, predict_split, seed)
        image_size = square_side(image_size, "PhotoData")
        if crops_per_epoch < 1:
            raise ValueError(f"crops_per_epoch must be positive, got {crops_per_epoch}")
        self.image_size, self.crops_per_epoch = image_size, crops_per_epoch
        self._transform = make_eval_transform("beit", image_size, token_image_size)

    def setup(self, stage: str | None = None) -> None:
        if self._views:
            return
        first = 0
        for split, photos in PHOTOS.items():
            pixels = [read_image(find_photo(name)) for name in photos]
            for name, photo in zip(photos, pixels, strict=True):
                if (short := min(photo.shape[-2:])) < self.image_size:
                    raise ValueError(
                        f"{name} is {photo.shape[-1]}x{photo.shape[-2]} pixels and holds no crop of {self.image_size}: "
                        f"set image_size to at most {short}"
                    )
            if split == "train":
                self.train = RandomCrops(pixels, self.image_size, self.crops_per_epoch, self._transform, photos)
            self._views[split] = GridCrops(pixels, self.image_size, self._transform, first, photos)
            first += len(self._views[split])
        self.val, self.test = self._views["val"], self._views["test"]
        rank_zero_info(
            f"PhotoData: {sum(map(len, PHOTOS.values()))} photographs, crops of {self.image_size} px; "
            f"train {len(PHOTOS['train'])} photographs, {self.crops_per_epoch:,} random crops per epoch; "
            f"val {len(PHOTOS['val'])}, {len(self.val):,} crops; test {len(PHOTOS['test'])}, {len(self.test):,} crops"
        )
