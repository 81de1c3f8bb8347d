"""OpenAI's dVAE weights: ``encoder.pkl`` and ``decoder.pkl`` of https://cdn.openai.com/dall-e/.

Each file is a pickled module; a plain state dict with the same names is read as well. Our networks keep OpenAI's
names, so a folder with both files is ``encoder.`` + names and ``decoder.`` + names, which needs no renaming.
"""

from torch import nn

from zoo.checkpoints.format import Converted, Format, State

CLASSES = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.decoder.Decoder",
    "dall_e.decoder.DecoderBlock",
    "dall_e.utils.Conv2d",
)
PARTS = ("encoder.", "decoder.")
NO_DECODER = (
    "these weights hold the dVAE's encoder only, so its tokens cannot be decoded: "
    "load decoder.pkl too (a folder with encoder.pkl and decoder.pkl)"
)
NO_ENCODER = (
    "these weights hold the dVAE's decoder only: load encoder.pkl too (a folder with encoder.pkl and decoder.pkl)"
)


def matches(state: State) -> bool:
    """Recognise the names of one network (``blocks.input.w``), or of one or both with their prefix."""
    return any(f"{part}blocks.input.w" in state for part in ("", *PARTS))


def convert(state: State, model: nn.Module) -> Converted:
    """Add the prefix of the network that the names belong to."""
    if any(name.startswith("blocks.") for name in state):
        # The encoder starts with a 7x7 convolution on pixels, the decoder with a 1x1 convolution on codes.
        part = "decoder." if state["blocks.input.w"].shape[-1] == 1 else "encoder."
        state = {part + name if name.startswith("blocks.") else name: value for name, value in state.items()}
    absent = {"encoder.": NO_ENCODER, "decoder.": NO_DECODER}
    for part in PARTS:
        if any(name.startswith(part) for name in state):
            del absent[part]
    return Converted(dict(state), not_in_file=absent)


DALLE = Format("OpenAI dVAE (encoder.pkl, decoder.pkl)", matches, convert, CLASSES)
