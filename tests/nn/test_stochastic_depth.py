"""Stochastic depth against the computation of all branches with zero weights."""

import pytest
import torch

from zoo.nn.beit_vit import Attention, Block, attend
from zoo.nn.stochastic_depth import add_branch, draw_depth

CPU = torch.device("cpu")


def dense_weights(samples, weight, batch):
    weights = torch.full((batch,), weight) if samples is None else torch.zeros(batch)
    return weights if samples is None else weights.index_fill(0, samples, weight)


def test_every_sample_is_kept_with_its_probability_and_its_weight_undoes_that():
    torch.manual_seed(0)
    total, alone = torch.zeros(5), 0
    for _ in range(4000):
        samples, weight = draw_depth(5, 0.3, CPU)
        assert weight in (0.0, pytest.approx(1 / 0.7))
        assert samples is None or len(samples) < 5
        total += dense_weights(samples, weight, 5) > 0
        alone += samples is not None and len(samples) == 1 and weight > 0
    assert total / 4000 == pytest.approx([0.7] * 5, abs=0.03)
    assert alone / 4000 == pytest.approx(5 * 0.7 * 0.3**4, abs=0.01)  # independent draws


def test_nothing_is_drawn_without_a_rate():
    state = torch.get_rng_state()
    assert draw_depth(5, 0.0, CPU) == (None, 1.0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("gamma", [None, torch.tensor([0.5, 2.0, -1.0])])
def test_adding_some_samples_is_adding_all_with_weights(gamma):
    x, branch = torch.randn(4, 2, 3), torch.randn(4, 2, 3)
    scaled = branch if gamma is None else branch * gamma
    kept = torch.tensor([0, 3])
    expected = x + torch.tensor([1.25, 0, 0, 1.25])[:, None, None] * scaled
    torch.testing.assert_close(add_branch(x, branch[kept], gamma, kept, 1.25), expected)
    torch.testing.assert_close(add_branch(x, branch, gamma, None, torch.tensor([1.25, 0, 0, 1.25])), expected)
    torch.testing.assert_close(add_branch(x, branch, gamma, None, 1.25), x + 1.25 * scaled)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_a_block_has_the_outputs_and_gradients_of_all_branches_with_zero_weights(masked, seed):
    torch.manual_seed(seed)
    block = Block(8, 2, layer_scale=0.7, drop_path=0.6, grid=(2, 2)).train()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(4, 5, 8, requires_grad=True)
    rows = torch.rand(4, 5) < torch.tensor([0.0, 0.3, 0.7, 1.0])[:, None] if masked else None
    inputs = [x, *block.parameters()]
    torch.manual_seed(100 + seed)
    out = block(x, None, rows)
    weight = torch.randn_like(out)
    found = torch.autograd.grad((out * weight).sum(), inputs)
    torch.manual_seed(100 + seed)
    first, second = (dense_weights(*draw_depth(4, 0.6, CPU), 4)[:, None, None] for _ in range(2))
    y = x + first * block.gamma_1 * block.attn(block.norm1(x))
    y = y + second * block.gamma_2 * block.mlp(block.norm2(y))
    y = y if rows is None else y[rows]
    torch.testing.assert_close(out, y)
    torch.testing.assert_close(found, torch.autograd.grad((y * weight).sum(), inputs), atol=1e-5, rtol=1e-4)


def test_where_nothing_is_kept_every_parameter_has_a_gradient_of_zero():
    block = Block(8, 2, layer_scale=0.1, drop_path=0.999999).train()
    x = torch.randn(3, 5, 8, requires_grad=True)
    out = block(x)
    assert torch.equal(out, x)
    out.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in block.parameters())
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("masked", [False, True])
def test_in_compiled_code_shapes_do_not_depend_on_the_draw(masked, monkeypatch):
    # The annotations that the tests enforce cannot be traced, hence no torch.compile here.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.manual_seed(0)
    assert draw_depth(5, 0.4, CPU)[0] is None
    weights = draw_depth(4000, 0.4, CPU)[1]
    assert weights.unique().tolist() == [0.0, pytest.approx(1 / 0.6)]
    assert weights.mean().item() == pytest.approx(1, abs=0.04)
    block = Block(8, 2, layer_scale=0.7, drop_path=0.5).train()
    x = torch.randn(1, 3, 8).expand(2000, -1, -1)
    rows = torch.ones(2000, 3, dtype=torch.bool) if masked else None
    with torch.no_grad():
        same = (block(x, None, rows).reshape(x.shape) == x).flatten(1).all(1)
    assert same.float().mean().item() == pytest.approx(0.25, abs=0.04)


def test_written_out_attention_is_the_fused_one():
    q, k, v = (torch.randn(3, 2, 5, 4, requires_grad=True) for _ in range(3))
    bias = torch.randn(1, 2, 5, 5, requires_grad=True)
    ours = attend(q, k, v, bias)
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    torch.testing.assert_close(ours, fused)
    weight = torch.randn_like(ours)
    one = torch.autograd.grad((ours * weight).sum(), (q, k, v, bias))
    torch.testing.assert_close(one, torch.autograd.grad((fused * weight).sum(), (q, k, v, bias)))


def test_attention_computes_queries_of_the_asked_tokens_only(monkeypatch):
    import zoo.nn.beit_vit as module

    queries = []
    monkeypatch.setattr(module, "attend", lambda q, k, v, b: queries.append(q.shape[2]) or attend(q, k, v, b))
    rows = torch.tensor([[True, False, True, False], [False, False, False, True]])
    attention = Attention(8, 2)
    x = torch.randn(2, 4, 8)
    torch.testing.assert_close(attention(x, None, rows), attention(x)[rows])
    assert queries == [2, 4]
