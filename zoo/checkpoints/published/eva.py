"""EVA ViT-g, BLIP-2's image encoder: LAVIS's names, and those of transformers' ``Blip2VisionModel``."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.config_fields import Fields, Must

PREFIXES = ("visual_encoder.", "model.vision_model.", "vision_model.")
TOP = (
    ("embeddings.class_embedding", "cls_token"),
    ("embeddings.position_embedding", "pos_embed"),
    ("embeddings.patch_embedding.", "patch_embed.proj."),
)
BLOCK = (
    ("layer_norm1.", "norm1."),
    ("layer_norm2.", "norm2."),
    ("self_attn.qkv.", "attn.qkv."),
    ("self_attn.projection.", "attn.proj."),
    ("mlp.", "mlp."),
)
THEIR_BLOCK, OUR_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.(.+)"), re.compile(r"blocks\.(\d+)\.(.+)")


def eva_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the image encoder under LAVIS's names, from a file that may hold much else."""
    found: dict[str, Tensor] = {}
    for full, value in state.items():
        name = next((full.removeprefix(p) for p in PREFIXES if full.startswith(p)), full)
        if match := THEIR_BLOCK.fullmatch(name):
            name = f"blocks.{match[1]}.{_renamed(match[2], BLOCK)}"
        name = _renamed(name, TOP)
        if name.endswith("attn.qkv.bias"):  # theirs has the keys' bias, which is zero
            stem = name.removesuffix("qkv.bias")
            query, _, values = value.chunk(3)
            found |= {f"{stem}q_bias": query, f"{stem}v_bias": values}
        else:
            found[name] = value
    return found


def eva_fields(network: Any) -> Fields:
    """What the ``vision_config`` of a transformers' BLIP-2 has to say for a network."""
    block: Any = network.blocks[0]
    sizes = {
        "hidden_size": network.width,
        "intermediate_size": block.mlp.fc1.out_features,
        "num_hidden_layers": len(network.blocks),
        "patch_size": network.patch_embed.proj.kernel_size[0],
    }
    must = {name: Must(own, own) for name, own in sizes.items()} | {  # tensors show what is not said of these
        "num_attention_heads": Must(block.attn.heads, 16),
        "hidden_act": Must("gelu", "gelu"),
        "layer_norm_eps": Must(block.norm1.eps, 1e-6),
        "qkv_bias": Must(True, True),
    }
    # of training; positions are resized to the images, as LAVIS does
    return Fields((), must, ("attention_dropout", "dropout", "projection_dim", "num_channels", "image_size"))


def to_hf(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse, below ``vision_model.``."""
    back = [(ours, theirs) for theirs, ours in TOP], [(ours, theirs) for theirs, ours in BLOCK]
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        match = OUR_BLOCK.fullmatch(name)
        if match is None:
            found[f"vision_model.{_renamed(name, back[0])}"] = value
        elif match[2] == "attn.q_bias":
            bias = torch.cat([value, torch.zeros_like(value), state[f"blocks.{match[1]}.attn.v_bias"]])
            found[f"vision_model.encoder.layers.{match[1]}.self_attn.qkv.bias"] = bias
        elif match[2] != "attn.v_bias":
            found[f"vision_model.encoder.layers.{match[1]}.{_renamed(match[2], back[1])}"] = value
    return found


def _renamed(name: str, table: object) -> str:
    for source, target in table:  # type: ignore[attr-defined]
        if name == source or (source.endswith(".") and name.startswith(source)):
            return target + name.removeprefix(source)
    return name
