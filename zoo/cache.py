"""Where files are kept that can be made again: drawn images, dequantised weights."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$TOKENZOO_CACHE``, else ``~/.cache/tokenzoo``. May be deleted at any time."""
    return Path(os.environ.get("TOKENZOO_CACHE") or Path.home() / ".cache" / "tokenzoo")
