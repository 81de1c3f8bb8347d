"""Image files as people have them: links, names that are no text, odd depths and colours, pictures within pictures."""

import os
import struct

import numpy as np
import pytest
import torch
from crafted_images import chunk, png, saved, tiff
from PIL import Image

from datamodules import ImageFolderData
from datamodules.image_files import Unreadable, find_images, read_image, shown


def paint(path, colour=(10, 20, 30), size=(8, 8)):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(saved(Image.new("RGB", size, colour), "PNG"))


def make(root, **options):
    data = ImageFolderData(str(root), **({"image_size": 8, "train_transform": "none", "batch_size": 2} | options))
    data.setup()
    return data


# ------------------------------------------------------------------ links


@pytest.fixture
def six(tmp_path):
    for i in range(6):
        paint(tmp_path / "data" / "ab"[i % 2] / f"{i}.png", (40 * i, 0, 0))
    return tmp_path / "data"


OWN = ["a/0.png", "a/2.png", "a/4.png", "b/1.png", "b/3.png", "b/5.png"]
LINKS = {
    "to its parent": {"a/up": "."},
    "to its own folder": {"a/here": "a"},
    "two to the parent": {"a/up": ".", "b/up": "."},
    "two to each other's folders": {"a/b": "b", "b/a": "a"},
    "to above the folder": {"up": ".."},
    "the same folder by other names": {"c": "a", "0": "b", "a/d": "b"},
    "a chain": {"c": "d", "d": "e", "e": "a"},
    "a loop of links": {"c": "d", "d": "c"},
    "to itself": {"c": "c"},
    "to nothing": {"c": "nowhere"},
    "files by other names": {"0.png": "a/0.png", "b/1b.png": "b/1.png", "a/x.png": "a/x2.png", "a/x2.png": "b/5.png"},
}


@pytest.mark.parametrize("links", LINKS.values(), ids=LINKS)
@pytest.mark.parametrize("relative", [True, False])
def test_every_file_is_found_once_by_its_own_name_whatever_leads_to_it(six, links, relative):
    for name, target in links.items():
        place = six / name
        place.symlink_to(os.path.relpath(six / target, place.parent) if relative else six / target)
    assert list(find_images(six)) == OWN
    data = make(six, val_fraction=0.3)
    assert sorted([*data.train.paths, *data.val.paths]) == OWN


def test_links_that_are_left_out_are_told(six, caplog):
    for name, target in {"c": "a", "a/x.png": "b/1.png", "up": ".", "d": "nowhere"}.items():
        (six / name).symlink_to(six / target)
    with caplog.at_level("INFO"):
        assert list(find_images(six)) == OWN
    assert "data: 3 links lead to files that are there already, which count once" in caplog.text


def test_links_out_of_the_folder_are_followed_once(six, tmp_path):
    for i in range(3):
        paint(tmp_path / "store" / "deep" / f"{i}.png", (0, 50 * i, 0))
    paint(tmp_path / "one.png")
    (six / "more").symlink_to(tmp_path / "store")
    (six / "again").symlink_to(tmp_path / "store" / "deep")
    (six / "a" / "one.png").symlink_to(tmp_path / "one.png")
    (six / "b" / "two.png").symlink_to(tmp_path / "one.png")
    (tmp_path / "store" / "back").symlink_to(six)
    others = ["a/one.png", "again/0.png", "again/1.png", "again/2.png"]
    assert list(find_images(six)) == sorted([*OWN, *others])
    (tmp_path / "link").symlink_to(six)
    assert list(find_images(tmp_path / "link")) == list(find_images(six))
    (six / "gone.png").symlink_to(tmp_path / "gone.png")
    assert "gone.png" in find_images(six), "named as broken when it is read, not passed over"


def test_a_folder_of_links_alone(six, tmp_path):
    """One folder per class with links into a store, as subsets of large sets are made."""
    for i, name in enumerate(OWN * 2):
        place = tmp_path / "subset" / "xyz"[i % 3] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(six / name)
    found = find_images(tmp_path / "subset")
    assert len(found) == 6
    assert {os.path.realpath(tmp_path / "subset" / name) for name in found} == {str(six / name) for name in OWN}


def test_what_is_validated_on_is_not_trained_on(six, tmp_path):
    for i in range(4):
        paint(six / "held" / f"{i}.png", (0, 0, 60 * i))
    data = make(six, val_root=str(six / "held"), labels=False)
    assert sorted(data.train.paths) == OWN
    assert len(data.val) == 4
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "linked").symlink_to(six / "a")
    paint(tmp_path / "other" / "new.png")
    data = make(six, val_root=str(tmp_path / "other"), test_root=str(six / "held"), labels=False)
    assert sorted(data.train.paths) == [name for name in OWN if name[0] == "b"]
    assert (len(data.val), len(data.test)) == (4, 4)
    with pytest.raises(ValueError, match=r"every image of .*data is in val_root or test_root, too: none is left"):
        make(six, val_root=str(six))


def test_hard_links_and_odd_entries(six):
    os.link(six / "a/0.png", six / "a/same.png")
    os.mkfifo(six / "a/pipe.png")  # reading it would wait for ever
    (six / "folder.png").mkdir()
    paint(six / "folder.png" / "in.png")
    assert list(find_images(six)) == sorted([*OWN, "a/same.png", "folder.png/in.png"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every folder")
def test_a_folder_that_cannot_be_looked_into_is_named(six):
    (six / "b").chmod(0)
    with pytest.warns(UserWarning, match=r"passing over the folder .*data/b: Permission denied"):
        assert len(find_images(six)) == 3
    (six / "b").chmod(0o755)


# ------------------------------------------------------------------ names


NAMES = [
    b"\xff\xfe.png", b"caf\xe9.png", "café.png".encode(), "cafe\u0301.png".encode(), b"two\nlines.png", b"tab\t.png",
    "\U0001f431\u200d\U0001f464.png".encode(), b"quote\"'.png", b"comma, and ; semi.png", b" blank .png",
    b"100%s {x}.png", b"[a]*?.png", b"-rf.png", b"back\\slash.png", b"\x1b[31m.png", "\u2028.png".encode(),
    b"a" * 251 + b".png",
]  # fmt: skip


@pytest.fixture
def named(tmp_path):
    root = os.fsencode(tmp_path / "data")
    for i, name in enumerate(NAMES):
        paint(os.path.join(root, b"\xe9t\xe9", name), (10 * i, 0, 0))
        paint(os.path.join(root, b"deep" * 40, b"deep" * 40, name), (10 * i, 0, 0))
    return tmp_path / "data"


@pytest.mark.parametrize("workers", [0, 2])
def test_every_name_that_a_file_can_have_works(named, workers):
    data = make(named, val_fraction=0.3, num_workers=workers)
    assert data.class_names == sorted(["deep" * 40, os.fsdecode(b"\xe9t\xe9")])
    paths = [*data.train.paths, *data.val.paths]
    assert len(paths) == len(set(paths)) == 2 * len(NAMES)
    assert 4 <= len(data.val) <= 18
    seen = [batch["image"][:, 0, 0, 0] for batch in data._eval_loader(data.view("all"))]
    assert sorted(torch.cat(seen).tolist()) == sorted(10 * i for i in range(len(NAMES)) for _ in range(2))
    assert make(named, val_fraction=0.3).val.paths == data.val.paths


def test_the_split_of_ordinary_names_is_as_it_was():
    import hashlib

    from datamodules.image_folder import hold_out

    names = [f"{i}.png" for i in range(50)] + ["café.png", "\U0001f431.png"]
    place = {name: int(hashlib.sha256(name.encode()).hexdigest()[:13], 16) / 16**13 for name in names}
    assert hold_out(names, 0.3) == [name for name in names if place[name] < 0.3]


def test_messages_name_such_files_in_one_printable_line(named):
    for name in NAMES:
        with open(os.path.join(os.fsencode(named), b"\xe9t\xe9", name), "wb") as file:
            file.write(b"no image")
    data = make(named, val_fraction=0)
    with pytest.raises(RuntimeError, match=f"{len(NAMES)} of {2 * len(NAMES)} images cannot be used") as error:
        list(data._eval_loader(data.view("train")))
    said = str(error.value)
    said.encode()  # printable anywhere
    assert "\n" not in said
    assert "\x1b" not in said
    assert "\u2028" not in said
    for part in (r"\xe9t\xe9/caf\xe9.png", r"two\nlines.png", r"\xff\xfe.png", "\U0001f431\u200d\U0001f464", "aaa..."):
        assert part in said, part


def test_shown_leaves_printable_names_alone():
    for name in ("a/b.png", "café.png", "日本 🐱‍👤.png", "back\\slash"):
        assert shown(name) == name
    assert shown("a" * 300) == "a" * 120 + "..." + "a" * 120
    assert shown("a\r\x00\x85\udcff\ud800") == r"a\r\x00\x85\xff\ud800"


# ------------------------------------------------------------------ pixels


def wide(*values, order=">"):
    return np.array(values, f"{order}u2").tobytes()


GREY16 = png(2, 1, 16, 0, [wide(0x8040, 0xFFFF)])
PALETTE = (3, 768, [0, 65535, 257 * 40] + [0] * 253 + [0, 0, 257 * 80] + [0] * 253 + [0, 0, 257 * 120] + [0] * 253)
KEY8 = chunk(b"tRNS", struct.pack(">HHH", 10, 20, 30))


def alpha(kind):
    return {338: (3, 1, (kind,))}


def fractions(kind, channels=1):
    return {339: (3, channels, [kind] * channels)}


#: what it is -> (file, pixels from left to right)
READ = {
    "png grey 16": (GREY16, [0x80, 255]),
    "png grey 16, a key": (png(2, 1, 16, 0, [wide(0x8040, 0x8041)], chunk(b"tRNS", wide(0x8040))), [255, 0x80]),
    "png grey 4, a key": (png(2, 1, 4, 0, [bytes([0x72])], chunk(b"tRNS", wide(7))), [255, 34]),
    "png grey 2, a key": (png(4, 1, 2, 0, [bytes([0b00011011])], chunk(b"tRNS", wide(1))), [0, 255, 170, 255]),
    "png grey 1": (png(4, 1, 1, 0, [bytes([0b01010000])]), [0, 255, 0, 255]),
    "png grey 1, a key": (png(2, 1, 1, 0, [bytes([0b01000000])], chunk(b"tRNS", wide(0))), [255, 255]),
    "png grey 8, a key": (png(2, 1, 8, 0, [bytes([7, 8])], chunk(b"tRNS", wide(7))), [255, 8]),
    "png colour 8, a key": (png(2, 1, 8, 2, [bytes([10, 20, 30, 10, 20, 31])], KEY8), [255, (10, 20, 31)]),
    "png colour 16": (png(1, 1, 16, 2, [wide(0x80FF, 0x1020, 0)]), [(0x80, 0x10, 0)]),
    "png grey 16 with alpha": (png(2, 1, 16, 4, [wide(0x4000, 0xFFFF, 0x4000, 0)]), [0x40, 255]),
    "png colour 16 with alpha": (png(1, 1, 16, 6, [wide(0xFF00, 0, 0, 0)]), [255]),
    "png palette, keys": (
        png(3, 1, 8, 3, [bytes([0, 1, 2])], chunk(b"PLTE", bytes([9, 8, 7] * 3)) + chunk(b"tRNS", bytes([255, 0]))),
        [(9, 8, 7), 255, (9, 8, 7)],
    ),
    "pgm 16": (b"P5 2 1 65535\n" + wide(0x8040, 0xFFFF), [0x80, 255]),
    "pgm 16 in words": (b"P2\n# a comment\n2 1 65535\n32832 65535\n", [0x80, 255]),
    "pgm 10": (b"P5 3 1 1023\n" + wide(0, 512, 1023), [0, 128, 255]),
    "pgm 7": (b"P5 3 1 127\n" + bytes([0, 64, 127]), [0, 129, 255]),
    "ppm 16": (b"P6 1 1 65535\n" + wide(0x8040, 0, 0xFFFF), [(0x80, 0, 255)]),
    "ppm 8": (b"P6 1 1 255\n" + bytes([1, 2, 3]), [(1, 2, 3)]),
    "pbm": (b"P4 4 1\n" + bytes([0b01010000]), [255, 0, 255, 0]),
    "tiff grey 16, little": (tiff(wide(0x8040, 0xFFFF, order="<"), 2, 1, 1, [16]), [0x80, 255]),
    "tiff grey 16, big": (tiff(wide(0x8040, 0xFFFF), 2, 1, 1, [16], ">"), [0x80, 255]),
    "tiff grey 16, white is 0": (tiff(wide(0x8040, 0xFFFF, order="<"), 2, 1, 0, [16]), [0x7F, 0]),
    "tiff grey 8, white is 0": (tiff(bytes([0, 200]), 2, 1, 0, [8]), [255, 55]),
    "tiff grey 12": (tiff(bytes([0x80, 0x0F, 0xFF]), 2, 1, 1, [12]), [0x80, 255]),
    "tiff colour 16": (tiff(wide(0x80FF, 0x1020, 0, order="<"), 1, 1, 2, [16] * 3), [(0x80, 0x10, 0)]),
    "tiff grey with alpha": (tiff(bytes([100, 255, 100, 0]), 2, 1, 1, [8, 8], tags=alpha(2)), [100, 255]),
    "tiff grey times alpha": (tiff(bytes([50, 128, 0, 0]), 2, 1, 1, [8, 8], tags=alpha(1)), [177, 255]),
    "tiff colour times alpha": (tiff(bytes([64, 0, 0, 128]), 1, 1, 2, [8] * 4, tags=alpha(1)), [(191, 127, 127)]),
    "tiff colour with alpha": (tiff(bytes([64, 0, 0, 128]), 1, 1, 2, [8] * 4, tags=alpha(2)), [(159, 127, 127)]),
    "tiff colour beside something": (tiff(bytes([64, 3, 2, 0]), 1, 1, 2, [8] * 4, tags=alpha(0)), [(64, 3, 2)]),
    "tiff cmyk": (tiff(bytes([255, 0, 0, 0, 0, 0, 0, 255]), 2, 1, 5, [8] * 4), [(0, 255, 255), 0]),
    "tiff lab": (
        tiff(bytes([138, 81, 70, 255, 0, 0, 0, 0, 0]), 3, 1, 8, [8] * 3),
        [(251, 5, 4), 255, 0],  # sRGB's red, rounded to 8 bits of lightness and colour
    ),
    "tiff ycbcr": (tiff(bytes([76, 85, 255]), 1, 1, 6, [8] * 3, tags={530: (3, 2, (1, 1))}), [(254, 0, 0)]),
    "tiff palette": (tiff(bytes([1, 2]), 2, 1, 3, [8], tags={320: PALETTE}), [(255, 0, 0), (40, 80, 120)]),
    "tiff bilevel": (tiff(bytes([0b01010000]), 4, 1, 1, [1]), [0, 255, 0, 255]),
    "tiff bilevel, white is 0": (tiff(bytes([0b01010000]), 4, 1, 0, [1]), [255, 0, 255, 0]),
}


@pytest.mark.parametrize(("data", "pixels"), READ.values(), ids=READ)
def test_known_pixels_are_read_as_meant(data, pixels, tmp_path):
    (tmp_path / "image").write_bytes(data)
    expected = [(p,) * 3 if isinstance(p, int) else p for p in pixels]
    found = [tuple(p) for p in read_image(tmp_path / "image")[:, 0].T.tolist()]
    assert np.abs(np.array(found) - np.array(expected)).max() <= 1, found


REFUSED = {
    "tiff signed 16": (tiff(np.array([-5, 300], "<i2").tobytes(), 2, 1, 1, [16], tags=fractions(2)), "of kind I"),
    "tiff signed 8": (tiff(np.array([-5, 30], "i1").tobytes(), 2, 1, 1, [8], tags=fractions(2)), "signed pixels"),
    "tiff 32": (tiff(np.array([7, 70000], "<u4").tobytes(), 2, 1, 1, [32], tags=fractions(1)), "of kind I"),
    "tiff float": (tiff(np.array([0.5, 1], "<f4").tobytes(), 2, 1, 1, [32], tags=fractions(3)), "of kind F"),
    "tiff half": (tiff(np.array([0.5, 1], "<f2").tobytes(), 2, 1, 1, [16], tags=fractions(3)), "cannot identify"),
    "pfm": (b"Pf\n2 1\n-1.0\n" + np.array([0.5, 1], "<f4").tobytes(), "of kind F"),
    "png colour 16, a key": (
        png(1, 1, 16, 2, [wide(1, 2, 3)], chunk(b"tRNS", wide(1, 2, 3))), "a transparent colour of 16 bits",
    ),
    "tiff of seven bands": (tiff(bytes(14), 2, 1, 2, [8] * 7), "cannot identify"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "sentence"), REFUSED.values(), ids=REFUSED)
def test_pixels_without_a_faithful_form_are_refused(data, sentence, tmp_path):
    (tmp_path / "image").write_bytes(data)
    with pytest.raises(Unreadable, match=sentence) as error:
        read_image(tmp_path / "image")
    assert "\n" not in str(error.value)


KEPT = {  # what Pillow writes into each format without a change
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "TIFF": ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"],
    "BMP": ["1", "L", "P", "RGB"],
    "GIF": ["1", "L", "P"],
    "WEBP": ["L", "RGB", "RGBA"],
    "PPM": ["1", "L", "RGB"],
}


@pytest.mark.parametrize(("form", "mode"), [(form, mode) for form, modes in KEPT.items() for mode in modes])
def test_modes_of_every_format_are_what_was_saved(form, mode, tmp_path):
    chance = np.random.default_rng(0)
    if mode == "I;16":
        image = Image.fromarray(chance.integers(0, 65536, (12, 16), dtype=np.uint16))
        expected = np.repeat((np.asarray(image) >> 8)[..., None], 3, -1)
    else:
        colours = Image.fromarray(chance.integers(0, 256, (12, 16, 4), dtype=np.uint8), "RGBA")
        if mode not in ("LA", "RGBA"):
            colours = colours.convert("RGB")
        image = colours.convert("P").convert("PA") if mode == "PA" else colours.convert(mode)
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        expected = np.asarray(white.convert("RGB"))
    image.save(tmp_path / "image", form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    found = read_image(tmp_path / "image").permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - expected).max() <= (1 if mode == "YCbCr" else 0)


def test_adobes_inverted_cmyk_is_not_a_negative(tmp_path):
    Image.new("CMYK", (8, 8), (0, 200, 200, 0)).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").numpy()[:, 0, 0] - np.array([255, 55, 55])).max() <= 4


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_read(form, tmp_path):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if form == "WEBP" else {}
    frames[0].save(tmp_path / "a", form, save_all=True, append_images=frames[1:], **options)
    assert read_image(tmp_path / "a").shape == (3, 4, 6)
    assert read_image(tmp_path / "a")[:, 0, 0].tolist() == [255, 0, 0]


def test_a_decompression_bomb_is_one_sentence(tmp_path):
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(Unreadable, match=r"^Image size \(3600000000 pixels\) exceeds limit of \d+ pixels: make it sm"):
        read_image(tmp_path / "bomb.png")
