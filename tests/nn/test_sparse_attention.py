"""DALL-E's masks entry by entry as defined in the paper, and attention that computes only what they let through."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from zoo.nn.sparse_attention import KINDS, SegmentAttention, SegmentCache, attend, joint_mask, lay_out_kinds

FILE = Path(__file__).parents[1] / "fixtures" / "dalle_masks.safetensors"
READINGS = {"conv": "raster", "conv_torus": "torus", "conv_nowrap": "none"}
#: grids and sequences behind one another, as tokenizers of several segments have them
SHAPES = [[(4, 4)], [(3, 5)], [(7,)], [(4, 4), (2, 3)], [(3, 3), (6,), (4, 2)]]
PATTERNS = [("full", "raster", 3), ("row", "raster", 3), ("column", "raster", 3)]
PATTERNS += [("conv", wraparound, kernel) for wraparound in ("raster", "torus", "none") for kernel in (1, 3, 5)]
PREFIX = 6


def recorded(prefix):
    with safe_open(FILE, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118


@pytest.mark.parametrize("reading", ["full", "row", "column", *READINGS])
def test_masks_are_those_of_the_definition(reading):
    found = recorded(f"out.{reading}.")
    assert found
    for name, mask in found.items():
        *_, text, side = name.split(".")
        kernel = int(name.split(".K")[1].split(".")[0]) if ".K" in name else 11
        kind, side = reading.partition("_")[0], int(side[1:])
        own = joint_mask(kind, int(text[1:]), [(side, side)], kernel, READINGS.get(reading, "raster"))
        assert torch.equal(own, mask), name


@pytest.mark.parametrize("depth", [8, 24, 64])
def test_layers_are_laid_out_by_the_rule_of_the_paper(depth):
    types = recorded(f"out.layer_types.D{depth}")[f"out.layer_types.D{depth}"]
    assert lay_out_kinds(depth) == [("row", "column", "conv")[i] for i in types.tolist()]


def test_a_last_layer_on_the_column_rule_stays_a_column_layer():
    assert lay_out_kinds(2) == ["row", "column"]
    assert lay_out_kinds(1) == ["conv"]


def project(shapes, dtype=torch.float64):
    length = PREFIX + sum(int(torch.tensor(shape).prod()) for shape in shapes)
    return [torch.randn(2, 3, length, 8, dtype=dtype, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize(("kind", "wraparound", "kernel"), PATTERNS)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_what_is_gathered_is_that_of_the_dense_mask(shapes, kind, wraparound, kernel, stable):
    qkv = project(shapes)
    mask = joint_mask(kind, PREFIX, shapes, kernel, wraparound)
    segments = [SegmentAttention(kind, shape, kernel, wraparound) for shape in shapes]
    for length in (len(mask), len(mask) - 1, PREFIX + 2, PREFIX, 3):
        part = [x[:, :, :length] for x in qkv]
        dense = F.scaled_dot_product_attention(*part, attn_mask=mask[:length, :length])
        sparse = attend(*part, PREFIX, segments, stable)
        weight = torch.randn_like(dense)
        torch.testing.assert_close(sparse, dense, atol=1e-12, rtol=0)
        expected = torch.autograd.grad((dense * weight).sum(), qkv)
        for own, other in zip(torch.autograd.grad((sparse * weight).sum(), qkv), expected, strict=True):
            torch.testing.assert_close(own, other, atol=1e-11, rtol=0)


@pytest.mark.parametrize(("kind", "wraparound", "kernel"), PATTERNS)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_a_cache_gives_what_all_positions_give_at_once(shapes, kind, wraparound, kernel):
    queries, keys, values = project(shapes)
    mask = joint_mask(kind, PREFIX, shapes, kernel, wraparound)
    dense = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    segments = [SegmentAttention(kind, shape, kernel, wraparound) for shape in shapes]
    for start in (PREFIX, PREFIX + 3, len(mask) - 2):
        cache = SegmentCache(PREFIX, segments)
        cache.start(keys[:, :, :start], values[:, :, :start])
        for i in range(start, len(mask)):
            found = cache.step(*(x[:, :, i : i + 1] for x in (queries, keys, values)))
            torch.testing.assert_close(found, dense[:, :, i : i + 1], atol=1e-12, rtol=0)


def test_a_cache_keeps_what_can_still_be_seen():
    kept = {}
    for kind in KINDS:
        cache = SegmentCache(PREFIX, [SegmentAttention(kind, (16, 8), kernel=5)])
        cache.start(*torch.randn(2, 1, 1, PREFIX, 4))
        for _ in range(16 * 8):
            cache.step(*torch.randn(3, 1, 1, 1, 4))
        kept[kind] = cache.num_kept - PREFIX
    assert kept == {"full": 128, "row": 9, "column": 128, "conv": 2 * 8 + 2 + 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("conv", (2, 2), 0), "odd side, got kernel 0"),
        (("conv", (2, 2), 4), "odd side, got kernel 4"),
    ],
)
def test_attention_that_there_is_not(settings, message):
    with pytest.raises(ValueError, match=message):
        SegmentAttention(*settings)
