"""OpenMMLab's copy of the dVAE encoder, as ``dalle_encoder.pth`` or inside a checkpoint of mmpretrain's BEiT or CAE.

mmpretrain's ``DALLEEncoder`` has OpenAI's parameter names. The file ``dalle_encoder.pth`` (a state dict, bare or under
``state_dict``) therefore looks like OpenAI's encoder and is read as such; in a training checkpoint the same names
carry the prefix ``target_generator.``, and everything else belongs to the model that was trained on the tokens.
"""

from torch import nn

from zoo.checkpoints.format import Converted, Format, State
from zoo.checkpoints.published import openai

PREFIX = "target_generator."


def matches(state: State) -> bool:
    """Recognise OpenAI's names under the prefix of the target generator."""
    return f"{PREFIX}blocks.input.w" in state


def convert(state: State, model: nn.Module) -> Converted:
    """Take the tokenizer of the checkpoint."""
    encoder = {"encoder." + name.removeprefix(PREFIX): v for name, v in state.items() if name.startswith(PREFIX)}
    return Converted(encoder, not_in_file={"decoder.": openai.NO_DECODER})


ENCODER = Format("OpenMMLab checkpoint with a DALL-E target generator", matches, convert)
