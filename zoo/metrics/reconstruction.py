"""The reconstruction report: every metric of a tokenizer over a set of images, in one object.

The evaluation callback and the benchmark hold the same object, so that ``lightning test`` and ``benchmarks/rfid.py``
agree to the last digit.
"""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torchmetrics import Metric

from zoo.metrics.codebook import CodebookUsage
from zoo.metrics.extractors import InceptionFeatures, Lite0Features, has_inception_weights, sha256
from zoo.metrics.frechet import FrechetDistance
from zoo.metrics.image_quality import PSNR, lpips, lpips_lite0
from zoo.tokens import TokenSpec, as_pixels
from zoo.tokens.batch import images_of

WHO = "the comparison of reconstructions with their originals"
NAMES_OF_USAGE = {"usage": "codebook_usage", "perplexity": "perplexity", "dead": "dead_codes"}


class ReconstructionReport:
    """PSNR and codebook usage, and with ``full`` also SSIM, LPIPS and a Frechet distance.

    With Inception weights the Frechet distance is ``rfid``; without, it is ``fd_lite0``, never under the other's name.
    PSNR, SSIM and LPIPS compare the reconstructions as floats, clamped to [0, 1]; the Frechet distance quantises both
    sides to uint8 once.

    Args:
        spec: of the tokens; a usage per segment is added where there are several.
        full: all metrics; otherwise only the cheap ones, which need no network.
        inception_weights: local file; None takes the one in torch's hub folder, if it is there.
        lite0: use EfficientNet-Lite0 for what can be had without downloads (extra ``demo``).
        lpips_backbones: ``vgg`` or ``alex`` -> torchvision's checkpoint, for the published LPIPS.
        foreground: also the PSNR of the pixels that are not white.
        floor: also the Frechet distance between two halves of the real images.
    """

    def __init__(
        self,
        spec: TokenSpec,
        full: bool = True,
        inception_weights: str | None = None,
        lite0: bool = True,
        lpips_backbones: dict[str, str] | None = None,
        foreground: bool = False,
        floor: bool = False,
    ):
        self.spec, self.floor = spec, floor
        self.pairwise: dict[str, Metric] = {"psnr": PSNR()}
        self._lpips: dict[str, Path] = {}
        self.usage: dict[str, CodebookUsage] = {}
        self.frechet: FrechetDistance | None = None
        if foreground:
            self.pairwise["psnr_foreground"] = PSNR(foreground=True)
        if spec.vocab_size:
            self.usage[""] = CodebookUsage(spec.vocab_size)
            if len(spec.segments) > 1:
                self.usage |= {s.name: CodebookUsage(s.size, s.offset) for s in spec.segments}
        if full:
            try:
                self._add_full(inception_weights, lite0, lpips_backbones or {})
            except ModuleNotFoundError as error:
                if not lite0:
                    raise
                raise ModuleNotFoundError(f"{error}, or do without lpips_lite0 and fd_lite0: lite0=False") from None
        self.num_images, self._digest = 0, hashlib.sha256()
        self.image_shape: tuple[int, ...] | None = None

    def _add_full(self, inception_weights: str | None, lite0: bool, lpips_backbones: dict[str, str]) -> None:
        from torchmetrics.image import StructuralSimilarityIndexMeasure

        self.pairwise["ssim"] = StructuralSimilarityIndexMeasure(data_range=1.0)
        if lite0:
            self.pairwise["lpips_lite0"] = lpips_lite0()
        for net, backbone in lpips_backbones.items():
            metric = lpips(net, backbone)
            self.pairwise[metric.name] = metric
            self._lpips[metric.name] = Path(str(metric.network.backbone_path))
        if inception_weights is not None or has_inception_weights():
            self.frechet = FrechetDistance(InceptionFeatures(inception_weights))
        elif lite0:
            self.frechet = FrechetDistance(Lite0Features())

    @property
    def metrics(self) -> list[Metric]:
        """All metrics."""
        return [*self.pairwise.values(), *self.usage.values(), *([self.frechet] if self.frechet else [])]

    def to(self, device: torch.device | str) -> "ReconstructionReport":
        """Move the metrics; to the CPU instead of devices without float64."""
        device = torch.device(device)
        for metric in self.metrics:
            metric.to("cpu" if device.type == "mps" else device)
        return self

    def reset(self) -> None:
        """Forget all images."""
        for metric in self.metrics:
            metric.reset()
        self.num_images, self.image_shape, self._digest = 0, None, hashlib.sha256()

    def update(
        self,
        images: Shaped[Tensor, "b 3 h w"],
        reconstructions: Float[Tensor, "b 3 h w"],
        ids: Int[Tensor, "b n"] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            images: originals, uint8 or in [0, 1].
            reconstructions: of the same size; values beyond [0, 1] are clamped.
            ids: of the images, where the tokens are discrete.
        """
        device = self.metrics[0].device
        with torch.autocast(device.type, enabled=False):
            original = as_pixels(images).float().to(device)
            decoded = reconstructions.float().clamp(0, 1).to(device)
            for metric in self.pairwise.values():
                metric.update(original, decoded)
            if self.frechet:
                self.frechet.update(original, real=True)
                self.frechet.update(decoded, real=False)
        if ids is not None:
            for name, metric in self.usage.items():
                metric.update((ids[:, self.spec.span(name)] if name else ids).to(device))
        self.num_images += len(images)
        self.image_shape = tuple(images.shape[-2:])
        self._digest.update((original * 255).round().to(torch.uint8).cpu().numpy().tobytes())

    def compute(self) -> dict[str, float]:
        """All values over all images and ranks, in single precision, which is what loggers keep."""
        values: dict[str, Any] = {name: metric.compute() for name, metric in self.pairwise.items()}
        for segment, metric in self.usage.items():
            if metric.update_called:
                prefix = f"{segment}_" if segment else ""
                values |= {prefix + NAMES_OF_USAGE[k]: v for k, v in metric.compute().items() if k in NAMES_OF_USAGE}
        if self.frechet:
            values[self.frechet.name] = self.frechet.compute()
            if self.floor:
                values[f"{self.frechet.name}_floor"] = self.frechet.floor()
        return {name: torch.as_tensor(value).to(torch.float32).item() for name, value in values.items()}

    def protocol(self) -> dict[str, Any]:
        """Say what the values depend on: the images of this rank, the definitions, the weights and the packages."""
        from zoo.version import __version__

        facts: dict[str, Any] = {
            "num_images": self.num_images,
            "image_shape": list(self.image_shape or ()),
            "images_sha256": self._digest.hexdigest(),
            "reference": "the same images after the crop and resize of the data module, in the view that has the size "
            "of the reconstructions, otherwise resized to it (bicubic, antialiased)",
            "psnr": "-10 log10 of the mean squared error over all pixels of the set, data range 1, reconstructions "
            "clamped, not quantised",
            "packages": {p: version(p) for p in ("torch", "torchmetrics")} | {"tokenzoo": __version__},
        }
        if "ssim" in self.pairwise:
            facts["ssim"] = "torchmetrics, Gaussian window 11, sigma 1.5, data range 1, mean over images"
        if "lpips_lite0" in self.pairwise:
            facts["lpips_lite0"] = "EfficientNet-Lite0 taps 16/24/40/112/320, uniform weights, native resolution"
        for name, backbone in self._lpips.items():
            facts[name] = {
                "definition": "LPIPS v0.1, channel weights of torchmetrics, torchvision's backbone, native resolution",
                "backbone": backbone.name,
                "sha256": sha256(backbone),
            }
        if self.frechet:
            facts[self.frechet.name] = self.frechet.protocol()
        return facts


def reference_view(batch: dict[str, Any], reconstructions: Float[Tensor, "b 3 h w"]) -> Shaped[Tensor, "b 3 h w"]:
    """The images of a batch that reconstructions are compared with, at their size.

    A model with two views reconstructs ``image``, or, where that has another size, the tokenizer's ``token_image``.
    Without that view, it is ``image`` resized (bicubic, antialiased), as for the tokenizer inside such a model.

    Raises:
        ValueError: where the batch has no images, or only such of another aspect ratio.
    """
    images = images_of(batch, WHO)
    for view in (images, batch.get("token_image")):
        if view is not None and view.shape == reconstructions.shape:
            return view
    (h, w), (height, width) = images.shape[-2:], reconstructions.shape[-2:]
    if h * width != w * height:
        raise ValueError(f"reconstructions are {height}x{width}, images {h}x{w}: let the data module crop them alike")
    pixels = as_pixels(images).float()
    return torch.nn.functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True).clamp(0, 1)


def reconstruct_batch(
    model: Any, batch: dict[str, Any]
) -> tuple[Shaped[Tensor, "b 3 h w"], Float[Tensor, "b 3 h w"], Int[Tensor, "b n"] | None]:
    """Originals, reconstructions and ids of a batch, as :meth:`ReconstructionReport.update` takes them.

    Args:
        model: decodes to pixels; in eval mode.
        batch: with ``image``.

    Raises:
        ValueError: where there is none.
    """
    tokens = model.encode(images_of(batch, WHO))
    reconstructions = model.decode(tokens)
    return reference_view(batch, reconstructions), reconstructions, tokens.ids
