"""SEED's published tokenizer (``seed_quantizer.pt``) and what else bears that name, told apart.

370 entries of ``seed_quantizer.pt`` are the tokenizer, without its image encoder, and all are demanded (one only counts
positions and is not kept); others in it (the Q-Former's text branch, projections) are reported as unused.
"""

from typing import Any

from torch import nn

from zoo.checkpoints.format import Converted, Format, State, check_positions
from zoo.checkpoints.published.lavis import POSITIONS, TEXT_BRANCH, holds_seed_codec

DETOKENIZER = ("image_down.", "distill_image_proj.", "reverse_tokens", "Reverse_Qformer.")
REVERSE_POSITIONS = "Reverse_Qformer.bert.embeddings.position_ids"
#: parts of which a model of another depth has more
LAYERS = ("Qformer.bert.encoder.", "Reverse_Qformer.bert.encoder.", "blocks.", "blocks_image.")
SEED1 = ("distill_text_proj.", "blocks_text.", "pos_embed_text")


def matches(state: State) -> bool:
    """Recognise any file with the layers around SEED's codebook, but for our own."""
    return holds_seed_codec(state) and not any(name.startswith("detokenizer.") for name in state)


def convert(state: State, model: Any) -> Converted:
    """Keep the names, the de-tokenizer's below ``detokenizer``.

    Raises:
        ValueError: for SEED-1, for the other de-tokenizer, or for a file without its Q-Former or positions.
    """
    if any(name.startswith(SEED1) for name in state):
        raise ValueError(
            "these weights are of SEED-1 (July 2023), which decodes to 77 text embeddings: SEED-2's file is "
            "seed_quantizer.pt, a later one"
        )
    kind = "mlp" if any(name.startswith("image_down.") for name in state) else "reverse_qformer"
    if kind != model.detokenizer.kind:
        raise ValueError(
            f"these weights have the {kind} de-tokenizer, this model {model.detokenizer.kind}: set detokenizer to "
            f"{kind}"
        )
    if not any(name.startswith("Qformer.") for name in state):
        raise ValueError(
            "this file of a training run holds what was trained and not the frozen Q-Former: copy query_tokens, "
            "Qformer.* and ln_vision.* of the first stage's file into it"
        )
    counted = (POSITIONS,) if kind == "mlp" else (POSITIONS, REVERSE_POSITIONS)
    if lacking := [name for name in counted if name not in state]:
        raise ValueError(f"this file is not whole: it lacks {' and '.join(lacking)}, so take the published one again")
    own: State = model.state_dict()
    kept = {}
    for name, value in state.items():
        ours = f"detokenizer.{name}" if name.startswith(DETOKENIZER) else name
        layer = name.startswith(LAYERS) and not TEXT_BRANCH.match(name.removeprefix("Reverse_"))
        if ours in own or layer:
            kept[ours] = value.float()  # a layer that this model lacks is then named, and not left out
    return Converted(kept, checked=check_positions(state, (POSITIONS, REVERSE_POSITIONS)))


def matches_first_stage(state: State) -> bool:
    """Recognise queries and a Q-Former by LAVIS's names without a codebook: SEED's first stage, or BLIP-2's."""
    wanted = {"query_tokens", "Qformer.bert.embeddings.LayerNorm.weight"}
    return wanted <= state.keys() and not holds_seed_codec(state)


def convert_first_stage(state: State, model: nn.Module) -> Converted:
    """Take queries, Q-Former without its text branch, and ``ln_vision``; the codec starts anew."""
    wanted = ("query_tokens", "Qformer.", "ln_vision.")
    text = {name for name in state if TEXT_BRANCH.match(name)} | {POSITIONS}
    kept = {name: v.float() for name, v in state.items() if name.startswith(wanted) and name not in text}
    fresh = dict.fromkeys(
        ("encode_task", "quantize.", "decode_task", "pos_embed", "blocks", "detokenizer."),
        "the first stage has no codes",
    )
    return Converted(kept, newly_initialised=fresh, checked=check_positions(state, (POSITIONS,)))


PUBLISHED = Format("SEED's tokenizer of AILab-CVC/SEED", matches, convert)
FIRST_STAGE = Format("the first stage of SEED or BLIP-2", matches_first_stage, convert_first_stage)
