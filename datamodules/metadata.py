"""Metadata of image files: the orientation, and the file without metadata where these are faulty.

Cameras, phones and editors write tags of wrong types, lengths and places. None of that makes pixels unreadable, so the
one tag that matters is looked for by hand, and faults of the others are passed over.
"""

import re
import struct
from typing import Any

ORIENTATION = 0x0112
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
#: TIFF's types of numbers: signed and unsigned integers, fractions of two, floats
_NUMBERS = {3: "H", 4: "I", 5: "II", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d"}
#: tags without which pixels of a TIFF file cannot be read, and alpha, palette and tiles
_TIFF_PIXELS = {
    *range(254, 260), 262, 263, 266, 273, 277, 278, 279, 284, 292, 293, 317, *range(320, 326), 330, 332, 334, 338, 339,
    347, *range(512, 522), 529, 530, 531, 532,
}  # fmt: skip


def read_orientation(image: Any) -> int:
    """Orientation of a loaded Pillow image: 1 to 8 as in EXIF; 1, upright, where nothing valid is said."""
    said = image.info.get("exif") or _raw_profile(image.info.get("Raw profile type exif"))
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp")
    return choose_orientation(said, xmp)


def read_tiff_orientation(image: Any) -> int:
    """Orientation of a TIFF file not yet loaded; its EXIF is then forgotten, or Pillow would turn it once more."""
    try:
        value = image.tag_v2.get(ORIENTATION)
    except Exception:  # whatever is wrong with the tag, the pixels are not
        value = None
    tags = image.getexif()
    for tag in list(tags):
        del tags[tag]
    return int(value) if _valid(value) else choose_orientation(None, image.info.get("xmp"))


def choose_orientation(exif: bytes | None, xmp: bytes | str | None) -> int:
    """The orientation that EXIF says, or else the one that XMP says, or else 1.

    Args:
        exif: with or without its ``Exif`` in front.
        xmp: the packet.
    """
    if isinstance(exif, bytes) and (value := _exif_orientation(re.sub(b"^(Exif\x00\x00){1,2}", b"", exif))):
        return value
    packet = xmp.encode("utf-8", "replace") if isinstance(xmp, str) else xmp or b""
    found = _XMP.search(packet)
    return int(found[1]) if found and _valid(int(found[1])) else 1


def _exif_orientation(data: bytes) -> int | None:
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(data[:4])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, number = struct.unpack_from(f"{order}HHI", data, entry)
            if tag == ORIENTATION and kind in _NUMBERS and number == 1:
                form = order + _NUMBERS[kind]
                at = entry + 8 if struct.calcsize(form) <= 4 else struct.unpack_from(f"{order}I", data, entry + 8)[0]
                top, *bottom = struct.unpack_from(form, data, at)
                value = top / bottom[0] if bottom else top
                return int(value) if _valid(value) else None
    except (struct.error, ZeroDivisionError):  # it ends too early, or is a fraction of nothing
        pass
    return None


def _valid(value: Any) -> bool:
    try:
        return not isinstance(value, str | bytes) and value in range(1, 9)
    except Exception:  # no number
        return False


def _raw_profile(text: Any) -> bytes | None:
    """ImageMagick writes EXIF as hexadecimal text into PNG files."""
    try:
        return bytes.fromhex("".join(str(text).split("\n")[3:]))
    except ValueError:
        return None


def turn_upright(image: Any, orientation: int) -> Any:
    """Turn a Pillow image as an orientation of EXIF says."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }  # fmt: skip
    return image.transpose(turns[orientation]) if orientation in turns else image


# ------------------------------------------------------------------ without


def strip_metadata(data: bytes) -> tuple[bytes, int] | None:
    """A JPEG, PNG, WebP or TIFF file with nothing but its pixels, and its orientation; None for what is none of them.

    Args:
        data: the whole file.
    """
    for magic, split in (
        (b"\xff\xd8", _bare_jpeg), (b"\x89PNG\r\n\x1a\n", _bare_png), (b"RIFF", _bare_webp), (b"II*\x00", _bare_tiff),
        (b"MM\x00*", _bare_tiff),
    ):  # fmt: skip
        if data.startswith(magic):
            try:
                kept, exif, xmp = split(data)
            except (struct.error, IndexError):
                return None
            return kept, choose_orientation(exif, xmp)
    return None


def _bare_jpeg(data: bytes) -> tuple[bytes, bytes, bytes]:
    kept, exif, xmp, at = [data[:2]], b"", b"", 2
    while data[at] == 0xFF and data[at + 1] != 0xDA:  # up to the scan
        if data[at + 1] == 0xFF:  # filling
            at += 1
            continue
        (size,) = struct.unpack_from(">H", data, at + 2)
        segment, marker = data[at : at + 2 + size], data[at + 1]
        if marker == 0xE1 and segment[4:10] == b"Exif\x00\x00":
            exif += segment[10:]
        elif marker == 0xE1:
            xmp += segment[4:]
        # of the application's segments only JFIF's and Adobe's say something about pixels
        whole = (marker == 0xE0 and size >= 16) or (marker == 0xEE and size >= 14)
        if whole or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(segment)
        at += 2 + size
    return b"".join([*kept, data[at:]]), exif, xmp


def _bare_png(data: bytes) -> tuple[bytes, bytes, bytes]:
    kept, exif, xmp, at = [data[:8]], b"", b"", 8
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + size]
        if name[:1].isupper() or name == b"tRNS":  # capital: without it there is no image
            kept.append(chunk)
        elif name == b"eXIf":
            exif = chunk[8:-4]
        elif name == b"iTXt":
            xmp += chunk[8:-4]
        at += 12 + size
    return b"".join(kept), exif, xmp


def _bare_webp(data: bytes) -> tuple[bytes, bytes, bytes]:
    kept, exif, xmp, at = [], b"", b"", 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        chunk = data[at : at + 8 + size + size % 2]
        if name == b"EXIF":
            exif = chunk[8 : 8 + size]
        elif name == b"XMP ":
            xmp = chunk[8 : 8 + size]
        elif name == b"VP8X":  # no longer announced: profile, EXIF, XMP
            kept.append(chunk[:8] + bytes([chunk[8] & ~0x2C]) + chunk[9:])
        elif name != b"ICCP":
            kept.append(chunk)
        at += len(chunk)
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body, exif, xmp


def _bare_tiff(data: bytes) -> tuple[bytes, bytes, bytes]:
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    bare = bytearray(data)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from(f"{order}H", data, entry)
        if tag not in _TIFF_PIXELS:
            struct.pack_into(f"{order}H", bare, entry + 2, 0)  # a type that readers pass over
    return bytes(bare), data, b""
