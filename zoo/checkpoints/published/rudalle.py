"""ruDALL-E (ai-forever/ru-dalle): Malevich in both versions, Emojich and Surrealist, which share their layout."""

from typing import Any

from torch import Tensor

from zoo.checkpoints.format import Converted, Format, State, check_constant
from zoo.nn.sparse_attention import Kind, joint_mask

FIRST = "transformer.layers.0.attention.query_key_value.weight"
MASKS: dict[str, Kind] = {"row": "row", "col": "column", "conv": "conv"}
PIECES = "the pieces of words are in a file of their own, beside ruDALL-E's weights: they are the text_tokenizer"


def matches(state: State) -> bool:
    """Recognise the names of ``DalleModel``."""
    return {FIRST, "to_logits.1.weight", "text_pos_embeddings.weight", "image_row_embeddings.weight"} <= state.keys()


def convert(state: State, model: Any) -> Converted:
    """Rename, and compare the masks in the file with those that the model computes by itself.

    Raises:
        ValueError: for masks of another kind, as of the other version.
    """
    renamed: dict[str, Tensor] = {}
    checked: list[str] = []
    for name, value in state.items():
        kind = name.removeprefix("transformer.").removesuffix("_mask")
        if kind in MASKS:
            shapes = model.segment_shapes
            mask = joint_mask(MASKS[kind], model.text_length, shapes, model.kernel, model.wraparound)
            checked += check_constant(
                {name: value.bool().tril()}, name, mask, f"the {MASKS[kind]} mask of version {model.version!r}"
            )
        else:
            renamed[f"transformer.{name}"] = value
    return Converted(renamed, not_in_file={"text_merges": PIECES}, checked=tuple(checked))


MALEVICH = Format("ruDALL-E (Malevich, Emojich, Surrealist)", matches, convert)
