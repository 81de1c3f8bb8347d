"""Where a checkpoint is: a path of this machine, or an address, from which nothing is read directly."""

import re
from pathlib import Path

ADDRESS = re.compile(r"[A-Za-z][\w+.-]*:/|.*::")
LOCAL = re.compile(r"(file|local)://(localhost(?=/))?", re.IGNORECASE)


def is_address(source: str | Path) -> bool:
    """Whether it names something elsewhere: ``http://``, ``s3://``, a chain of ``fsspec``, a registry.

    ``file://`` is a path.
    """
    text = str(source)
    if LOCAL.match(text) or Path(text).exists():
        return False
    return bool(ADDRESS.match(text)) or re.match(r"registry(:|$)", text, re.IGNORECASE) is not None


def local_path(source: str | Path) -> Path:
    """The path that is meant.

    Raises:
        ValueError: for an address, saying how to get the file.
    """
    if is_address(source):
        raise ValueError(
            f"{source} is an address, and checkpoints are read from this machine only: "
            "get the file yourself and give its path"
        )
    return Path(LOCAL.sub("", str(source)))
