"""MaskGIT's VQGAN in Google's Flax files; our networks have the names of its PyTorch port.

Flax stores kernels as (height, width, in, out) and numbers layers in the order in which they run.
"""

import re
from typing import Any

from einops import rearrange
from torch import Tensor

from zoo.checkpoints.format import Converted, Format, State
from zoo.checkpoints.published.taming import add_discriminator

LAYERS = {
    "GroupNorm_0": "norm1",
    "GroupNorm_1": "norm2",
    "Conv_0": "conv1",
    "Conv_1": "conv2",
    "Conv_2": "nin_shortcut",
}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def to_port_name(name: str, levels: int, blocks: int) -> str:
    """Rename a Flax leaf as the port spells it; a name that is none of MaskGIT's is returned as it is."""
    if name == "quantizer/codebook":
        return "quantize.embedding.weight"
    parts = name.split("/")
    if len(parts) not in (3, 4) or parts[0] not in ("encoder", "decoder") or parts[-1] not in LEAVES:
        return name
    encoder, leaf = parts[0] == "encoder", LEAVES[parts[-1]]
    kind, _, number = parts[1].partition("_")
    if not number.isdigit():
        return name
    i = int(number)
    match kind:
        case "GroupNorm":
            place = "norm_out"
        case "Conv" if i == 0:
            place = "conv_in"
        case "Conv" if i == (1 if encoder else levels):
            place = "conv_out"
        case "Conv":
            place = f"up.{levels - i}.upsample_conv"
        case "ResBlock" if parts[2] in LAYERS:
            if encoder:
                block = (
                    f"down.{i // blocks}.block.{i % blocks}" if i < levels * blocks else f"mid.{i - levels * blocks}"
                )
            elif i < blocks:
                block = f"mid.{i}"
            else:
                block = f"up.{levels - 1 - (i - blocks) // blocks}.block.{(i - blocks) % blocks}"
            place = f"{block}.{LAYERS[parts[2]]}"
        case _:
            return name
    return f"{parts[0]}.{place}.{leaf}"


def matches(state: State) -> bool:
    """Recognise leaves of the Flax tree."""
    return "quantizer/codebook" in state and any(re.match(r"decoder/ResBlock_0/", name) for name in state)


def convert(state: State, model: Any) -> Converted:
    """Rename and turn kernels around."""
    down: Any = model.encoder.down
    levels, blocks = len(down), len(down[0].block)
    kept: dict[str, Tensor] = {}
    for name, value in state.items():
        turned = rearrange(value, "h w i o -> o i h w") if name.endswith("/kernel") and value.ndim == 4 else value
        kept[to_port_name(name, levels, blocks)] = turned
    kept, fresh = add_discriminator(kept, {}, model, "discriminator.")
    return Converted(kept, newly_initialised=fresh)


TOKENIZER = Format("MaskGIT's tokenizer (Flax)", matches, convert)
