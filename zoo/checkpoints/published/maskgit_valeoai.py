"""Weights of valeoai/Maskgit-pytorch v1.0: ``MaskGIT_ImageNet_{256,512}.pth``, a dict with ``model_state_dict``.

Our network for them keeps their names. The number of heads is not in the file; the published ones have 16.
"""

from typing import Any

from zoo.checkpoints.format import Converted, Format, State

MARK = "transformer.layers.0.0.fn.mha.in_proj_weight"


def matches(state: State) -> bool:
    """Recognise the names of the published module."""
    return MARK in state and "tok_emb.weight" in state


def convert(state: State, model: Any) -> Converted:
    """Add the name of our attribute.

    Raises:
        ValueError: for a model of another layout.
    """
    if model.layout != "valeoai":
        raise ValueError("these are weights of Maskgit-pytorch, another network: build the model with layout='valeoai'")
    return Converted({f"network.{name}": value for name, value in state.items()})


VALEOAI = Format("Maskgit-pytorch v1 (valeoai)", matches, convert)
