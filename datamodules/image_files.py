"""Image files as people have them: which are in a folder, and what their pixels are in 8 bits of red, green, blue."""

import heapq
import io
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import UInt8
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from datamodules.metadata import read_orientation, read_tiff_orientation, strip_metadata, turn_upright
from datamodules.transforms import from_pil

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import TiffImageFile

EXTENSIONS = (
    ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
_LONGEST = 240  # of a path in a message
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Unreadable(ValueError):
    """A file is not an image, or a damaged one, or of a kind that has no faithful 8-bit form."""


def shown(path: Any) -> str:
    """A path as one printable line: control characters and bytes that are no text as escapes, long ones shortened."""

    def escaped(match: re.Match[str]) -> str:
        code = ord(match[0])
        # Python keeps a byte of a file name that is not UTF-8 as a lone surrogate
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(match[0])[1:-1]

    text = _UNPRINTABLE.sub(escaped, str(path))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}...{text[-_LONGEST // 2 :]}"


# ------------------------------------------------------------------ folders


def find_images(root: Path) -> dict[str, str]:
    """Images below a folder: their sorted paths relative to it, and the real path of each.

    Hidden files and folders are passed over. Links are followed, and every file is found once: by its place where that
    is in the folder, else by the first link.

    Raises:
        FileNotFoundError: where there is no such folder, or no image in it.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise FileNotFoundError(f"the image folder {shown(root)} {what}: give the path of a folder of images")
    found: dict[str, str] = {}  # real path -> path from the root
    seen: set[str] = set()
    again = 0
    folders, links = [("", os.path.realpath(root))], list[str]()
    while folders or links:
        if folders:
            name, real = folders.pop()
            if real not in seen:
                seen.add(real)
                for place, is_folder, is_link in _entries(root, name):
                    if is_link:
                        heapq.heappush(links, place)
                    elif is_folder:
                        folders.append((place, os.path.join(real, os.path.basename(place))))
                    else:
                        found.setdefault(os.path.join(real, os.path.basename(place)), place)
            continue
        # links last, and in order, so that what is here is found here, whatever else leads to it
        name = heapq.heappop(links)
        real = os.path.realpath(os.path.join(root, name))
        again += real in seen or real in found
        if os.path.isdir(real):
            folders.append((name, real))
        elif _is_image(name):
            found.setdefault(real, name)
    if not found:
        endings = ", ".join(e[1:] for e in EXTENSIONS)
        raise FileNotFoundError(f"there is no image in {shown(root)} or below it: bring files that end in {endings}")
    if again:
        what = "1 link leads" if again == 1 else f"{again:,} links lead"
        rank_zero_info(f"{shown(root)}: {what} to files that are there already, which count once")
    return dict(sorted((name, real) for real, name in found.items()))


def _entries(root: Path, folder: str) -> Iterator[tuple[str, bool, bool]]:
    """(path from the root, whether it is a folder, whether it is a link) of what may be an image or lead to some."""
    try:
        entries = list(os.scandir(os.path.join(root, folder)))
    except OSError as error:
        warnings.warn(f"passing over the folder {shown(root / folder)}: {error.strerror}", stacklevel=2)
        return
    for entry in entries:
        place = f"{folder}/{entry.name}" if folder else entry.name
        if entry.is_symlink():
            if not entry.name.startswith((".", "__")) or _is_image(entry.name):
                yield place, False, True
        elif entry.is_dir(follow_symlinks=False):
            if not entry.name.startswith((".", "__")):
                yield place, True, False
        elif _is_image(entry.name) and entry.is_file(follow_symlinks=False):
            yield place, False, False


def _is_image(name: str) -> bool:
    name = os.path.basename(name)
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


# ------------------------------------------------------------------ pixels


def read_image(path: Path) -> UInt8[Tensor, "3 h w"]:
    """An image as it is meant to be seen: upright, transparency on white, grey and palette as RGB, its first frame.

    Values of 16 bits keep their upper 8. Faults of EXIF and other metadata are passed over.

    Raises:
        Unreadable: for anything that Pillow cannot read, and for pixels that have no faithful 8-bit form.
    """
    from PIL import Image

    try:
        try:
            return from_pil(_read(path))
        except (Unreadable, FileNotFoundError, Image.DecompressionBombError):
            raise
        except Exception:
            # metadata can break Pillow in any way; a file whose pixels are broken breaks it once more
            if (rest := strip_metadata(Path(path).read_bytes())) is None:
                raise
            return from_pil(_read(io.BytesIO(rest[0]), rest[1]))
    except Unreadable:
        raise
    except Image.DecompressionBombError as error:
        raise Unreadable(f"{str(error).partition(',')[0]}: make it smaller") from error
    except Exception as error:
        said = str(getattr(error, "strerror", None) or error).replace(f" {str(path)!r}", "").strip()
        raise Unreadable(shown(re.sub(r" <_io.BytesIO .*?>", "", said)) or type(error).__name__) from error


def _read(file: Any, turned: int | None = None) -> Any:
    """The Pillow image, upright, in a mode that has an 8-bit form."""
    from PIL import Image

    with Image.open(file) as image:
        # what decides the meaning of values is forgotten by loading
        rawmode = next((str(tile[3]) for tile in image.tile if isinstance(tile[3], str)), "")
        tiff = image.format == "TIFF"
        if tiff:
            said = read_tiff_orientation(image)
            tags = cast("TiffImageFile", image).tag_v2
            facts = {key: tags.get(key) for key in (_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT)}
        image.load()
        turned = turned or (said if tiff else read_orientation(image))
        return turn_upright(_eight_bits(image, rawmode, facts if tiff else {}), turned)


_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF's tags


def _eight_bits(image: Any, rawmode: str, facts: dict[int, Any]) -> Any:
    """A Pillow image of at most 8 bits per channel that :func:`datamodules.transforms.from_pil` shows as meant."""
    from PIL import Image

    key, wide = image.info.get("transparency"), "16" in rawmode
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
        # Pillow's own conversion would cut 16-bit values off at 255
        bits = facts[_BITS][0] if facts.get(_BITS) else 16
        values = np.asarray(image).astype(np.int64)
        if facts.get(_PHOTOMETRIC) == 0:  # white is zero, which Pillow heeds in 8 bits alone
            values = 2**bits - 1 - values
        grey = Image.fromarray((values >> (bits - 8)).clip(0, 255).astype(np.uint8))
        if not isinstance(key, int):
            return grey
        alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
        return Image.merge("LA", (grey, alpha))
    if image.mode in ("I", "F"):
        raise Unreadable(f"pixels of kind {image.mode} have no 8-bit form: save it with 8 or 16 bits per channel")
    if facts.get(_SAMPLE_FORMAT) and set(facts[_SAMPLE_FORMAT]) - {1, 4}:
        raise Unreadable("signed pixels have no 8-bit form: save it with unsigned ones")
    if image.format == "PNG" and isinstance(key, int) and rawmode in ("L;2", "L;4"):
        image.info["transparency"] = key * (85 if rawmode == "L;2" else 17)  # Pillow stretches pixels, not the key
    if image.format == "PNG" and image.mode == "RGB" and key is not None and wide:
        raise Unreadable("a transparent colour of 16 bits has no 8-bit form: save it with an alpha channel")
    if image.mode == "La":  # grey already multiplied by its alpha: on white, what is missing is white
        values, opacity = (np.asarray(image.getchannel(i), dtype=np.int64) for i in range(2))
        return Image.fromarray((values + 255 - opacity).clip(0, 255).astype(np.uint8))
    return image
