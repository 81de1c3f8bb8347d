"""VQGAN's constructor: every setting reaches what it is for, and one that would do nothing is refused."""

import math
from dataclasses import replace

import pytest
import torch

import zoo
from zoo.models import vqgan
from zoo.models.vqgan import VQGAN
from zoo.quantizers.ema import EMAQuantizer
from zoo.quantizers.fsq import FSQ as FSQQuantizer
from zoo.quantizers.gradient import VectorQuantizer
from zoo.quantizers.gumbel import GumbelQuantizer
from zoo.quantizers.lfq import LFQ as LFQQuantizer
from zoo.quantizers.normalised import NormalisedQuantizer

FSQ = {"quantizer": "fsq", "levels": (4, 4, 4), "width": 3}
LFQ = {"quantizer": "lfq", "width": 6}


@pytest.mark.parametrize(
    ("codebook", "sentence"),
    [
        *(
            (
                {**kind, name: value},
                rf"codebook\.{name} {value!r} does nothing with quantizer {kind['quantizer']}, .* vq, ema, l2",
            )
            for kind in ({"quantizer": "gumbel"}, FSQ, LFQ)
            for name, value in (("init", "kmeans"), ("restart_threshold", 0.1))
        ),
        *(
            ({**kind, "entropy_weight": 0.1}, r"entropy_weight 0\.1 does nothing .* for vq, l2, lfq: leave it at 0\.0")
            for kind in ({"quantizer": "gumbel"}, {"quantizer": "ema"}, FSQ)
        ),
        ({"levels": (8, 8)}, r"codebook\.levels \(8, 8\) does nothing with quantizer vq, it is for fsq"),
        ({"restart_threshold": -0.1}, "codebook.restart_threshold must be a number of at least 0, got -0.1"),
        ({"quantizer": "gumbel", "tau": (0.9, 0.0, 10)}, "tau .* must stay above 0, got 0.9 to 0.0"),
        ({"quantizer": "gumbel", "tau": (-1.0, 0.1, 10)}, "tau .* must stay above 0"),
        ({"entropy_temperature": 0}, "codebook.entropy_temperature must be a number above 0, got 0"),
        ({"decay": 1.0}, "codebook.decay must be a number of at least 0 and below 1, got 1.0"),
        ({"width": 0}, "codebook.width must be a whole number of at least 1, got 0"),
    ],
)
def test_settings_of_the_codebook_that_would_do_nothing_are_refused(codebook, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        zoo.create_model("vqgan_tiny", codebook=codebook)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"discriminator": {"start": -1}}, "discriminator.start must be a whole number of at least 0, got -1"),
        ({"discriminator": {"warmup": -2}}, "discriminator.warmup must be a whole number of at least 0, got -2"),
        ({"discriminator": {"r1": -1.0}}, "discriminator.r1 must be a number of at least 0"),
        ({"attention": (8, 12)}, "attention 12 matches no level, whose sides at 32 px are 32, 16, 8"),
        ({"image_size": 64}, "attention 8 matches no level, whose sides at 64 px are 64, 32, 16"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        zoo.create_model("vqgan_tiny", **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_every_preset_is_built():
    for name in zoo.list_models("*"):
        if issubclass(zoo.model_info(name).cls, zoo.models.vqgan.VQGAN):
            with torch.device("meta"):
                zoo.create_model(name)


# ---------------------------------------------------------------- codes

CODES = {"width": 6, "beta": 0.35, "init": "kmeans", "restart_threshold": 0.25}
ENTROPY = {"entropy_weight": 0.2, "entropy_temperature": 0.5}


@pytest.mark.parametrize(
    ("settings", "kind", "expected"),
    [
        ({"quantizer": "vq", **CODES, "legacy": False, **ENTROPY, "decay": 0.7}, VectorQuantizer, {"legacy": False}),
        ({"quantizer": "l2", **CODES, "legacy": True, **ENTROPY}, NormalisedQuantizer, {"legacy": True}),
        ({"quantizer": "ema", **CODES, "decay": 0.7}, EMAQuantizer, {"decay": 0.7}),
        ({"quantizer": "gumbel", "kl_weight": 0.03, "tau": (0.8, 0.2, 9)}, GumbelQuantizer, {"kl_weight": 0.03}),
        ({**FSQ, "levels": (2, 4, 8)}, FSQQuantizer, {"levels": (2, 4, 8)}),
        ({**LFQ, "beta": 0.35, **ENTROPY}, LFQQuantizer, {"bits": 6, "temperature": 0.5}),
    ],
)
def test_settings_reach_the_quantizer(settings, kind, expected):
    quantizer = zoo.create_model("vqgan_tiny", codebook=settings).quantize
    assert type(quantizer) is kind
    assert quantizer.vocab_size == 64
    renamed = {"init": "kmeans_init", "width": "dim"}
    renamed |= {"entropy_temperature": "temperature"} if kind is LFQQuantizer else {}
    found = {"dim": 16} if kind is GumbelQuantizer else {}
    for name, value in settings.items():
        if name not in ("quantizer", "levels", "tau"):
            found[renamed.get(name, name)] = True if value == "kmeans" else value
    for name, value in (found | expected).items():
        assert getattr(quantizer, name) == value, name
    if kind is GumbelQuantizer:
        assert quantizer.tau == 0.8


@pytest.mark.parametrize("name", ["vq", "l2", "ema"])
def test_by_default_codes_start_at_random_and_stay(name):
    quantizer = zoo.create_model("vqgan_tiny", codebook={"quantizer": name}).quantize
    assert not quantizer.kmeans_init
    assert quantizer.restart_threshold == 0
    assert quantizer.decay == 0.99


@pytest.mark.parametrize(("name", "bound"), [("vqgan_tiny", 1 / 64), ("vqgan_maskgit_tiny", math.sqrt(3 / 64))])
def test_codebooks_start_in_the_published_range(name, bound):
    """taming: U(-1/K, 1/K); MaskGIT: variance_scaling(1, fan_in, uniform) of a table of K rows."""
    codes = zoo.create_model(name).quantize.embedding.weight
    assert 0.98 * bound < codes.abs().max() <= bound
    assert codes.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


# ---------------------------------------------------------------- losses


@pytest.fixture
def batch():
    return {"image": torch.rand(4, 3, 32, 32)}


WEIGHTS = {"kind": "stylegan", "r1": 0.5, "lecam": 0.3, "weight": 0.6, "factor": 0.4, "loss": "hinge"}


def judged(model, batch):
    """What the discriminator sees and says, computed from the parts of the model."""
    target = 2 * batch["image"] - 1
    with torch.no_grad():
        output = model.pixels(model.quantize(model.features(batch["image"])).vectors)
    target.requires_grad_()
    real, fake = model.discriminator(target), model.discriminator(output)
    (gradient,) = torch.autograd.grad(real.sum(), target, retain_graph=True)
    return real, fake, gradient


def test_the_loss_is_the_weighted_sum_of_all_terms(batch):
    model = zoo.create_model(
        "vqgan_tiny", codebook={"weight": 0.7}, discriminator=WEIGHTS | {"adaptive": False}
    ).train()
    model.lecam_means.copy_(torch.tensor([0.5, -1.0]))  # of images, of reconstructions
    real, fake, gradient = judged(model, batch)
    terms = model.losses(batch)
    hinge = ((1 - real).relu().mean() + (1 + fake).relu().mean()) / 2
    r1 = gradient.square().sum((1, 2, 3)).mean()
    lecam = (real + 1.0).relu().square().mean() + (0.5 - fake).relu().square().mean()
    assert r1 > 0
    assert lecam > 0
    torch.testing.assert_close(terms["r1"], r1.detach())
    torch.testing.assert_close(terms["lecam"], lecam.detach())
    torch.testing.assert_close(terms["generator"], -fake.mean().detach())
    torch.testing.assert_close(terms["generator_weight"], torch.tensor(0.6))
    torch.testing.assert_close(terms["discriminator"], 0.4 * hinge.detach())
    autoencoder = terms["reconstruction"] + 0.7 * terms["codebook"] - 0.6 * 0.4 * fake.mean()
    torch.testing.assert_close(terms["loss"], autoencoder + 0.4 * (hinge + 0.5 * r1 + 0.3 * lecam))
    means = torch.tensor([0.5, -1.0]).lerp(torch.stack([real.mean(), fake.mean()]).detach(), 1 - 0.999)
    torch.testing.assert_close(model.lecam_means, means)


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 2.0])
def test_what_is_logged_is_what_taming_logs(batch, factor, training, kind, adaptive):
    """Its d_weight and g_loss know nothing of disc_factor, which is logged by itself; its disc_loss is multiplied."""
    model = zoo.create_model(
        "vqgan_tiny",
        discriminator={"factor": factor, "weight": 0.6, "adaptive": adaptive, "loss": kind, "kind": "stylegan"},
    ).train(training)
    output = model.pixels(model.quantize(model.features(batch["image"])).vectors)
    target = 2 * batch["image"] - 1
    real, fake = model.discriminator(target), model.discriminator(output)
    nll, g_loss = torch.nn.functional.l1_loss(output, target), -fake.mean()
    norms = [torch.autograd.grad(x, model.decoder.conv_out.weight, retain_graph=True)[0].norm() for x in (nll, g_loss)]
    d_weight = 0.6 * (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4) if adaptive else torch.tensor(0.6)
    if kind == "hinge":
        d_loss = ((1 - real).relu().mean() + (1 + fake).relu().mean()) / 2
    else:
        d_loss = (torch.nn.functional.softplus(-real).mean() + torch.nn.functional.softplus(fake).mean()) / 2
    terms = model.losses(batch)
    torch.testing.assert_close(terms["discriminator"], (factor * d_loss).detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(terms["disc_factor"], torch.tensor(factor))
    if training:
        torch.testing.assert_close(terms["generator"], g_loss.detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(terms["generator_weight"], d_weight, rtol=1e-3, atol=0)
        autoencoder = terms["reconstruction"] + terms["codebook"]
        total = autoencoder + terms["disc_factor"] * terms["generator_weight"] * terms["generator"]
        torch.testing.assert_close(terms["loss"].detach(), total + terms["discriminator"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 2.0])
def test_before_its_start_nothing_adversarial_is_logged_and_in_the_warm_up_the_discriminator_alone(batch, factor):
    """taming logs a disc_loss of 0 and weights that multiply nothing there, for which the discriminator would run."""
    before = zoo.create_model("vqgan_tiny", discriminator={"factor": factor, "start": 5}).train()
    assert not {"generator", "generator_weight", "discriminator", "disc_factor"} & set(before.losses(batch))
    warm = zoo.create_model("vqgan_tiny", discriminator={"factor": factor, "start": 5, "warmup": 5}).train()
    terms = warm.losses(batch)
    assert not {"generator", "generator_weight"} & set(terms)
    assert terms["disc_factor"] == factor
    torch.testing.assert_close(
        terms["loss"].detach(), terms["reconstruction"] + terms["codebook"] + terms["discriminator"]
    )


def test_validation_before_the_start_says_nothing_of_an_untrained_discriminator(tmp_path):
    from toys import BlurredImageData, quiet_trainer

    seen = {}

    class Watched(VQGAN):
        def validation_step(self, batch, batch_idx):
            seen[self.global_step] = set(self.losses(batch))

    model = Watched(**vqgan.TINY | {"discriminator": replace(vqgan.TINY["discriminator"], start=2)})
    trainer = quiet_trainer(tmp_path, max_steps=3, val_check_interval=1, check_val_every_n_epoch=None)
    trainer.fit(model, BlurredImageData(24, 32, 8))
    assert ["discriminator" in seen[step] for step in (1, 2, 3)] == [False, True, True]
    assert "discriminator" in model.eval().losses({"image": torch.rand(2, 3, 32, 32)})


def test_the_adaptive_weight_multiplies(batch):
    """Eq. 7: disc_weight times the ratio of the gradients at the last layer."""
    model = zoo.create_model("vqgan_tiny", codebook={"weight": 0.7}, discriminator=WEIGHTS | {"adaptive": True}).train()
    with torch.no_grad():
        model.discriminator.logit.weight.mul_(3)  # away from a ratio of one
    output = model.pixels(model.quantize(model.features(batch["image"])).vectors)
    losses = torch.nn.functional.l1_loss(output, 2 * batch["image"] - 1), -model.discriminator(output).mean()
    norms = [torch.autograd.grad(x, model.decoder.conv_out.weight, retain_graph=True)[0].norm() for x in losses]
    expected = 0.6 * norms[0] / (norms[1] + 1e-4)
    torch.testing.assert_close(model.losses(batch)["generator_weight"], expected, rtol=1e-3, atol=0)
    assert norms[0] < 0.5 * norms[1]


@pytest.mark.parametrize("architecture", ["taming", "maskgit"])
@pytest.mark.parametrize(("kind", "power"), [("l1", 1), ("l2", 2)])
def test_pixel_loss_on_the_pixels_that_the_networks_see(batch, architecture, kind, power):
    model = zoo.create_model("vqgan_tiny", architecture=architecture, pixel_loss=kind, discriminator=None).eval()
    with torch.no_grad():
        output = model.pixels(model.quantize(model.features(batch["image"])).vectors)
        terms = model.losses(batch)
    target = 2 * batch["image"] - 1 if architecture == "taming" else batch["image"]
    torch.testing.assert_close(terms["pixel"], (output - target).abs().pow(power).mean())
    torch.testing.assert_close(terms["reconstruction"], terms["pixel"])


@pytest.mark.parametrize("architecture", ["taming", "maskgit"])
def test_the_perceptual_network_sees_pixels_in_the_unit_range(batch, architecture):
    """Both LPIPS scale [0, 1] by themselves; [-1, 1] would be scaled twice."""
    model = zoo.create_model("vqgan_tiny", architecture=architecture, perceptual="lite0", discriminator=None).eval()
    model.perceptual_distance(batch["image"], batch["image"])
    seen = []
    model.frozen["perceptual"].register_forward_pre_hook(lambda module, args: seen.append(args))
    with torch.no_grad():
        output = model.pixels(model.quantize(model.features(batch["image"])).vectors)
        model.losses(batch)
    [(found, images)] = seen
    torch.testing.assert_close(found, (output + 1) / 2 if architecture == "taming" else output)
    torch.testing.assert_close(images, batch["image"])


# ---------------------------------------------------------------- presets

#: multipliers, levels with attention, attention in the middle, z_channels, codes, their width, disc_start, disc_weight
PUBLISHED = {
    "vqgan_imagenet_f16_1024": ((1, 1, 2, 2, 4), (4,), True, 256, 1024, 256, 250_001, 0.8),
    "vqgan_imagenet_f16_16384": ((1, 1, 2, 2, 4), (4,), True, 256, 16384, 256, 0, 0.75),
    "vqgan_imagenet_depth": ((1, 1, 2, 2, 4), (4,), True, 256, 1024, 256, 50_001, 0.75),
    "vqgan_gumbel_f8": ((1, 1, 2, 4), (3,), True, 256, 8192, 256, 0, 0.8),
    "ldm_vq_f4": ((1, 2, 4), (), True, 3, 8192, 3, 0, 0.75),
    "ldm_vq_f4_noattn": ((1, 2, 4), (), False, 3, 8192, 3, 11, 0.75),
    "ldm_vq_f8": ((1, 2, 2, 4), (3,), True, 4, 16384, 4, 1, 0.6),
    "ldm_vq_f8_n256": ((1, 2, 2, 4), (3,), True, 4, 256, 4, 250_001, 0.75),
    "ldm_vq_f16": ((1, 1, 2, 2, 4), (4,), True, 8, 16384, 8, 250_001, 0.75),
    "llamagen_vq16": ((1, 1, 2, 2, 4), (4,), True, 256, 16384, 8, 20_000, 0.5),
    "llamagen_vq8": ((1, 2, 2, 4), (3,), True, 256, 16384, 8, 20_000, 0.5),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations(name):
    """Sections 2.2, 5.7 of the appendix: what the networks are, not what the preset says."""
    with torch.device("meta"):
        model = zoo.create_model(name)
    widths = [level.block[-1].conv2.out_channels for level in model.encoder.down]
    found = (
        tuple(width // 128 for width in widths),
        tuple(i for i, level in enumerate(model.encoder.down) if len(level.attn)),
        any(name.startswith("encoder.mid.attn_1") for name in model.state_dict()),
        model.quant_conv.in_channels, model.quantize.vocab_size, model.quantize.dim,
        model.adversarial.start, model.adversarial.weight,
    )  # fmt: skip
    assert found == PUBLISHED[name]
    assert [i for i, level in enumerate(model.decoder.up) if len(level.attn)] == list(found[1])


@pytest.mark.slow
def test_every_taming_preset_is_in_the_table():
    names = {n for n in zoo.list_models("*") if issubclass(zoo.model_info(n).cls, zoo.models.vqgan.VQGAN)}
    others = {n for n in names if n.endswith(("_tiny", "_emoji")) or "maskgit" in n}
    assert names - others == set(PUBLISHED)
