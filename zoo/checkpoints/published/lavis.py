"""BLIP-2 weights of salesforce/LAVIS: ``blip2_pretrained.pth`` and its relatives of both stages.

Our modules keep LAVIS's names, so reading is leaving out what is no weight of ours. These files hold no image encoder,
which was frozen; fine-tuned ones do, and it is reported as unused, because image encoders are named by ``vision``.
"""

import re
from typing import Any

from torch import Tensor, nn

from zoo.checkpoints.format import Converted, Format, State, check_positions

POSITIONS = "Qformer.bert.embeddings.position_ids"  # a buffer with 0, 1, 2, ...
PROJECTIONS = ("opt_proj.", "t5_proj.", "llm_proj.")
TOWERS = ("visual_encoder.", "opt_model.", "t5_model.", "llm_model.")
#: what only the text branch of the first stage needs
TEXT_BRANCH = re.compile(
    r"Qformer\.(cls\.|bert\.embeddings\.(word|position)|bert\.encoder\.layer\.\d+\.(intermediate|output)\.)"
)
HEADS = ("vision_proj.", "text_proj.", "itm_head.", "temp")
SEED_CODEC = ("encode_task_layer.", "decode_task_layer.")  # SEED's tokenizer keeps LAVIS's names beside these


def has_codec(state: State) -> bool:
    """Whether it is SEED's tokenizer."""
    return any(name.startswith(SEED_CODEC) for name in state)


def matches_stage1(state: State) -> bool:
    """A Q-Former by LAVIS's names, with anything that only LAVIS's files hold."""
    if "Qformer.bert.embeddings.LayerNorm.weight" not in state or has_codec(state):
        return False
    return POSITIONS in state or any(name.startswith((*TOWERS, *PROJECTIONS)) for name in state)


def convert_stage1(state: State, model: nn.Module) -> Converted:
    """The same names, less what the first stage has no use for."""
    without = (POSITIONS, *TOWERS, *PROJECTIONS)
    kept = {name: value.float() for name, value in state.items() if not name.startswith(without)}
    return Converted(kept, checked=check_positions(state, (POSITIONS,)))


def matches_stage2(state: State) -> bool:
    """A Q-Former by LAVIS's names with a projection into a language model."""
    return "query_tokens" in state and any(name.startswith(PROJECTIONS) for name in state)


def matches_first(state: State) -> bool:
    """A Q-Former by LAVIS's names without one: LAVIS's first stage, and ours, which keeps the names."""
    wanted = {"query_tokens", "Qformer.bert.embeddings.LayerNorm.weight"}
    return wanted <= state.keys() and not has_codec(state) and not matches_stage2(state)


def convert_stage2(state: State, model: Any) -> Converted:
    """Queries and Q-Former become the bridge; the projection has one name, whatever the language model."""
    speaks = "language_model" in model.frozen
    kept: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == POSITIONS or name.startswith((*TOWERS, *HEADS)) or TEXT_BRANCH.match(name):
            continue
        if not name.startswith(PROJECTIONS):
            kept[f"bridge.{name}" if name.startswith(("query_tokens", "Qformer.")) else name] = value.float()
        elif speaks:
            kept[f"language_projection.{name.partition('.')[2]}"] = value.float()
    fresh = {}
    if speaks and "language_projection.weight" not in kept:
        fresh = {"language_projection.": "the first stage has no language model"}
    return Converted(kept, newly_initialised=fresh, checked=check_positions(state, (POSITIONS,)))


def matches_own(state: State) -> bool:
    """Our second stage, for a model without its language model."""
    return "bridge.query_tokens" in state


def convert_own(state: State, model: Any) -> Converted:
    """Everything, or everything but the projection."""
    projects = "language_model" in model.frozen
    return Converted({n: value for n, value in state.items() if projects or not n.startswith("language_projection.")})


def convert_seed_start(state: State, model: nn.Module) -> Converted:
    """BLIP-2's first stage for SEED's: no matching head and no word head; queries must be as many."""
    own = model.state_dict()
    kept = {name: value.float() for name, value in state.items() if name in own}
    return Converted(kept, checked=check_positions(state, (POSITIONS,)))


STAGE1 = Format("BLIP-2's Q-Former of salesforce/LAVIS, first stage", matches_stage1, convert_stage1)
STAGE2 = Format("BLIP-2 of salesforce/LAVIS, second stage", matches_stage2, convert_stage2)
FIRST = Format("BLIP-2's first stage", matches_first, convert_stage2)
SEED_START = Format("BLIP-2's first stage", matches_first, convert_seed_start)
OWN = Format("our BLIP-2, second stage", matches_own, convert_own)
