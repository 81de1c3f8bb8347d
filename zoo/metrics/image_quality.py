"""Distances between images and their reconstructions, per pixel and perceptual."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import Metric


class PSNR(Metric):
    """Peak signal-to-noise ratio of a whole set: ``-10 log10(MSE)``, in dB, for pixels in [0, 1].

    The mean squared error is taken over all pixels and channels of all images before the logarithm. The mean of the
    PSNR of each image, which some papers report, is larger, because easy images then weigh more.

    Args:
        foreground: count only the pixels that are not exactly white in the original, for graphics on white.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    squared_error: Tensor
    count: Tensor

    def __init__(self, foreground: bool = False):
        super().__init__()
        self.foreground = foreground
        self.add_state("squared_error", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, images: Float[Tensor, "b 3 h w"], reconstructions: Float[Tensor, "b 3 h w"]) -> None:
        """Add images and their reconstructions, both in [0, 1]."""
        error = (images.double() - reconstructions.double()).square()
        if self.foreground:
            error = error * (images < 1).any(dim=1, keepdim=True)
            self.count += 3 * (images < 1).any(dim=1).sum()
        else:
            self.count += error.numel()
        self.squared_error += error.sum()

    def compute(self) -> Float[Tensor, ""]:
        """In dB; infinite for equal images, nan without pixels."""
        return -10 * torch.log10(self.squared_error / self.count)


class PerceptualDistance(Metric):
    """Mean over a set of a perceptual distance between images and their reconstructions.

    Args:
        network: takes two batches in [0, 1] and returns a distance per image, see :mod:`zoo.losses.perceptual`.
        name: of the metric, ``lpips_lite0``, ``lpips_vgg`` or ``lpips_alex``.
    """

    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, network: nn.Module, name: str):
        super().__init__()
        self.network, self.name = network.eval(), name
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def train(self, mode: bool = True) -> "PerceptualDistance":
        """Stays in eval mode."""
        return super().train(False)

    def update(self, images: Float[Tensor, "b 3 h w"], reconstructions: Float[Tensor, "b 3 h w"]) -> None:
        """Add images and their reconstructions."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            self.total += self.network(images.float(), reconstructions.float()).double().sum()
        self.count += len(images)

    def compute(self) -> Float[Tensor, ""]:
        return self.total / self.count


def lpips_lite0() -> PerceptualDistance:
    """LPIPS-lite0: the form of LPIPS on EfficientNet-Lite0, offline; not the published metric."""
    from zoo.losses.perceptual import LPIPSLite0

    return PerceptualDistance(LPIPSLite0(), "lpips_lite0")


def lpips(net: Any, backbone: str | None = None) -> PerceptualDistance:
    """The published LPIPS.

    Args:
        net: ``vgg`` or ``alex``.
        backbone: torchvision's checkpoint of it on disk.
    """
    from zoo.losses.perceptual import LPIPS

    return PerceptualDistance(LPIPS(net, backbone), f"lpips_{net}")
