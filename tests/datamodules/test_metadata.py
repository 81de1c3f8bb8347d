"""Which way is up, and every fault of metadata that leaves the pixels as they are."""

import random
import struct

import numpy as np
import pytest
from crafted_images import chunk, directory, exif, png, saved, tiff, wedge, with_exif
from PIL import Image, ImageOps

from datamodules.image_files import Unreadable, read_image
from datamodules.metadata import choose_orientation, turn_upright

FORMS = ["JPEG", "PNG", "PNG, EXIF behind", "WEBP"]
SHORT, ASCII, LONG, RATIONAL, UNDEFINED, DOUBLE = 3, 2, 4, 5, 7, 12
DATE = (RATIONAL, 1, (2024, 1))
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'


def turned(number):
    return np.asarray(turn_upright(wedge(), number)).transpose(2, 0, 1)


def read(tmp_path, data, name="image"):
    path = tmp_path / name
    path.write_bytes(data)
    return read_image(path).numpy()


def assert_shows(found, expected, form):
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < (8 if form == "JPEG" else 0.01)


@pytest.mark.parametrize("number", range(1, 9))
def test_turning_is_that_of_pillow(number):
    image = wedge()
    image.getexif()[0x0112] = number
    assert np.array_equal(turned(number), np.asarray(ImageOps.exif_transpose(image)).transpose(2, 0, 1))


@pytest.mark.parametrize("form", [*FORMS, "TIFF", "TIFF, packed"])
@pytest.mark.parametrize("order", "<>")
def test_a_valid_orientation_is_used_beside_whatever_other_faults(form, order, tmp_path):
    others = {
        "alone": {},
        "a date that is a fraction": {306: DATE},
        "a maker that lies outside": {271: (ASCII, 4_000_000, struct.pack(order + "I", 4_000_000))},
        "an unknown type": {272: (77, 3, b"abcd")},
        "a resolution over zero": {282: (RATIONAL, 1, (1, 0)), 296: (ASCII, 2, b"x\0")},
        "a directory of EXIF outside": {34665: (LONG, 1, (4_000_000,))},
        "a directory of GPS that is text": {34853: (ASCII, 4, b"abc\0")},
        "a description that is no text": {270: (ASCII, 4, b"\xff\xfe\xfd\0")},
        "much": {306: DATE, 305: (DOUBLE, 1, (float("nan"),)), 315: (UNDEFINED, 5, b"\0\1\2\3\4")},
    }
    pixels = np.asarray(wedge()).tobytes()
    for what, tags in others.items():
        for number in (1, 3, 6, 8):
            tags = tags | {0x0112: (SHORT, 1, (number,))}
            if form == "TIFF":
                data = tiff(pixels, 12, 8, 2, [8, 8, 8], order, tags)
            elif form == "TIFF, packed":  # libtiff reads it
                row = b"".join(bytes([35]) + pixels[36 * y : 36 * y + 36] for y in range(8))
                data = tiff(row, 12, 8, 2, [8, 8, 8], order, tags | {259: (SHORT, 1, (32773,))})
            else:
                data = with_exif(form, exif(tags, order))
            found = read(tmp_path, data)
            assert_shows(found, turned(number), form), what


@pytest.mark.parametrize("form", [*FORMS, "TIFF"])
def test_an_orientation_that_is_none_leaves_the_image_as_it_is(form, tmp_path):
    for value in (
        (SHORT, 1, (0,)), (SHORT, 1, (9,)), (SHORT, 1, (65535,)), (SHORT, 2, (6, 1)), (SHORT, 40, (6,) * 40),
        (ASCII, 2, b"6\0"), (ASCII, 13, b"Rotate 90 CW\0"), (UNDEFINED, 4, b"\6\0\0\0"), (RATIONAL, 1, (13, 2)),
        (RATIONAL, 1, (6, 0)), (DOUBLE, 1, (float("nan"),)), (DOUBLE, 1, (float("inf"),)), (77, 1, b"\6\0\0\0"),
        (RATIONAL, 1, struct.pack("<I", 4_000_000)),
    ):  # fmt: skip
        tags = {0x0112: value, 306: DATE}
        if form == "TIFF":
            data = tiff(np.asarray(wedge()).tobytes(), 12, 8, 2, [8, 8, 8], tags=tags)
        else:
            data = with_exif(form, exif(tags))
        assert_shows(read(tmp_path, data), turned(1), form)


def test_numbers_of_other_types_are_taken_as_pillow_takes_them():
    for kind, count, values in [(LONG, 1, (6,)), (RATIONAL, 1, (6, 1)), (RATIONAL, 1, (12, 2)), (DOUBLE, 1, (6.0,))]:
        assert choose_orientation(exif({0x0112: (kind, count, values)}), None) == 6


@pytest.mark.parametrize("form", FORMS)
def test_broken_directories_leave_the_pixels(form, tmp_path):
    good = exif({0x0112: (SHORT, 1, (6,)), 306: DATE})
    broken = {
        "empty": b"", "no head": b"hello", "half a head": b"II*", "head alone": good[:8], "cut": good[:15],
        "starts outside": good[:4] + struct.pack("<I", 99_999) + good[8:],
        "starts before itself": good[:4] + struct.pack("<I", 0) + good[8:],
        "zeros": bytes(64), "ones": b"\xff" * 64,
        "big TIFF": b"II+\0" + good[4:],
    }  # fmt: skip
    for data in broken.values():
        assert_shows(read(tmp_path, with_exif(form, data)), turned(1), form)
    many = good[:8] + struct.pack("<H", 500) + good[10:]  # says 500 entries; the first are there
    assert_shows(read(tmp_path, with_exif(form, many)), turned(6), form)
    itself = exif({0x0112: (SHORT, 1, (6,)), 34665: (LONG, 1, (8,)), 34853: (LONG, 1, (8,))})
    assert_shows(read(tmp_path, with_exif(form, itself)), turned(6), form)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_xmp_says_the_orientation_where_exif_does_not(form, tmp_path):
    said = exif({0x0112: (SHORT, 1, (3,))})
    for data, packet, number in [
        (b"", XMP % 6, 6), (b"", b"<tiff:Orientation>8</tiff:Orientation>", 8), (b"", XMP % 9, 1), (b"", b"<x/>", 1),
        (said, XMP % 6, 3), (exif({306: DATE}), XMP % 6, 6), (exif({0x0112: (SHORT, 1, (0,))}), XMP % 6, 6),
        (b"", b"\xff\xfe\0" + XMP % 6, 6),
    ]:  # fmt: skip
        assert_shows(read(tmp_path, with_exif(form, data, xmp=packet)), turned(number), form)


def test_imagemagicks_profile_is_read_and_its_faults_are_not(tmp_path):
    rows = [np.asarray(wedge())[y].tobytes() for y in range(8)]
    data = b"Exif\0\0" + exif({0x0112: (SHORT, 1, (6,)), 306: DATE})
    text = f"\nexif\n{len(data):8}\n{data.hex()}\n".encode()
    for content, number in [(text, 6), (text[:40] + b"xyz", 1), (b"", 1), (b"\n\n\n\n", 1)]:
        found = read(tmp_path, png(12, 8, 8, 2, rows, chunk(b"tEXt", b"Raw profile type exif\0" + content)))
        assert_shows(found, turned(number), "PNG")


def test_other_metadata_that_pillow_stumbles_over(tmp_path):
    rows = [np.asarray(wedge())[y].tobytes() for y in range(8)]
    turn = exif({0x0112: (SHORT, 1, (6,))})
    for extra in (
        chunk(b"iCCP", b"\0"), chunk(b"tEXt", b"a\0b", crc=1), chunk(b"zTXt", b"a\0\0" + b"\x78\x9c\xff"),
        chunk(b"pHYs", b"\1"), chunk(b"iTXt", b"x"), chunk(b"gAMA", b""), chunk(b"tIME", b""), chunk(b"sRGB", b""),
        chunk(b"zTXt", b"a\0\0" + __import__("zlib").compress(bytes(80_000_000))),  # a bomb of text
    ):  # fmt: skip
        assert_shows(read(tmp_path, png(12, 8, 8, 2, rows, extra + chunk(b"eXIf", turn))), turned(6), "PNG")
    jpeg = with_exif("JPEG", turn)
    for marker, content in [
        (0xE2, b"MPF\0" + exif({0xB000: (UNDEFINED, 4, b"0100"), 0xB001: (ASCII, 2, b"x\0")})),
        (0xE2, b"MPF\0II*\0"), (0xE2, b"ICC_PROFILE\0"), (0xED, b"Photoshop 3.0\x008BIM\4\4\0\0\0\0\xff\xff"),
        (0xE0, b"JFIF"), (0xEE, b"Ado"),
    ]:  # fmt: skip
        segment = bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
        assert_shows(read(tmp_path, jpeg[:2] + segment + jpeg[2:]), turned(6), "JPEG")


def test_no_bytes_of_exif_make_pixels_unreadable(tmp_path):
    """Ten directories with bytes changed at random, in every format; the image is upright or turned, never gone."""
    chance = random.Random(0)
    whole = exif({
        0x0112: (SHORT, 1, (6,)), 306: DATE, 271: (ASCII, 6, b"maker\0"), 282: (RATIONAL, 1, (72, 1)),
        34665: (LONG, 1, (120,)), 34853: (LONG, 1, (120,)),
    }) + directory({36864: (UNDEFINED, 4, b"0220"), 37500: (UNDEFINED, 6, b"FUJI\0\0")}, start=120)  # fmt: skip
    pixels = np.asarray(wedge()).tobytes()
    clean = turned(1)
    for number in range(60):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 12)):
            data[chance.randrange(8, len(data))] = chance.randrange(256)
        for form in FORMS:
            found = read(tmp_path, with_exif(form, bytes(data)))
            assert found.size == clean.size, (number, form)
        tags = {
            tag: (
                chance.choice([1, 2, 3, 4, 5, 7, 9, 10, 12, 99]),
                chance.choice([1, 2, 5, 10**6]),
                chance.randbytes(4),
            )
            for tag in (270, 271, 0x0112, 282, 283, 296, 305, 306, 315, 700, 33432, 34665, 34853, 34377)
        }
        found = read(tmp_path, tiff(pixels, 12, 8, 2, [8, 8, 8], tags=tags))
        assert found.size == clean.size, number


def test_files_without_metadata_show_the_same_pixels():
    import io

    from datamodules.metadata import strip_metadata

    chance = np.random.default_rng(0)
    colours = Image.fromarray(chance.integers(0, 256, (40, 56, 4), dtype=np.uint8), "RGBA")
    frames = [Image.new("RGBA", (56, 40), (50 * i, 0, 0, 255)) for i in range(3)]
    turn = b"Exif\0\0" + exif({0x0112: (SHORT, 1, (6,))})
    more = {"exif": turn, "xmp": XMP % 3, "icc_profile": bytes(200)}
    files = [
        saved(colours.convert("RGB"), "JPEG", **more, comment=b"c"),
        saved(colours.convert("RGB"), "JPEG", progressive=True, restart_marker_rows=1, **more),
        saved(colours.convert("CMYK"), "JPEG", **more), saved(colours.convert("L"), "JPEG", **more),
        saved(colours, "PNG", exif=turn, icc_profile=bytes(200)), saved(colours.convert("P"), "PNG", exif=turn),
        saved(colours.convert("RGB"), "PNG", exif=turn, transparency=(255, 0, 0)),
        saved(frames[0], "PNG", exif=turn, save_all=True, append_images=frames[1:]),
        saved(colours, "WEBP", lossless=True, **more), saved(colours, "WEBP", quality=60, **more),
        saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], **more),
        *(
            saved(colours.convert("RGB"), "TIFF", exif=turn[6:], compression=compression, description="x", dpi=(72, 72))
            for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
        ),
        saved(colours.convert("1"), "TIFF", exif=turn[6:], compression="group4"),
        saved(colours.convert("P"), "TIFF", exif=turn[6:], compression="tiff_lzw"),
    ]  # fmt: skip
    for number, data in enumerate(files):
        bare, turned = strip_metadata(data)
        assert turned == 6, number
        with Image.open(io.BytesIO(data)) as image, Image.open(io.BytesIO(bare)) as again:
            assert again.getexif().get(0x0112) is None
            assert image.format == again.format
            expected = ImageOps.exif_transpose(image) if image.format == "TIFF" else image
            again.load()
            again = turn_upright(again, 6) if image.format == "TIFF" else again
            assert np.array_equal(np.asarray(expected.convert("RGBA")), np.asarray(again.convert("RGBA"))), number


def test_broken_pixels_stay_broken(tmp_path):
    for data in (saved(wedge(60, 40), "JPEG")[:300], saved(wedge(60, 40), "PNG")[:60], b"\xff\xd8", b"RIFF", b"II*\0"):
        with pytest.raises(Unreadable) as error:
            read(tmp_path, data, "x.jpg")
        assert "\n" not in str(error.value)
        assert "BytesIO" not in str(error.value)
    with pytest.raises(Unreadable, match="No such file"):
        read_image(tmp_path / "nowhere.png")


def test_the_image_is_the_same_as_before_where_nothing_is_wrong(tmp_path):
    files = {form: saved(wedge(), form) for form in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")}
    packed = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    files |= {name: saved(wedge(64, 48), "TIFF", compression=name) for name in packed}
    for form, data in files.items():
        (tmp_path / form).write_bytes(data)
        with Image.open(tmp_path / form) as image:
            expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(read_image(tmp_path / form).numpy(), expected)
