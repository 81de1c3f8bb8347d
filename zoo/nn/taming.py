"""Encoder and decoder of taming-transformers' VQGAN, which Latent Diffusion's VQ models share.

Esser et al. 2021, arXiv:2012.09841, Table 7. Names and constants are those of CompVis/taming-transformers
(``taming/modules/diffusionmodules/model.py``): GroupNorm of 32 groups with eps 1e-6, ``x sigmoid(x)``, padding on the
right and at the bottom before a strided convolution. ``decoder.up`` is stored from high to low resolution and runs
backwards.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

GROUPS = 32
EPS = 1e-6


def group_norm(channels: int, groups: int = GROUPS) -> nn.GroupNorm:
    """The normalisation of every layer.

    Raises:
        ValueError: for channels that the groups cannot share.
    """
    if channels % groups:
        raise ValueError(f"the networks of VQGAN normalise {groups} groups: {channels} channels are no multiple of it")
    return nn.GroupNorm(groups, channels, eps=EPS)


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions and a skip, which is a 1x1 convolution of the input where the width changes.

    Args:
        n_in: input channels.
        n_out: output channels.
        dropout: before the second convolution.
        groups: of the normalisation.
    """

    def __init__(self, n_in: int, n_out: int, dropout: float = 0.0, groups: int = GROUPS):
        super().__init__()
        self.norm1 = group_norm(n_in, groups)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.norm2 = group_norm(n_out, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: Float[Tensor, "b ci h w"]) -> Float[Tensor, "b co h w"]:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """One head of self-attention over all positions, with a skip.

    Args:
        channels: of input and output; also the width of the head.
        groups: of the normalisation.
    """

    def __init__(self, channels: int, groups: int = GROUPS):
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        h = self.norm(x)
        q, k, v = (rearrange(layer(h), "b c h w -> b (h w) c") for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(mixed, "b (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Half the resolution, by a strided convolution that is padded on the right and at the bottom only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the resolution: nearest neighbour, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution.

    Args:
        channels: of input and output.
        attention: off in LDM's ``noattn`` models, whose files have no entry for it.
        dropout: of the blocks.
        groups: of the normalisation.
    """

    def __init__(self, channels: int, attention: bool = True, dropout: float = 0.0, groups: int = GROUPS):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout, groups)
        self.attn_1 = AttnBlock(channels, groups) if attention else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels, dropout, groups)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention where the level has it, and the way to the next level.

    Args:
        n_in: input channels.
        n_out: output channels.
        blocks: how many.
        attention: after every block.
        down: end with a downsampling.
        up: end with an upsampling.
        dropout: of the blocks.
        groups: of the normalisation.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        blocks: int,
        attention: bool,
        down: bool,
        up: bool,
        dropout: float,
        groups: int = GROUPS,
    ):
        super().__init__()
        widths = [n_in, *[n_out] * blocks]
        self.block = nn.ModuleList(ResnetBlock(widths[i], n_out, dropout, groups) for i in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(n_out, groups) for _ in range(blocks if attention else 0))
        self.downsample = Downsample(n_out) if down else None
        self.upsample = Upsample(n_out) if up else None

    def forward(self, x: Float[Tensor, "b ci h w"]) -> Float[Tensor, "b co h2 w2"]:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        for resample in (self.downsample, self.upsample):
            x = x if resample is None else resample(x)
        return x


class TamingEncoder(nn.Module):
    """Image to a map of features, downsampled by 2 for every level after the first.

    Args:
        resolution: nominal side of the images, which decides the levels with attention; other sizes keep them there.
        width: channels of the first level (``ch``).
        multipliers: channels of each level, as multiples of ``width`` (``ch_mult``).
        blocks: per level (``num_res_blocks``).
        attention: nominal resolutions with attention (``attn_resolutions``).
        z_channels: channels of the result.
        mid_attention: attention between the two blocks in the middle.
        dropout: of the blocks.
        channels: of the image.
        groups: of the normalisation; 32 as published, fewer for narrow networks: with one channel per group, flat
            areas lose their brightness.
    """

    def __init__(
        self,
        resolution: int = 256,
        width: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        z_channels: int = 256,
        mid_attention: bool = True,
        dropout: float = 0.0,
        channels: int = 3,
        groups: int = GROUPS,
    ):
        super().__init__()
        widths = [width, *(width * m for m in multipliers)]
        last = len(multipliers) - 1
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList(
            Level(widths[i], widths[i + 1], blocks, resolution // 2**i in attention, i < last, False, dropout, groups)
            for i in range(last + 1)
        )
        self.mid = Middle(widths[-1], mid_attention, dropout, groups)
        self.norm_out = group_norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b z gh gw"]:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class TamingDecoder(nn.Module):
    """Map of features to image; the mirror of :class:`TamingEncoder` with one block more per level.

    Args:
        resolution: nominal side of the images.
        width: channels of the last level.
        multipliers: of each level, from high to low resolution as in the encoder.
        blocks: of the encoder; each level here has one more.
        attention: nominal resolutions with attention.
        z_channels: channels of the input.
        mid_attention: attention between the two blocks in the middle.
        dropout: of the blocks.
        channels: of the image.
        groups: of the normalisation; 32 as published, fewer for narrow networks: with one channel per group, flat
            areas lose their brightness.
    """

    def __init__(
        self,
        resolution: int = 256,
        width: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        z_channels: int = 256,
        mid_attention: bool = True,
        dropout: float = 0.0,
        channels: int = 3,
        groups: int = GROUPS,
    ):
        super().__init__()
        widths = [width * m for m in multipliers]
        widths.append(widths[-1])
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], mid_attention, dropout, groups)
        self.up = nn.ModuleList(
            Level(widths[i + 1], widths[i], blocks + 1, resolution // 2**i in attention, False, i > 0, dropout, groups)
            for i in range(len(multipliers))
        )
        self.norm_out = group_norm(widths[0], groups)
        self.conv_out = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, z: Float[Tensor, "b z gh gw"]) -> Float[Tensor, "b c h w"]:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))
