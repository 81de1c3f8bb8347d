"""Codebooks: Lloyd's iterations re-derived, codes that nobody chose, the counts behind restarts, exact logits."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from zoo.quantizers.ema import EMAQuantizer
from zoo.quantizers.gradient import VectorQuantizer
from zoo.quantizers.gumbel import GumbelQuantizer
from zoo.quantizers.normalised import NormalisedQuantizer

ITERATIONS = 10  # of vector-quantize-pytorch


def lloyd(rows, start, iterations):
    """K-means in NumPy from given centres; no cluster runs empty."""
    centres = start.copy()
    for _ in range(iterations):
        nearest = np.square(rows[:, None] - centres[None]).sum(-1).argmin(1)
        counts = np.bincount(nearest, minlength=len(centres))
        assert counts.all()
        centres = np.stack([rows[nearest == k].mean(0) for k in range(len(centres))])
    return centres, np.bincount(np.square(rows[:, None] - centres[None]).sum(-1).argmin(1), minlength=len(centres))


@pytest.mark.parametrize("cls", [VectorQuantizer, EMAQuantizer])
def test_kmeans_is_ten_of_lloyds_iterations(cls):
    """On a line without clusters, which Lloyd's algorithm needs long for."""
    rows = (torch.randperm(3000, generator=torch.Generator().manual_seed(1))[:300].sort().values / 1000)[:, None]
    torch.manual_seed(0)  # as shared_kmeans, so that ranks agree
    start = rows[torch.randperm(300)[:5]].double().numpy()
    expected, counts = lloyd(rows.double().numpy(), start, ITERATIONS)
    for iterations in (1, ITERATIONS - 1, ITERATIONS + 1):  # the test can see the difference
        assert np.abs(lloyd(rows.double().numpy(), start, iterations)[0] - expected).max() > 1e-3
    quantizer = cls(5, 1, kmeans_init=True).train()
    quantizer(rows[torch.randperm(300)])
    np.testing.assert_allclose(quantizer.codebook.detach(), expected, atol=1e-4)
    if cls is EMAQuantizer:
        assert quantizer.cluster_size.tolist() == counts.tolist()


def test_codes_that_kmeans_gave_no_vector_keep_their_place():
    """More codes than different vectors: some have no vector, and a count of zero would drag them to the origin."""
    quantizer = EMAQuantizer(8, 2, decay=0.5, kmeans_init=True).train()
    different = torch.tensor([[10.0, 10], [10, -10], [-10, 10]])
    z = different.repeat(20, 1)
    for step in range(3):
        out = quantizer(z.clone().requires_grad_())
        if step == 0:
            placed = quantizer.codebook.clone()
            unused = torch.tensor([k for k in range(8) if k not in out.ids.unique()])
            assert len(unused) == 5
            assert (quantizer.cluster_size[unused] == 1).all()
        out.vectors.sum().backward()
        quantizer.update()
    torch.testing.assert_close(quantizer.codebook[unused], placed[unused], rtol=1e-3, atol=0)


@pytest.mark.parametrize("cls", [VectorQuantizer, NormalisedQuantizer])
def test_counts_behind_restarts_are_running_means(cls):
    """N <- g N + (1 - g) n from one; all steps are seen, the latest one with the weight 1 - g."""
    quantizer = cls(4, 2, restart_threshold=1e-6, decay=0.9).train()
    expected = np.ones(4)
    for _ in range(3):
        out = quantizer(torch.randn(40, 2).requires_grad_())
        out.vectors.sum().backward()
        quantizer.update()
        expected = 0.9 * expected + 0.1 * np.bincount(out.ids, minlength=4)
    np.testing.assert_allclose(quantizer.cluster_size, expected, rtol=1e-5)


@pytest.mark.parametrize("setting", ["medium", "high", "highest"])
def test_gumbel_logits_use_no_tf32(monkeypatch, setting):
    """Ids near ties depend on all digits; the command line allows TF32 elsewhere, and that stays."""
    seen, product = [], F.linear

    def watched(*args, **kwargs):
        seen.append(torch.get_float32_matmul_precision())
        return product(*args, **kwargs)

    monkeypatch.setattr(F, "linear", watched)
    quantizer = GumbelQuantizer(5, 2)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(setting)
        quantizer.encode(torch.randn(3, 2))
        quantizer.train()(torch.randn(3, 2))
        assert seen == ["highest"] * 2
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision(before)
