"""What the configurations beside LLaVA's weights say, field by field: haotian-liu's, transformers', and peft's."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from zoo.checkpoints.config_facts import config_beside
from zoo.checkpoints.config_fields import GENERATION, Fields, Must, set_to
from zoo.checkpoints.published.clip import blocks_until, check_clip

HERE = "config.json beside these weights"
#: model_type of haotian-liu's files -> that of the language model that they extend
LANGUAGE = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral"}
STRATEGIES = {"default": "patch", "full": "cls_patch"}


TOWER_SIZE = re.compile(r"clip-vit-large-patch14(-336)?$")


def is_original(config: Mapping[str, Any]) -> bool:
    """Whether it is haotian-liu's: fields of a language model, and more that begin with ``mm_``."""
    return "text_config" not in config and any(name.startswith("mm_") for name in config)


def is_hf(config: Mapping[str, Any]) -> bool:
    """Whether it is that of ``LlavaForConditionalGeneration``."""
    return config.get("model_type") == "llava" and not is_original(config)


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a LLaVA's configuration says of ``select`` and ``vision_layer``; empty for another model's."""
    found: dict[str, Any] = {}
    if is_original(config):
        found = {"select": config.get("mm_vision_select_feature", "patch")}
        if "mm_vision_select_layer" in config:
            found["vision_layer"] = config["mm_vision_select_layer"]
    elif is_hf(config):
        strategy, depth = config.get("vision_feature_select_strategy", "default"), _depth(config)
        found = {"select": STRATEGIES.get(strategy, strategy), "vision_layer": blocks_until(None, config, depth or 24)}
        if depth is None:  # relative to whatever image encoder is taken
            found["vision_layer"] = config.get("vision_feature_layer", -2)
    return found


def settings_of_folders(vision: str, language_model: str) -> dict[str, Any]:
    """What the configuration of a LLaVA says that the model's parts are named by; empty where they are of none.

    Args:
        vision: reference of the image encoder. A LLaVA's own counts its hidden states by itself.
        language_model: reference of the language model.
    """
    for reference in (vision, language_model):
        folder = Path(reference.partition(":")[2] or reference)
        if folder.is_dir() and (found := settings_of(config_beside(folder))):
            if reference is vision:
                found.pop("vision_layer", None)
            return found
    return {}


def _depth(config: Mapping[str, Any]) -> int | None:
    """Blocks of the image encoder that a configuration describes."""
    found = config.get("vision_config", {}).get("num_hidden_layers")
    return None if found is None else int(found)


def check_hf(config: Mapping[str, Any], model: Any) -> tuple[str, ...]:
    """Go through the fields of transformers' LLaVA.

    Raises:
        ValueError: naming the field that says something else than the model has, or that nobody knows.
    """
    if "model_type" not in config:  # no file, or none of a network
        return ()
    strategy = next(name for name, select in STRATEGIES.items() if select == model.select)
    must = {
        "model_type": Must("llava", "llava", "other image-text models are not read"),
        "projector_hidden_act": Must("gelu", "gelu"),
        "multimodal_projector_bias": Must(True, True),
        "vision_feature_select_strategy": Must(strategy, "default", _select_hint(config)),
    }
    # images are put in by their place and not by an id; how many tokens they have is the image encoder's business
    free = ("image_token_index", "image_token_id", "image_seq_length", "ignore_index", "vocab_size", *GENERATION)
    used = ("text_config", "vision_config", "vision_feature_layer", "tie_word_embeddings")
    Fields(used, must, free).check(config, HERE)
    _check_tower(config, model)
    return ()


def check_original(config: Mapping[str, Any], model: Any) -> tuple[str, ...]:
    """Go through the fields of haotian-liu's LLaVA.

    Returns:
        What the images were in training, where the configuration says it.

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
        "model_type": Must("llava", "llava", "other language models are not read", set_to(*LANGUAGE)),
        "mm_projector_type": Must(kinds[0], kinds[0], shape, set_to(*kinds)),
        "mm_hidden_size": Must(width, width, shape),
        "mm_vision_select_feature": Must(model.select, "patch", _select_hint(config)),
        "mm_use_im_start_end": Must(False, False, "signs around images are not implemented"),
        "mm_resampler_type": Must(None, None, equal=set_to(None, "", "identity")),
        "mm_patch_merge_type": Must("flat", "flat", "images in tiles are not implemented", set_to(None, "flat")),
        "image_aspect_ratio": Must(
            "square", "square", "images in tiles are not implemented", set_to(None, "square", "pad")
        ),
        "use_mm_proj": Must(True, True, equal=set_to(True, None)),
    }  # fmt: skip
    language = (*LlamaConfig().to_dict(), *MistralConfig().to_dict(), "rope_theta", "rope_scaling", "rope_parameters")
    free = (
        "mm_vision_tower", "mm_use_im_patch_token", "tune_*", "freeze_*", "unfreeze_*", "mm_*_lr", "tokenizer_*",
        "image_crop_resolution", "image_grid_pinpoints", "image_split_resolution", "mm_vision_select_layer",
        *GENERATION, *language,
    )  # fmt: skip
    Fields((), must, free).check(config, HERE)
    _check_tower(config, model)
    notes = []
    match = TOWER_SIZE.search(str(config.get("mm_vision_tower", "")))
    if match and model.image_size != (size := 336 if match[1] else 224):
        notes.append(f"{HERE} says images of {size} px, and this model takes {model.image_size}")
    if config.get("image_aspect_ratio") == "pad":
        notes.append(f"{HERE} says image_aspect_ratio 'pad': pad images to squares before they are scaled")
    return tuple(notes)


def _select_hint(config: Mapping[str, Any]) -> str:
    return f"build the model with select={settings_of(config).get('select')!r}"


def _check_tower(config: Mapping[str, Any], model: Any) -> None:
    """Compare the image encoder, where the model's is a CLIP too, and the hidden state of it that is taken."""
    if (clip := model.frozen["vision"].clip) is None:
        return
    check_clip(config if "vision_config" in config else {}, clip.model.config, "these weights")
    if not {"vision_feature_layer", "mm_vision_select_layer"} & config.keys():
        return
    depth = _depth(config) or clip.depth
    if (blocks := blocks_until(None, config, depth)) != clip.taken:
        field = "vision_feature_layer" if "vision_feature_layer" in config else "mm_vision_select_layer"
        raise ValueError(
            f"{HERE} says {field} {config[field]}, which {blocks} blocks of {depth} give, and this model's image "
            f"encoder passes {clip.taken}: build the model with vision_layer={blocks}"
        )
