"""Quantizers against their equations in NumPy, and the mistakes that others made."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from zoo.quantizers.base import update_codebooks
from zoo.quantizers.ema import EMAQuantizer
from zoo.quantizers.fsq import FSQ
from zoo.quantizers.gradient import VectorQuantizer
from zoo.quantizers.gumbel import GumbelQuantizer
from zoo.quantizers.lfq import LFQ
from zoo.quantizers.nearest_code import nearest_code
from zoo.quantizers.normalised import NormalisedQuantizer

ALL = {
    "vector": lambda: VectorQuantizer(20, 4),
    "ema": lambda: EMAQuantizer(20, 4),
    "gumbel": lambda: GumbelQuantizer(20, 4),
    "normalised": lambda: NormalisedQuantizer(20, 4),
    "fsq": lambda: FSQ((3, 4, 5, 2)),
    "lfq": lambda: LFQ(4),
}


def exact_ids(z, codebook):
    """Squared distances in float64."""
    z, codebook = np.asarray(z, np.float64), np.asarray(codebook, np.float64)
    return np.square(z[:, None] - codebook[None]).sum(-1).argmin(1)


# ---------------------------------------------------------------- the interface


@pytest.mark.parametrize("name", ALL)
def test_any_layout_with_channels_last(name):
    quantizer = ALL[name]().eval()
    z = torch.randn(2, 3, 5, 4)
    out = quantizer(z)
    assert out.vectors.shape == (2, 3, 5, quantizer.dim)
    assert out.ids.shape == (2, 3, 5)
    assert out.ids.dtype == torch.int64
    assert out.ids.min() >= 0
    assert out.ids.max() < quantizer.vocab_size
    assert torch.equal(quantizer.encode(z), out.ids)
    torch.testing.assert_close(quantizer.embed(out.ids), out.vectors, atol=0, rtol=0)
    torch.testing.assert_close(quantizer(z.flatten(1, 2)).vectors.reshape(out.vectors.shape), out.vectors)
    assert out.loss.shape == ()
    assert all(v.shape == () and not v.requires_grad for v in out.terms.values())


@pytest.mark.parametrize("name", ALL)
def test_half_precision_neither_changes_ids_nor_their_type(name):
    """Distances and id arithmetic in float32 and int64 under autocast."""
    quantizer = ALL[name]().train()
    z = torch.randn(64, 4)
    exact = quantizer.encode(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(z), exact)
        out = quantizer(z)
    assert out.ids.dtype == torch.int64
    assert out.vectors.dtype == out.loss.dtype == torch.float32


@pytest.mark.parametrize("name", ["vector", "ema", "fsq", "lfq"])
def test_straight_through(name):
    """Equal to the codes up to rounding, and the gradient of the output is that of the input."""
    quantizer = ALL[name]().train()
    z = torch.randn(50, 4, requires_grad=True)
    out = quantizer(z)
    torch.testing.assert_close(out.vectors, quantizer.embed(out.ids), atol=1e-6, rtol=1e-6)
    weight = torch.randn_like(out.vectors)
    (gradient,) = torch.autograd.grad((out.vectors * weight).sum(), z)
    if name == "fsq":
        bounded = quantizer.bound(z)
        (weight,) = torch.autograd.grad((bounded / quantizer.centre * weight).sum(), z)
    torch.testing.assert_close(gradient, weight)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: VectorQuantizer(0, 4), "at least one code"),
        (lambda: EMAQuantizer(4, 4, decay=1.0), r"decay must lie in \[0, 1\)"),
        (lambda: FSQ((8, 1)), r"levels must be at least 2 in each channel, got \(8, 1\)"),
        (lambda: LFQ(0), r"bits must lie in 1\.\.30, got 0"),
    ],
)
def test_settings_that_make_no_codebook(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


# ---------------------------------------------------------------- nearest code


@pytest.mark.parametrize("chunk", [None, 1, 7, 1000])
def test_nearest_code_is_exact(chunk):
    z, codebook = torch.randn(100, 8), torch.randn(30, 8)
    assert nearest_code(z, codebook, chunk).tolist() == exact_ids(z, codebook).tolist()


@pytest.mark.slow
def test_nearest_code_at_the_init_of_taming():
    """With codes in U(-1/K, 1/K) half precision gives all vectors one code, and even float32 with |z|^2 errs."""
    codes = 4096
    z, codebook = torch.randn(512, 64), (torch.rand(codes, 64) * 2 - 1) / codes
    expected = exact_ids(z, codebook)
    with torch.autocast("cpu", torch.bfloat16):
        found = nearest_code(z, codebook).numpy()
    half = (z.square().sum(1, keepdim=True) + codebook.square().sum(1)).bfloat16() - 2 * (z @ codebook.t()).bfloat16()
    assert (half.argmin(1).numpy() == expected).mean() < 0.1  # the test can see the mistake
    assert (found == expected).mean() > 0.998
    assert len(np.unique(found)) > 300


@pytest.mark.parametrize("setting", ["medium", "high", "highest"])
def test_nearest_code_uses_no_tf32(monkeypatch, setting):
    """The command line allows TF32, which keeps ten bits; ids must not depend on it, and the setting stays."""
    seen, product = [], torch.addmm

    def watched(*args, **kwargs):
        seen.append(torch.get_float32_matmul_precision())
        return product(*args, **kwargs)

    monkeypatch.setattr(torch, "addmm", watched)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(setting)
        nearest_code(torch.randn(3, 2), torch.randn(5, 2))
        assert seen == ["highest"]
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision(before)


def test_nearest_code_takes_the_lowest_of_equals_and_no_rows():
    assert nearest_code(torch.zeros(3, 2), torch.ones(5, 2)).tolist() == [0, 0, 0]
    assert nearest_code(torch.zeros(0, 2), torch.ones(5, 2)).shape == (0,)


# ---------------------------------------------------------------- gradient VQ


@pytest.mark.parametrize("legacy", [False, True])
def test_vector_quantizer_loss_and_gradients(legacy):
    quantizer = VectorQuantizer(12, 3, beta=0.3, legacy=legacy)
    torch.nn.init.normal_(quantizer.embedding.weight)
    z = torch.randn(40, 3, requires_grad=True)
    out = quantizer(z)
    out.loss.backward()
    codes, rows = quantizer.embedding.weight.detach().double().numpy(), z.detach().double().numpy()
    ids = exact_ids(rows, codes)
    difference = codes[ids] - rows
    on_codes, on_z = (0.3, 1.0) if legacy else (1.0, 0.3)
    assert out.loss.item() == pytest.approx(1.3 * np.square(difference).mean(), rel=1e-5)
    expected = np.zeros_like(codes)
    np.add.at(expected, ids, on_codes * 2 * difference / difference.size)
    np.testing.assert_allclose(quantizer.embedding.weight.grad, expected, atol=1e-6)
    np.testing.assert_allclose(z.grad, -on_z * 2 * difference / difference.size, atol=1e-6)


def test_normalised_codes_are_nearest_on_the_sphere():
    quantizer = NormalisedQuantizer(15, 3).eval()
    z = 5 * torch.randn(40, 3)
    out = quantizer(z)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    rows, codes = unit(z.double().numpy()), unit(quantizer.embedding.weight.detach().double().numpy())
    ids = (rows @ codes.T).argmax(1)
    assert out.ids.tolist() == ids.tolist()
    np.testing.assert_allclose(out.vectors.detach(), codes[ids], atol=1e-6)
    assert out.loss.item() == pytest.approx(1.25 * np.square(codes[ids] - rows).mean(), rel=1e-5)


def test_entropy_keeps_codes_in_use_in_training_only():
    quantizer = VectorQuantizer(12, 3, entropy_weight=0.1, entropy_temperature=0.5)
    torch.nn.init.normal_(quantizer.embedding.weight)
    plain = VectorQuantizer(12, 3)
    plain.load_state_dict(quantizer.state_dict())
    z = torch.randn(40, 3)
    out = quantizer.train()(z)
    distance = torch.cdist(z, quantizer.embedding.weight.detach()).double().square().numpy()
    p = np.exp(-distance / 0.5)
    p /= p.sum(1, keepdims=True)
    each, mean = -(p * np.log(p)).sum(1).mean(), -(p.mean(0) * np.log(p.mean(0) + 1e-5)).sum()
    assert out.terms["entropy_each"].item() == pytest.approx(each, rel=1e-4)
    assert out.terms["entropy_mean"].item() == pytest.approx(mean, rel=1e-4)
    assert out.loss.item() == pytest.approx(plain(z).loss.item() + 0.1 * (each - mean), rel=1e-4)
    assert quantizer.eval()(z).loss.item() == pytest.approx(plain(z).loss.item())


def test_perplexity_is_that_of_the_ids():
    quantizer = EMAQuantizer(4, 2).eval()
    quantizer.codebook.copy_(torch.tensor([[0.0, 0], [1, 0], [2, 0], [3, 0]]))
    z = torch.tensor([[0.0, 0], [0, 0], [1, 0], [2, 0]])
    p = np.array([0.5, 0.25, 0.25])
    assert quantizer(z).terms["perplexity"].item() == pytest.approx(math.exp(-(p * np.log(p)).sum()))


# ---------------------------------------------------------------- running means


def ema_by_hand(codes, batches, decay=0.9, eps=1e-5, debias=False):
    """Appendix A.1 in float64; batches are lists of what is accumulated for one step."""
    codes = codes.astype(np.float64)
    n = np.zeros(len(codes)) if debias else np.ones(len(codes))
    m = np.zeros_like(codes) if debias else codes.copy()
    for t, parts in enumerate(batches, 1):
        rows = np.concatenate(parts).astype(np.float64)
        ids = exact_ids(rows, codes)
        sums = np.zeros_like(codes)
        np.add.at(sums, ids, rows)
        n = decay * n + (1 - decay) * np.bincount(ids, minlength=len(codes))
        m = decay * m + (1 - decay) * sums
        bias = 1 - decay**t if debias else 1.0
        total = n.sum() / bias
        codes = m / bias / ((n / bias + eps) / (total + len(codes) * eps) * total)[:, None]
    return codes, n, m


def run(quantizer, parts, forwards=1):
    for part in parts:
        z = torch.as_tensor(part).clone().requires_grad_()
        for _ in range(forwards):
            out = quantizer(z)
        (out.vectors.sum() + out.loss).backward()
    quantizer.update()


def batches_of(*sizes, dim=3):
    rng = np.random.default_rng(0)
    return [[rng.standard_normal((size, dim)).astype(np.float32) for size in parts] for parts in sizes]


@pytest.mark.parametrize("debias", [False, True])
def test_running_means_are_the_equation(debias):
    quantizer = EMAQuantizer(6, 3, decay=0.9, debias=debias).train()
    batches = batches_of([20], [20], [20], [20])
    codes, n, m = ema_by_hand(quantizer.codebook.numpy().copy(), batches, debias=debias)
    for parts in batches:
        run(quantizer, parts)
    np.testing.assert_allclose(quantizer.codebook, codes, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(quantizer.cluster_size, n, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(quantizer.embed_avg.t(), m, rtol=1e-4, atol=1e-5)


def test_accumulated_batches_are_one_step_and_repeated_forwards_none():
    """Accumulation counts together; a second forward pass, and one without gradients, count nothing."""
    quantizer = EMAQuantizer(6, 3, decay=0.9).train()
    batches = batches_of([10, 14], [10, 14])
    codes, n, _ = ema_by_hand(quantizer.codebook.numpy().copy(), batches)
    for parts in batches:
        run(quantizer, parts, forwards=3)  # as when a discriminator step encodes again
        with torch.no_grad():
            quantizer(torch.randn(8, 3))
    np.testing.assert_allclose(quantizer.codebook, codes, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(quantizer.cluster_size, n, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_counts_once(reentrant):
    quantizer = EMAQuantizer(6, 3, decay=0.9).train()
    [[part]] = batches = batches_of([20])
    codes, n, _ = ema_by_hand(quantizer.codebook.numpy().copy(), batches)

    def block(x):
        out = quantizer(2 * x)
        return out.vectors, out.loss

    vectors, loss = checkpoint(block, torch.as_tensor(part / 2).requires_grad_(), use_reentrant=reentrant)
    (vectors.sum() + loss).backward()
    quantizer.update()
    np.testing.assert_allclose(quantizer.cluster_size, n, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(quantizer.codebook, codes, rtol=1e-4, atol=1e-5)


def test_nothing_changes_in_eval_nor_without_a_backward_pass():
    quantizer = EMAQuantizer(6, 3)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    run(quantizer.eval(), [torch.rand(9, 3)])
    quantizer.train()(torch.randn(9, 3, requires_grad=True))
    quantizer.update()
    torch.testing.assert_close(dict(quantizer.state_dict()), before, rtol=0, atol=0)


def test_a_frozen_encoder_still_trains_the_codebook():
    quantizer = EMAQuantizer(6, 3, decay=0.9).train()
    [[part]] = batches = batches_of([20])
    codes, _, _ = ema_by_hand(quantizer.codebook.numpy().copy(), batches)
    quantizer(torch.as_tensor(part))
    update_codebooks(torch.nn.Sequential(quantizer))
    np.testing.assert_allclose(quantizer.codebook, codes, rtol=1e-4, atol=1e-5)


def test_running_means_do_not_explode():
    """Counts that start at zero, without de-biasing, multiply unused codes by 1e5 in the first step."""
    start, z = 8 * torch.randn(256, 16), 0.1 * torch.randn(1024, 16)
    ids = {}
    for name in ("ones", "zeros"):
        quantizer = EMAQuantizer(256, 16).train()
        quantizer.codebook.copy_(start)
        quantizer.embed_avg.copy_(start.t())
        if name == "zeros":
            quantizer.cluster_size.zero_()
        norm = quantizer.codebook.norm(dim=1).max()
        run(quantizer, [z])
        ids[name] = quantizer.codebook.norm(dim=1).max() / norm
    assert ids["ones"] < 1.1
    assert ids["zeros"] > 1e3


# ---------------------------------------------------------------- k-means and restarts


@pytest.mark.parametrize("cls", [EMAQuantizer, VectorQuantizer])
def test_kmeans_starts_on_the_first_training_batch_and_never_again(cls):
    centres = 10 * torch.randn(8, 3)
    z = (centres[:, None] + 0.01 * torch.randn(8, 50, 3)).flatten(0, 1)
    quantizer = cls(8, 3, kmeans_init=True)
    quantizer.eval()(z)
    assert not quantizer.initialised
    quantizer.train()(z)
    assert quantizer.initialised
    assert exact_loss(z, quantizer.codebook) < 0.5 * exact_loss(z, torch.randn(8, 3))
    resumed = cls(8, 3, kmeans_init=True).train()
    resumed.load_state_dict(quantizer.state_dict())
    resumed(torch.randn(100, 3))
    torch.testing.assert_close(resumed.codebook, quantizer.codebook, rtol=0, atol=0)


def exact_loss(z, codebook):
    return np.square(z.numpy() - codebook.detach().numpy()[exact_ids(z, codebook.detach())]).mean()


def test_kmeans_sets_the_running_means():
    quantizer = EMAQuantizer(8, 3, kmeans_init=True).train()
    z = torch.randn(100, 3)
    quantizer(z)
    ids = exact_ids(z, quantizer.codebook)
    assert quantizer.cluster_size.tolist() == np.bincount(ids, minlength=8).tolist()
    torch.testing.assert_close(quantizer.embed_avg.t() / quantizer.cluster_size[:, None], quantizer.codebook)


def are_rows_of(codes, z):
    return bool((codes[:, None] == z).all(-1).any(1).all())


@pytest.mark.parametrize("debias", [False, True])
def test_a_restarted_code_stays_where_it_was_put(debias):
    """Both sums are reset; else the next step would bring the old code back."""
    quantizer = EMAQuantizer(6, 3, decay=0.5, restart_threshold=0.3, debias=debias).train()
    quantizer.codebook[3:] = 100.0  # never chosen
    quantizer.cluster_size[3:] = 0
    quantizer.embed_avg[:, 3:] = 0
    z = torch.randn(60, 3)
    run(quantizer, [z])
    assert are_rows_of(quantizer.codebook[3:], z)
    assert quantizer.codebook.unique(dim=0).shape == (6, 3)
    placed = quantizer.codebook[3:].clone()
    run(quantizer, [1000 + torch.zeros(1, 3)])  # no vector comes near them
    assert (quantizer.codebook[3:] - placed).norm(dim=1).sort().values[:2].max() < 0.01


def test_codes_trained_by_gradients_restart_too():
    quantizer = VectorQuantizer(6, 3, restart_threshold=0.9, decay=0.5).train()
    with torch.no_grad():
        quantizer.embedding.weight[3:] = 100.0
    z = torch.randn(60, 3)
    run(quantizer, [z])
    assert are_rows_of(quantizer.codebook[3:], z)
    assert quantizer.encode(z).unique().numel() == 6


# ---------------------------------------------------------------- Gumbel


def test_gumbel_is_deterministic_in_eval_and_hard_in_training():
    """The reference draws noise in evaluation too."""
    quantizer = GumbelQuantizer(10, 4, in_dim=6)
    torch.nn.init.normal_(quantizer.proj.weight)
    z = torch.randn(2, 30, 6)
    logits = z.numpy() @ quantizer.proj.weight[:, :, 0, 0].detach().numpy().T + quantizer.proj.bias.detach().numpy()
    first, second = quantizer.eval()(z), quantizer(z)
    assert torch.equal(first.ids, second.ids)
    assert first.ids.tolist() == logits.argmax(-1).tolist()
    q = np.exp(logits - logits.max(-1, keepdims=True))
    q /= q.sum(-1, keepdims=True)
    assert first.loss.item() == pytest.approx(5e-4 * (q * np.log(q * 10 + 1e-10)).sum(-1).mean(), rel=1e-4)
    quantizer.train()
    noisy = quantizer(z)
    assert not torch.equal(noisy.ids, first.ids)
    torch.testing.assert_close(noisy.vectors, quantizer.embed(noisy.ids), atol=1e-6, rtol=0)


def test_gumbel_gradients_are_those_of_the_one_hot_product():
    quantizer = GumbelQuantizer(10, 4, kl_weight=0.0).train()
    quantizer.tau = 0.7
    z, noise = torch.randn(12, 4), torch.randn(12, 10)
    weight = torch.randn(12, 4)
    (quantizer(z, noise).vectors * weight).sum().backward()
    found = {name: p.grad.clone() for name, p in quantizer.named_parameters()}
    quantizer.zero_grad()
    soft = ((quantizer.logits(z) + noise) / 0.7).softmax(-1)
    hard = F.one_hot(soft.argmax(-1), 10) - soft.detach() + soft
    ((hard @ quantizer.embed.weight) * weight).sum().backward()
    for name, parameter in quantizer.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- FSQ, LFQ


def test_fsq_rounds_to_levels():
    levels = (3, 4, 8, 2)
    quantizer = FSQ(levels).eval()
    assert quantizer.vocab_size == 192
    z = 3 * torch.randn(500, 4)
    out = quantizer(z)
    x = z.double().numpy()
    steps = np.array(levels)
    half = (steps - 1) * 1.001 / 2
    offset = np.where(steps % 2 == 0, 0.5, 0.0)
    whole = np.round(np.tanh(x + np.arctanh(offset / half)) * half - offset)
    np.testing.assert_allclose(out.vectors, whole / (steps // 2), atol=1e-6)
    ids = ((whole + steps // 2) * np.cumprod([1, *levels[:-1]])).sum(1)
    assert out.ids.tolist() == ids.astype(int).tolist()
    every = torch.arange(quantizer.vocab_size)
    codes = quantizer.embed(every)
    assert codes.unique(dim=0).shape == (192, 4)
    assert torch.equal(((codes * quantizer.centre).round().long() + quantizer.centre) @ quantizer.basis, every)


def test_lfq_ids_are_whole_numbers_of_many_bits():
    """A float16 or bfloat16 sum of powers loses the low bits."""
    quantizer = LFQ(18, entropy_weight=0.0).eval()
    z = torch.randn(100, 18).bfloat16()
    ids = quantizer.encode(z)
    assert ids.tolist() == [sum(2**i for i, x in enumerate(row) if x > 0) for row in z.tolist()]
    assert torch.equal(quantizer.embed(ids) > 0, z > 0)
    assert set(quantizer.embed(ids).unique().tolist()) == {-1.0, 1.0}
    assert quantizer.encode(torch.zeros(1, 18)).item() == 0  # zero counts as negative


def test_lfq_entropies_are_those_over_all_codes():
    quantizer = LFQ(5, temperature=2.0)
    z = torch.randn(60, 5)
    codes = quantizer.embed(torch.arange(32)).double().numpy()
    p = np.exp(2 * z.double().numpy() @ codes.T / 2.0)
    p /= p.sum(1, keepdims=True)
    each, mean = quantizer.entropies(z)
    assert each.item() == pytest.approx(-(p * np.log(p)).sum(1).mean(), rel=1e-4)
    assert mean.item() == pytest.approx(-(p.mean(0) * np.log(p.mean(0) + 1e-5)).sum(), rel=1e-4)
    grouped = LFQ(5, temperature=2.0, group_bits=2)
    assert grouped.entropies(z)[0].item() == pytest.approx(each.item())
    assert grouped.entropies(z)[1].item() > mean.item() - 1e-4  # an upper bound
