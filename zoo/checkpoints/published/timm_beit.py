"""BEiT classifiers of timm (``beit_base_patch16_224`` and relatives).

timm keeps unilm's names, without ``relative_position_index`` and without anything of pre-training: it has neither mask
token nor token head, so these weights start a classifier and not :class:`zoo.models.beit.BEiT`.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from zoo.checkpoints.format import Converted, Format, State
from zoo.checkpoints.published import beit_surgery, unilm
from zoo.checkpoints.published.pixel_notes import pixel_notes


def matches(state: State) -> bool:
    """A BEiT by unilm's names; ask :func:`zoo.checkpoints.published.unilm.matches` first."""
    return unilm.MARK in state


def convert(state: State, model: nn.Module, said: Mapping[str, Any] = beit_surgery.NOTHING) -> Converted:
    """The names are ours already."""
    return beit_surgery.fit(dict(state), model, said)


def check_config(config: Mapping[str, Any], model: Any) -> tuple[str, ...]:
    """What ``config.json`` of timm's folders says of the pixels."""
    return pixel_notes(config, model.normalisation)


BEIT = Format("BEiT classifier of timm", matches, convert, check_config=check_config, convert_described=convert)
