"""Quantizers against recorded outputs of taming and MaskGIT, and live against vector-quantize-pytorch."""

import json
from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors import safe_open

from zoo.quantizers.ema import EMAQuantizer
from zoo.quantizers.fsq import FSQ
from zoo.quantizers.gradient import VectorQuantizer
from zoo.quantizers.gumbel import GumbelQuantizer
from zoo.quantizers.lfq import LFQ

FIXTURES = Path(__file__).parents[1] / "fixtures"


def recorded(name):
    """Constructor settings and arrays of a fixture."""
    with safe_open(FIXTURES / f"{name}.safetensors", "pt") as file:
        settings = json.loads(file.metadata()["config"])["constructor"]
        return settings, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def last(x):
    return rearrange(x, "b d h w -> b h w d")


# ---------------------------------------------------------------- taming


def test_vector_quantizer_of_taming():
    settings, a = recorded("taming_vqgan_tiny")
    quantizer = VectorQuantizer(settings["n_embed"], settings["embed_dim"], legacy=True).train()
    quantizer.load_state_dict({"embedding.weight": a["sd.quantize.embedding.weight"]})
    h = last(a["out.h"]).requires_grad_()
    out = quantizer(h)
    assert torch.equal(out.ids, a["out.ids"])
    torch.testing.assert_close(out.vectors, last(a["out.quant"]), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(quantizer.embed(out.ids), last(a["out.quant_lookup"]), atol=0, rtol=0)
    torch.testing.assert_close(out.loss, a["out.loss_codebook"], atol=1e-6, rtol=1e-5)
    out.loss.backward()
    # only the gradients tell which term carries the 0.25
    torch.testing.assert_close(h.grad, last(a["out.grad_loss_h"]), atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(quantizer.embedding.weight.grad, a["out.grad_loss_codebook"], atol=1e-7, rtol=1e-5)


def gumbel():
    settings, a = recorded("taming_gumbel_tiny")
    quantizer = GumbelQuantizer(
        settings["n_embed"], settings["embed_dim"], settings["ddconfig"]["z_channels"],
        kl_weight=settings["kl_weight"], tau=a["in.tau"].item(),
    )  # fmt: skip
    quantizer.load_state_dict({n.removeprefix("sd.quantize."): v for n, v in a.items() if n.startswith("sd.quantize.")})
    return quantizer, a


def test_gumbel_quantizer_of_taming_without_noise():
    quantizer, a = gumbel()
    h = last(a["out.h"])
    out = quantizer.eval()(h)
    torch.testing.assert_close(quantizer.logits(h), last(a["out.logits"]), atol=5e-5, rtol=1e-5)
    assert torch.equal(out.ids, a["out.ids"])
    torch.testing.assert_close(out.vectors, last(a["out.quant"]), atol=0, rtol=0)
    torch.testing.assert_close(out.loss, a["out.loss_kl"], atol=0, rtol=1e-4)


def test_gumbel_quantizer_of_taming_with_recorded_noise():
    quantizer, a = gumbel()
    h, noise = last(a["out.h"]), last(a["in.gumbel"])
    hard = quantizer.train()(h, noise)
    assert torch.equal(hard.ids, a["out.noisy_ids"])
    torch.testing.assert_close(hard.vectors, last(a["out.noisy_quant_hard"]), atol=5e-5, rtol=1e-5)
    quantizer.straight_through = False
    torch.testing.assert_close(quantizer(h, noise).vectors, last(a["out.noisy_quant_soft"]), atol=5e-5, rtol=1e-5)


# ---------------------------------------------------------------- MaskGIT


def test_vector_quantizer_and_entropy_loss_of_maskgit():
    settings, a = recorded("maskgit_vqgan_tiny")
    settings = settings["vqvae"]
    beta, weight, temperature = (
        settings[name] for name in ("commitment_cost", "entropy_loss_ratio", "entropy_temperature")
    )
    quantizer = VectorQuantizer(
        settings["codebook_size"], settings["embedding_dim"], beta, entropy_weight=weight,
        entropy_temperature=temperature,
    ).train()  # fmt: skip
    codebook = next(value for name, value in a.items() if name.endswith("quantizer/codebook"))
    quantizer.load_state_dict({"embedding.weight": codebook})
    z = a["out.enc"].requires_grad_()
    out = quantizer(z)
    assert torch.equal(out.ids, a["out.ids"].long().reshape(out.ids.shape))
    torch.testing.assert_close(beta * out.terms["commitment"], a["out.e_latent_loss"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.loss, a["out.quantizer_loss"], atol=1e-5, rtol=1e-4)
    entropy = weight * (out.terms["entropy_each"] - out.terms["entropy_mean"])
    torch.testing.assert_close(entropy, a["out.entropy_loss"], atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- vector-quantize-pytorch


def test_running_means_of_vector_quantize_pytorch():
    reference_package = pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    reference = reference_package.VectorQuantize(
        dim=6, codebook_size=20, decay=0.99, rotation_trick=False, threshold_ema_dead_code=0, commitment_weight=0.25
    ).train()
    ours = EMAQuantizer(20, 6, beta=0.25, decay=0.99).train()
    start = torch.randn(20, 6)
    ours.codebook.copy_(start)
    ours.embed_avg.copy_(start.t())
    reference._codebook.embed.data.copy_(start)
    reference._codebook.embed_avg.copy_(start)
    reference._codebook.cluster_size.fill_(1.0)
    for _ in range(12):
        z = torch.randn(3, 40, 6)
        mine, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
        out, (vectors, ids, loss) = ours(mine), reference(theirs)
        assert torch.equal(out.ids, ids)
        torch.testing.assert_close(out.vectors, vectors, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out.loss, loss.squeeze(), atol=1e-6, rtol=1e-5)
        probe = torch.randn_like(z)
        ((out.vectors * probe).sum() + out.loss).backward()
        ((vectors * probe).sum() + loss.squeeze()).backward()
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-5)
        ours.update()
        torch.testing.assert_close(ours.codebook, reference._codebook.embed[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.cluster_size, reference._codebook.cluster_size[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.embed_avg.t(), reference._codebook.embed_avg[0], atol=1e-5, rtol=1e-4)
    assert (ours.codebook - start).abs().max() > 0.05  # something has moved


def test_fsq_of_vector_quantize_pytorch():
    reference_package = pytest.importorskip("vector_quantize_pytorch")
    levels = (8, 5, 5, 3)
    reference, ours = reference_package.FSQ(levels).train(), FSQ(levels).train()
    mine = (2 * torch.randn(2, 50, 4)).requires_grad_()
    theirs = mine.detach().clone().requires_grad_()
    out, (vectors, ids) = ours(mine), reference(theirs)
    assert torch.equal(out.ids, ids.long())
    assert len(out.ids.unique()) > 50
    torch.testing.assert_close(out.vectors, vectors, atol=1e-6, rtol=1e-6)
    every = torch.arange(600)
    torch.testing.assert_close(ours.embed(every), reference.indices_to_codes(every), atol=1e-6, rtol=1e-6)
    probe = torch.randn_like(vectors)
    (out.vectors * probe).sum().backward()
    (vectors * probe).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-5)


def test_lfq_of_vector_quantize_pytorch():
    """Its first channel is the most significant bit; hence the flips."""
    reference_package = pytest.importorskip("vector_quantize_pytorch")
    reference = reference_package.LFQ(
        dim=7, codebook_size=128, entropy_loss_weight=0.1, commitment_loss_weight=0.25, diversity_gamma=1.5
    ).train()
    ours = LFQ(7, entropy_weight=0.1, diversity=1.5, beta=0.25, temperature=0.5).train()
    mine = torch.randn(2, 60, 7).requires_grad_()
    theirs = mine.detach().flip(-1).requires_grad_()
    out = ours(mine)
    (vectors, ids, loss), parts = reference(theirs, inv_temperature=2.0, return_loss_breakdown=True)
    assert torch.equal(out.ids, ids.long())
    assert len(out.ids.unique()) > 50
    torch.testing.assert_close(out.vectors, vectors.flip(-1), atol=1e-6, rtol=1e-6)
    # its logarithms are clamped at 1e-5, ours are exact or shifted by it
    torch.testing.assert_close(out.terms["entropy_each"], parts.per_sample_entropy, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(out.terms["entropy_mean"], parts.batch_entropy, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(out.loss, loss, atol=1e-3, rtol=1e-3)
