import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from zoo.metrics.extractors import InceptionFeatures, inception_weights_path, quantise
from zoo.metrics.frechet import FrechetDistance, frechet_distance


class MeanColours(nn.Module):
    """Twelve features: mean colour of each quadrant."""

    name = "fd_colours"
    num_features = 12

    def forward(self, images):
        assert images.dtype == torch.uint8
        return nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)

    def protocol(self):
        return {"extractor": "mean colours"}


def images(n: int, seed: int) -> torch.Tensor:
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def by_scipy(x: np.ndarray, y: np.ndarray) -> float:
    c1, c2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(c1 @ c2)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * np.real(root)))


def features(x: torch.Tensor) -> np.ndarray:
    return MeanColours()(quantise(x)).double().numpy()


def test_equals_the_matrix_square_root_of_scipy():
    x, y = images(50, 0), images(40, 1) ** 2
    metric = FrechetDistance(MeanColours())
    for part in x.split(7):
        metric.update(part, real=True)
    for part in y.split(9):
        metric.update(part, real=False)
    expected = by_scipy(features(x), features(y))
    assert expected > 0.1
    assert metric.compute().item() == pytest.approx(expected, rel=1e-6)


def test_zero_for_equal_sets_and_positive_floor():
    x = images(40, 0)
    metric = FrechetDistance(MeanColours())
    for part in x.split(7):  # odd batches: the halves go on alternating over batches
        metric.update(part, real=True)
        metric.update(part, real=False)
    assert abs(metric.compute().item()) < 1e-9
    assert metric.count.tolist() == [40, 20, 20]
    assert metric.floor().item() == pytest.approx(by_scipy(features(x[::2]), features(x[1::2])), rel=1e-6)


def test_rank_deficient_covariances():
    x, y = torch.randn(5, 30).double(), torch.randn(5, 30).double()
    distance = frechet_distance(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())
    assert distance.item() == pytest.approx(by_scipy(x.numpy(), y.numpy()), rel=1e-5)


def test_images_are_rounded_and_clamped_once():
    x = torch.tensor([-1.0, 0.0, 0.5 / 255 - 1e-4, 0.5 / 255 + 1e-4, 254.6 / 255, 2.0])
    assert quantise(x.expand(1, 3, 1, 6))[0, 0, 0].tolist() == [0, 0, 0, 1, 255, 255]
    every = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    assert torch.equal(quantise(every.float() / 255), every)


def test_one_image_is_refused():
    metric = FrechetDistance(MeanColours())
    metric.update(images(1, 0), real=True)
    with pytest.raises(ValueError, match="at least two images"), pytest.warns(UserWarning, match="compute"):
        FrechetDistance(MeanColours()).compute()


def test_missing_inception_weights_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"--inception-weights PATH, or put it at .*hub.checkpoints") as error:
        InceptionFeatures()
    assert "github.com/toshas/torch-fidelity/releases" in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        InceptionFeatures(tmp_path / "nowhere.pth")


def test_weights_in_the_hub_folder_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    file.parent.mkdir(parents=True)
    file.touch()
    assert inception_weights_path() == file


class OpensFile:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


def test_code_in_a_weights_file_is_refused_and_does_not_run(tmp_path):
    file, trace = tmp_path / "weights.pth", tmp_path / "trace"
    torch.save({"x": OpensFile(trace)}, file)
    with pytest.raises(ValueError, match=r"pickle asks for io\.open, which could run code"):
        InceptionFeatures(file)
    assert not trace.exists()


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="does not hold the Inception network"):
        InceptionFeatures(tmp_path / "weights.pth")


def distorted(size: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(n, 3, size, size, generator=generator)
    return real, (real + 0.3 * torch.randn(real.shape, generator=generator)) * 0.8


@pytest.mark.slow
@pytest.mark.parametrize("size", [320, 64])
def test_statistics_equal_those_of_torchmetrics_without_antialiasing(random_inception, size):
    """Larger than 299 px, where antialiasing matters most, and smaller."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, fake = distorted(size, 2)
    ours = FrechetDistance(InceptionFeatures(random_inception))
    theirs, antialiased = (
        FrechetInceptionDistance(feature_extractor_weights_path=str(random_inception), antialias=a)
        for a in (False, True)
    )
    ours.update(fake, real=False)
    theirs.update(quantise(fake), real=False)
    antialiased.update(quantise(fake), real=False)
    torch.testing.assert_close(ours.total[0], theirs.fake_features_sum)
    torch.testing.assert_close(ours.outer[0], theirs.fake_features_cov_sum)
    scale = theirs.fake_features_sum.abs().mean()
    assert (ours.total[0] - antialiased.fake_features_sum).abs().mean() > 1e-3 * scale
    assert ours.protocol()["published_weights"] is False
    assert len(ours.protocol()["sha256"]) == 64


@pytest.mark.slow
def test_rfid_equals_torch_fidelity(random_inception):
    import torch_fidelity
    from torch.utils.data import Dataset

    class Images(Dataset):
        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            return self.images[index]

    real, fake = distorted(320, 6)
    ours = FrechetDistance(InceptionFeatures(random_inception))
    ours.update(real, real=True)
    ours.update(fake, real=False)
    fidelity = torch_fidelity.calculate_metrics(
        input1=Images(quantise(fake)),
        input2=Images(quantise(real)),
        fid=True,
        cuda=False,
        verbose=False,
        save_cpu_ram=True,
        cache=False,
        batch_size=6,
        feature_extractor_weights_path=str(random_inception),
    )["frechet_inception_distance"]
    assert fidelity > 1e-3
    assert ours.compute().item() == pytest.approx(fidelity, rel=1e-5)


def test_building_an_extractor_leaves_the_random_numbers_alone(random_inception):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    InceptionFeatures(random_inception)
    assert torch.equal(torch.rand(1), expected)
