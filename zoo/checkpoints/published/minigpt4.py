"""MiniGPT-4's published projections: ``llama_proj`` among optimizer moments and buffers of frozen parts."""

from torch import nn

from zoo.checkpoints.format import Converted, Format, State


def matches(state: State) -> bool:
    """Recognise the projection by its published name, besides whatever else was saved."""
    return {"llama_proj.weight", "llama_proj.bias"} <= state.keys()


def convert(state: State, model: nn.Module) -> Converted:
    """Take the projection alone."""
    kept = {name: value.float() for name, value in state.items() if name.startswith("llama_proj.")}
    return Converted(kept)


PROJECTION = Format("MiniGPT-4's projection", matches, convert)
