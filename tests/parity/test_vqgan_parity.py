"""VQGAN against recorded outputs of taming-transformers and MaskGIT, stage by stage, and against diffusers, live."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import safe_open

from zoo.checkpoints.published import diffusers_vq, maskgit_tokenizer
from zoo.losses import adversarial as gan
from zoo.losses.discriminator import Discriminator
from zoo.models.vqgan import TAMING_CODEBOOK, VQGAN
from zoo.nn.patchgan import PatchGAN
from zoo.quantizers.codebook import Codebook

FIXTURES = Path(__file__).parents[1] / "fixtures"


def close(found, recorded, atol):
    torch.testing.assert_close(found, recorded, atol=atol, rtol=1e-5)


def last(x):
    return rearrange(x, "b c h w -> b h w c")


def first(x):
    return rearrange(x, "b h w c -> b c h w")


def recorded(name):
    with safe_open(FIXTURES / f"{name}.safetensors", "pt") as file:
        sizes = json.loads(file.metadata()["config"])["constructor"]
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return (
        sizes,
        {k: v for k, v in arrays.items() if not k.startswith("sd.")},
        {k[3:]: v for k, v in arrays.items() if k.startswith("sd.")},
    )


def taming(sizes, state, **codes):
    """A VQGAN of the sizes of a taming constructor, with its weights loaded strictly."""
    dd = sizes["ddconfig"]
    model = VQGAN(
        image_size=dd["resolution"], width=dd["ch"], multipliers=tuple(dd["ch_mult"]), blocks=dd["num_res_blocks"],
        attention=tuple(dd["attn_resolutions"]), z_channels=dd["z_channels"], 
        codebook=replace(TAMING_CODEBOOK, vocab_size=sizes["n_embed"], width=sizes["embed_dim"], **codes),
        perceptual="none", discriminator=None,
    )  # fmt: skip
    model.load_state_dict(state)
    return model.eval()


def unit(images):
    return (images + 1) / 2


def test_taming_stage_by_stage():
    sizes, a, state = recorded("taming_vqgan_tiny")
    model = taming(sizes, state)
    with torch.no_grad():
        close(model.encoder(a["in.image"]), a["out.enc"], 5e-5)
        close(model.quant_conv(a["out.enc"]), a["out.h"], 5e-5)
        assert torch.equal(model.quantize.encode(last(a["out.h"])), a["out.ids"])
        close(first(model.embed(a["out.ids"])), a["out.quant_lookup"], 2e-6)
        close(model.pixels(last(a["out.quant"])), a["out.rec"], 5e-5)
        close(model.pixels(model.embed(a["out.ids"])), a["out.rec_from_ids"], 5e-5)
        tokens = model.encode(unit(a["in.image"]))
        assert torch.equal(tokens.grid(), a["out.ids"])
        close(model.decode(tokens), unit(a["out.rec_from_ids"]).clamp(0, 1), 1e-4)


def test_taming_places_beta_on_the_codebook_loss():
    """The value is the same either way: only gradients tell."""
    sizes, a, state = recorded("taming_vqgan_tiny")
    model = taming(sizes, state).train()
    h = a["out.h"].clone().requires_grad_()
    quantized = model.quantize(last(h))
    close(first(quantized.vectors), a["out.quant"], 2e-6)
    close(quantized.loss, a["out.loss_codebook"], 1e-6)
    grads = torch.autograd.grad(quantized.loss, (h, model.quantize.embedding.weight), retain_graph=True)
    close(grads[0], a["out.grad_loss_h"], 1e-7)
    close(grads[1], a["out.grad_loss_codebook"], 1e-7)
    probe = (model.pixels(quantized.vectors) * a["in.probe"]).sum()
    close(torch.autograd.grad(probe, h)[0], a["out.grad_probe_h"], 5e-6)


def test_taming_in_float64_is_at_the_noise_floor():
    sizes, a, state = recorded("taming_vqgan_tiny")
    model = taming(sizes, state).double()
    with torch.no_grad():
        h = model.quant_conv(model.encoder(a["in.image"].double()))
        close(h.float(), a["out.h"], 5e-6)
        close(model.decoder(model.post_quant_conv(a["out.quant"].double())).float(), a["out.rec"], 1e-5)


def test_gumbel_stage_by_stage():
    sizes, a, state = recorded("taming_gumbel_tiny")
    model = taming(sizes, state, quantizer="gumbel", kl_weight=sizes["kl_weight"])
    with torch.no_grad():
        h = first(model.features(unit(a["in.image"])))
        close(h, a["out.h"], 5e-5)
        z = last(a["out.h"])
        close(first(model.quantize.logits(z)), a["out.logits"], 5e-5)
        quantized = model.quantize(z)
        assert torch.equal(quantized.ids, a["out.ids"])
        close(first(quantized.vectors), a["out.quant"], 5e-5)
        torch.testing.assert_close(quantized.loss, a["out.loss_kl"], rtol=1e-4, atol=0)
        close(model.pixels(last(a["out.quant"])), a["out.rec"], 5e-5)
        model.quantize.train()
        model.quantize.tau = float(a["in.tau"])
        noisy = model.quantize(z, last(a["in.gumbel"]))
        assert torch.equal(noisy.ids, a["out.noisy_ids"])
        close(first(noisy.vectors), a["out.noisy_quant_hard"], 5e-5)
        close(model.pixels(last(a["out.noisy_quant_hard"])), a["out.noisy_rec"], 5e-5)
        model.quantize.straight_through = False
        close(first(model.quantize(z, last(a["in.gumbel"])).vectors), a["out.noisy_quant_soft"], 5e-5)


@pytest.fixture(scope="module")
def disc():
    sizes, a, state = recorded("taming_disc_tiny")
    network = PatchGAN(sizes["ndf"], sizes["n_layers"])
    network.load_state_dict(state)
    return sizes, a, state, network


def test_the_discriminator_gives_the_recorded_logits(disc):
    _, a, state, network = disc
    network.load_state_dict(state)
    with torch.no_grad():
        network.eval()
        for side in ("real", "fake"):
            close(network(a[f"in.{side}"]), a[f"out.logits_{side}_eval"], 2e-5)
        network.train()
        for side in ("real", "fake"):
            close(network(a[f"in.{side}"]), a[f"out.logits_{side}_train"], 2e-5)
    after = {k.removeprefix("out.after."): v for k, v in a.items() if k.startswith("out.after.")}
    assert after
    for name, value in after.items():
        close(network.state_dict()[name], value, 2e-5)
    for mode in ("train", "eval"):
        real, fake = a[f"out.logits_real_{mode}"], a[f"out.logits_fake_{mode}"]
        for kind in ("hinge", "vanilla"):
            close(gan.discriminator_loss(kind, real, fake), a[f"out.{kind}_d_{mode}"], 2e-5)
        close(gan.generator_loss("hinge", fake), a[f"out.gen_{mode}"], 2e-5)


class Recorded(VQGAN):
    """Its autoencoder is the one convolution of the fixture, its perceptual distance the squared error."""

    def perceptual_distance(self, output, images):
        return (4 * (output - images).square()).mean((1, 2, 3))  # of pixels in [-1, 1]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_whole_step_of_both_networks(disc, when):
    sizes, a, state, _ = disc
    model = Recorded(
        image_size=32, width=32, multipliers=(1,), blocks=1, attention=(), z_channels=4,
        codebook=Codebook(4, 4, legacy=True, weight=sizes["codebook_weight"]),
        perceptual="lite0", perceptual_weight=sizes["perceptual_weight"],
        discriminator=Discriminator(
            width=sizes["ndf"], layers=sizes["n_layers"], start=1 if when == "before" else 0,
            weight=sizes["disc_weight"], factor=sizes["disc_factor"],
        ),
    ).train()  # fmt: skip
    model.discriminator.load_state_dict(state)
    weight = torch.nn.Parameter(a["in.last_weight"].clone())
    model.decoder.conv_out.weight = weight
    output = F.conv2d(a["in.feat"], weight, a["in.last_bias"], padding=1)
    close(output, a["out.rec"], 2e-5)
    target = a["in.real"]
    perceptual = model.perceptual_distance(unit(output), unit(target)).mean()
    distance = F.l1_loss(output, target) + model.perceptual_weight * perceptual
    close(distance, a[f"out.g_{when}.nll_loss"], 2e-5)
    added, terms = model.adversarial_terms(target, output, distance)
    total = distance + model.codebook_settings.weight * a["in.codebook_loss"] + added
    generator = total - (terms["discriminator"] if terms else 0.0)
    close(generator, a[f"out.g_{when}.loss"], 2e-5)
    total.backward()
    # one backward pass: neither network's gradient holds anything of the other's loss
    close(weight.grad, a[f"out.g_{when}.grad_last_weight"], 2e-5)
    close(model.discriminator.main[0].weight.grad, a[f"out.d_{when}.grad_first_weight"], 2e-5)
    if when == "before":
        assert not terms
        assert a["out.d_before.loss"] == 0
    else:
        close(terms["generator"], a["out.g_after.g_loss"], 2e-5)
        close(terms["generator_weight"], a["out.g_after.d_weight"], 2e-5)
        close(terms["discriminator"], a["out.d_after.loss"], 2e-5)


def test_validation_has_no_adversarial_term(disc):
    sizes, a, state, _ = disc
    model = Recorded(
        image_size=32,
        width=32,
        multipliers=(1,),
        blocks=1,
        attention=(),
        z_channels=4,
        codebook=Codebook(4, 4, legacy=True),
        discriminator=Discriminator(width=sizes["ndf"]),
        perceptual="lite0",
    ).eval()
    model.discriminator.load_state_dict(state)
    with torch.no_grad():
        output = a["out.rec"]
        distance = F.l1_loss(output, a["in.real"])
        distance = distance + model.perceptual_distance(unit(output), unit(a["in.real"])).mean()
        added, _ = model.adversarial_terms(a["in.real"], output, distance)
    assert added == 0
    assert a["out.val.d_weight"] == 0
    close(distance + sizes["codebook_weight"] * a["in.codebook_loss"], a["out.val.loss"], 2e-5)


@pytest.fixture(scope="module")
def maskgit():
    sizes, a, _ = recorded("maskgit_vqgan_tiny")
    v = sizes["vqvae"]
    model = VQGAN(
        image_size=32, architecture="maskgit", width=v["filters"], multipliers=tuple(v["channel_multipliers"]),
        blocks=v["num_res_blocks"], z_channels=v["embedding_dim"], 
        codebook=Codebook(
            v["codebook_size"], v["embedding_dim"], beta=v["commitment_cost"], entropy_weight=v["entropy_loss_ratio"],
        ),
        perceptual="none", discriminator=None,
    )  # fmt: skip
    assert model.quantize.entropy_temperature == v["entropy_temperature"]
    leaves = {name.removeprefix("flax/"): value for name, value in a.items() if name.startswith("flax/")}
    model.load_state_dict(maskgit_tokenizer.convert(leaves, model).state)
    return model, a


def test_maskgit_stage_by_stage(maskgit):
    model, a = maskgit
    model.eval()
    image = first(a["in.image"])
    with torch.no_grad():
        close(model.features(image), a["out.enc"], 1e-4)
        assert torch.equal(model.quantize.encode(a["out.enc"]), a["out.ids"].long())
        quantized = model.quantize(a["out.enc"])
        close(quantized.vectors, a["out.quant"], 2e-6)
        close(last(model.pixels(a["out.quant"])), a["out.rec"], 1e-4)
        tokens = model.encode(image)
        assert torch.equal(tokens.grid(), a["out.ids"].long())
        close(last(model.decode(tokens)), a["out.rec_from_ids"].clamp(0, 1), 1e-4)


def test_maskgit_quantizer_losses(maskgit):
    model, a = maskgit
    quantized = model.train().quantize(a["out.enc"])
    torch.testing.assert_close(quantized.loss, a["out.quantizer_loss"], rtol=1e-5, atol=1e-6)
    entropy = quantized.terms["entropy_each"] - quantized.terms["entropy_mean"]
    torch.testing.assert_close(0.1 * entropy, a["out.entropy_loss"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mid_attention", [True, False])
def test_diffusers_vqmodel_live(tmp_path, mid_attention):
    """What we write, diffusers reads, and computes the same; what it writes, we read."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = VQGAN(
        image_size=32, width=32, multipliers=(1, 2, 2), blocks=2, attention=(16, 8), mid_attention=mid_attention,
        z_channels=8, codebook=replace(TAMING_CODEBOOK, vocab_size=40, width=6), perceptual="none", discriminator=None,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        model.quantize.embedding.weight.mul_(20)  # not U(-1/K, 1/K): the reference's distances would lose digits
    diffusers_vq.save_diffusers(model, tmp_path / "ours")
    theirs = diffusers.VQModel.from_pretrained(tmp_path / "ours").eval()
    image = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        z = model.features(image)
        close(first(z), theirs.encode(2 * image - 1).latents, 2e-5)
        tokens = model.encode(image)
        ids = theirs.quantize(first(z))[2][2]
        assert torch.equal(tokens.ids.flatten(), ids.flatten())
        assert len(ids.unique()) > 5
        decoded = theirs.decode(first(z)).sample
        close(model.decode(tokens), unit(decoded).clamp(0, 1), 1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    again = VQGAN.from_diffusers_config(
        tmp_path / "theirs", weights=str(tmp_path / "theirs"), perceptual="none", discriminator=None
    )
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
