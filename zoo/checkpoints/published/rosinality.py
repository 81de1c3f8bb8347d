"""VQ-VAE-2 as rosinality/vq-vae-2-pytorch stores it (``vqvae_560.pt``), a plain state dict.

Our networks and running-mean codebooks keep its names, so nothing is renamed for them. A model with codebooks that
are trained by gradients takes the codes; a model with k-means or restarts gets what these have to remember.
"""

import torch
from torch import nn

from zoo.checkpoints.format import Converted, Format, State

LEVELS = ("quantize_t.", "quantize_b.")
STEPS = 1_000_000  # taken as made, so that nothing is de-biased any more


def matches(state: State) -> bool:
    """Recognise two codebooks with their running means."""
    return all(level + name in state for level in LEVELS for name in ("embed", "cluster_size", "embed_avg"))


def convert(state: State, model: nn.Module) -> Converted:
    """Add what the model has beyond the published names; transpose the codes for a trained codebook."""
    own, state = model.state_dict(), dict(state)
    for level in LEVELS:
        if level + "embedding.weight" in own:
            state[level + "embedding.weight"] = state.pop(level + "embed").t().contiguous()
            for name in ("embed_avg", "cluster_size"):
                if level + name not in own:
                    del state[level + name]
        for name, value in (("initialised", torch.tensor(True)), ("updates", torch.tensor(STEPS))):
            if level + name in own:
                state[level + name] = value
    return Converted(state)


VQVAE2 = Format("VQ-VAE-2 of rosinality/vq-vae-2-pytorch", matches, convert)
