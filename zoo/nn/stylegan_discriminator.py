"""The residual discriminator of StyleGAN2 in MaskGIT's form.

Karras et al. 2020, arXiv:1912.04958, Figure 7; google-research/maskgit ``nets/discriminator.py``: blurred downsampling
in both branches, no normalisation, one logit per image.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SLOPE = 0.2
LAST_SIDE = 4
MAX_MULTIPLIER = 8


class BlurPool(nn.Module):
    """Half the resolution behind the filter [1, 3, 3, 1]."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(taps, taps)[None, None], persistent=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], -1, -1, -1)
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), kernel, stride=2, groups=x.shape[1])


class DownBlock(nn.Module):
    """Two convolutions with a blurred downsampling between them, and a 1x1 convolution beside."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_in, 3, padding=1)
        self.conv2 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.skip = nn.Conv2d(n_in, n_out, 1, bias=False)
        self.pool = BlurPool()

    def forward(self, x: Float[Tensor, "b ci h w"]) -> Float[Tensor, "b co h2 w2"]:
        h = self.pool(F.leaky_relu(self.conv1(x), SLOPE))
        h = F.leaky_relu(self.conv2(h), SLOPE)
        return (h + self.skip(self.pool(x))) / math.sqrt(2)


class StyleGANDiscriminator(nn.Module):
    """Image of one size to one logit, high where it looks real.

    Args:
        image_size: side of the images: halved until it is 4 or odd.
        width: channels at full resolution; each halving doubles them, up to 8 times.
        channels: of the image.
    """

    def __init__(self, image_size: int = 256, width: int = 64, channels: int = 3):
        super().__init__()
        self.image_size = image_size
        blocks, side, n_in = [], image_size, width
        while side > LAST_SIDE and side % 2 == 0:
            n_out = min(2 * n_in, MAX_MULTIPLIER * width)
            blocks.append(DownBlock(n_in, n_out))
            side, n_in = side // 2, n_out
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.Sequential(*blocks)
        self.conv_out = nn.Conv2d(n_in, n_in, 3, padding=1)
        self.dense = nn.Linear(n_in * side * side, n_in)
        self.logit = nn.Linear(n_in, 1)
        self.apply(_initialise)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1"]:
        if images.shape[-2:] != (self.image_size, self.image_size):
            height, width = images.shape[-2:]
            raise ValueError(
                f"this discriminator judges images of {self.image_size}x{self.image_size}, got {height}x{width}: "
                "resize them, or train with disc: patchgan"
            )
        x = self.blocks(F.leaky_relu(self.conv_in(images), SLOPE))
        x = F.leaky_relu(self.conv_out(x), SLOPE)
        return self.logit(F.leaky_relu(self.dense(x.flatten(1)), SLOPE))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
