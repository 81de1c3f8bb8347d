"""Fingerprints of weights, by which a checkpoint recognises the networks that it was trained beside."""

import hashlib

import torch
from torch import nn


def fingerprint(module: nn.Module) -> str:
    """Hash names, types, shapes and values of the state dict by SHA-256; equal on every device.

    Parts that the loaded weights did not hold (``module.not_in_file``) and those that ``module.training_only`` names
    are left out: they decide no token, and are made anew at random where a file lacks them.
    """
    digest = hashlib.sha256()
    left_out = tuple(getattr(module, "not_in_file", ()))
    training_only = getattr(module, "training_only", ())
    for name, value in sorted(module.state_dict().items()):
        if name.startswith(left_out) or name.partition(".")[0] in training_only:
            continue
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def quick_fingerprint(module: nn.Module) -> str | None:
    """Hash a few frozen values, rounded to bfloat16, to twelve digits: tells networks apart in no time.

    Returns None for a module without frozen parameters, or with some in float16, whose values round otherwise.
    """
    frozen = [(name, p) for name, p in module.named_parameters() if not p.requires_grad and p.ndim > 1]
    if not frozen or any(p.dtype == torch.float16 for _, p in frozen):
        return None
    digest = hashlib.sha256()
    for name, value in (frozen[0], frozen[len(frozen) // 2], frozen[-1]):
        values = value.detach().flatten()[:256].cpu().to(torch.bfloat16).float().contiguous()
        digest.update(f"{name.replace('.base_layer', '')} {tuple(value.shape)}\n".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:12]
