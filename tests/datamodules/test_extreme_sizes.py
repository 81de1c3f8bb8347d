"""Pictures of any proportions: crops as before to the last bit where they are ordinary, small and quick where not."""

import time

import pytest
import torch

from datamodules.image_files import read_image
from datamodules.transforms import (
    EVAL_TRANSFORMS,
    PADDING,
    TRAIN_TRANSFORMS,
    CentreCrop,
    ImageTooSmall,
    WholeImage,
    crop_to_ratio,
    make_eval_transform,
    make_train_transform,
    resize,
)

ORDINARY = [(1, 1), (1, 2), (3, 2), (2, 31), (16, 1), (40, 40), (41, 40), (40, 41), (64, 40), (37, 91), (100, 7),
            (300, 200), (200, 301), (25, 400), (400, 25), (33, 32), (32, 33), (512, 33), (129, 257)]  # fmt: skip


def noise(height, width):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def cropped_as_ever(crop, image):
    """Resize the whole image, then cut out the centre."""
    height, width = image.shape[-2:]
    if (height, width) == (crop.size, crop.size):
        return image
    exact = crop.side * max(height, width) / min(height, width)
    longer = round(exact) if crop.filter == "lanczos" else int(exact)
    image = resize(image, (crop.side, longer) if height <= width else (longer, crop.side), crop.filter)
    top, left = (round((n - crop.size) / 2) for n in image.shape[-2:])
    return image[:, top : top + crop.size, left : left + crop.size]


def padded_as_ever(size, image):
    """Put the image on the whole grey square, then resize that."""
    height, width = image.shape[-2:]
    side = max(height, width)
    canvas = torch.tensor(PADDING, dtype=torch.uint8)[:, None, None].repeat(1, side, side)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[:, top : top + height, left : left + width] = image
    return resize(canvas, (size, size), "bicubic")


@pytest.mark.parametrize("size", [8, 32, 33, 100])
def test_ordinary_pictures_are_cropped_as_before_to_the_last_bit(size):
    for height, width in ORDINARY:
        image = noise(height, width)
        for crop in (CentreCrop(size, size, "lanczos"), CentreCrop(size, size * 8 // 7, "bicubic")):
            assert torch.equal(crop(image)["image"], cropped_as_ever(crop, image)), (height, width)
        assert torch.equal(WholeImage(size)(image)["image"], resize(image, (size, size), "bicubic"))
        assert torch.equal(WholeImage(size, padded=True)(image)["image"], padded_as_ever(size, image)), (height, width)


def test_large_pictures_are_padded_as_before_to_the_last_bit():
    for shape in [(2300, 400), (400, 2300), (2100, 2000)]:  # in several parts
        image = noise(*shape)
        assert torch.equal(WholeImage(48, padded=True)(image)["image"], padded_as_ever(48, image))


@pytest.mark.parametrize("turn", [False, True])
def test_strips_are_cropped_almost_as_before(turn):
    smooth = (torch.linspace(0, 40, 900).sin() * 100 + 128).to(torch.uint8).expand(3, 9, 900).contiguous()
    image = smooth.transpose(1, 2).contiguous() if turn else smooth
    for crop in (CentreCrop(32, 32, "lanczos"), CentreCrop(32, 36, "bicubic")):
        difference = crop(image)["image"].float() - cropped_as_ever(crop, image).float()
        assert difference.abs().mean() < 1.5
    thin = noise(900, 9) if turn else noise(9, 900)
    difference = WholeImage(64, padded=True)(thin)["image"].float() - padded_as_ever(64, thin).float()
    assert difference.abs().max() <= 2


def test_the_middle_stays_in_the_middle():
    image = torch.arange(101).expand(3, 2, 101).to(torch.uint8)
    for ratio, kept in [(60, 101), (20, 41), (10, 21)]:
        found = crop_to_ratio(image, ratio)
        assert found.shape == (3, 2, kept)
        assert int(found[0, 0, kept // 2]) == 50
    assert crop_to_ratio(image.transpose(1, 2), 10).shape == (3, 21, 2)


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1), (2, 30_001), (30_001, 3), (300, 40_000)])
def test_the_longest_pictures_take_little_time_and_memory(shape, tmp_path):
    from PIL import Image

    Image.new("RGB", shape[::-1], (200, 10, 20)).save(tmp_path / "strip.png")
    image = read_image(tmp_path / "strip.png")
    transforms = {f"eval {name}": make_eval_transform(name, 224, 112) for name in EVAL_TRANSFORMS}
    transforms |= {f"train {name}": make_train_transform(name, 224, 112) for name in TRAIN_TRANSFORMS}
    for name, transform in transforms.items():
        start, before = time.process_time(), _peak()
        try:
            view = transform(image)["image"]
        except ImageTooSmall:
            assert name == "train dalle"
            assert min(shape) < 224
            continue
        assert view.shape == (3, 224, 224)
        assert time.process_time() - start < 5, name
        assert _peak() - before < 600_000, f"{name} needs {_peak() - before} kB"
        if name != "eval pad":
            assert name.startswith("train") or view[:, 112, 112].tolist() == [200, 10, 20]


def _peak():
    """Largest memory of this process so far, in kB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
