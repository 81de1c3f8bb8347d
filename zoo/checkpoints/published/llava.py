"""LLaVA's weights: the published projector and LoRA files, whole models, and transformers' layout."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.checkpoints.export import write_folder
from zoo.checkpoints.format import Converted, Format, State
from zoo.checkpoints.published import llava_config
from zoo.checkpoints.published.image_token import add_image_token

PROJECTOR = "mm_projector."
HF_PROJECTOR = "multi_modal_projector."
ROTARY = "rotary_emb.inv_freq"
LORA_NAME = re.compile(r"base_model\.model\.(?P<layer>.+)\.(?P<part>lora_[AB])\.weight")
OUR_LORA = "language_model.network.{layer}.{part}.default.weight"


def _extract_projector(state: State) -> dict[str, Tensor]:
    """Extract the projector under our names, found by a part of the name, as the published code does."""
    found = {}
    for name, value in state.items():
        if PROJECTOR in name:
            rest = name.split(PROJECTOR)[1]
            found[f"{PROJECTOR}{rest if rest[0].isdigit() else f'0.{rest}'}"] = value.float()  # 1.0 has one bare layer
    return found


def matches_original(state: State) -> bool:
    """Recognise ``mm_projector`` under any prefix, without LoRA."""
    return any(PROJECTOR in name for name in state) and not any(".lora_" in name for name in state)


def convert_original(state: State, model: Any) -> Converted:
    """Take the projector, and the language model where it is tuned and the file has it."""
    kept = _extract_projector(state)
    if model.tuning == "full":
        own = model.state_dict()
        for name, value in extract_llava_language(state).items():
            if f"language_model.network.{name}" in own:
                kept[f"language_model.network.{name}"] = value.float()
    return _with_language(kept, state, model)


def matches_lora(state: State) -> bool:
    """Recognise peft's names of LoRA matrices."""
    return any(LORA_NAME.fullmatch(name) for name in state)


def convert_lora(state: State, model: Any) -> Converted:
    """Take the LoRA matrices, and the projector that was saved beside them."""
    kept = _extract_projector(state)
    for name, value in state.items():
        if match := LORA_NAME.fullmatch(name):
            kept[OUR_LORA.format(**match.groupdict())] = value.float()
    return Converted(kept)


def matches_hf(state: State) -> bool:
    """Recognise ``LlavaForConditionalGeneration``, in the names of version 4 or 5."""
    return any(HF_PROJECTOR in name for name in state)


def convert_hf(state: State, model: Any) -> Converted:
    """Take the projector, and the language model where it is tuned."""
    order = {"linear_1": "0", "linear_2": "2"}
    kept = {}
    for name, value in state.items():
        if HF_PROJECTOR in name:
            layer, _, kind = name.split(HF_PROJECTOR)[1].partition(".")
            kept[f"{PROJECTOR}{order.get(layer, layer)}.{kind}"] = value.float()
    if model.tuning == "full":
        kept |= {f"language_model.network.{n}": v.float() for n, v in extract_llava_language(state).items()}
    return _with_language(kept, state, model)


def _with_language(kept: dict[str, Tensor], state: State, model: Any) -> Converted:
    if any(name.startswith("language_model.") for name in kept):
        return Converted(kept, checked=check_rotary(state, model.language.network))
    fresh = {"language_model.": "it stays that of 'language_model'"} if model.tuning != "projector" else {}
    return Converted(kept, newly_initialised=fresh)


def check_rotary(state: State, network: nn.Module) -> tuple[str, ...]:
    """Check the frequencies of positions, which old files hold for each layer and which the network computes itself.

    Raises:
        ValueError: for others than the model's.
    """
    names = [name for name in state if name.endswith(ROTARY)]
    own = [value for name, value in network.named_buffers() if name.endswith(ROTARY)]
    for name in names if own else ():
        if state[name].shape != own[0].shape or not torch.allclose(state[name].float(), own[0].float(), rtol=1e-2):
            raise ValueError(
                f"{name} holds other frequencies than this language model computes with: take the "
                "configuration of these weights as 'language_model' (rope_theta)"
            )
    return tuple(names) if own else ()


def extract_llava_language(state: State) -> dict[str, Tensor]:
    """Extract the language model inside a LLaVA, under the names of ``LlamaForCausalLM``."""
    found = {}
    for name, value in state.items():
        if name.endswith(ROTARY):  # computed from the configuration
            continue
        for prefix, target in (
            ("language_model.model.", "model."), ("language_model.lm_head.", "lm_head."),
            ("model.language_model.", "model."), ("lm_head.", "lm_head."),
        ):  # fmt: skip
            if name.startswith(prefix):
                found[target + name.removeprefix(prefix)] = value
                break
        else:
            if name.startswith(("model.layers.", "model.embed_tokens.", "model.norm.")):
                found[name] = value
    if "lm_head.weight" not in found and "model.embed_tokens.weight" in found:  # tied
        found["lm_head.weight"] = found["model.embed_tokens.weight"]
    return found


def save_llava(model: Any, folder: str | Path) -> Path:
    """Write a folder that ``LlavaForConditionalGeneration`` loads as a whole.

    Args:
        model: :class:`zoo.models.llava.LLaVA`.
        folder: gets ``config.json``, ``model.safetensors`` and the tokenizer.

    Raises:
        ValueError: for a linear projector, LoRA or an image encoder that transformers has no place for.
    """
    projector = model.mm_projector
    if len(projector) != 3:
        raise ValueError("transformers' projector has two layers: a LLaVA-1.0 with one cannot be written")
    if any(".lora_" in name for name, _ in model.language.network.named_parameters()):
        raise ValueError("merge the LoRA matrices first: zoo.language.lora.merge_lora(model.language)")
    if (tower := model.frozen["vision"].clip) is None:
        raise ValueError("transformers' LLaVA needs CLIP as its image encoder")
    clip = tower.model
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text_config, words, image_token = add_image_token(model.language, folder)
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "vision_config": clip.config.to_dict(),
        "text_config": text_config,
        "projector_hidden_act": "gelu",
        "vision_feature_select_strategy": "default" if model.select == "patch" else "full",
        "vision_feature_layer": -1,  # ours lacks the last block, whose input is the feature
        "image_seq_length": model.spec.num_tokens,
        "image_token_index": image_token,
    }
    state = {f"model.vision_tower.{n}": v for n, v in clip.state_dict().items()}
    for theirs, ours in (("linear_1", 0), ("linear_2", 2)):
        state |= {f"model.multi_modal_projector.{theirs}.{n}": v for n, v in projector[ours].state_dict().items()}
    for name, value in words.items():
        state[f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name] = value
    return write_folder(folder, config, state)


ORIGINAL = Format(
    "LLaVA of haotian-liu/LLaVA", matches_original, convert_original, check_config=llava_config.check_original
)
LORA = Format("LLaVA's LoRA files", matches_lora, convert_lora, check_config=llava_config.check_original)
HUGGING_FACE = Format(
    "LlavaForConditionalGeneration of transformers", matches_hf, convert_hf, check_config=llava_config.check_hf
)
