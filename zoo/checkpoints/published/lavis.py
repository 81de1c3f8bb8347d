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
#: parameters that only the text branch of the first stage needs
TEXT_BRANCH = re.compile(
    r"Qformer\.(cls\.|bert\.embeddings\.(word|position)|bert\.encoder\.layer\.\d+\.(intermediate|output)\.)"
)
HEADS = ("vision_proj.", "text_proj.", "itm_head.", "temp")
SEED_CODEC = ("encode_task_layer.", "decode_task_layer.")  # SEED's tokenizer keeps LAVIS's names beside these


def holds_seed_codec(state: State) -> bool:
    """Tell whether these are the weights of SEED's tokenizer, which keeps LAVIS's names."""
    return any(name.startswith(SEED_CODEC) for name in state)


def matches_stage1(state: State) -> bool:
    """Recognise a Q-Former by LAVIS's names, with anything that only LAVIS's files hold."""
    if "Qformer.bert.embeddings.LayerNorm.weight" not in state or holds_seed_codec(state):
        return False
    return POSITIONS in state or any(name.startswith((*TOWERS, *PROJECTIONS)) for name in state)


def convert_stage1(state: State, model: nn.Module) -> Converted:
    """Keep the names, and leave out what the first stage has no use for."""
    without = (POSITIONS, *TOWERS, *PROJECTIONS)
    kept = {name: value.float() for name, value in state.items() if not name.startswith(without)}
    return Converted(kept, checked=check_positions(state, (POSITIONS,)))


def matches_stage2(state: State) -> bool:
    """Recognise a Q-Former by LAVIS's names with a projection into a language model."""
    return "query_tokens" in state and any(name.startswith(PROJECTIONS) for name in state)


def matches_first(state: State) -> bool:
    """Recognise a Q-Former by LAVIS's names without a projection: LAVIS's first stage, and ours with its names."""
    wanted = {"query_tokens", "Qformer.bert.embeddings.LayerNorm.weight"}
    return wanted <= state.keys() and not holds_seed_codec(state) and not matches_stage2(state)


def convert_stage2(state: State, model: Any) -> Converted:
    """Take queries and Q-Former as the bridge; the projection gets one name, whatever the language model."""
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
    """Recognise our second stage, for a model without its language model."""
    return "bridge.query_tokens" in state


def convert_own(state: State, model: Any) -> Converted:
    """Take everything, but the projection only for a model that has one."""
    projects = "language_model" in model.frozen
    return Converted({n: value for n, value in state.items() if projects or not n.startswith("language_projection.")})


def convert_seed_start(state: State, model: nn.Module) -> Converted:
    """Take BLIP-2's first stage for SEED's, without matching head and word head; queries must be as many."""
    own = model.state_dict()
    kept = {name: value.float() for name, value in state.items() if name in own}
    return Converted(kept, checked=check_positions(state, (POSITIONS,)))


STAGE1 = Format("BLIP-2's Q-Former of salesforce/LAVIS, first stage", matches_stage1, convert_stage1)
STAGE2 = Format("BLIP-2 of salesforce/LAVIS, second stage", matches_stage2, convert_stage2)
FIRST = Format("BLIP-2's first stage", matches_first, convert_stage2)
SEED_START = Format("BLIP-2's first stage", matches_first, convert_seed_start)
OWN = Format("our BLIP-2, second stage", matches_own, convert_own)
