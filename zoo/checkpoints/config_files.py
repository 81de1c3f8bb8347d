"""Configuration files that lie beside weights, read as one configuration."""

from pathlib import Path
from typing import Any

from zoo.checkpoints.folders import read_json

PREPROCESSOR = "preprocessor_config.json"
ADAPTER = "adapter_config.json"  # of peft, beside LoRA matrices


def read_config_beside(path: Path) -> dict[str, Any]:
    """Read ``config.json`` in the folder of the weights; empty where there is none.

    Settings of LoRA matrices and of the preprocessing of pixels, which stand in files of their own, are entries under
    the name of their file with an underscore in front.

    Raises:
        ValueError: for a file that holds no settings by name.
    """
    folder = path if path.is_dir() else path.parent
    file, pixels, adapter = folder / "config.json", folder / PREPROCESSOR, folder / ADAPTER
    found = read_json(adapter) if adapter.is_file() else None
    beside = {} if found is None else {f"_{ADAPTER}": found}
    if not file.is_file():
        return beside
    return read_json(file) | beside | ({f"_{PREPROCESSOR}": read_json(pixels)} if pixels.is_file() else {})
