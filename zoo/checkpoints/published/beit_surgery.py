"""Fitting a BEiT checkpoint, under unilm's names, to the BEiT or the classifier that reads it.

What microsoft/unilm ``beit/run_class_finetuning.py`` does on loading, with every step reported: a position table that
all blocks shared is copied into each, tables of another window and absolute positions are resized, what only
pre-training needs is left out, and a classifier for other labels starts anew.
"""

import math
import re
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from zoo.checkpoints.format import Converted, check_constant
from zoo.nn.relative_position import EXTRA, relative_position_index, resize_table, table_rows

PREFIX = "vit."
POOLS = {"mean": "mean of the patches (fc_norm)", "cls": "class token (norm)"}
SHARED = "rel_pos_bias.relative_position_bias_table"
PER_BLOCK = re.compile(r"blocks\.\d+\.attn\.relative_position_bias_table")
PRETRAINING_ONLY = ("mask_token", "lm_head.", "sequence.")
INDEX = "relative_position_index"  # a buffer of unilm's; it follows from the grid
TABLE = "relative_position_bias_table"


def fit(state: dict[str, Tensor], model: Any) -> Converted:
    """Adapt weights to a model.

    Args:
        state: under unilm's names, without prefix.
        model: :class:`zoo.models.beit.BEiT` or :class:`zoo.models.beit_classifier.BEiTClassifier`.

    Raises:
        ValueError: for tables whose window is not square and differs from the model's.
    """
    own = {name.removeprefix(PREFIX): value for name, value in model.state_dict().items()}
    notes: list[str] = []
    fresh: dict[str, str] = {}
    checked = _check_indices(state, own, model.vit.grid)
    state = {name: value for name, value in state.items() if not name.endswith(INDEX)}

    tables = [name for name in own if PER_BLOCK.fullmatch(name)]
    if SHARED in state and SHARED not in own and tables:
        shared, how = state.pop(SHARED), "copied into"
        if any(name in state for name in tables):  # transformers adds both to the scores
            how = "added to the one of"
        state |= {name: state[name] + shared if name in state else shared for name in tables}
        notes.append(f"the relative position bias that all blocks shared was {how} each of the {len(tables)} blocks")

    method = getattr(model, "position_resize", "unilm-cubic")
    resized = [n for n in state if n.endswith("bias_table") and n in own and state[n].shape[0] != own[n].shape[0]]
    for name in resized:
        state[name] = resize_table(state[name], _window(state[name]), model.vit.grid, method)
    if resized:
        notes.append(
            f"{len(resized)} relative position tables were resized ({method}) to the window {_by(model.vit.grid)}"
        )
    if "pos_embed" in state and "pos_embed" in own and state["pos_embed"].shape[1] != own["pos_embed"].shape[1]:
        state["pos_embed"] = resize_positions(state["pos_embed"], model.vit.grid)
        notes.append(f"absolute positions were resized (bicubic) to {_by(model.vit.grid)}")

    if "lm_head.weight" not in own:  # a classifier, or a probe
        unused = [name for name in state if name not in own and name.startswith((*PRETRAINING_ONLY, "norm."))]
        if "head.weight" not in own:
            unused += [name for name in state if name.startswith(("head.", "fc_norm."))]
        fresh = _fresh_parts(state, own)
        unused += [name for name in state if name.startswith("head.") and "head." in fresh]
        state = {name: value for name, value in state.items() if name not in unused}
    state = {name if name.startswith("probes.") else PREFIX + name: value for name, value in state.items()}
    fresh = {name if name == "probes." else PREFIX + name: reason for name, reason in fresh.items()}
    return Converted(state, newly_initialised=fresh, checked=checked, notes=tuple(notes))


def _check_indices(state: dict[str, Tensor], own: dict[str, Tensor], grid: tuple[int, int]) -> tuple[str, ...]:
    """The stored indices of position tables, which must be those of the tables' grids."""
    checked: list[str] = []
    for name in [name for name in state if name.endswith(INDEX)]:
        table = state.get(name.removesuffix(INDEX) + TABLE)
        if table is not None:
            of = grid if len(table) == table_rows(grid) else _window(table)
            checked += check_constant(state, name, relative_position_index(of), f"the offsets of a {_by(of)} grid")
    return tuple(checked)


def _fresh_parts(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, str]:
    """The parts of a classifier that the checkpoint cannot give.

    Raises:
        ValueError: for a fine-tuned classifier that looks at something else than the model's.
    """
    fresh = {}
    pooled, pools = "fc_norm.weight" in state, "fc_norm.weight" in own
    heads = [where["head.weight"].shape for where in (state, own) if "head.weight" in where]
    if len(heads) == 2 and heads[0] == heads[1] and pooled != pools:
        theirs, ours = ("mean", "cls") if pooled else ("cls", "mean")
        raise ValueError(
            f"the classifier of these weights looks at the {POOLS[theirs]} and this one at the {POOLS[ours]}: build "
            f"the model with pool='{theirs}'"
        )
    if "head.weight" in own:
        if "head.weight" not in state:
            fresh["head."] = "the checkpoint has no classifier"
        elif state["head.weight"].shape != own["head.weight"].shape:
            was, now = len(state["head.weight"]), len(own["head.weight"])
            fresh["head."] = f"the checkpoint's classifier has {was} classes and the model {now}"
    if "fc_norm.weight" in own and "fc_norm.weight" not in state:
        fresh["fc_norm."] = "the norm of the mean-pooled patches belongs to fine-tuning; the checkpoint has none"
    if any(name.startswith("probes.") for name in own) and not any(name.startswith("probes.") for name in state):
        fresh["probes."] = "linear probes are trained from scratch"
    return fresh


def resize_positions(positions: Float[Tensor, "1 n d"], grid: tuple[int, int]) -> Float[Tensor, "1 n2 d"]:
    """Bicubic interpolation of the patches' positions; the class token's stays (run_class_finetuning.py).

    Args:
        positions: of the class token, then of a square grid of patches.
        grid: rows and columns that are wanted.
    """
    side = _square(positions.shape[1] - 1, "absolute positions")
    patches = rearrange(positions[:, 1:].float(), "1 (gh gw) d -> 1 d gh gw", gh=side)
    patches = F.interpolate(patches, grid, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], rearrange(patches, "1 d gh gw -> 1 (gh gw) d").to(positions.dtype)], dim=1)


def _window(table: Float[Tensor, "r heads"]) -> tuple[int, int]:
    side = (_square(len(table) - EXTRA, "a relative position table") + 1) // 2
    return side, side


def _square(count: int, what: str) -> int:
    side = math.isqrt(max(count, 0))
    if side * side != count:
        raise ValueError(
            f"{what} with {count} entries belongs to no square grid and cannot be resized: keep the image size"
        )
    return side


def _by(grid: Any) -> str:
    return "x".join(map(str, grid))
