"""The token ``<image>`` that transformers' image-text classes need in the vocabulary of a language model."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

IMAGE_TOKEN = "<image>"


def add_image_token(language: Any, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], int]:
    """Add a row for ``<image>``, whose id no text has, to configuration and weights, and save the tokenizer with it.

    The row is the mean of the others: it is never read, since an image stands there, and hardly ever written.

    Args:
        language: :class:`zoo.language.language_model.LanguageModel`.
        folder: gets the tokenizer.

    Returns:
        Fields of the configuration, weights under the network's own names, and the new id.
    """
    network = language.network
    config = network.config.to_dict()
    new = int(config["vocab_size"])
    tables = {network.get_input_embeddings().weight.data_ptr(), network.get_output_embeddings().weight.data_ptr()}
    state = {}
    for name, value in network.state_dict().items():
        grown = value.data_ptr() in tables
        state[name] = torch.cat([value, value.float().mean(0, keepdim=True).to(value.dtype)]) if grown else value
    tokenizer = copy.deepcopy(language.text.tokenizer)
    fillers = [f"<unused_{i}>" for i in range(len(tokenizer), new)]  # tables may be longer than the vocabulary
    tokenizer.add_tokens([*fillers, IMAGE_TOKEN], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return config | {"vocab_size": new + 1}, state, new
