"""Second-stage checkpoints of taming-transformers (``cin_transformer`` and relatives).

A Lightning checkpoint of the whole model: ``transformer.*`` is the GPT, ``first_stage_model.*`` the VQGAN, which our
model has as its tokenizer. ``blocks.i.attn.mask`` is a buffer of ones and zeros.
"""

from torch import nn

from zoo.checkpoints.format import Converted, Format, State

MARK = "transformer.blocks.0.attn.key.weight"
FIRST_STAGE = ("first_stage_model.", "cond_stage_model.")


def matches(state: State) -> bool:
    """Names of a GPT beside a first stage, or of a GPT with its mask buffers."""
    return MARK in state and any(name.startswith(FIRST_STAGE) or name.endswith(".attn.mask") for name in state)


def convert(state: State, model: nn.Module) -> Converted:
    """Keep the GPT; our names of it are taming's.

    Raises:
        ValueError: for a model whose classes have ids of their own.
    """
    if getattr(model, "class_ids", "shared") != "shared":
        raise ValueError("taming's classes share ids with codes: build the model with class_ids='shared'")
    kept = {n: v for n, v in state.items() if n.startswith("transformer.") and not n.endswith(".attn.mask")}
    first = tuple(name for name in state if name.startswith(FIRST_STAGE))
    notes = ("the first stage in the file is not read: give it to the tokenizer",) if first else ()
    return Converted(kept, ignored=first, notes=notes)


TAMING = Format("second stage of taming-transformers", matches, convert)
