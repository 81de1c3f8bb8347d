"""Where files are kept that can be made again: drawn images, dequantised weights."""

import os
import tempfile
from pathlib import Path

VARIABLE = "TOKENZOO_CACHE"


def cache_folder() -> Path:
    """``$TOKENZOO_CACHE``, else ``~/.cache/tokenzoo``. May be deleted at any time."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "tokenzoo")


def cache_problem() -> str | None:
    """Why nothing can be kept in the cache, in one sentence; None where it can. To ask before work is done for it."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return not_kept(error)
    return None


def not_kept(error: OSError) -> str:
    """The sentence for an error of writing into the cache."""
    return f"nothing can be kept in {cache_folder()} ({error.strerror or error}): set {VARIABLE} to a folder with room"
