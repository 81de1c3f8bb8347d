"""BLIP-2 weights of salesforce/LAVIS, first stage: ``blip2_pretrained.pth`` and its relatives.

Our modules keep LAVIS's names, so reading is leaving out what is no weight. These files hold no image encoder, which
was frozen; fine-tuned ones do, and it is reported as unused, because image encoders are named by ``vision``.
"""

from torch import nn

from zoo.checkpoints.format import Converted, Format, State

POSITIONS = "Qformer.bert.embeddings.position_ids"  # a buffer with 0, 1, 2, ...
TOWERS = ("visual_encoder.", "opt_model.", "t5_model.", "opt_proj.", "t5_proj.")


def matches(state: State) -> bool:
    """A Q-Former by LAVIS's names, with anything that only LAVIS's files hold."""
    return "Qformer.bert.embeddings.LayerNorm.weight" in state and (
        POSITIONS in state or any(name.startswith(TOWERS) for name in state)
    )


def convert(state: State, model: nn.Module) -> Converted:
    """The same names, less what the first stage has no use for."""
    unused = tuple(name for name in state if name.startswith(TOWERS))
    kept = {name: value.float() for name, value in state.items() if name != POSITIONS and name not in unused}
    return Converted(kept, ignored=unused)


STAGE1 = Format("BLIP-2's Q-Former of salesforce/LAVIS, first stage", matches, convert)
