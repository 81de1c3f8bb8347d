"""Where files are kept that can be made again: drawn images, dequantised weights."""

import os
from pathlib import Path

from zoo.atomic_files import refusal

VARIABLE = "TOKENZOO_CACHE"


def cache_folder() -> Path:
    """``$TOKENZOO_CACHE``, else ``~/.cache/tokenzoo``. May be deleted at any time."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "tokenzoo")


def cache_problem() -> str | None:
    """Why nothing can be kept in the cache, in one sentence; None where it can. To ask before work is done for it."""
    error = refusal(cache_folder(), 4096)
    return None if error is None else not_kept(error)


def not_kept(error: OSError) -> str:
    """The sentence for an error of writing into the cache."""
    return f"nothing can be kept in {cache_folder()} ({error.strerror or error}): set {VARIABLE} to a folder with room"
