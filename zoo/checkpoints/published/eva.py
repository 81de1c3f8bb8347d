"""EVA ViT-g, BLIP-2's image encoder: LAVIS's names, and those of transformers' ``Blip2VisionModel``."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.config_checks import ConfigFields, Required

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
PUBLISHED_HEADS = 16  # of eva_vit_g
THEIR_BLOCK, OUR_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.(.+)"), re.compile(r"blocks\.(\d+)\.(.+)")


def to_lavis_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of an image encoder to LAVIS's names; other entries of the file keep theirs."""
    found: dict[str, Tensor] = {}
    for full, value in state.items():
        name = next((full.removeprefix(p) for p in PREFIXES if full.startswith(p)), full)
        if match := THEIR_BLOCK.fullmatch(name):
            name = f"blocks.{match[1]}.{_rename(match[2], BLOCK)}"
        name = _rename(name, TOP)
        if name.endswith("attn.qkv.bias"):  # theirs has the keys' bias, which is zero
            stem = name.removesuffix("qkv.bias")
            query, _, values = value.chunk(3)
            found |= {f"{stem}q_bias": query, f"{stem}v_bias": values}
        else:
            found[name] = value
    return found


def eva_sizes(state: Mapping[str, Tensor], config: Mapping[str, Any], source: str) -> dict[str, int]:
    """Constructor arguments of :class:`zoo.nn.eva_vit.EvaViT` for weights of any size.

    A file that goes on behind its blocks, with a norm or a head, holds a whole EVA, whose last block is left out as in
    BLIP-2; of one that ends with its blocks, as LAVIS writes BLIP-2's image encoder, all are taken. The number of heads
    is in no tensor: ``num_attention_heads`` of the configuration says it, also in its ``vision_config``.

    Args:
        state: under LAVIS's names, see :func:`to_lavis_names`.
        config: the ``config.json`` beside the weights; empty where there is none.
        source: of the weights, for messages.

    Raises:
        ValueError: for other weights than an EVA's, or a width of which nothing tells the heads.
    """
    numbers = {int(match[1]) for name in state if (match := OUR_BLOCK.fullmatch(name))}
    wanted = ("patch_embed.proj.weight", "blocks.0.attn.q_bias", "blocks.0.mlp.fc1.weight")
    if missing := [name for name in wanted if name not in state]:
        raise ValueError(f"{source} is no EVA of the architecture that is implemented: it lacks {missing[0]}")
    depth = 1 + max(numbers)
    whole = any(name.startswith(("norm.", "fc_norm.", "head.")) for name in state)
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    said = {**config, **(config.get("vision_config") or {})}
    heads = said.get("num_attention_heads", PUBLISHED_HEADS)
    if not isinstance(heads, int) or heads < 1 or width % heads:
        found = f"the configuration beside it says {heads!r}"
        if "num_attention_heads" not in said:
            found = f"nothing says them, and the {PUBLISHED_HEADS} of eva_vit_g do not fit"
        raise ValueError(
            f"the tokens of {source} are {width} wide, of which attention heads must be equal parts: {found}; write "
            "num_attention_heads into a config.json beside the weights"
        )
    return {
        "patch_size": patch,
        "width": width,
        "depth": depth - 1 if whole and depth > 1 else depth,
        "heads": heads,
        "mlp_width": len(state["blocks.0.mlp.fc1.weight"]),
    }


def eva_fields(network: Any) -> ConfigFields:
    """State the fields that the ``vision_config`` of transformers' BLIP-2 must have for a network."""
    block: Any = network.blocks[0]
    sizes = {
        "hidden_size": network.width,
        "intermediate_size": block.mlp.fc1.out_features,
        "num_hidden_layers": len(network.blocks),
        "patch_size": network.patch_embed.proj.kernel_size[0],
    }
    must = {name: Required(own, own) for name, own in sizes.items()} | {  # tensors show what is not said of these
        "num_attention_heads": Required(block.attn.heads, 16),
        "hidden_act": Required("gelu", "gelu"),
        "layer_norm_eps": Required(block.norm1.eps, 1e-6),
        "qkv_bias": Required(True, True),
    }
    # of training; positions are resized to the images, as LAVIS does
    return ConfigFields((), must, ("attention_dropout", "dropout", "projection_dim", "num_channels", "image_size"))


def to_hf_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename LAVIS's names to transformers', below ``vision_model.``: the inverse of :func:`to_lavis_names`."""
    back = [(ours, theirs) for theirs, ours in TOP], [(ours, theirs) for theirs, ours in BLOCK]
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        match = OUR_BLOCK.fullmatch(name)
        if match is None:
            found[f"vision_model.{_rename(name, back[0])}"] = value
        elif match[2] == "attn.q_bias":
            bias = torch.cat([value, torch.zeros_like(value), state[f"blocks.{match[1]}.attn.v_bias"]])
            found[f"vision_model.encoder.layers.{match[1]}.self_attn.qkv.bias"] = bias
        elif match[2] != "attn.v_bias":
            found[f"vision_model.encoder.layers.{match[1]}.{_rename(match[2], back[1])}"] = value
    return found


def _rename(name: str, table: object) -> str:
    for source, target in table:  # type: ignore[attr-defined]
        if name == source or (source.endswith(".") and name.startswith(source)):
            return target + name.removeprefix(source)
    return name
