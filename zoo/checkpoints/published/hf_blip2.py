"""BLIP-2 in transformers' layout, both stages, both ways.

``Blip2ForImageTextRetrieval`` holds the first stage without its temperature and word head, so generation cannot be
resumed from it. ``Blip2ForConditionalGeneration`` holds image encoder and language model too; ours are named by
``vision`` and ``language_model``, which take such folders as well.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zoo.checkpoints.config_checks import GENERATION, ConfigFields, Required
from zoo.checkpoints.export import write_folder
from zoo.checkpoints.format import Converted, Format, State, check_positions
from zoo.checkpoints.published import eva
from zoo.checkpoints.published.image_token import add_image_token
from zoo.checkpoints.published.lavis import TEXT_BRANCH
from zoo.nn.eva_vit import EvaViT
from zoo.nn.qformer import EPS

POSITIONS = ("embeddings.position_ids", "qformer.embeddings.position_ids", "model.embeddings.position_ids")
#: LAVIS's name -> transformers'
TOP = (
    ("ln_vision.", "vision_model.post_layernorm."),
    ("Qformer.bert.embeddings.LayerNorm.", "qformer.layernorm."),
    ("Qformer.bert.embeddings.", "embeddings."),
    ("vision_proj.", "vision_projection."),
    ("text_proj.", "text_projection."),
)
LAYER, HF_LAYER = (
    re.compile(r"Qformer\.bert\.(encoder\.layer\.\d+\.)(.+)"),
    re.compile(r"qformer\.(encoder\.layer\.\d+\.)(.+)"),
)
ATTENTION = (("attention.self.", "attention.attention."), ("crossattention.self.", "crossattention.attention."))
LOST = {
    "temp": "transformers' files hold no temperature",
    "Qformer.cls.": "transformers' files hold no word head",
}


def to_lavis_names(state: State) -> dict[str, Tensor]:
    """Rename weights of transformers to LAVIS's names; unknown names stay as they are."""
    found = {}
    for full, value in state.items():
        name = full.removeprefix("model.")
        if match := HF_LAYER.fullmatch(name):
            found[f"Qformer.bert.{match[1]}{_rename(match[2], ATTENTION, 1)}"] = value
        else:
            found[_rename(name, TOP, 1)] = value
    return found


def to_hf_names(state: State) -> dict[str, Tensor]:
    """Rename weights from LAVIS's names to transformers': the inverse of :func:`to_lavis_names`."""
    found = {}
    for name, value in state.items():
        if match := LAYER.fullmatch(name):
            found[f"qformer.{match[1]}{_rename(match[2], ATTENTION, 0)}"] = value
        else:
            found[_rename(name, TOP, 0)] = value
    return found


def _rename(name: str, table: tuple[tuple[str, str], ...], source: int) -> str:
    for row in table:
        if name.startswith(row[source]):
            return row[1 - source] + name[len(row[source]) :]
    return name


def matches_retrieval(state: State) -> bool:
    """Recognise a Q-Former by transformers' names, with projections for contrast."""
    names = {name.removeprefix("model.") for name in state}
    return {"query_tokens", "qformer.layernorm.weight", "text_projection.weight"} <= names


def convert_retrieval(state: State, model: nn.Module) -> Converted:
    """Take all but the image encoder; temperature and word head, which these files lack, start anew."""
    own = model.state_dict()
    renamed = to_lavis_names(state)
    kept = {name: value.float() for name, value in renamed.items() if name in own}
    return Converted(kept, newly_initialised=LOST, checked=check_positions(state, POSITIONS))


def matches_conditional(state: State) -> bool:
    """Recognise a Q-Former by transformers' names, with a projection into a language model."""
    names = {name.removeprefix("model.") for name in state}
    return {"query_tokens", "qformer.layernorm.weight", "language_projection.weight"} <= names


def convert_conditional(state: State, model: Any) -> Converted:
    """Take queries and Q-Former as the bridge; image encoder and language model are left out."""
    kept, own = {}, ("ln_vision.", *["language_projection."] * ("language_model" in model.frozen))
    for name, value in to_lavis_names(state).items():
        if name.startswith(("query_tokens", "Qformer.")) and not TEXT_BRANCH.match(name):
            kept[f"bridge.{name}"] = value.float()
        elif name.startswith(own):
            kept[name] = value.float()
    return Converted(kept, checked=check_positions(state, POSITIONS))


# ---------------------------------------------------------------- writing


def save_blip2(model: Any, folder: str | Path) -> Path:
    """Write a folder that ``Blip2ForImageTextRetrieval`` or ``Blip2ForConditionalGeneration`` loads as a whole.

    transformers has one epsilon for all norms of the image encoder, 1e-6, where LAVIS's last one has 1e-5; outputs
    differ by about 5e-6.

    Args:
        model: :class:`zoo.models.blip2_stage1.BLIP2Stage1` or ``BLIP2Stage2``.
        folder: gets ``config.json``, ``model.safetensors`` and, in the second stage, the tokenizer.

    Raises:
        ValueError: for a bridge or an image encoder that transformers has no class for.
    """
    vit = model.frozen["vision"].network
    args = model.init_args()
    sizes = args["qformer"]
    as_published = sizes["mixing"] == "self_then_cross" and sizes["norm"] == "post"
    if not isinstance(vit, EvaViT) or not as_published or sizes["query_mlp_width"] not in (None, sizes["mlp_width"]):
        raise ValueError("transformers' BLIP-2 has EVA ViT-g and LAVIS's Q-Former: other bridges cannot be written")
    second = "language_model" in model.frozen
    state = {n.removeprefix("bridge."): v for n, v in model.state_dict().items()}
    state = {n: v for n, v in state.items() if n != "temp" and not n.startswith("Qformer.cls.")}
    state = to_hf_names(state) | eva.to_hf_names(vit.state_dict())
    config = _build_config(model, vit, args, second)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if second:
        text_config, words, image_token = add_image_token(model.language, folder)
        state |= {f"language_model.{name}": value for name, value in words.items()}
        config |= {"text_config": text_config, "image_token_index": image_token}
    return write_folder(folder, config, state)


def _build_config(model: Any, vit: Any, args: dict[str, Any], second: bool) -> dict[str, Any]:
    block, qformer = vit.blocks[0], args["qformer"]
    patch = vit.patch_embed.proj.kernel_size[0]
    return {
        "architectures": ["Blip2ForConditionalGeneration" if second else "Blip2ForImageTextRetrieval"],
        "model_type": "blip-2",
        "num_query_tokens": qformer["queries"],
        "image_text_hidden_size": args.get("projection_width", 256),
        "vision_config": {
            "hidden_size": vit.width, "intermediate_size": block.mlp.fc1.out_features, "patch_size": patch,
            "num_hidden_layers": len(vit.blocks), "num_attention_heads": block.attn.heads,
            "image_size": args["image_size"], "layer_norm_eps": 1e-6, "qkv_bias": True, "hidden_act": "gelu",
        },
        "qformer_config": {
            "hidden_size": qformer["width"], "num_hidden_layers": qformer["depth"],
            "num_attention_heads": qformer["heads"], "intermediate_size": qformer["mlp_width"],
            "encoder_hidden_size": vit.width,
            "cross_attention_frequency": qformer["cross_every"], "layer_norm_eps": 1e-12, "hidden_act": "gelu",
            "vocab_size": 30523 if second else model.Qformer.vocab_size, "use_qformer_text_input": not second,
            "max_position_embeddings": args.get("max_positions", 512),
        },
    }  # fmt: skip


# ---------------------------------------------------------------- fields of its configuration


def check_retrieval_config(config: Mapping[str, Any], model: Any) -> tuple[str, ...]:
    """Check the fields of ``Blip2ForImageTextRetrieval``.

    Raises:
        ValueError: naming the field that says something else than the model has, or that nobody knows.
    """
    return _check_config(config, model, text=True)


def check_conditional_config(config: Mapping[str, Any], model: Any) -> tuple[str, ...]:
    """Check the fields of ``Blip2ForConditionalGeneration``.

    Raises:
        ValueError: naming the field that says something else than the model has, or that nobody knows.
    """
    return _check_config(config, model, text=False)


def _check_config(config: Mapping[str, Any], model: Any, text: bool) -> tuple[str, ...]:
    if not config:
        return ()
    args, here = model.init_args(), "config.json beside these weights"
    own = args["qformer"]
    must = {
        "model_type": Required("blip-2", "blip-2", "other models with a Q-Former are not read"),
        "num_query_tokens": Required(own["queries"], 32, "set qformer.queries"),
    }
    free = ["text_config", "image_token_index", "image_token_id", "tie_word_embeddings", *GENERATION]
    if text:
        must["image_text_hidden_size"] = Required(args["projection_width"], 256, "set projection_width")
        free.append("use_decoder_only_language_model")
    else:
        free.append("image_text_hidden_size")
        decoder_only = not model.language.encoder_decoder if "language_model" in model.frozen else None
        must["use_decoder_only_language_model"] = Required(
            decoder_only, decoder_only, "take the language model of these weights", _is_unsaid_or_equal
        )
    ConfigFields(("vision_config", "qformer_config"), must, tuple(free)).check(config, here)
    tower = model.frozen["vision"]
    sizes = {
        "hidden_size": own["width"], "num_hidden_layers": own["depth"], "intermediate_size": own["mlp_width"],
        "encoder_hidden_size": tower.width, "cross_attention_frequency": own["cross_every"],
    }  # fmt: skip
    inner = {name: Required(size, size) for name, size in sizes.items()} | {  # tensors show what is not said of these
        "num_attention_heads": Required(own["heads"], 12, "set qformer.heads"),
        "hidden_act": Required("gelu", "gelu"),
        "layer_norm_eps": Required(EPS, 1e-12),
        "position_embedding_type": Required("absolute", "absolute"),
    }
    loose: tuple[str, ...] = (
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "max_position_embeddings",
        "vocab_size",
    )
    if text:
        inner["use_qformer_text_input"] = Required(True, True, "the first stage reads text")
    else:
        loose += ("use_qformer_text_input",)
    qformer = config.get("qformer_config") or {}
    ConfigFields((), inner, (*loose, *GENERATION)).check(qformer, f"qformer_config in {here}")
    if isinstance(tower.network, EvaViT):
        eva.eva_fields(tower.network).check(config.get("vision_config") or {}, f"vision_config in {here}")
    return ()


def _is_unsaid_or_equal(found: Any, own: Any) -> bool:
    return own is None or found == own


RETRIEVAL = Format(
    "Blip2ForImageTextRetrieval of transformers",
    matches_retrieval,
    convert_retrieval,
    check_config=check_retrieval_config,
)
CONDITIONAL = Format(
    "Blip2ForConditionalGeneration of transformers",
    matches_conditional,
    convert_conditional,
    check_config=check_conditional_config,
)
