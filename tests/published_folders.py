"""Folders as libraries write them, with single fields changed, and networks whose every number matters."""

import json
import shutil

import torch


def drawn(network):
    """The network with random numbers added to all parameters, those that start at zero too."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.eval()


def edited(source, target, part=None, file="config.json", **fields):
    """A copy of a folder with other fields in a file, or in a part of it."""
    shutil.copytree(source, target)
    path = target / file
    config = json.loads(path.read_text()) if path.exists() else {}
    (config if part is None else config[part]).update(fields)
    path.write_text(json.dumps(config))
    return target
