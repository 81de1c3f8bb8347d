"""Means of pixels in the configurations beside weights, compared with the model's."""

from collections.abc import Mapping
from typing import Any

from zoo.checkpoints.config_files import PREPROCESSOR
from zoo.nn.normalisation import STATISTICS


def compare_pixel_statistics(config: Mapping[str, Any], normalisation: str) -> tuple[str, ...]:
    """Note where the pixels of these weights were normalised otherwise than the model does.

    Args:
        config: read by :func:`zoo.checkpoints.config_files.read_config_beside`; transformers writes means into
            ``preprocessor_config.json``, timm into ``pretrained_cfg``.
        normalisation: of the model.
    """
    theirs = config.get(f"_{PREPROCESSOR}", {}).get("image_mean") or config.get("pretrained_cfg", {}).get("mean")
    own = STATISTICS[normalisation][0]
    if theirs is None or theirs == list(own):
        return ()
    known = [name for name, (mean, _) in STATISTICS.items() if theirs == list(mean)]
    remedy = f": set normalisation to {known[0]} for their outputs" if known else ""
    return (f"the pixels of these weights had the mean {theirs}, and this model subtracts {list(own)}{remedy}",)
