"""The discriminators: MaskGIT's re-derived in NumPy, PatchGAN's initialisation."""

import math

import numpy as np
import pytest
import torch

from zoo.nn.patchgan import JointBatchNorm2d, PatchGAN
from zoo.nn.stylegan_discriminator import StyleGANDiscriminator


def conv(x, module):
    """Cross-correlation with zero padding that keeps the size, by loops; x is ``c h w``."""
    weight = module.weight.detach().double().numpy()
    bias = np.zeros(len(weight)) if module.bias is None else module.bias.detach().double().numpy()
    half = weight.shape[2] // 2
    padded = np.pad(x, ((0, 0), (half, half), (half, half)))
    height, width = x.shape[1:]
    out = np.empty((len(weight), height, width))
    for i in range(height):
        for j in range(width):
            window = padded[:, i : i + weight.shape[2], j : j + weight.shape[3]]
            out[:, i, j] = (weight * window).sum((1, 2, 3)) + bias
    return out


def blur_and_halve(x):
    """[1, 3, 3, 1] / 8 in both directions, then every second pixel."""
    taps = np.array([1, 3, 3, 1]) / 8
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    height, width = x.shape[1] // 2, x.shape[2] // 2
    out = np.empty((len(x), height, width))
    for i in range(height):
        for j in range(width):
            out[:, i, j] = taps @ padded[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] @ taps
    return out


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def by_hand(network, image):
    x = leaky(conv(image, network.conv_in))
    for block in network.blocks:
        straight = leaky(conv(blur_and_halve(leaky(conv(x, block.conv1))), block.conv2))
        x = (straight + conv(blur_and_halve(x), block.skip)) / math.sqrt(2)
    x = leaky(conv(x, network.conv_out)).reshape(-1)
    for layer, activation in ((network.dense, leaky), (network.logit, lambda y: y)):
        x = activation(layer.weight.detach().double().numpy() @ x + layer.bias.detach().double().numpy())
    return x


@pytest.mark.parametrize(("size", "channels", "blocks"), [(16, 3, 2), (12, 1, 2), (8, 3, 1)])
def test_maskgit_discriminator_by_hand(size, channels, blocks):
    network = StyleGANDiscriminator(size, width=2, channels=channels)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases too
    images = torch.rand(2, channels, size, size)
    assert len(network.blocks) == blocks
    expected = np.stack([by_hand(network, image.double().numpy()) for image in images])
    assert np.abs(expected).min() > 1e-3
    np.testing.assert_allclose(network(images).detach(), expected, rtol=1e-4, atol=1e-6)


def test_maskgit_discriminator_at_published_size():
    """Channels double with each halving, up to eight times, until 4x4; Xavier's bounds, biases of zero."""
    with torch.device("meta"):
        network = StyleGANDiscriminator(256)
    assert [b.conv2.out_channels for b in network.blocks] == [128, 256, 512, 512, 512, 512]
    assert network.dense.in_features == 512 * 4 * 4
    assert network.dense.out_features == 512
    small = StyleGANDiscriminator(16, width=16)
    for module in small.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            fan_out, fan_in = module.weight.shape[0], module.weight.shape[1]
            bound = math.sqrt(6 / ((fan_in + fan_out) * module.weight[0, 0].numel()))
            assert 0.8 * bound < module.weight.abs().max() <= bound
            assert module.bias is None or not module.bias.any()


def test_patchgan_starts_as_published():
    """N(0, 0.02) for convolutions, N(1, 0.02) for the scales of normalisation, biases of normalisation zero."""
    network = PatchGAN(64, 3)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            # 4,096 numbers in the last convolution: their deviation is known to some percent
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert module.weight.mean().abs() < 0.002
        elif isinstance(module, JointBatchNorm2d):
            assert module.weight.mean().item() == pytest.approx(1.0, abs=0.01)
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.3)
            assert not module.bias.any()
    strides = [m.stride[0] for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert strides == [2, 2, 2, 1, 1]
