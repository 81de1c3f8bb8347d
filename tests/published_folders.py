"""Folders as libraries write them, with single fields changed, and networks whose every number matters."""

import json
import shutil

import torch

import zoo


def drawn(network):
    """The network with random numbers added to all parameters, those that start at zero too."""
    torch.manual_seed(5)
    return _stir(network, 0.1)


def stirred(name, seed=1, **overrides):
    """A preset's model, random numbers, with others added to all parameters."""
    torch.manual_seed(seed)
    return _stir(zoo.create_model(name, **overrides), 0.05)


def _stir(network, size):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * size)
    return network.eval()


def randomised(model, seed=3, size=0.2):
    """Position tables, biases and gains start at constants, which would hide names that are exchanged.

    Args:
        model: gets other parameters.
        seed: of the numbers.
        size: of those in matrices; those in vectors are spread around a half.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.5 * noise + 0.5 if parameter.ndim == 1 else size * noise)
    return model.eval()


def tokenizer_state(model):
    """The weights of a VQGAN that are its tokenizer's."""
    return {name: v.clone() for name, v in model.state_dict().items() if not name.startswith("discriminator.")}


def edited(source, target, part=None, file="config.json", **fields):
    """A copy of a folder with other fields in a file, or in a part of it."""
    shutil.copytree(source, target)
    path = target / file
    config = json.loads(path.read_text()) if path.exists() else {}
    (config if part is None else config[part]).update(fields)
    path.write_text(json.dumps(config))
    return target
