"""Second-stage checkpoints of taming-transformers (``cin_transformer``, ``drin_transformer`` and relatives).

A Lightning checkpoint of the whole model: ``transformer.*`` is the GPT, ``first_stage_model.*`` the VQGAN, which our
model has as its tokenizer, ``cond_stage_model.*`` that of the condition. Two facts stand in buffers and are compared
with the model's settings: ``blocks.i.attn.mask`` says which of the first positions see each other, and
``permuter.*_shuffle_idx`` in which order the tokens are read (a file without it reads them in raster order).
"""

import re
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.format import Converted, Format, State, check_constant
from zoo.nn.gpt import attention_mask
from zoo.sampling.token_order import ORDERS, token_order

MARK = "transformer.blocks.0.attn.key.weight"
CONDITION = "cond_stage_model."  # classes and coordinates have no weights
STAGES = ("first_stage_model.", CONDITION)
MASK = re.compile(r"transformer\.blocks\.\d+\.attn\.mask")
FORWARD, BACKWARD = "permuter.forward_shuffle_idx", "permuter.backward_shuffle_idx"
POSITIONS = "transformer.pos_emb"


def matches(state: State) -> bool:
    """Recognise a GPT beside a first stage, or a GPT with its mask buffers."""
    return MARK in state and any(name.startswith(STAGES) or MASK.fullmatch(name) or name == FORWARD for name in state)


def convert(state: State, model: Any) -> Converted:
    """Keep the GPT; our names of it are taming's.

    Raises:
        ValueError: for a model whose conditions have ids of their own, or whose condition, order or unmasked prefix is
            another.
    """
    if model.class_ids != "shared":
        raise ValueError("taming's classes share ids with codes: build the model with class_ids='shared'")
    if any(name.startswith(CONDITION) for name in state) and not model.condition_tokens:
        raise ValueError(
            f"these weights continue the tokens of a condition ({CONDITION}*), and this model has none: build it with "
            "num_classes=0 and condition_tokenizer"
        )
    buffers = {name for name in state if MASK.fullmatch(name)}
    kept = {n: v for n, v in state.items() if n.startswith("transformer.") and n not in buffers}
    notes = []
    if any(name.startswith(STAGES) for name in state):
        notes.append("the first stage in the file is not read: give it to the tokenizer")
    surplus = kept[POSITIONS].shape[1] - model.transformer.block_size if POSITIONS in kept else 0
    if surplus > 0:
        kept[POSITIONS] = kept[POSITIONS][:, : model.transformer.block_size]
        notes.append(f"the last {surplus} positions of the file, which no token of this model reaches, are left out")
    checked = (*_check_masks(state, buffers, model), *_check_order(state, model))
    return Converted(kept, checked=checked, notes=tuple(notes))


def _check_masks(state: State, names: set[str], model: Any) -> list[str]:
    checked: list[str] = []
    for name in sorted(names):
        size, seen = state[name].shape[-1], int(state[name].flatten()[: state[name].shape[-1]].ne(0).sum())
        own = max(1, model.transformer.n_unmasked)
        if seen > 1 and seen != own and _same_mask(state[name], attention_mask(size, seen)):
            raise ValueError(
                f"in these weights the first {seen} positions see each other ({name}), in this model "
                f"{'none' if own == 1 else f'the first {own}'}: build it with n_unmasked={seen}"
            )
        if seen == 1 and own > 1 and _same_mask(state[name], attention_mask(size)):
            raise ValueError(
                f"in these weights no position sees a later one ({name}), in this model the first {own} see each "
                "other: build it with n_unmasked=0"
            )
        expected = attention_mask(size, own).view(state[name].shape)
        checked += check_constant(state, name, expected, "a causal mask with an unmasked prefix")
    return checked


def _same_mask(found: Tensor, expected: Tensor) -> bool:
    return torch.equal(found.bool().flatten(), expected.flatten())


def _check_order(state: State, model: Any) -> list[str]:
    found = state.get(FORWARD)
    own = model.permutation
    if found is None:
        if own is not None and any(name.startswith(STAGES) for name in state):
            raise ValueError(
                f"these weights hold no permuter, so their tokens are read in raster order, this model's in "
                f"{model.order}: build it with order='raster'"
            )
        return []
    grid = model.spec.grid_shape
    raster = torch.arange(model.spec.num_tokens)
    if not torch.equal(found.cpu().flatten(), raster if own is None else own.cpu()):
        theirs = next((order for order in ORDERS if _is_order(order, grid, found)), None)
        if theirs is None:
            raise ValueError(
                f"the tokens of these weights are read in an order of their own ({FORWARD} of {found.numel()} cells), "
                f"which is none of {', '.join(ORDERS)} on this model's {_describe_grid(grid)}"
            )
        raise ValueError(
            f"the tokens of these weights are read in the order {theirs} ({FORWARD}), this model's in {model.order}: "
            f"build it with order='{theirs}'"
        )
    checked = [FORWARD]
    if BACKWARD in state:
        checked += check_constant(state, BACKWARD, (raster if own is None else own).argsort(), "the inverse order")
    return checked


def _is_order(order: str, grid: tuple[int, int] | None, found: Tensor) -> bool:
    try:
        return grid is not None and torch.equal(token_order(order, grid), found.cpu().flatten().long())
    except ValueError:  # an order that this grid does not have
        return False


def _describe_grid(grid: tuple[int, int] | None) -> str:
    return "tokens without a grid" if grid is None else f"{grid[0]}x{grid[1]} cells"


TAMING = Format("second stage of taming-transformers", matches, convert)
