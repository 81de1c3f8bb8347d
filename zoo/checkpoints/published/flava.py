"""The dVAE encoder as transformers' ``FlavaImageCodebook`` stores it (``facebook/flava-image-codebook``).

Encoder only. The weights are OpenAI's; two wrapper levels and the usual parameter names were added:
``blocks.group_1.group.block_1.res_path.path.conv_1.weight`` is ``blocks.group_1.block_1.res_path.conv_1.w``.
"""

import re

from torch import nn

from zoo.checkpoints.format import Converted, Format, State
from zoo.checkpoints.published import openai

PREFIX = "image_codebook."  # inside a checkpoint of FlavaForPreTraining


def matches(state: State) -> bool:
    """Recognise the extra ``group`` level, bare or inside a whole FLAVA."""
    return any(name.removeprefix(PREFIX).startswith("blocks.group_1.group.block_1.") for name in state)


def to_openai_name(name: str) -> str:
    """Rename a parameter of ``FlavaImageCodebook`` as OpenAI spells it."""
    name = re.sub(r"(\.group_\d+)\.group\.", r"\1.", name).replace(".res_path.path.", ".res_path.")
    return re.sub(r"\.bias$", ".b", re.sub(r"\.weight$", ".w", name))


def convert(state: State, model: nn.Module) -> Converted:
    """Rename to OpenAI's encoder; what else a whole FLAVA holds is left out."""
    within = PREFIX if any(name.startswith(PREFIX) for name in state) else ""
    encoder = {
        "encoder." + to_openai_name(name.removeprefix(within)): value
        for name, value in state.items()
        if name.startswith(within)
    }
    return Converted(encoder, not_in_file={"decoder.": openai.NO_DECODER})


CODEBOOK = Format("FLAVA image codebook (transformers)", matches, convert)
