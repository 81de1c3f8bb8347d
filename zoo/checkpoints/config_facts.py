"""The files of settings beside weights, read as one configuration, and what it says of pixels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.checkpoints.folders import read_json
from zoo.nn.normalisation import STATISTICS

PREPROCESSOR = "preprocessor_config.json"
ADAPTER = "adapter_config.json"  # of peft: what LoRA matrices are, beside them


def config_beside(path: Path) -> dict[str, Any]:
    """What ``config.json`` in the folder of the weights says; nothing where there is none.

    Settings of LoRA matrices in the same folder stand under the name of their file with a line in front.

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


def pixel_notes(config: Mapping[str, Any], normalisation: str) -> tuple[str, ...]:
    """What to say where the pixels of these weights were normalised otherwise than the model does.

    Args:
        config: of :func:`config_beside`: transformers writes means into ``preprocessor_config.json``, timm into
            ``pretrained_cfg``.
        normalisation: of the model.
    """
    theirs = config.get(f"_{PREPROCESSOR}", {}).get("image_mean") or config.get("pretrained_cfg", {}).get("mean")
    own = STATISTICS[normalisation][0]
    if theirs is None or theirs == list(own):
        return ()
    known = [name for name, (mean, _) in STATISTICS.items() if theirs == list(mean)]
    remedy = f": set normalisation to {known[0]} for their outputs" if known else ""
    return (f"the pixels of these weights had the mean {theirs}, and this model subtracts {list(own)}{remedy}",)
