"""LlamaGen's VQ tokenizers (``vq_ds16_c2i.pt``): taming's networks under other names.

The middle is a list, and the decoder's levels stand in the order in which they run.
"""

import re

from torch import nn

from zoo.checkpoints.format import Converted, Format, State
from zoo.checkpoints.published.taming import add_discriminator

MIDDLE = {"0": "block_1", "1": "attn_1", "2": "block_2"}
COUNTER = "quantize.codebook_used"  # the latest ids of its training, for a usage statistic


def matches(state: State) -> bool:
    """Recognise LlamaGen's lists of levels."""
    return any(name.startswith("encoder.conv_blocks.0.res.0.") for name in state)


def to_taming_name(name: str, levels: int) -> str:
    """Rename a parameter of LlamaGen as taming spells it."""
    name = re.sub(r"^(encoder|decoder)\.mid\.([012])\.", lambda m: f"{m[1]}.mid.{MIDDLE[m[2]]}.", name)
    name = re.sub(r"^encoder\.conv_blocks\.", "encoder.down.", name)
    name = re.sub(r"^decoder\.conv_blocks\.(\d+)\.", lambda m: f"decoder.up.{levels - 1 - int(m[1])}.", name)
    return re.sub(r"(\.(?:down|up)\.\d+)\.res\.", r"\1.block.", name)


def convert(state: State, model: nn.Module) -> Converted:
    """Rename; the usage counter is left out."""
    levels = 1 + max(int(m[1]) for name in state if (m := re.match(r"decoder\.conv_blocks\.(\d+)\.", name)))
    critic = "discriminator."  # of a training file, where it stands beside the model
    kept = {
        to_taming_name(name, levels): v for name, v in state.items() if name != COUNTER and not name.startswith(critic)
    }
    kept, fresh = add_discriminator(kept, state, model, critic)
    return Converted(kept, newly_initialised=fresh)


VQ = Format("LlamaGen's VQ tokenizer (.pt)", matches, convert)
