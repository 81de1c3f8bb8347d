"""BEiT classifiers of timm (``beit_base_patch16_224`` and relatives).

timm keeps unilm's names, without ``relative_position_index`` and without anything of pre-training: it has neither mask
token nor token head, so these weights start a classifier and not :class:`zoo.models.beit.BEiT`.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from zoo.checkpoints.format import Converted, Format, State
from zoo.checkpoints.published import beit_resizing, unilm
from zoo.checkpoints.published.pixel_statistics import compare_pixel_statistics


def matches(state: State) -> bool:
    """Recognise a BEiT by unilm's names; ask :func:`zoo.checkpoints.published.unilm.matches` first."""
    return unilm.MARK in state


def convert(state: State, model: nn.Module, said: Mapping[str, Any] = beit_resizing.NOTHING) -> Converted:
    """Fit the weights to the model; their names are ours already."""
    return beit_resizing.fit_to_model(dict(state), model, said)


def check_config(config: Mapping[str, Any], model: Any) -> tuple[str, ...]:
    """Note where ``config.json`` of timm's folders says other means of pixels than the model has."""
    return compare_pixel_statistics(config, model.normalisation)


BEIT = Format("BEiT classifier of timm", matches, convert, check_config=check_config, convert_described=convert)
