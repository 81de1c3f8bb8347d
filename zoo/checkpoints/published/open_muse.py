"""MaskGIT's VQGAN as open-muse and TiTok ported it to PyTorch, under names that our networks keep."""

from torch import nn

from zoo.checkpoints.format import Converted, Format, State
from zoo.checkpoints.published.taming import add_discriminator


def matches(state: State) -> bool:
    """Recognise the names of the port, without the discriminator that ours have."""
    names = {"encoder.mid.0.norm1.weight", "encoder.down.0.block.0.norm1.weight", "quantize.embedding.weight"}
    return names <= state.keys() and not any(name.startswith("discriminator.") for name in state)


def convert(state: State, model: nn.Module) -> Converted:
    """Keep all names; the discriminator starts anew, as the port has none."""
    kept, fresh = add_discriminator(dict(state), {}, model, "discriminator.")
    return Converted(kept, newly_initialised=fresh)


TOKENIZER = Format("MaskGIT's tokenizer (port of open-muse and TiTok)", matches, convert)
