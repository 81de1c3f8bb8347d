"""VQGAN: one step for both networks, with the weights, the order and the counters of the paper."""

import dataclasses
import math
from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from toys import ToyData

import zoo
from zoo import model_info
from zoo.callbacks import EMA
from zoo.losses.adversarial import (
    adaptive_weight,
    discriminator_loss,
    fixed_discriminator,
    generator_loss,
    lecam,
    r1_penalty,
)
from zoo.models.vqgan import VQGAN
from zoo.nn.patchgan import PatchGAN


@pytest.fixture
def batch():
    return {"image": torch.rand(4, 3, 32, 32)}


def test_published_size_and_names():
    """Section 0 of the appendix: encoder 29.30 M, decoder 42.45 M, 343 tensors without the loss."""
    with torch.device("meta"):
        model = zoo.create_model("vqgan_imagenet_f16_1024")
    state = {name: v for name, v in model.state_dict().items() if not name.startswith("discriminator.")}
    assert len(state) == 343
    assert round(sum(v.numel() for v in state.values()) / 1e6, 2) == 72.14
    assert round(sum(p.numel() for p in model.encoder.parameters()) / 1e6, 2) == 29.30
    assert round(sum(p.numel() for p in model.decoder.parameters()) / 1e6, 2) == 42.45


def test_before_its_start_the_discriminator_has_no_influence_and_does_not_learn(batch):
    model = zoo.create_model("vqgan_tiny", discriminator={"start": 5}).train()
    terms = model.losses(batch)
    terms["loss"].backward()
    torch.testing.assert_close(terms["loss"], terms["reconstruction"] + terms["codebook"])
    assert "discriminator" not in terms
    assert all(p.grad is not None and not p.grad.any() for p in model.discriminator.parameters())


def test_warm_up_trains_the_discriminator_alone(batch):
    torch.manual_seed(0)
    alone = zoo.create_model("vqgan_tiny", discriminator={"start": 5, "warmup": 5}).train()
    before = zoo.create_model("vqgan_tiny", discriminator={"start": 5}).train()
    before.load_state_dict(alone.state_dict())
    alone.losses(batch)["loss"].backward()
    before.losses(batch)["loss"].backward()
    torch.testing.assert_close(alone.encoder.conv_in.weight.grad, before.encoder.conv_in.weight.grad)
    assert alone.discriminator.main[0].weight.grad.abs().sum() > 0


def test_running_statistics_see_real_then_fake_once(batch):
    model = zoo.create_model("vqgan_tiny").train()
    norm = model.discriminator.main[3]
    seen = []
    norm.register_forward_hook(lambda module, args, out: seen.append((module.running_mean is norm.running_mean, args)))
    mean = norm.running_mean.clone()
    model.losses(batch)
    assert norm.num_batches_tracked == 2
    expected = mean.lerp(seen[-2][1][0].mean((0, 2, 3)), 0.1).lerp(seen[-1][1][0].mean((0, 2, 3)), 0.1)
    torch.testing.assert_close(norm.running_mean, expected)


class Clock(VQGAN):
    """Remembers the step at which each batch was judged."""

    def losses(self, batch):
        terms = super().losses(batch)
        self.__dict__.setdefault("seen", []).append((self.global_step, "generator" in terms, "discriminator" in terms))
        return terms


def fit(folder, model, ckpt=None, count=8, **options):
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, num_sanity_val_steps=0, limit_val_batches=0, **options,
    )  # fmt: skip
    trainer.fit(model, ToyData(32, batch_size=2, count=count), ckpt_path=ckpt, weights_only=True)
    return trainer


SIZES = dict(model_info("vqgan_tiny").init_args)
JUDGE = SIZES["discriminator"]


def test_steps_are_batches_and_survive_resuming(tmp_path):
    model = Clock(**SIZES | {"discriminator": replace(JUDGE, start=5, warmup=2)})
    trainer = fit(tmp_path, model, max_steps=4)
    assert trainer.global_step == 4
    assert len(trainer.optimizers) == 1
    assert model.seen == [(0, False, False), (1, False, False), (2, False, False), (3, False, True)]
    trainer.save_checkpoint(tmp_path / "f.ckpt")
    again = Clock(**SIZES | {"discriminator": replace(JUDGE, start=5, warmup=2)})
    trainer = fit(tmp_path, again, ckpt=tmp_path / "f.ckpt", max_steps=7)
    assert trainer.global_step == 7
    assert again.seen == [(4, False, True), (5, True, True), (6, True, True)]


def test_accumulated_batches_are_one_step(tmp_path):
    model = Clock(**SIZES | {"discriminator": replace(JUDGE, start=1)})
    trainer = fit(tmp_path, model, max_steps=2, accumulate_grad_batches=2)
    assert trainer.global_step == 2
    assert [step for step, _, _ in model.seen] == [0, 0, 1, 1]
    assert [on for _, on, _ in model.seen] == [False, False, True, True]


def test_resuming_is_exact(tmp_path):
    """Four steps at once, and two steps twice: the same weights, running statistics and moments of both networks."""

    def make():
        torch.manual_seed(5)
        # with this epsilon Adam does not magnify the rounding of gradients that are zero
        optim = zoo.Optim(lr=0.1, betas=(0.5, 0.9), eps=1.0, weight_decay=0.0, schedule="constant")
        return VQGAN(**SIZES | {"discriminator": replace(JUDGE, start=1, lecam=0.1), "optim": optim})

    whole = make()
    fit(tmp_path, whole, count=2, max_steps=4)
    first = make()
    fit(tmp_path, first, count=2, max_steps=2).save_checkpoint(tmp_path / "f.ckpt")
    second = make()
    fit(tmp_path, second, ckpt=tmp_path / "f.ckpt", count=2, max_steps=4)
    assert second.discriminator.main[3].num_batches_tracked == 2 * 3
    assert second.lecam_means.any()
    torch.testing.assert_close(dict(second.state_dict()), dict(whole.state_dict()), rtol=1e-4, atol=1e-6)


def test_clipping_bounds_both_networks_together(tmp_path):
    norms = []

    class Watched(VQGAN):
        def optimizer_step(self, *args, **kwargs):
            super().optimizer_step(*args, **kwargs)
            grads = [p.grad for p in self.parameters()]
            norms.append(torch.cat([g.flatten() for g in grads]).norm().item())
            assert all(g.any() for g in (self.encoder.conv_in.weight.grad, self.discriminator.main[0].weight.grad))

    fit(tmp_path, Watched(**SIZES), max_steps=2, gradient_clip_val=0.01)
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)


def test_ema_averages_once_per_step_and_copies_statistics(tmp_path):
    model = VQGAN(**SIZES)
    before = model.decoder.conv_out.weight.detach().clone()
    ema = EMA(decay=0.5, warmup=False, update_every_n_steps=2)
    seen = []

    class Raw(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            seen.append(pl_module.decoder.conv_out.weight.detach().clone())

    fit(tmp_path, model, max_steps=4, callbacks=[Raw(), ema])
    # updates after steps 1 and 3: the first copies, and running statistics are those of the latest
    expected = 0.5 * seen[0] + 0.5 * seen[2]
    torch.testing.assert_close(model.decoder.conv_out.weight.detach(), expected)
    assert not torch.allclose(expected, before)
    assert model.discriminator.main[3].num_batches_tracked == 2 * 3


def test_adaptive_weight_is_the_ratio_of_gradients():
    weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    for scale, expected in ((2.0, 5.0 / (10.0 + 1e-4)), (1e-4, 5.0 / (5e-4 + 1e-4)), (0.0, 1e4)):
        found = adaptive_weight(weight.square().sum() / 2, scale * weight.square().sum() / 2, weight)
        torch.testing.assert_close(found, torch.tensor(expected))
        assert not found.requires_grad
    assert adaptive_weight(1e6 * weight.sum(), 0 * weight.sum(), weight) == 1e4
    with torch.no_grad():
        assert adaptive_weight(weight.sum(), weight.sum(), weight) == 0


def test_the_generator_term_reaches_pixels_but_no_discriminator_parameter():
    network = PatchGAN(8, 2).train()
    state = {name: v.clone() for name, v in network.state_dict().items()}
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    logits = fixed_discriminator(network, images)
    logits.sum().backward()
    assert images.grad.any()
    assert all(p.grad is None for p in network.parameters())
    torch.testing.assert_close(dict(network.state_dict()), state, rtol=0, atol=0)
    torch.testing.assert_close(logits, network(images))  # batch statistics, as the reference in training mode


def test_losses_of_both_sides_by_hand():
    real, fake = torch.tensor([[2.0, 0.5]]), torch.tensor([[-2.0, 0.5]])
    assert discriminator_loss("hinge", real, fake) == pytest.approx((0.25 + 0.75) / 2)
    log = math.log
    expected = (log(1 + math.exp(-2)) + log(1 + math.exp(-0.5))) / 2 + (
        log(1 + math.exp(-2)) + log(1 + math.exp(0.5))
    ) / 2
    assert discriminator_loss("non_saturating", real, fake).item() == pytest.approx(expected, rel=1e-5)
    assert discriminator_loss("vanilla", real, fake).item() == pytest.approx(expected / 2, rel=1e-5)
    assert generator_loss("hinge", fake) == pytest.approx(0.75)
    expected = (log(1 + math.exp(2)) + log(1 + math.exp(-0.5))) / 2
    assert generator_loss("non_saturating", fake).item() == pytest.approx(expected, rel=1e-5)
    means = torch.tensor(0.5), torch.tensor(-1.0)
    # relu(D(x) + 1)^2 = 9, 2.25; relu(0.5 - D(y))^2 = 6.25, 0
    assert lecam(real, fake, *means).item() == pytest.approx((9 + 2.25) / 2 + 6.25 / 2)


def test_r1_is_the_squared_gradient_of_each_image():
    weight = torch.nn.Parameter(torch.rand(3, 4, 4))
    images = torch.rand(5, 3, 4, 4, requires_grad=True)
    logits = (weight * images.square()).sum((1, 2, 3))[:, None]
    penalty = r1_penalty(logits, images)
    torch.testing.assert_close(penalty, (2 * weight * images).square().sum((1, 2, 3)).mean())
    penalty.backward()
    assert weight.grad.abs().sum() > 0


def test_perceptual_distance_is_in_the_loss_and_its_network_outside_the_state(batch):
    model = zoo.create_model("vqgan_tiny", perceptual="lite0", perceptual_weight=2.0, discriminator=None).train()
    terms = model.losses(batch)
    torch.testing.assert_close(terms["reconstruction"], terms["pixel"] + 2 * terms["perceptual"])
    torch.testing.assert_close(terms["loss"], terms["reconstruction"] + terms["codebook"])
    assert not model.frozen["perceptual"].training
    assert not any("perceptual" in name for name in model.state_dict())


def test_a_missing_backbone_is_named_before_training_and_not_needed_for_tokens(tmp_path):
    model = zoo.create_model("vqgan_tiny", perceptual="lpips_vgg", perceptual_backbone=str(tmp_path / "vgg.pth"))
    assert model.encode(torch.rand(1, 3, 32, 32)).ids.shape == (1, 64)
    with pytest.raises(FileNotFoundError, match=r"vgg\.pth"):
        fit(tmp_path, model, max_steps=1)


@pytest.mark.parametrize(("step", "tau"), [(0, 0.9), (5, 0.5), (10, 0.1), (99, 0.1)])
def test_gumbel_follows_its_temperature(monkeypatch, step, tau):
    model = zoo.create_model("vqgan_tiny", codebook={"quantizer": "gumbel", "tau": (0.9, 0.1, 10)})
    monkeypatch.setattr(type(model), "global_step", step)
    model.train().losses({"image": torch.rand(2, 3, 32, 32)})
    assert model.quantize.tau == pytest.approx(tau)


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"codebook": {"quantizer": "ema"}}, 64),
        ({"codebook": {"quantizer": "l2", "legacy": False}}, 64),
        ({"codebook": {"quantizer": "fsq", "levels": (4, 4, 4), "vocab_size": 64, "width": 3}}, 64),
        ({"codebook": {"quantizer": "lfq", "vocab_size": 64, "width": 6, "entropy_weight": 0.1}}, 64),
    ],
)
def test_every_quantizer_trains_and_decodes(batch, settings, tokens):
    model = zoo.create_model("vqgan_tiny", **settings).train()
    model.losses(batch)["loss"].backward()
    assert model.encoder.conv_in.weight.grad.any()
    found = model.eval().encode(batch["image"])
    assert found.ids.shape == (4, tokens)
    assert model.decode(found).shape == batch["image"].shape


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"codebook": {"quantizer": "fsq", "levels": (4, 4)}}, "16 codes of width 2"),
        ({"codebook": {"quantizer": "lfq"}}, "65536 codes, not 64"),
        ({"architecture": "maskgit", "codebook": {"width": 8}}, "z_channels 16 must be codebook.width 8"),
        ({"discriminator": {"r1": 1.0}}, "set discriminator.kind to stylegan"),
        ({"image_size": 30}, "not divisible by 4"),
        ({"width": 20}, "20 channels"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        zoo.create_model("vqgan_tiny", **settings)


@pytest.mark.parametrize(
    ("name", "millions", "tensors"),
    [
        ("vqgan_imagenet_f16_1024", 72.14, 343),
        ("vqgan_gumbel_f8", 69.00, 301),
        ("vqgan_maskgit_256", 54.52, 168),
        ("llamagen_vq16", 71.88, 343),
        ("llamagen_vq8", 70.11, 299),
    ],
)
def test_published_sizes(name, millions, tensors):
    """Counts of the released files (LlamaGen's has a usage counter more)."""
    with torch.device("meta"):
        model = zoo.create_model(name)
    state = {key: v for key, v in model.state_dict().items() if not key.startswith("discriminator.")}
    assert len(state) == tensors
    assert round(sum(v.numel() for v in state.values()) / 1e6, 2) == millions


@pytest.mark.parametrize("name", ["vqgan_tiny", "vqgan_maskgit_tiny"])
def test_a_depth_map_is_the_mean_of_three_channels_and_comes_out_in_all(name):
    torch.manual_seed(0)
    model = zoo.create_model(name, channels=1, perceptual="lite0").train()
    assert model.encoder.conv_in.in_channels == model.decoder.conv_out.out_channels == 1
    images = torch.rand(2, 3, 32, 32)
    grey = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    seen = []
    model.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    terms, on_grey = model.losses({"image": images}), model.losses({"image": grey})
    torch.testing.assert_close(seen[0], 2 * images.mean(1, keepdim=True) - 1 if model.signed else grey[:, :1])
    for term in ("loss", "pixel", "perceptual", "mse"):
        torch.testing.assert_close(terms[term], on_grey[term], rtol=1e-3, atol=1e-5)
    terms["loss"].backward()
    assert model.discriminator.state_dict().keys() == zoo.create_model(name).discriminator.state_dict().keys()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    depth = model.decode(model.encode(images))
    assert depth.shape == images.shape
    assert torch.equal(depth[:, :1].expand(-1, 3, -1, -1), depth)
    assert depth.std() > 0
    with torch.no_grad():
        pixels = model.pixels(model.embed(model.encode(grey).grid()))
    expected = ((pixels + 1) / 2 if model.signed else pixels).clamp(0, 1)
    torch.testing.assert_close(depth[:, :1], expected)
    torch.testing.assert_close(model.losses({"image": grey})["mse"], (depth - grey).square().mean())


def test_bad_tokens_are_refused():
    model = zoo.create_model("vqgan_tiny").eval()
    tokens = model.encode(torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"ids must lie in 0\.\.63"):
        model.decode(dataclasses.replace(tokens, ids=tokens.ids + 64))
    with pytest.raises(ValueError, match="another vocabulary"):
        zoo.create_model("vqgan_tiny", codebook={"vocab_size": 32}).decode(tokens)
