"""Augmentations and crops, against the papers' words and against Pillow."""

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.sizes import square_side
from datamodules.transforms import (
    EVAL_TRANSFORMS,
    TRAIN_TRANSFORMS,
    CentreCrop,
    DalleCrop,
    FineTune,
    ImageTooSmall,
    ShiftScale,
    TwoViews,
    area_resize,
    beit_side,
    composite_on_white,
    make_eval_transform,
    make_train_transform,
    posterize,
    resize,
)


def gradient(height, width):
    """Red tells the column, green the row; blue is constant."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x * 255 // (width - 1), y * 255 // (height - 1), torch.full_like(x, 90)]).to(torch.uint8)


def noise(height, width):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


# ------------------------------------------------------------------ Listing 1 of DALL-E


def test_listing_1_bounds():
    assert DalleCrop(256).sides(500) == (288, 384)
    assert DalleCrop(256).sides(300) == (288, 300)  # the image is smaller than 12/8 of the crop
    assert DalleCrop(256).sides(270) == (270, 270)
    assert DalleCrop(64).sides(76) == (72, 76)  # 64 px of emoji with a margin of 6


def test_listing_1_draws_every_side_and_reduces_to_it(monkeypatch):
    seen = []

    def spy(image, side):
        seen.append((tuple(image.shape), side))
        return area_resize(image, side)

    monkeypatch.setattr("datamodules.transforms.area_resize", spy)
    for _ in range(200):
        view = DalleCrop(16)(noise(40, 30))["image"]
        assert view.shape == (3, 16, 16)
        assert view.dtype == torch.uint8
    assert {shape for shape, _ in seen} == {(3, 30, 30)}  # the whole shorter side
    assert {side for _, side in seen} == set(range(18, 25))  # both ends of [round(9/8 16), round(12/8 16)]


def test_listing_1_flips_half_and_places_everywhere():
    image = gradient(24, 24)
    reds = [DalleCrop(16)(image)["image"][0].float() for _ in range(200)]
    flipped = sum(bool(red[0, 0] > red[0, -1]) for red in reds)
    assert 70 <= flipped <= 130
    assert len({float(red.min()) for red in reds}) >= 6


def test_listing_1_refuses_what_is_smaller_than_the_crop():
    with pytest.raises(ImageTooSmall, match="50x20 pixels hold no crop of 32"):
        DalleCrop(32)(noise(20, 50))


def test_area_resize_is_the_mean_of_the_covered_area():
    image = torch.rand(2, 7, 7, dtype=torch.float64).float()
    fine = image.repeat_interleave(3, 1).repeat_interleave(3, 2)  # 21 = 7 * 3, and 3 output pixels of 7 each
    expected = fine.unfold(1, 7, 7).unfold(2, 7, 7).mean((-1, -2))
    torch.testing.assert_close(area_resize(image, 3), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(area_resize(image, 7), image, atol=1e-5, rtol=0)
    assert area_resize(torch.full((3, 50, 50), 255.0), 37).round().unique().tolist() == [255]


# ------------------------------------------------------------------ ours


def test_shift_scale_covers_the_stated_sides():
    canvas = gradient(76, 76)
    spans = []
    for _ in range(300):
        red = ShiftScale(64)(canvas)["image"][0].float()
        spans.append(float((red[0, -1] - red[0, 0]).abs()) / 255 * 76)
    # a crop of s px spans about s of the gradient's 76 px
    assert 48 < min(spans) < 54
    assert 73 < max(spans) <= 76
    assert np.histogram(spans, bins=4, range=(50, 76))[0].min() > 30


def test_shift_scale_of_a_plain_canvas_is_plain():
    assert ShiftScale(64)(torch.full((3, 76, 76), 255, dtype=torch.uint8))["image"].unique().tolist() == [255]


# ------------------------------------------------------------------ BEiT


def test_two_views_come_from_one_crop():
    image = gradient(96, 128)
    plain = TwoViews(64, 32, jitter=0.0)
    boxes = []
    for _ in range(40):
        views = plain(image)
        model, tokenizer = views["image"].float(), views["token_image"].float()
        halved = torch.nn.functional.avg_pool2d(model, 2)
        assert (halved - tokenizer)[:, 2:-2, 2:-2].abs().max() < 4
        boxes.append((int(model[0].min()), int(model[1].min()), int(model[0].max())))
    assert len(set(boxes)) > 30  # and the crops differ from call to call


def test_two_views_share_the_jitter():
    torch.manual_seed(3)
    image = torch.full((3, 64, 64), 120, dtype=torch.uint8)
    values = set()
    for _ in range(20):
        views = TwoViews(32, 16)(image)
        assert torch.equal(views["image"].unique(), views["token_image"].unique())
        values.add(int(views["image"][0, 0, 0]))
    assert min(values) < 90
    assert max(values) > 140


def test_views_are_pillows_filters_on_the_same_pixels(monkeypatch):
    image = noise(40, 50)
    box = (3, 5, 20, 30)  # top, left, height, width
    monkeypatch.setattr("torchvision.transforms.RandomResizedCrop.get_params", lambda *_: box)
    monkeypatch.setattr("datamodules.transforms.random_flip", lambda x: x)
    views = TwoViews(24, 12, jitter=0.0)(image)
    crop = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((5, 3, 35, 23))
    for name, side, kind in (("image", 24, "BICUBIC"), ("token_image", 12, "LANCZOS")):
        expected = np.asarray(crop.resize((side, side), Image.Resampling[kind]))
        assert np.array_equal(views[name].permute(1, 2, 0).numpy(), expected)


def test_crop_scale_bounds_the_area():
    image = gradient(128, 128)
    for _ in range(50):
        view = make_train_transform("beit", 32, None, crop_scale=(0.8, 1.0))(image)["image"]
        assert view.shape == (3, 32, 32)
    plain = TwoViews(32, None, scale=(0.8, 1.0), jitter=0.0)
    spans = [[int(c.max()) - int(c.min()) for c in plain(image)["image"][:2]] for _ in range(50)]
    assert min(x * y for x, y in spans) / 255**2 > 0.74


def test_finetune_gives_uint8_and_erases_a_quarter():
    image = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    transform = FineTune(64, rand_augment="rand-m0-n0")
    rough = 0
    for _ in range(200):
        view = transform(image)["image"]
        assert view.dtype == torch.uint8
        assert view.shape == (3, 64, 64)
        rough += len(view.unique()) > 20
        assert len(view.unique()) == 1 or (view == 128).float().mean() > 0.6  # one box, at most a third
    assert 25 <= rough <= 80


def test_finetune_runs_the_whole_policy():
    transform = FineTune(24)
    views = [transform(noise(30, 40))["image"] for _ in range(150)]  # all of RandAugment's operations come up
    assert all(v.shape == (3, 24, 24) and v.dtype == torch.uint8 for v in views)


def test_posterize_takes_no_bits_as_black():
    image = Image.new("RGB", (2, 2), (200, 100, 50))
    assert posterize(image, 0).getpixel((0, 0)) == (0, 0, 0)
    assert posterize(image, 2).getpixel((0, 0)) == (192, 64, 0)
    assert posterize(image, 8).getpixel((0, 0)) == (200, 100, 50)


# ------------------------------------------------------------------ evaluation


def test_beit_side_has_crop_pct_below_384_only():
    assert beit_side(224) == 256
    assert beit_side(64) == 73
    assert beit_side(384) == 384
    assert beit_side(512) == 512


@pytest.mark.parametrize(("height", "width"), [(300, 451), (451, 300), (100, 101)])
def test_evaluation_crops_equal_torchvision_on_pillow_images(height, width):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as TF

    image = noise(height, width)
    pil = Image.fromarray(image.permute(1, 2, 0).numpy())
    beit = TF.center_crop(TF.resize(pil, int(64 / 0.875), InterpolationMode.BICUBIC), [64, 64])
    assert np.array_equal(make_eval_transform("beit", 64)(image)["image"].permute(1, 2, 0).numpy(), np.asarray(beit))
    ratio = 64 / min(pil.size)
    shape = [round(ratio * pil.size[1]), round(ratio * pil.size[0])]
    dalle = TF.center_crop(TF.resize(pil, shape, InterpolationMode.LANCZOS), [64, 64])
    assert np.array_equal(make_eval_transform("dalle", 64)(image)["image"].permute(1, 2, 0).numpy(), np.asarray(dalle))


def test_evaluation_leaves_an_image_of_the_right_size_alone():
    image = noise(64, 64)
    for name in ("beit", "dalle"):
        assert torch.equal(make_eval_transform(name, 64)(image)["image"], image)


def test_token_view_is_lanczos_of_the_view():
    image = noise(64, 64)
    views = make_eval_transform("beit", 64, token_size=24)(image)
    pil = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((24, 24), Image.Resampling.LANCZOS)
    assert np.array_equal(views["token_image"].permute(1, 2, 0).numpy(), np.asarray(pil))


# ------------------------------------------------------------------ all


@pytest.mark.parametrize("name", ["none", "flip", "shift_scale", "dalle", "beit", "finetune"])
def test_every_training_transform_travels_to_a_worker_and_adds_a_token_view(name):
    transform = make_train_transform(name, 32, token_size=16)
    transform(noise(48, 40))  # builds what is built on first use
    views = pickle.loads(pickle.dumps(transform))(noise(48, 40))
    assert views["image"].shape == (3, 32, 32)
    assert views["token_image"].shape == (3, 16, 16)


def test_flip_mirrors_half_and_none_never():
    image = gradient(32, 32)
    flips = [torch.equal(make_train_transform("flip", 32)(image)["image"], image.flip(-1)) for _ in range(200)]
    assert 70 <= sum(flips) <= 130
    assert torch.equal(make_train_transform("none", 32)(image)["image"], image)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match=r"train_transform cannot be 'dale': did you mean 'dalle'\?"):
        make_train_transform("dale", 32)
    with pytest.raises(ValueError, match="eval_transform cannot be 'centre'"):
        make_eval_transform("centre", 32)


def test_transparency_is_shown_on_white():
    image = Image.new("RGBA", (1, 1), (0, 0, 0, 0))
    assert composite_on_white(image).getpixel((0, 0)) == (255, 255, 255)
    assert CentreCrop(1, 1, "bicubic")(torch.zeros(3, 1, 1, dtype=torch.uint8))["image"].shape == (3, 1, 1)


# ---------------------------------------------------------------------- rectangles


@pytest.mark.parametrize("size", [(32, 48), (48, 32)])
@pytest.mark.parametrize("image", [(70, 50), (50, 70), (60, 60), (32, 48), (20, 90)])
def test_images_and_views_get_both_sides(size, image):
    view = (size[0] // 2, size[1] // 2)
    makers = {make_train_transform: TRAIN_TRANSFORMS, make_eval_transform: EVAL_TRANSFORMS}
    squares = [(make_train_transform, "shift_scale"), (make_train_transform, "dalle"), (make_eval_transform, "pad")]
    for make, names in makers.items():
        for name in names:
            if (make, name) in squares:
                with pytest.raises(ValueError, match=f"makes square images, and {size[0]}x{size[1]} are asked for"):
                    make(name, size, view)
                continue
            found = make(name, size, view)(noise(*image))
            assert found["image"].shape == (3, *size), name
            assert found["token_image"].shape == (3, *view), name


@pytest.mark.parametrize("name", [name for name in EVAL_TRANSFORMS if name != "pad"])
def test_what_is_larger_is_cropped_in_the_middle_and_no_more_than_needed(name):
    """The tighter side decides; its transposed image gives the transposed result."""
    size = (32, 48)
    image = noise(90, 70)
    found = make_eval_transform(name, size)(image)["image"]
    turned = make_eval_transform(name, size[::-1])(image.transpose(1, 2))["image"]
    assert (found.float() - turned.transpose(1, 2).float()).abs().mean() < 0.5  # Pillow rounds after the rows
    if name == "clip":  # 48 of 70 columns; 61 of 90 rows, of which the middle 32 are kept
        whole = resize(image, (61, 48), "bicubic")
        assert torch.equal(found, whole[:, 14:46])


def test_two_equal_sides_are_a_square():
    image = noise(50, 41)
    for name in EVAL_TRANSFORMS:
        pair, one = (make_eval_transform(name, size, 16)(image) for size in ((32, 32), 32))
        assert all(torch.equal(pair[key], one[key]) for key in one)
    for name in TRAIN_TRANSFORMS:
        found = []
        for size in ((32, 32), 32):
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002 (timm's own generator)
            found.append(make_train_transform(name, size, 16)(image))
        assert all(torch.equal(found[0][key], found[1][key]) for key in found[1]), name


def test_what_makes_squares_alone_says_so():
    with pytest.raises(ValueError, match=r"^EmojiData makes square images, and 32x48 are asked for: give one"):
        square_side((32, 48), "EmojiData")
    assert square_side((32, 32), "EmojiData") == square_side(32, "EmojiData") == 32
