"""Configurations beside LLaVA's weights, haotian-liu's and transformers', checked field by field."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from zoo.checkpoints.config_checks import GENERATION, ConfigFields, Required, accept_any_of
from zoo.checkpoints.config_files import read_config_beside
from zoo.checkpoints.published.clip import check_clip, count_blocks_until

HERE = "config.json beside these weights"
#: model_type of haotian-liu's files -> that of the language model that they extend
LANGUAGE = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral"}
STRATEGIES = {"default": "patch", "full": "cls_patch"}
TOWER_SIZE = re.compile(r"clip-vit-large-patch14(-336)?$")


def is_original(config: Mapping[str, Any]) -> bool:
    """Tell whether a configuration is haotian-liu's: fields of a language model, and more that begin with ``mm_``."""
    return "text_config" not in config and any(name.startswith("mm_") for name in config)


def is_hf(config: Mapping[str, Any]) -> bool:
    """Tell whether a configuration is that of ``LlavaForConditionalGeneration``."""
    return config.get("model_type") == "llava" and not is_original(config)


def read_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read ``select`` and ``vision_layer`` from a LLaVA's configuration; empty for another model's."""
    found: dict[str, Any] = {}
    if is_original(config):
        found = {"select": config.get("mm_vision_select_feature", "patch")}
        if "mm_vision_select_layer" in config:
            found["vision_layer"] = config["mm_vision_select_layer"]
    elif is_hf(config):
        strategy, depth = config.get("vision_feature_select_strategy", "default"), _find_depth(config)
        blocks = count_blocks_until(None, config, depth or 24)
        found = {"select": STRATEGIES.get(strategy, strategy), "vision_layer": blocks}
        if depth is None:  # relative to whatever image encoder is taken
            found["vision_layer"] = config.get("vision_feature_layer", -2)
    return found


def read_folder_settings(vision: str, language_model: str) -> dict[str, Any]:
    """Read the settings of the LLaVA whose folder names a part of the model; empty where none does.

    Args:
        vision: reference of the image encoder. A LLaVA's own counts its hidden states by itself.
        language_model: reference of the language model.
    """
    for reference in (vision, language_model):
        folder = Path(reference.partition(":")[2] or reference)
        if folder.is_dir() and (found := read_settings(read_config_beside(folder))):
            if reference is vision:
                found.pop("vision_layer", None)
            return found
    return {}


def _find_depth(config: Mapping[str, Any]) -> int | None:
    """Find the number of blocks of the image encoder that a configuration describes."""
    found = config.get("vision_config", {}).get("num_hidden_layers")
    return None if found is None else int(found)


def check_hf(config: Mapping[str, Any], model: Any) -> tuple[str, ...]:
    """Check the fields of transformers' LLaVA.

    Raises:
        ValueError: naming the field that says something else than the model has, or that nobody knows.
    """
    if "model_type" not in config:  # no file, or none of a network
        return ()
    strategy = next(name for name, select in STRATEGIES.items() if select == model.select)
    must = {
        "model_type": Required("llava", "llava", "other image-text models are not read"),
        "projector_hidden_act": Required("gelu", "gelu"),
        "multimodal_projector_bias": Required(True, True),
        "vision_feature_select_strategy": Required(strategy, "default", _select_hint(config)),
    }
    # images are put in by their place and not by an id; how many tokens they have is the image encoder's business
    free = ("image_token_index", "image_token_id", "image_seq_length", "ignore_index", "vocab_size", *GENERATION)
    used = ("text_config", "vision_config", "vision_feature_layer", "tie_word_embeddings")
    ConfigFields(used, must, free).check(config, HERE)
    _check_tower(config, model)
    return ()


def check_original(config: Mapping[str, Any], model: Any) -> tuple[str, ...]:
    """Check the fields of haotian-liu's LLaVA.

    Returns:
        Notes about the images of training, where the configuration tells of them.

    Raises:
        ValueError: naming the field that says something else than the model has, or that nobody knows.
    """
    if not is_original(config):
        return ()
    from transformers import LlamaConfig, MistralConfig

    depth = sum(isinstance(layer, nn.Linear) for layer in model.mm_projector)
    kinds = ("linear", "mlp1x_gelu") if depth == 1 else (f"mlp{depth}x_gelu",)
    width = model.mm_projector[0].in_features
    shape = "the projector has another shape: set projector_depth, or another 'vision'"
    must = {
        "model_type": Required("llava", "llava", "other language models are not read", accept_any_of(*LANGUAGE)),
        "mm_projector_type": Required(kinds[0], kinds[0], shape, accept_any_of(*kinds)),
        "mm_hidden_size": Required(width, width, shape),
        "mm_vision_select_feature": Required(model.select, "patch", _select_hint(config)),
        "mm_use_im_start_end": Required(False, False, "signs around images are not implemented"),
        "mm_resampler_type": Required(None, None, equal=accept_any_of(None, "", "identity")),
        "mm_patch_merge_type": Required(
            "flat", "flat", "images in tiles are not implemented", accept_any_of(None, "flat")
        ),
        "image_aspect_ratio": Required(
            "square", "square", "images in tiles are not implemented", accept_any_of(None, "square", "pad")
        ),
        "use_mm_proj": Required(True, True, equal=accept_any_of(True, None)),
    }  # fmt: skip
    language = (*LlamaConfig().to_dict(), *MistralConfig().to_dict(), "rope_theta", "rope_scaling", "rope_parameters")
    free = (
        "mm_vision_tower", "mm_use_im_patch_token", "tune_*", "freeze_*", "unfreeze_*", "mm_*_lr", "tokenizer_*",
        "image_crop_resolution", "image_grid_pinpoints", "image_split_resolution", "mm_vision_select_layer",
        *GENERATION, *language,
    )  # fmt: skip
    ConfigFields((), must, free).check(config, HERE)
    _check_tower(config, model)
    notes = []
    match = TOWER_SIZE.search(str(config.get("mm_vision_tower", "")))
    if match and model.image_size != (size := 336 if match[1] else 224):
        notes.append(f"{HERE} says images of {size} px, and this model takes {model.image_size}")
    if config.get("image_aspect_ratio") == "pad":
        notes.append(f"{HERE} says image_aspect_ratio 'pad': pad images to squares before they are scaled")
    return tuple(notes)


def _select_hint(config: Mapping[str, Any]) -> str:
    return f"build the model with select={read_settings(config).get('select')!r}"


def _check_tower(config: Mapping[str, Any], model: Any) -> None:
    """Compare the image encoder, where the model's is a CLIP too, and the hidden state of it that is taken."""
    if (clip := model.frozen["vision"].clip) is None:
        return
    check_clip(config if "vision_config" in config else {}, clip.model.config, "these weights")
    if not {"vision_feature_layer", "mm_vision_select_layer"} & config.keys():
        return
    depth = _find_depth(config) or clip.depth
    if (blocks := count_blocks_until(None, config, depth)) != clip.taken:
        field = "vision_feature_layer" if "vision_feature_layer" in config else "mm_vision_select_layer"
        raise ValueError(
            f"{HERE} says {field} {config[field]}, which {blocks} blocks of {depth} give, and this model's image "
            f"encoder passes {clip.taken}: build the model with vision_layer={blocks}"
        )
