"""The two networks of MaskGIT: sizes as published, initial values, and valeoai's by PyTorch's own layers."""

import pytest
import torch

from zoo.nn.maskgit_transformer import MaskGITTransformer
from zoo.nn.prenorm_maskgit import PreNormMaskGIT


def test_published_sizes():
    with torch.device("meta"):
        google, valeoai = MaskGITTransformer(1024, 256, 1000), PreNormMaskGIT(1024, 256, 1000)
    assert google.word_embeddings.num_embeddings == 2025
    assert google.mask_id == 2024
    assert google.position_embeddings.num_embeddings == 257
    assert sum(p.numel() for p in google.parameters()) == 172_457_193
    assert valeoai.tok_emb.num_embeddings == 2026
    assert (valeoai.mask_id, valeoai.null_id) == (1024, 2025)
    assert sum(p.numel() for p in valeoai.parameters()) == 174_160_874


def test_initialisation_is_truncated_at_two_deviations():
    weight = MaskGITTransformer(500, 16, 10, width=64, depth=1, heads=4).word_embeddings.weight
    assert 0.039 < weight.abs().max() <= 0.04
    assert weight.std().item() == pytest.approx(0.02 * 0.8796, rel=0.02)  # of a normal cut off there


def test_network_of_valeoai_by_pytorchs_own_layers():
    torch.manual_seed(0)
    net = PreNormMaskGIT(20, 6, 4, width=16, depth=2, heads=4, mlp_width=24).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        ids, labels = torch.randint(21, (3, 6)), torch.tensor([0, 3, -1])
        x = net.tok_emb(torch.cat([ids, torch.tensor([[21], [24], [25]])], 1)) + net.pos_emb
        x = net.first_layer(x)
        for attention, mlp in net.transformer["layers"]:
            normed = attention.norm(x)
            x = x + attention.fn["mha"](normed, normed, normed, need_weights=False)[0]
            x = x + mlp.fn["net"](mlp.norm(x))
        expected = (net.last_layer(x) @ net.tok_emb.weight.T + net.bias)[:, :6, :21]
        torch.testing.assert_close(net(ids, labels), expected, atol=1e-5, rtol=1e-5)
