"""The comment header of a recipe, read as data: what it reproduces, what it costs, what to expect."""

import re
from pathlib import Path

#: every recipe gives all of them, in this order
KEYS = ("title", "paper", "model", "trains", "hardware", "expect", "run", "smaller", "deviations")


def parse_header(path: str | Path) -> dict[str, str]:
    """Read ``# key: value`` lines at the top of a recipe; indented comment lines continue a value.

    Args:
        path: of the YAML file.

    Returns:
        The values that are there, lines of a value joined by newlines; empty for a file without a header.
    """
    header: dict[str, str] = {}
    key = None
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if (entry := re.fullmatch(r"# (\w+):\s*(.*?)\s*", line)) and entry[1] in KEYS:
            key = entry[1]
            header[key] = entry[2]
        elif key is not None and (more := re.fullmatch(r"#\s{2,}(\S.*?)\s*", line)):
            header[key] = f"{header[key]}\n{more[1]}".lstrip("\n")
        else:
            key = None  # a comment of another kind
    return header
