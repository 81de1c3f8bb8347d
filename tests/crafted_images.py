"""Image files written byte by byte, with what no library writes: ill-typed tags, odd depths, broken directories."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
CODES = {1: "B", 3: "H", 4: "I", 5: "I", 6: "b", 8: "h", 9: "i", 10: "i", 11: "f", 12: "d"}


def directory(tags, order="<", start=8, following=0):
    """A TIFF directory and the values that its entries point to; ``tags``: number -> (type, count, values or bytes)."""
    entries, blobs, at = b"", b"", start + 2 + 12 * len(tags) + 4
    for tag, (kind, count, values) in sorted(tags.items()):
        raw = values if isinstance(values, bytes) else struct.pack(order + CODES[kind] * len(values), *values)
        if len(raw) > 4:
            place, blobs = struct.pack(order + "I", at + len(blobs)), blobs + raw
        else:
            place = raw.ljust(4, b"\0")
        entries += struct.pack(order + "HHI", tag, kind, count) + place
    return struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", following) + blobs


def exif(tags, order="<"):
    """The content of an EXIF segment, without its ``Exif`` in front."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(order + "I", 8) + directory(tags, order)


def tiff(pixels, width, height, photometric, bits, order="<", tags=None):
    """An uncompressed TIFF file."""
    short = lambda *values: (3, len(values), values)  # noqa: E731
    known = {
        256: short(width), 257: short(height), 258: short(*bits), 259: short(1), 262: short(photometric),
        273: (4, 1, (0,)), 277: short(len(bits)), 278: short(height), 279: (4, 1, (len(pixels),)),
    } | (tags or {})  # fmt: skip
    place = 8 + len(directory(known, order))
    known[273] = (4, 1, (place,))
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(order + "I", 8) + directory(known, order) + pixels


def chunk(name, data, crc=None):
    """A chunk of a PNG file."""
    return (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) if crc is None else crc)
    )


def png(width, height, depth, colour, rows, extra=b"", behind=b""):
    """A PNG file; ``extra`` stands before the pixels, ``behind`` after them."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"".join([
        b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", head), extra, chunk(b"IDAT", pixels), behind, chunk(b"IEND", b""),
    ])  # fmt: skip


def saved(image, form, **options):
    """The bytes of a file that Pillow writes."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def wedge(width=12, height=8):
    """Black above, white on the right, else grey: every way to turn it shows."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    pixels[: height // 4] = 0
    pixels[:, -width // 4 :] = 255
    return Image.fromarray(pixels)


def with_exif(form, data, image=None, xmp=b""):
    """A file of a format with these bytes as its EXIF, however broken, and an XMP packet."""
    image = image or wedge()
    if form == "JPEG":
        plain = saved(image, "JPEG", quality=95)
        found = b""
        for head, body in ((b"Exif\0\0", data), (b"http://ns.adobe.com/xap/1.0/\0", xmp)):
            if body:
                found += b"\xff\xe1" + struct.pack(">H", len(head) + len(body) + 2) + head + body
        return plain[:2] + found + plain[20:]  # in place of JFIF's segment, as cameras do
    if form == "PNG":
        rows = [np.asarray(image)[y].tobytes() for y in range(image.height)]
        text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) if xmp else b""
        return png(image.width, image.height, 8, 2, rows, (chunk(b"eXIf", data) if data else b"") + text)
    if form == "PNG, EXIF behind":
        rows = [np.asarray(image)[y].tobytes() for y in range(image.height)]
        return png(image.width, image.height, 8, 2, rows, behind=chunk(b"eXIf", data))
    assert form == "WEBP"
    plain = saved(image, "WEBP", lossless=True)
    body = b"VP8X" + struct.pack("<I", 10) + bytes([0x0C, 0, 0, 0]) + (image.width - 1).to_bytes(3, "little")
    body += (image.height - 1).to_bytes(3, "little") + plain[12:]
    for name, content in ((b"EXIF", data), (b"XMP ", xmp)):
        if content:
            body += name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
