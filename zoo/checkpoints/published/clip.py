"""CLIP's configuration, bare or inside another model, and its pixels, checked field by field."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.checkpoints.config_checks import GENERATION, ConfigFields, Required, accept_any_of
from zoo.checkpoints.folders import read_json

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_POSITIONS = "embeddings.position_ids"  # a buffer that old files hold


def find_clip_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Find the part of a configuration that describes a CLIP, bare or inside another model; None without one."""
    return config.get("vision_config", config if config.get("model_type") == "clip_vision_model" else None)


def count_blocks_until(layer: int | None, config: Mapping[str, Any], depth: int) -> int:
    """Count the blocks of CLIP that lie before a hidden state.

    Args:
        layer: hidden state, see :func:`vision_tower`.
        config: of the folder that CLIP is read from.
        depth: blocks that there are.

    Raises:
        ValueError: for several layers, or one that is not there.
    """
    said = config.get("vision_feature_layer", config.get("mm_vision_select_layer", -2))
    wanted = said if layer is None else layer
    if isinstance(wanted, bool) or not isinstance(wanted, int):
        raise ValueError(
            f"config.json says vision_feature_layer {wanted!r}: several layers at once are not implemented"
        )
    blocks = depth + 1 + wanted if wanted < 0 else wanted
    if not 0 <= blocks <= depth:
        raise ValueError(f"there is no hidden state {wanted} in an image encoder of {depth} blocks: take -1 or -2")
    return blocks


def check_clip(config: Mapping[str, Any], own: Any, source: str) -> None:
    """Check the fields of ``config.json`` that describe a CLIP, bare or inside a LLaVA.

    Args:
        config: of the folder; empty where it has none.
        own: the ``CLIPVisionConfig`` of the network.
        source: name of the folder, for the message.

    Raises:
        ValueError: naming the field that says something else, or that nobody knows.
    """
    vision = find_clip_config(config)
    if vision is None:
        return
    defaults, take = type(own)(), "take 'clip:PATH', which has the sizes of its folder"
    facts = ("hidden_size", "intermediate_size", "num_attention_heads", "patch_size", "num_channels", "hidden_act")
    must = {name: Required(getattr(own, name), getattr(defaults, name), take) for name in (*facts, "layer_norm_eps")}
    kinds = accept_any_of("clip_vision_model", "clip")
    must["model_type"] = Required("clip_vision_model", "clip_vision_model", "other image encoders are not read", kinds)
    # of the text encoder beside it, of training, or behind the last hidden state; images of other sizes are read too
    free = ("projection_dim", "attention_dropout", "dropout", "vocab_size", "image_size", *GENERATION)
    ConfigFields(("num_hidden_layers",), must, free).check(vision, f"config.json of {source}")


def check_pixels(source: str) -> None:
    """Make sure that a folder's ``preprocessor_config.json`` normalises pixels as CLIP does.

    Raises:
        ValueError: naming the field that says something else.
    """
    file = Path(source) / "preprocessor_config.json"
    if not file.is_file():
        return
    config = read_json(file)
    same = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "rescale_factor": (1 / 255,)}
    for name, own in same.items():
        found = config.get(name, list(own))
        found = found if isinstance(found, list) else [found]
        if len(found) != len(own) or any(abs(a - b) > 1e-4 for a, b in zip(found, own, strict=True)):
            raise ValueError(f"{file} says {name} {config[name]}, and this image encoder takes {list(own)}")
    for name in ("do_normalize", "do_rescale"):
        if config.get(name, True) is not True:
            raise ValueError(f"{file} says {name} {config[name]}, and this image encoder takes normalised pixels")
