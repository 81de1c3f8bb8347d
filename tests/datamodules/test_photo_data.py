"""Photographs: split by photograph, random crops for training, a fixed grid for evaluation."""

import sys

import pytest
import torch

from datamodules import PhotoData
from datamodules.image_folder import read_image
from datamodules.photos import PHOTOS, GridCrops, RandomCrops, find_photo


def test_no_photograph_is_in_two_splits():
    names = [name for photos in PHOTOS.values() for name in photos]
    assert len(names) == len(set(names)) == 10
    assert not any("motorcycle_right" in name for name in names)  # the same scene as motorcycle_left
    assert all(find_photo(name).is_file() for name in names)


def test_grid_crops_cover_without_overlap():
    photo = torch.arange(70 * 90, dtype=torch.int64).reshape(70, 90)
    marked = torch.stack([photo % 256, photo // 256, torch.zeros_like(photo)]).to(torch.uint8)
    grid = GridCrops([marked], 32, lambda image: {"image": image}, first=5)
    values = torch.cat(
        [(g["image"][0].long() + 256 * g["image"][1].long()).flatten() for g in map(grid.__getitem__, range(len(grid)))]
    )
    assert len(grid) == 2 * 2
    assert len(values.unique()) == len(values)
    assert [grid[i]["index"] for i in range(4)] == [5, 6, 7, 8]
    assert int(values.min()) == 3 * 90 + 13  # centred: 6 rows and 26 columns are left over


def test_random_crops_are_pieces_of_the_photographs():
    photos = [torch.full((3, 40, 50), v, dtype=torch.uint8) for v in (10, 200)]
    crops = RandomCrops(photos, 16, 300, lambda image: {"image": image})
    values = [int(crops[i]["image"].unique()) for i in range(300)]
    assert len(crops) == 300
    assert 110 < values.count(10) < 190


def test_photo_data_end_to_end():
    data = PhotoData(image_size=64, batch_size=8, crops_per_epoch=64, token_image_size=32)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (8, 3, 64, 64)
    assert batch["token_image"].shape == (8, 3, 32, 32)
    assert len(data.val) == 4 * 7
    assert len(data.test) == 6 * 9 + 6 * 10
    coffee = read_image(find_photo("skimage/coffee.png"))
    assert torch.equal(data.test[0]["image"], coffee[:, 8:72, 12:76])
    numbers = [data.view("all")[i]["index"] for i in range(len(data.view("all")))]
    assert numbers == list(range(len(numbers)))


def test_training_crops_follow_the_seed():
    def first():
        torch.manual_seed(4)
        data = PhotoData(image_size=32, batch_size=8, crops_per_epoch=16)
        data.setup()
        return next(iter(data.train_dataloader()))["image"]

    assert torch.equal(first(), first())


def test_a_crop_larger_than_a_photograph_is_refused():
    with pytest.raises(ValueError, match=r"skimage/chelsea.png is 451x300 pixels .* at most 300"):
        PhotoData(image_size=320).setup()


@pytest.mark.parametrize("module", ["skimage", "sklearn"])
def test_a_missing_package_is_one_sentence(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ModuleNotFoundError, match=rf"PhotoData needs the package {module}: pip install 'tokenzoo\[demo\]'"
    ):
        PhotoData().setup()
