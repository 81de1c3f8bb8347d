"""Paths and addresses of checkpoints; the file behind an address is downloaded only when asked for."""

import hashlib
import os
import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

from lightning.pytorch.utilities import rank_zero_info

from zoo.assets import cache_folder, find_cache_problem
from zoo.files.atomic import write_whole

ADDRESS = re.compile(r"[A-Za-z][\w+.-]+:/|.*::")  # one letter is a drive of Windows
LOCAL = re.compile(r"(file|local)://(localhost(?=/))?", re.IGNORECASE)
REGISTRY = re.compile(r"registry(:|$)", re.IGNORECASE)  # of Lightning
PIECE = 2**20  # bytes


def is_address(source: str | Path) -> bool:
    """Tell whether a source is elsewhere: ``http://``, ``s3://``, a chain of ``fsspec``, Lightning's registry.

    ``file://`` is a path.
    """
    text = str(source)
    if LOCAL.match(text) or Path(text).exists():
        return False
    return bool(ADDRESS.match(text) or REGISTRY.match(text))


def local_path(source: str | Path) -> Path:
    """Turn a path or ``file://`` address into a path of this machine; ``~`` is the home folder.

    Raises:
        ValueError: for an address, saying how to get the file.
    """
    if is_address(source):
        raise ValueError(
            f"{source} is an address, and files are read from this machine only: download it yourself, or with "
            "zoo.checkpoints.addresses.fetch_file, and give its path"
        )
    path = Path(LOCAL.sub("", str(source)))
    return path if path.exists() else Path(os.path.expanduser(path))  # ~ behind a = is left to us by the shell


def fetch_file(address: str, folder: str | Path | None = None) -> Path:
    """Download a file, anew each time, without reading it; it appears only when it is whole.

    Args:
        address: anything that ``fsspec`` opens.
        folder: gets the file; None takes ``checkpoints`` in the cache folder.

    Returns:
        The file.

    Raises:
        ValueError: for an address that nothing can be downloaded from.
        ModuleNotFoundError: without the package for this kind of address.
        OSError: for a download that fails, or a disk without room for it.
    """
    import fsspec
    from tqdm import tqdm

    if REGISTRY.match(address):
        raise ValueError(f"{address} is of Lightning's registry, which is not supported: download the file yourself")
    name = Path(urlsplit(address).path).name or "checkpoint"
    if folder is None and (problem := find_cache_problem()) is not None:
        raise OSError(f"{address} is not downloaded: {problem}")
    folder = Path(folder) if folder is not None else cache_folder() / "checkpoints"
    path = folder / f"{hashlib.sha256(address.encode()).hexdigest()[:12]}-{name}"
    try:
        files, place = fsspec.core.url_to_fs(address)
        size = files.size(place)
        folder.mkdir(parents=True, exist_ok=True)
        if size is not None and size > (free := shutil.disk_usage(folder).free):
            raise OSError(f"{size:,} bytes, and {folder} has room for {free:,}")
        with write_whole(path) as part:
            with (
                files.open(place, "rb") as source,
                part.open("wb") as target,
                tqdm(total=size, desc=name, unit="B", unit_scale=True, disable=None) as bar,
            ):
                while piece := source.read(PIECE):
                    target.write(piece)
                    bar.update(len(piece))
            found = part.stat().st_size
            if size is not None and found != size:
                raise OSError(f"{found:,} of {size:,} bytes came")
    except ImportError as error:
        raise ModuleNotFoundError(f"{address} cannot be downloaded: {error}") from None
    except Exception as error:  # each kind of file system has errors of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise OSError(f"{address} was not downloaded: {reason}") from None
    rank_zero_info(f"downloaded {address} ({found:,} bytes) to {path}")
    return path
