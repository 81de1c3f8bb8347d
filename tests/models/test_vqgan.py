"""VQGAN: one step for both networks, with the weights, the order and the counters of the paper."""

import pytest
import torch

import zoo


@pytest.fixture
def batch():
    return {"image": torch.rand(4, 3, 32, 32)}


def test_published_size_and_names():
    """Section 0 of the appendix: encoder 29.30 M, decoder 42.45 M, 343 tensors without the loss."""
    with torch.device("meta"):
        model = zoo.create_model("vqgan_imagenet_f16_1024")
    state = {name: v for name, v in model.state_dict().items() if not name.startswith("discriminator.")}
    assert len(state) == 343 and round(sum(v.numel() for v in state.values()) / 1e6, 2) == 72.14
    assert round(sum(p.numel() for p in model.encoder.parameters()) / 1e6, 2) == 29.30
    assert round(sum(p.numel() for p in model.decoder.parameters()) / 1e6, 2) == 42.45


def test_before_its_start_the_discriminator_has_no_influence_and_does_not_learn(batch):
    model = zoo.create_model("vqgan_tiny", disc_start=5).train()
    terms = model.losses(batch)
    terms["loss"].backward()
    torch.testing.assert_close(terms["loss"], terms["reconstruction"] + terms["codebook"])
    assert all(p.grad is not None and not p.grad.any() for p in model.discriminator.parameters())


def test_warm_up_trains_the_discriminator_alone(batch):
    torch.manual_seed(0)
    alone = zoo.create_model("vqgan_tiny", disc_start=5, disc_warmup=5).train()
    before = zoo.create_model("vqgan_tiny", disc_start=5).train()
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
