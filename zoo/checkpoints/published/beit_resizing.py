"""Fitting a BEiT checkpoint, under unilm's names, to the BEiT or the classifier that reads it.

What microsoft/unilm ``beit/run_class_finetuning.py`` does on loading, with every step reported: a position table that
all blocks shared is copied into each, tables of another window and absolute positions are resized, what only
pre-training needs is left out, and a classifier for other labels starts anew.
"""

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
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
NOTHING: Mapping[str, Any] = MappingProxyType({})


def fit_to_model(state: dict[str, Tensor], model: Any, said: Mapping[str, Any] = NOTHING) -> Converted:
    """Fit weights to a model: positions are resized, parts that it lacks are left out.

    Args:
        state: under unilm's names, without prefix.
        model: :class:`zoo.models.beit.BEiT` or :class:`zoo.models.beit_classifier.BEiTClassifier`.
        said: constructor arguments of ours, or fields of the ``config.json`` beside the weights: of a grid that is no
            square, tables and positions do not show the sides.

    Raises:
        ValueError: for positions that have to be resized, of a grid that is no square and that nothing tells.
    """
    own = {name.removeprefix(PREFIX): value for name, value in model.state_dict().items()}
    notes: list[str] = []
    fresh: dict[str, str] = {}
    grid, theirs = model.vit.grid, grid_of_file(state, said)
    checked = _check_indices(state, theirs or grid)
    state = {name: value for name, value in state.items() if not name.endswith(INDEX)}

    tables = [name for name in own if PER_BLOCK.fullmatch(name)]
    if SHARED in state and SHARED not in own and tables:
        shared, how = state.pop(SHARED), "copied into"
        if any(name in state for name in tables):  # transformers adds both to the scores
            how = "added to the one of"
        state |= {name: state[name] + shared if name in state else shared for name in tables}
        notes.append(f"the relative position bias that all blocks shared was {how} each of the {len(tables)} blocks")

    method = model.position_resize
    present = [name for name in state if name.endswith(TABLE) and name in own]
    resized = [name for name in present if _find_window(state[name], theirs, grid) != grid]
    for name in resized:
        state[name] = resize_table(state[name], _find_window(state[name], theirs, grid), grid, method)
    if resized:
        notes.append(
            f"{len(resized)} relative position tables were resized ({method}) to the window {_format_grid(grid)}"
        )
    if "pos_embed" in state and "pos_embed" in own:
        source = _patches(state["pos_embed"], theirs, grid)
        if source != grid:
            state["pos_embed"] = resize_positions(state["pos_embed"], grid, source)
            notes.append(f"absolute positions were resized (bicubic) to {_format_grid(grid)}")

    if "lm_head.weight" not in own:  # a classifier, or a probe
        unused = [name for name in state if name not in own and name.startswith((*PRETRAINING_ONLY, "norm."))]
        if "head.weight" not in own:
            unused += [name for name in state if name.startswith(("head.", "fc_norm."))]
        fresh = _find_new_parts(state, own)
        unused += [name for name in state if name.startswith("head.") and "head." in fresh]
        state = {name: value for name, value in state.items() if name not in unused}
    state = {name if name.startswith("probes.") else PREFIX + name: value for name, value in state.items()}
    fresh = {name if name == "probes." else PREFIX + name: reason for name, reason in fresh.items()}
    return Converted(state, newly_initialised=fresh, checked=checked, notes=tuple(notes))


def rearranges(state: Mapping[str, Tensor], model: Any, said: Mapping[str, Any]) -> bool:
    """Tell whether as many positions stand in another order than the model's: 4x6 patches, not 6x4."""
    theirs = grid_of_file({name.removeprefix(PREFIX): value for name, value in state.items()}, said)
    return theirs not in (None, model.vit.grid)


def grid_of_file(state: Mapping[str, Tensor], said: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of the patches that weights were trained on, where their indices or what is said tells.

    Args:
        state: under unilm's names, without prefix.
        said: as for :func:`fit_to_model`; what does not fit the weights counts for nothing.
    """
    for name in (name for name in state if name.endswith(INDEX)):
        table, count = state.get(name.removesuffix(INDEX) + TABLE), len(state[name]) - 1
        for rows in (rows for rows in range(1, count + 1) if count % rows == 0):
            grid = rows, count // rows
            if table is not None and len(table) == table_rows(grid):
                index = relative_position_index(grid)
                if state[name].shape == index.shape and torch.equal(state[name].to(index.dtype), index):
                    return grid
    sides = _sides_said(said)
    if "patch_embed.proj.weight" not in state or sides is None:
        return None
    patch = state["patch_embed.proj.weight"].shape[-1]
    grid = sides[0] // patch, sides[1] // patch
    tables = [len(value) == table_rows(grid) for name, value in state.items() if name.endswith(TABLE)]
    positions = [value.shape[1] == 1 + math.prod(grid) for name, value in state.items() if name == "pos_embed"]
    return grid if all(tables + positions) else None


def _sides_said(said: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the images by our constructor arguments, or by a configuration of transformers or timm."""
    size, timm = said.get("image_size"), said.get("pretrained_cfg", said)
    if size is None and isinstance(timm, Mapping) and isinstance(found := timm.get("input_size"), list | tuple):
        size = found[1:]  # behind the channels
    sides = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list | tuple) else ()
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        return None
    return sides[0], sides[1]


def _check_indices(state: dict[str, Tensor], grid: tuple[int, int]) -> tuple[str, ...]:
    """Check the stored indices of position tables, which must be those of the tables' grids."""
    checked: list[str] = []
    for name in [name for name in state if name.endswith(INDEX)]:
        table = state.get(name.removesuffix(INDEX) + TABLE)
        if table is not None:
            of = _find_window(table, None, grid)
            meaning = f"the offsets of a {_format_grid(of)} grid"
            checked += check_constant(state, name, relative_position_index(of), meaning)
    return tuple(checked)


def _find_new_parts(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, str]:
    """Find the parts of a classifier that the checkpoint cannot give.

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


def resize_positions(
    positions: Float[Tensor, "1 n d"], grid: tuple[int, int], source: tuple[int, int]
) -> Float[Tensor, "1 n2 d"]:
    """Resize the patches' positions by bicubic interpolation; the class token's stays (run_class_finetuning.py).

    Args:
        positions: of the class token, then of the patches.
        grid: rows and columns that are wanted.
        source: rows and columns that there are.
    """
    patches = rearrange(positions[:, 1:].float(), "1 (gh gw) d -> 1 d gh gw", gh=source[0])
    patches = F.interpolate(patches, grid, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], rearrange(patches, "1 d gh gw -> 1 (gh gw) d").to(positions.dtype)], dim=1)


def _find_window(
    table: Float[Tensor, "r heads"], theirs: tuple[int, int] | None, own: tuple[int, int]
) -> tuple[int, int]:
    """Grid of a table: the one that its file tells, or the model's, or a square."""
    for grid in (theirs, own):
        if grid is not None and len(table) == table_rows(grid):
            return grid
    side = (_square_side(len(table) - EXTRA, "a relative position table") + 1) // 2
    return side, side


def _patches(
    positions: Float[Tensor, "1 n d"], theirs: tuple[int, int] | None, own: tuple[int, int]
) -> tuple[int, int]:
    """Grid of absolute positions, found in the same way."""
    for grid in (theirs, own):
        if grid is not None and positions.shape[1] == 1 + math.prod(grid):
            return grid
    side = _square_side(positions.shape[1] - 1, "absolute positions")
    return side, side


def _square_side(count: int, what: str) -> int:
    side = math.isqrt(max(count, 0))
    if side * side != count:
        raise ValueError(
            f"{what} with {count} entries belongs to no square grid, and nothing in the file or beside it says which "
            "one it is, so that it cannot be resized: keep the image size"
        )
    return side


def _format_grid(grid: Any) -> str:
    return "x".join(map(str, grid))
