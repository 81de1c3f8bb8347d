"""Encoder and decoder of MaskGIT's VQGAN.

Chang et al. 2022, arXiv:2202.04200; google-research/maskgit ``nets/vqgan_tokenizer.py``. Against taming's: no
attention, average pooling, as many blocks in the decoder as in the encoder, hardly any bias, a 1x1 output convolution,
pixels in [0, 1]. Names are those of the PyTorch port in huggingface/open-muse and bytedance/1d-tokenizer.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from zoo.nn.taming import group_norm


class PlainBlock(nn.Module):
    """Two 3x3 convolutions without bias and a skip.

    Where the width changes, the reference applies the skip's 1x1 convolution to the *output* of the second convolution
    instead of to the input, so the input takes no part in the sum. It looks like a slip, but all published weights
    were trained with it (their kernels are out x out), so it is kept.

    Args:
        n_in: input channels.
        n_out: output channels.
    """

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.norm1 = group_norm(n_in)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)
        self.norm2 = group_norm(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.nin_shortcut = nn.Conv2d(n_out, n_out, 1, bias=False) if n_in != n_out else None

    def forward(self, x: Float[Tensor, "b ci h w"]) -> Float[Tensor, "b co h w"]:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(h))


class PlainLevel(nn.Module):
    """The blocks of one resolution, and a convolution after the upsampling in the decoder.

    Args:
        n_in: input channels.
        n_out: output channels.
        blocks: how many.
        up: end with nearest neighbours and a convolution.
    """

    def __init__(self, n_in: int, n_out: int, blocks: int, up: bool = False):
        super().__init__()
        self.block = nn.ModuleList(PlainBlock(n_in if i == 0 else n_out, n_out) for i in range(blocks))
        self.upsample_conv = nn.Conv2d(n_out, n_out, 3, padding=1) if up else None

    def forward(self, x: Float[Tensor, "b ci h w"]) -> Float[Tensor, "b co h2 w2"]:
        for block in self.block:
            x = block(x)
        if self.upsample_conv is None:
            return x
        return self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class MaskGITEncoder(nn.Module):
    """Image in [0, 1] to a map of features, downsampled by 2 after every level but the last.

    Args:
        width: channels of the first level.
        multipliers: of each level.
        blocks: per level.
        z_channels: channels of the result, which is quantized as it is.
        channels: of the image.
    """

    def __init__(
        self,
        width: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        z_channels: int = 256,
        channels: int = 3,
    ):
        super().__init__()
        widths = [width, *(width * m for m in multipliers)]
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.down = nn.ModuleList(PlainLevel(n_in, n_out, blocks) for n_in, n_out in pairwise(widths))
        self.mid = nn.ModuleList(PlainBlock(widths[-1], widths[-1]) for _ in range(blocks))
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b z gh gw"]:
        x = self.conv_in(x)
        for i, level in enumerate(self.down):
            x = level(F.avg_pool2d(x, 2) if i else x)
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class MaskGITDecoder(nn.Module):
    """Map of codes to image; ``up`` is stored from high to low resolution and runs backwards.

    Args:
        width: channels of the last level.
        multipliers: of each level, from high to low resolution as in the encoder.
        blocks: per level.
        z_channels: channels of the input.
        channels: of the image.
    """

    def __init__(
        self,
        width: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        z_channels: int = 256,
        channels: int = 3,
    ):
        super().__init__()
        widths = [width * m for m in multipliers]
        widths.append(widths[-1])
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = nn.ModuleList(PlainBlock(widths[-1], widths[-1]) for _ in range(blocks))
        self.up = nn.ModuleList(PlainLevel(widths[i + 1], widths[i], blocks, up=i > 0) for i in range(len(multipliers)))
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, z: Float[Tensor, "b z gh gw"]) -> Float[Tensor, "b c h w"]:
        x = self.conv_in(z)
        for block in self.mid:
            x = block(x)
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))
