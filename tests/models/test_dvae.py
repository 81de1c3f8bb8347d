"""Equations of the dVAE. Shapes, gradients, round trips and the CLI are covered by tests/contract for every preset."""

import inspect
import math

import numpy as np
import pytest
import torch
from torch.distributions import Laplace, TransformedDistribution
from torch.distributions.transforms import SigmoidTransform

import zoo
from zoo.losses.logit_laplace import map_pixels
from zoo.optim import Optim
from zoo.quantizers.kmeans import codebook_from_features, kmeans


@pytest.fixture
def dvae():
    torch.manual_seed(0)
    return zoo.create_model("dvae_tiny")


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_loss_is_the_evidence_bound_divided_by_the_number_of_pixel_values(dvae, images):
    dvae.eval()  # one-hot codes, so that the value does not depend on noise
    terms = dvae.losses({"image": images})
    with torch.no_grad():
        logits = dvae.encoder(map_pixels(images))
        ids = logits.argmax(1)
        mu, log_scale = dvae.decoder(dvae.decoder.embed(ids).permute(0, 3, 1, 2)).chunk(2, 1)
    likelihood = TransformedDistribution(Laplace(mu, log_scale.exp()), [SigmoidTransform()])
    nll = -likelihood.log_prob(map_pixels(images)).sum()
    q = np.exp(logits.log_softmax(1).double().numpy())
    kl = sum(math.log(64) + np.sum(q[b, :, i, j] * np.log(q[b, :, i, j])) for b, i, j in np.ndindex(3, 8, 8))
    assert terms["loss"].item() == pytest.approx((nll.item() + 0.1 * kl) / (3 * 3 * 32 * 32), rel=1e-5)
    assert terms["kl"].item() == pytest.approx(kl / (3 * 64), rel=1e-5)


def test_schedules_run_in_training_and_stand_at_their_end_elsewhere(dvae, images, monkeypatch):
    for step in (0, 20, 25, 100):
        monkeypatch.setattr(type(dvae), "global_step", step)
        train, val = (dvae.train(mode).losses({"image": images}) for mode in (True, False))
        beta = 0.05 * (1 - math.cos(math.pi * min(step, 50) / 50))
        tau = 1 / 16 + (1 - 1 / 16) / 2 * (1 + math.cos(math.pi * step / 200))
        assert (train["beta"].item(), train["tau"].item()) == pytest.approx((beta, tau), rel=1e-5)
        assert (val["beta"].item(), val["tau"].item()) == pytest.approx((0.1, 1 / 16), rel=1e-5)
        parts = (train["reconstruction"] + beta * train["kl"] * 64 / (3 * 32 * 32)).item()
        assert train["loss"].item() == pytest.approx(parts, rel=1e-5)


def test_marginal_entropy_is_added_with_its_weight(images):
    torch.manual_seed(0)
    plain = zoo.create_model("dvae_tiny").eval()
    other = zoo.create_model("dvae_tiny", marginal_entropy=(2.0, 1.5, 10)).eval()
    other.load_state_dict(plain.state_dict())
    q = plain.logits(images).softmax(1).mean((0, 2, 3))
    gap = math.log(64) + (q * q.log()).sum()
    difference = other.losses({"image": images})["loss"] - plain.losses({"image": images})["loss"]
    torch.testing.assert_close(difference, 1.5 * gap, atol=1e-5, rtol=1e-4)


def test_mse_is_a_gaussian_of_fixed_width_on_mapped_pixels(images):
    model = zoo.create_model("dvae_tiny", loss="mse").eval()
    codes = model.decoder.embed(model.encode(images).grid()).permute(0, 3, 1, 2)
    mean = model.decoder(codes)[:, :3].sigmoid()
    expected = ((mean - map_pixels(images)) ** 2).mean() / (2 * 0.1**2)
    torch.testing.assert_close(model.losses({"image": images})["reconstruction"], expected)


def test_relaxation_is_the_gumbel_softmax_with_the_exact_temperature(dvae):
    logits = torch.randn(1, 64, 4, 4)
    torch.manual_seed(3)
    sample = dvae.train().relax(logits, 0.25)
    torch.manual_seed(3)
    gumbel = -torch.empty_like(logits).exponential_().log()
    expected = torch.exp((logits + gumbel) / 0.25)
    torch.testing.assert_close(sample, expected / expected.sum(1, keepdim=True))


def test_gumbel_noise_makes_codes_appear_as_often_as_the_posterior_says(dvae):
    logits = torch.tensor([0.0, 1.0, 2.0]).reshape(1, 3, 1, 1).expand(1, 3, 200, 200)
    torch.manual_seed(0)
    counts = dvae.train().relax(logits, 1e-3).argmax(1).flatten().bincount() / 40_000
    torch.testing.assert_close(counts, torch.tensor([0.0, 1.0, 2.0]).softmax(0), atol=0.01, rtol=0)


def test_straight_through_is_one_hot_forward_and_soft_backward():
    model = zoo.create_model("dvae_tiny", relaxation="straight_through").train()
    logits = torch.randn(1, 64, 2, 2, requires_grad=True)
    weight = torch.randn(1, 64, 2, 2)
    torch.manual_seed(5)
    hard = model.relax(logits, 0.7)
    assert set(hard.detach().round(decimals=5).unique().tolist()) == {0.0, 1.0}
    (gradient,) = torch.autograd.grad((hard * weight).sum(), logits)
    model.relaxation = "soft"
    torch.manual_seed(5)
    soft = model.relax(logits, 0.7)
    assert 0 < soft.max() < 1
    torch.testing.assert_close(gradient, torch.autograd.grad((soft * weight).sum(), logits)[0])


def test_row_gather_equals_the_dense_decoder_on_one_hot_codes(dvae, images):
    dvae.eval()
    tokens = dvae.encode(images)
    dense = dvae.pixels(dvae.decoder.mix(dvae.one_hot(dvae.logits(images))))[0]
    torch.testing.assert_close(dvae.decode(tokens), dense, atol=1e-6, rtol=0)


def test_other_image_sizes_give_their_own_grid(dvae):
    tokens = dvae.eval().encode(torch.rand(1, 3, 48, 16))
    assert tokens.grid().shape == (1, 12, 4)
    assert tokens.spec.num_tokens == 48
    assert dvae.decode(tokens).shape == (1, 3, 48, 16)


def test_tokens_of_another_vocabulary_are_refused(dvae, images):
    tokens = zoo.create_model("dvae_tiny", vocab_size=32).eval().encode(images)
    with pytest.raises(ValueError, match=r"another vocabulary \(32 ids\).*\(64\)"):
        dvae.decode(tokens)


@pytest.mark.parametrize("id_", [-1, 64])
def test_ids_out_of_range_are_named(dvae, images, id_):
    tokens = dvae.eval().encode(images)
    tokens.ids[0, 0] = id_
    with pytest.raises(ValueError, match=rf"ids must lie in 0\.\.63, got .*{id_}"):
        dvae.decode(tokens)


@pytest.mark.parametrize("sizes", [{"width": 6}, {"groups": 0}, {"vocab_size": 0}, {"blocks": 0}])
def test_sizes_that_make_no_network_are_refused(sizes):
    with pytest.raises(ValueError, match="width a multiple of 4"):
        zoo.create_model("dvae_tiny", **sizes)


def test_size_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match="image_size 30 is not divisible by 4"):
        zoo.create_model("dvae_tiny", image_size=30)


def test_encoder_waits_until_its_start(images, monkeypatch):
    model = zoo.create_model("dvae_tiny", encoder_start=10)
    for step, moves in ((9, False), (10, True)):
        monkeypatch.setattr(type(model), "global_step", step)
        model.zero_grad()
        model.losses({"image": images})["loss"].backward()
        assert any(p.grad.abs().sum() > 0 for p in model.encoder.parameters()) is moves
        assert all(p.grad is not None for p in model.parameters())  # DDP needs every one


def test_published_size_has_the_published_number_of_parameters():
    info = zoo.model_info("dvae_openai")
    assert info.num_parameters == 97_616_006
    assert info.spec.grid_shape == (32, 32)
    assert info.spec.vocab_size == 8192
    with torch.device("meta"):
        model = zoo.create_model("dvae_openai")
    assert sum(p.numel() for p in model.encoder.parameters()) == 53_786_240
    assert len(model.encoder.state_dict()) == 74
    assert len(model.decoder.state_dict()) == 76


def test_published_schedules_are_the_defaults():
    model = zoo.create_model("dvae_openai", width=8, blocks=1, vocab_size=16, code_width=8)
    assert model.tau == (1.0, 1 / 16, 150_000)
    assert model.beta == (0.0, 6.6, 5_000)
    assert model.optim_settings == Optim(
        lr=1e-4, min_lr=1.25e-6, total_steps=1_200_000, weight_decay=1e-4, decay="all", betas=(0.9, 0.999), eps=1e-8
    )


def test_kmeans_finds_separated_clusters():
    torch.manual_seed(0)
    centres = 10 * torch.randn(6, 4)
    points = (centres[:, None] + 0.01 * torch.randn(6, 50, 4)).flatten(0, 1)
    found, distance = kmeans(points, 6, iterations=30)
    nearest = torch.cdist(points, found).min(1).values
    assert distance.item() == pytest.approx(nearest.square().mean().item(), rel=0.05)


def test_classifier_from_kmeans_is_a_softmax_of_scaled_distances():
    torch.manual_seed(0)
    features = torch.randn(500, 5)
    torch.manual_seed(1)
    weight, bias, _ = codebook_from_features(features, 8, 3, sharpness=2.0)
    torch.manual_seed(1)
    centres, distance = kmeans(features, 8)
    expected = (-2.0 * torch.cdist(features, centres).square() / distance).softmax(1)
    torch.testing.assert_close((features @ weight.t() + bias).softmax(1), expected, atol=1e-4, rtol=1e-3)


def test_kmeans_start_puts_all_codes_to_use():
    torch.manual_seed(0)
    model = zoo.create_model("dvae_tiny").eval()
    smooth = torch.nn.functional.interpolate(torch.rand(64, 3, 5, 5), (32, 32), mode="bicubic").clamp(0, 1)
    before = model.encode(smooth).ids.unique().numel()
    model.initialise_codebook(smooth)
    assert model.encode(smooth).ids.unique().numel() > max(50, before)


def test_codes_are_chosen_in_float32_under_autocast(dvae, images):
    with torch.autocast("cpu", torch.bfloat16):
        logits = dvae.logits(images)
        sample = dvae.relax(logits, 1.0)
        codes = dvae.decoder.mix(sample)
    assert logits.dtype == sample.dtype == codes.dtype == torch.float32
    torch.testing.assert_close(codes, dvae.decoder.mix(sample), atol=0, rtol=0)


def test_images_are_checked_once_per_loss(dvae, images, monkeypatch):
    calls = []
    monkeypatch.setattr("zoo.models.dvae.as_pixels", lambda x, **_: calls.append(1) or x)
    dvae.losses({"image": images})
    assert len(calls) == 1  # each check of a float range makes a GPU wait


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [("loss", "mae", "mse"), ("relaxation", "straight", "straight_through"), ("codebook_init", "k-means", "kmeans")],
)
def test_settings_that_do_not_exist_are_refused(name, value, hint):
    with pytest.raises(ValueError, match=f"{name} cannot be '{value}'.*{hint}"):
        inspect.unwrap(zoo.DVAE.__init__)(zoo.DVAE.__new__(zoo.DVAE), **{name: value})  # beartype checks before it does


def test_kmeans_sees_few_images_at_once(dvae, monkeypatch):
    seen = []
    dvae.encoder.blocks.input.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    dvae.initialise_codebook(torch.rand(70, 3, 32, 32))
    assert max(seen) <= 32
    assert sum(seen) == 70
