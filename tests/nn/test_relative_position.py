"""Relative position bias: the index against loops, the resizing against SciPy, timm and transformers."""

import inspect
import warnings

import numpy as np
import pytest
import torch

from zoo.nn.relative_position import (
    RelativePositionBias,
    cubic_spline_operator,
    geometric_positions,
    relative_position_index,
    resize_table,
    table_rows,
)


@pytest.mark.parametrize("grid", [(3, 5), (4, 4), (1, 2)])
def test_index_by_loops(grid):
    rows, columns = grid
    n = rows * columns
    index = relative_position_index(grid)
    assert index.shape == (n + 1, n + 1)
    for query in range(n):
        for key in range(n):
            dy, dx = query // columns - key // columns, query % columns - key % columns
            assert index[query + 1, key + 1] == (dy + rows - 1) * (2 * columns - 1) + dx + columns - 1
    last = table_rows(grid)
    assert (index[0, 1:] == last - 3).all()
    assert (index[1:, 0] == last - 2).all()
    assert index[0, 0] == last - 1


def test_bias_is_the_table_row_of_the_pair():
    bias = RelativePositionBias((2, 3), heads=4)
    assert (bias.relative_position_bias_table == 0).all()
    torch.nn.init.normal_(bias.relative_position_bias_table)
    index = relative_position_index((2, 3))
    for head, query, key in [(0, 0, 0), (1, 0, 4), (2, 5, 0), (3, 2, 6)]:
        assert bias()[0, head, query, key] == bias.relative_position_bias_table[index[query, key], head]


def smooth_table(grid, heads=2):
    """Values like those of trained tables: peaked at offset 0, falling off."""
    y = torch.arange(2 * grid[0] - 1)[:, None] - grid[0] + 1.0
    x = torch.arange(2 * grid[1] - 1)[None, :] - grid[1] + 1.0
    per_head = [torch.exp(-(y**2 + 2 * x**2).sqrt() / (3 + h)) + 0.05 * torch.sin(y + x * h) for h in range(heads)]
    return torch.cat([torch.stack(per_head, -1).flatten(0, 1), torch.randn(3, heads)])


@pytest.mark.parametrize(("src", "dst"), [((14, 14), (24, 24)), ((4, 6), (7, 9)), ((8, 8), (5, 5))])
def test_cubic_equals_scipys_spline(src, dst):
    interpolate = pytest.importorskip("scipy.interpolate")
    table = smooth_table(src)
    ours = resize_table(table, src, dst, "unilm-cubic")
    assert torch.equal(ours[-3:], table[-3:])
    y, x = (geometric_positions(2 * s - 1, 2 * d - 1) for s, d in zip(src, dst, strict=True))
    ty, tx = (np.arange(-(d - 1), d) for d in dst)
    for head in range(table.shape[1]):
        z = table[:-3, head].double().numpy().reshape(2 * src[0] - 1, 2 * src[1] - 1)
        expected = interpolate.RectBivariateSpline(y, x, z)(ty, tx)
        np.testing.assert_allclose(ours[:-3, head].numpy().reshape(expected.shape), expected, atol=2e-6)


def test_ratio_of_the_published_resize():
    positions = geometric_positions(27, 47)
    assert positions[15] - positions[14] == pytest.approx(1.090307, abs=2e-6)  # 14 -> 24 patches
    assert positions[-1] == pytest.approx(23, abs=1e-4)
    assert positions[13] == 0
    assert positions.tolist() == (-positions[::-1]).tolist()


@pytest.mark.filterwarnings(
    "ignore:.*searchsorted:UserWarning", "ignore:Using a non-tuple sequence:UserWarning"
)  # timm's
@pytest.mark.parametrize(("src", "dst"), [((14, 14), (24, 24)), ((4, 6), (7, 9))])
def test_linear_equals_timm(src, dst):
    timm = pytest.importorskip("timm.layers.pos_embed_rel")
    if "old_window_size" not in inspect.signature(timm.resize_rel_pos_bias_table).parameters:
        pytest.skip("this release of timm resizes square tables only")
    table = smooth_table(src)
    theirs = timm.resize_rel_pos_bias_table(table, dst, (table_rows(dst), 2), old_window_size=src)
    torch.testing.assert_close(resize_table(table, src, dst, "timm-linear"), theirs, atol=1e-5, rtol=0)


def test_bilinear_equals_transformers():
    beit = pytest.importorskip("transformers.models.beit.modeling_beit")
    transformers = pytest.importorskip("transformers")
    config = transformers.BeitConfig(image_size=16, patch_size=4, num_attention_heads=2, hidden_size=4)
    if "window_size" in inspect.signature(beit.BeitRelativePositionBias).parameters:
        pytest.skip("this release of transformers builds it in another way")
    module = beit.BeitRelativePositionBias(config)
    table = smooth_table((4, 4))
    module.relative_position_bias_table.data.copy_(table)
    with torch.no_grad():
        theirs = module((6, 6))[0]
    ours = RelativePositionBias((6, 6), 2)
    ours.relative_position_bias_table.data.copy_(resize_table(table, (4, 4), (6, 6), "bilinear"))
    torch.testing.assert_close(ours()[0], theirs, atol=1e-6, rtol=0)


def test_methods_differ_as_measured_on_smooth_tables():
    """Cubic and linear differ little, uniform spacing a lot: near offsets lose their resolution."""
    table = smooth_table((14, 14))[:, :1]
    cubic, linear, uniform = (
        resize_table(table, (14, 14), (24, 24), m) for m in ("unilm-cubic", "timm-linear", "bilinear")
    )
    assert (cubic - linear).abs().max() < 0.1 < (cubic - uniform).abs().max()


def test_spline_reproduces_cubic_polynomials_between_uneven_positions():
    x = np.array([-5.0, -2.2, -1, 0, 1, 2.2, 5])
    t = np.linspace(-5, 5, 41)
    np.testing.assert_allclose(cubic_spline_operator(x, t) @ (x**3 - 2 * x), t**3 - 2 * t, atol=1e-11)


def test_same_grid_is_untouched_and_mismatches_are_named():
    table = smooth_table((4, 6))
    assert resize_table(table, (4, 6), (4, 6)) is table
    one_axis = resize_table(table, (4, 6), (4, 9))
    assert one_axis.shape == (table_rows((4, 9)), 2)
    with pytest.raises(ValueError, match="position table of 52 rows, got 80"):
        resize_table(table, (4, 4), (8, 8))
    with pytest.raises(ValueError, match="'cubic'"):
        resize_table(table, (4, 6), (8, 8), "cubic")
    with pytest.raises(ValueError, match="at least 4 offsets"):
        resize_table(smooth_table((2, 2)), (2, 2), (8, 8))


def test_works_without_values():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resize_table(torch.empty(52, 3, device="meta"), (4, 4), (6, 6)).shape == (124, 3)
