"""BEiT weights of microsoft/unilm ``beit/``, whose parameter names our network keeps.

``model`` and ``module`` wrappers are seen through when the file is read; the ``backbone.`` prefix of the segmentation
checkpoints and the ``vit.`` prefix of our own modules are removed here, so that any of them starts any other.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from zoo.checkpoints.format import Converted, Format, State
from zoo.checkpoints.published import beit_resizing

PREFIXES = ("vit.", "backbone.")
#: parts of the segmentation checkpoints that this library has no model for
SEGMENTATION = ("decode_head.", "auxiliary_head.", "fpn1.", "fpn2.", "fpn3.", "fpn4.")
#: tells a BEiT from any other vision transformer: no bias on the keys
MARK = "blocks.0.attn.q_bias"


def find_unilm_names(state: State) -> dict[str, str]:
    """Map each name in the file to unilm's name."""
    return {name: next((name[len(p) :] for p in PREFIXES if name.startswith(p)), name) for name in state}


def matches(state: State) -> bool:
    """Recognise a BEiT by unilm's names, with anything that only unilm's checkpoints hold."""
    found = set(find_unilm_names(state).values())
    only = ("mask_token", "rel_pos_bias.", "lm_head.")
    return MARK in found and (
        any(n.startswith(only) or n.endswith(beit_resizing.INDEX) for n in found) or found != set(state)
    )


def convert(state: State, model: nn.Module, said: Mapping[str, Any] = beit_resizing.NOTHING) -> Converted:
    """Drop what belongs to segmentation heads and fit the rest to the model."""
    renamed = {new: state[old] for old, new in find_unilm_names(state).items()}
    return beit_resizing.fit_to_model(
        {n: value for n, value in renamed.items() if not n.startswith(SEGMENTATION)}, model, said
    )


BEIT = Format(
    "BEiT with the names of microsoft/unilm",
    matches,
    convert,
    convert_described=convert,
    rearranges=beit_resizing.rearranges,
)
