"""Folders as libraries write them, with single fields changed, and networks whose every number matters."""

import json
import re
import shutil

import torch

import zoo
from zoo.checkpoints.published import maskgit_transformer


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


def google_maskgit(state, heads):
    """Weights of a :class:`zoo.models.maskgit.MaskGIT` under the names and in the shapes of Google's Flax files."""
    table = {ours: theirs for theirs, ours in maskgit_transformer.PLAIN.items()}
    inner = {ours: theirs for theirs, ours in maskgit_transformer.IN_LAYER.items()}
    found = {}
    for name, value in state.items():
        ours, split = name.removeprefix("network."), (heads, -1)
        if match := re.fullmatch(r"layers\.(\d+)\.(qkv|out)\.(weight|bias)", ours):
            stem, kind = f"TransformerLayer_{match[1]}/{maskgit_transformer.SELF}", match[3]
            leaf = "kernel" if kind == "weight" else "bias"
            if match[2] == "out":
                found[f"{stem}/out/{leaf}"] = value.T.unflatten(0, split) if kind == "weight" else value
                continue
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[f"{stem}/{part}/{leaf}"] = piece.T.unflatten(1, split) if kind == "weight" else piece.view(split)
            continue
        if ours in table:
            found[table[ours]] = value
            continue
        if match := re.fullmatch(r"layers\.(\d+)\.(\w+)\.(weight|bias)", ours):
            theirs, kind = f"TransformerLayer_{match[1]}/{inner[match[2]]}", match[3]
        else:
            module, _, kind = ours.rpartition(".")
            theirs = table[module]
        leaf = "bias" if kind == "bias" else "kernel" if value.ndim == 2 else "scale"
        found[f"{theirs}/{leaf}"] = value.T if leaf == "kernel" else value
    return {name: value.contiguous() for name, value in found.items()}
