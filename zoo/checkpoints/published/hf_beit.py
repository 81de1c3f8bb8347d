"""BEiT in transformers' layout, old names (the hub's files) and new ones (version 5), both ways.

transformers splits the joint query-key-value matrix. Its default ``layer_norm_eps`` is 1e-12, the reference's and ours
is 1e-6; published hub configurations keep the default, so their logits differ from ours by about 1e-3. What we write
says 1e-6.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from zoo.checkpoints.config_checks import GENERATION, ConfigFields, Required, accept_any_of
from zoo.checkpoints.export import write_folder
from zoo.checkpoints.format import Converted, Format, State
from zoo.checkpoints.published import beit_resizing
from zoo.checkpoints.published.beit_resizing import INDEX, NOTHING, TABLE
from zoo.checkpoints.published.pixel_statistics import compare_pixel_statistics
from zoo.nn.beit_vit import BeitViT
from zoo.nn.relative_position import EXTRA

Names = Literal["v5", "v4"]

#: unilm's name -> transformers 5 -> transformers 4; {i} is the block
TOP = (
    ("cls_token", "beit.embeddings.cls_token", "beit.embeddings.cls_token"),
    ("mask_token", "beit.embeddings.mask_token", "beit.embeddings.mask_token"),
    ("pos_embed", "beit.embeddings.position_embeddings", "beit.embeddings.position_embeddings"),
    ("patch_embed.proj.", *["beit.embeddings.patch_embeddings.projection."] * 2),
    ("rel_pos_bias.", "beit.shared_position_bias.", "beit.encoder.relative_position_bias."),
    ("norm.", "layernorm.", "layernorm."),
    ("lm_head.", "lm_head.", "lm_head."),
    ("fc_norm.", "beit.pooler.layernorm.", "beit.pooler.layernorm."),
    ("head.", "classifier.", "classifier."),
)
BLOCK = (
    (f"attn.{TABLE}", f"relative_position_bias.{TABLE}", f"attention.attention.relative_position_bias.{TABLE}"),
    (f"attn.{INDEX}", f"relative_position_bias.{INDEX}", f"attention.attention.relative_position_bias.{INDEX}"),
    ("attn.q_bias", "attention.q_proj.bias", "attention.attention.query.bias"),
    ("attn.v_bias", "attention.v_proj.bias", "attention.attention.value.bias"),
    ("attn.q.weight", "attention.q_proj.weight", "attention.attention.query.weight"),
    ("attn.k.weight", "attention.k_proj.weight", "attention.attention.key.weight"),
    ("attn.v.weight", "attention.v_proj.weight", "attention.attention.value.weight"),
    ("attn.proj.", "attention.o_proj.", "attention.output.dense."),
    ("norm1.", "layernorm_before.", "layernorm_before."),
    ("norm2.", "layernorm_after.", "layernorm_after."),
    ("mlp.fc1.", "mlp.fc1.", "intermediate.dense."),
    ("mlp.fc2.", "mlp.fc2.", "output.dense."),
    ("gamma_1", "lambda_1", "lambda_1"),
    ("gamma_2", "lambda_2", "lambda_2"),
)
CLASSIFIER_NORM = "beit.layernorm."  # of a classifier that looks at the class token; elsewhere it is ``layernorm.``
LAYERS = ("beit.layers.", "beit.encoder.layer.")  # v5, v4
OURS_BLOCK, THEIR_BLOCK = (
    re.compile(r"blocks\.(\d+)\.(.+)"),
    re.compile(r"(beit\.layers|beit\.encoder\.layer)\.(\d+)\.(.+)"),
)


def matches(state: State) -> bool:
    """Recognise the embeddings of a ``BeitModel``, bare or inside a model with a head."""
    names = {name.removeprefix("beit.") for name in state}
    return {"embeddings.cls_token", "embeddings.patch_embeddings.projection.weight"} <= names and not any(
        name.endswith("attention.key.bias") or name.endswith("k_proj.bias")
        for name in names  # ViT, DeiT
    )


def convert(state: State, model: nn.Module, said: Mapping[str, Any] = NOTHING) -> Converted:
    """Rename, join query, key and value, and fit the rest to the model.

    Raises:
        ValueError: for a network with two final norms, one behind the other, which ours has not.
    """
    if CLASSIFIER_NORM + "weight" in state and "layernorm.weight" in state:
        raise ValueError(
            "these weights have two norms behind the last block, beit.layernorm and layernorm, as transformers builds "
            "them for masked images with use_mean_pooling: false; the published BEiT and this one have one"
        )
    state = to_unilm_names(state)
    grid = beit_resizing.grid_of_file(state, said)
    if grid is not None and grid[0] != grid[1]:
        tables = {name: as_transformers_reads_it(value, grid) for name, value in state.items() if name.endswith(TABLE)}
        state |= tables
    return beit_resizing.fit_to_model(state, model, said)


def as_transformers_reads_it(table: Float[Tensor, "r heads"], grid: tuple[int, int]) -> Float[Tensor, "r heads"]:
    """The table that transformers computes with where it holds another: it exchanges the sides of rectangles.

    ``BeitRelativePositionBias.forward`` takes the rows for ``2 gw - 1`` lines of ``2 gh - 1`` offsets, and resizes
    those by bilinear interpolation to ``2 gh - 1`` lines of ``2 gw - 1``. Of a square nothing is changed.

    Args:
        table: of the file.
        grid: rows and columns of patches.
    """
    tall, wide = 2 * grid[0] - 1, 2 * grid[1] - 1
    offsets = rearrange(table[:-EXTRA], "(y x) heads -> 1 heads y x", y=wide)
    offsets = F.interpolate(offsets, (tall, wide), mode="bilinear")
    return torch.cat([rearrange(offsets, "1 heads y x -> (y x) heads"), table[-EXTRA:]])


#: of training, of segmentation, or shown by the tensors
FREE = (
    "hidden_size", "num_hidden_layers", "intermediate_size", "image_size", "vocab_size", "drop_path_rate",
    "layer_scale_init_value", "*_dropout_prob", "out_indices", "out_features", "stage_names", "add_fpn",
    "reshape_hidden_states", "pool_scales", "auxiliary_*", "semantic_loss_ignore_index", "num_labels",
    "use_mask_token", "use_absolute_position_embeddings", "use_relative_position_bias",
    "use_shared_relative_position_bias", "use_mean_pooling", "use_auxiliary_head", *GENERATION,
)  # fmt: skip
SMALL = 1e-6  # epsilons up to here are told apart, and read: the reference's, and the 1e-12 of the hub's copies of it


def check_config(config: Mapping[str, Any], model: Any) -> tuple[str, ...]:
    """Check the fields of ``BeitConfig``, and of ``Data2VecVisionConfig``, which is the same network.

    Raises:
        ValueError: naming the field that says something else than the model, or that nobody knows.
    """
    if "model_type" not in config:  # no file, or none of transformers
        return ()
    vit = model.vit
    block = vit.blocks[0]
    patch, here = vit.patch_embed.proj.kernel_size[0], "config.json beside these weights"
    known = accept_any_of("beit", "data2vec-vision")
    must = {
        "model_type": Required("beit", "beit", "other transformers are not read", known),
        "num_attention_heads": Required(block.attn.heads, 12),
        "patch_size": Required(patch, 16),
        "hidden_act": Required("gelu", "gelu"),
        "num_channels": Required(3, 3),
    }
    eps, own = config.get("layer_norm_eps", 1e-12), block.norm1.eps
    if eps != own and max(eps, own) > SMALL:
        must["layer_norm_eps"] = Required(own, 1e-12, f"set norm_eps to {eps:g}")
    ConfigFields(("layer_norm_eps",), must, FREE).check(config, here)
    notes = compare_pixel_statistics(config, model.normalisation)
    if eps != own:
        notes += (
            f"config.json says layer_norm_eps {eps:g} and this model has {own:g}: for the numbers of "
            f"transformers set norm_eps to {eps:g}",
        )
    return notes


def to_unilm_names(state: State) -> dict[str, Tensor]:
    """Rename weights of transformers, in either spelling, to unilm's names; unknown names stay as they are."""
    bare = not any(name.startswith("beit.") for name in state)
    renamed = {}
    for name, value in state.items():
        full = f"beit.{name}" if bare and not name.startswith("layernorm.") else name
        renamed[_to_unilm_name(full)] = value
    for block in sorted({m[1] for name in renamed if (m := OURS_BLOCK.fullmatch(name))}, key=int):
        parts = [f"blocks.{block}.attn.{part}.weight" for part in "qkv"]
        if all(part in renamed for part in parts):
            renamed[f"blocks.{block}.attn.qkv.weight"] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


def to_hf_names(state: State, names: Names = "v5") -> dict[str, Tensor]:
    """Rename weights from unilm's names to transformers': the inverse of :func:`to_unilm_names`."""
    split: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith("attn.qkv.weight"):
            stem = name.removesuffix("qkv.weight")
            split |= {f"{stem}{part}.weight": w for part, w in zip("qkv", value.chunk(3), strict=True)}
        else:
            split[name] = value
    return {_to_hf_name(name, names): value for name, value in split.items()}


def save_hf(model: nn.Module, folder: str | Path, names: Names = "v5") -> Path:
    """Write a folder that ``BeitForMaskedImageModeling`` or ``BeitForImageClassification`` loads as a whole.

    Args:
        model: :class:`zoo.models.beit.BEiT` or :class:`zoo.models.beit_classifier.BEiTClassifier`.
        folder: gets ``config.json`` and ``model.safetensors``.
        names: spelling of transformers 5, or of 4 and the hub's files, which 5 reads too.

    Raises:
        ValueError: for a model that transformers has no class for.
    """
    vit = dict(model.named_children()).get("vit")
    if not isinstance(vit, BeitViT) or vit.sequence is not None or (vit.lm_head is None and vit.head is None):
        raise ValueError(
            f"transformers has no BEiT class for this {type(model).__name__}: only classifiers and BEiT on a grid fit"
        )
    if vit.grid[0] != vit.grid[1] and (
        vit.pos_embed is not None or any(name.endswith(TABLE) for name in vit.state_dict())
    ):
        height, width = vit.image_sides
        raise ValueError(
            f"transformers takes the positions of its BEiT for those of a square, or exchanges their sides, and this "
            f"{type(model).__name__} sees images of {height}x{width}: only one of squares, or without positions, fits"
        )
    if names not in ("v5", "v4"):
        raise ValueError(f"names is 'v5' or 'v4', not {names!r}")
    state = to_hf_names(vit.state_dict(), names)
    if vit.head is not None:
        state = {re.sub("^layernorm[.]", CLASSIFIER_NORM, name): value for name, value in state.items()}
    return write_folder(folder, build_hf_config(model), state)


def build_hf_config(model: Any) -> dict[str, Any]:
    """Build the fields of ``BeitConfig`` that decide the network."""
    vit = model.vit
    block, args = vit.blocks[0], model.init_args()
    patch = vit.patch_embed.proj.kernel_size[0]
    height, width = (side * patch for side in vit.grid)
    config: dict[str, Any] = {
        "model_type": "beit",
        "hidden_size": vit.width,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": block.attn.heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "hidden_act": "gelu",
        "layer_norm_eps": block.norm1.eps,
        "image_size": height if height == width else [height, width],
        "patch_size": patch,
        "num_channels": 3,
        "use_mask_token": vit.mask_token is not None,
        "use_absolute_position_embeddings": vit.pos_embed is not None,
        "use_relative_position_bias": block.attn.relative_position_bias_table is not None,
        "use_shared_relative_position_bias": vit.rel_pos_bias is not None,
        "layer_scale_init_value": float(args.get("layer_scale", 0.1)) if block.gamma_1 is not None else 0.0,
        "drop_path_rate": float(args.get("drop_path", 0.0)),
        "use_mean_pooling": vit.fc_norm is not None or vit.head is None,  # else a second norm stands before lm_head
    }
    if vit.lm_head is not None:
        return config | {"architectures": ["BeitForMaskedImageModeling"], "vocab_size": vit.lm_head.out_features}
    labels = {i: f"LABEL_{i}" for i in range(vit.head.out_features)}
    return config | {
        "architectures": ["BeitForImageClassification"],
        "id2label": {str(i): label for i, label in labels.items()},
        "label2id": {label: i for i, label in labels.items()},
    }


def _to_unilm_name(name: str) -> str:
    if match := THEIR_BLOCK.fullmatch(name):
        column = 1 + LAYERS.index(match[1] + ".")
        return f"blocks.{match[2]}.{_replace(match[3], BLOCK, column, 0)}"
    column = 2 if name.startswith("beit.encoder.") else 1
    return _replace(name.replace(CLASSIFIER_NORM, "layernorm."), TOP, column, 0)


def _to_hf_name(name: str, names: Names) -> str:
    column = 1 if names == "v5" else 2
    if match := OURS_BLOCK.fullmatch(name):
        return f"{LAYERS[column - 1]}{match[1]}.{_replace(match[2], BLOCK, 0, column)}"
    return _replace(name, TOP, 0, column)


def _replace(name: str, table: tuple[tuple[str, ...], ...], source: int, target: int) -> str:
    for row in table:
        if name == row[source] or (row[source].endswith(".") and name.startswith(row[source])):
            return row[target] + name[len(row[source]) :]
    return name


BEIT = Format("BEiT of transformers", matches, convert, check_config=check_config, convert_described=convert)
