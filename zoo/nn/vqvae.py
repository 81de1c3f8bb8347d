"""Encoder and decoder of VQ-VAE and VQ-VAE-2, with the names of rosinality/vq-vae-2-pytorch."""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor, nn


class ResBlock(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x)))).

    Args:
        channels: of input and output.
        width: of the layer between.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        # the first ReLU must not be in place: its input is the residual
        self.conv = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(width, channels, 1)
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.conv(x)


class VQVAEEncoder(nn.Module):
    """Strided 4x4 convolutions, residual blocks, ReLU.

    Args:
        in_channels: of the input.
        width: channels.
        blocks: residual blocks.
        block_width: channels inside them.
        stride: 2 or 4, the downsampling factor.
    """

    def __init__(self, in_channels: int, width: int, blocks: int, block_width: int, stride: int):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width // 2, 4, 2, 1), nn.ReLU(inplace=True)]
        if stride == 4:
            layers += [nn.Conv2d(width // 2, width, 4, 2, 1), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(width if stride == 4 else width // 2, width, 3, padding=1)]
        layers += [*_res_blocks(width, blocks, block_width), nn.ReLU(inplace=True)]
        self.blocks = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d gh gw"]:
        return self.blocks(x)


class VQVAEDecoder(nn.Module):
    """3x3 convolution, residual blocks, ReLU, transposed 4x4 convolutions.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        width: channels.
        blocks: residual blocks.
        block_width: channels inside them.
        stride: 2 or 4, the upsampling factor.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int, blocks: int, block_width: int, stride: int):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, padding=1)]
        layers += [*_res_blocks(width, blocks, block_width), nn.ReLU(inplace=True)]
        if stride == 4:
            layers += [nn.ConvTranspose2d(width, width // 2, 4, 2, 1), nn.ReLU(inplace=True)]
        layers += [nn.ConvTranspose2d(width // 2 if stride == 4 else width, out_channels, 4, 2, 1)]
        self.blocks = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "b d gh gw"]) -> Float[Tensor, "b c h w"]:
        return self.blocks(x)


def _res_blocks(width: int, blocks: int, block_width: int) -> Iterator[nn.Module]:
    return (ResBlock(width, block_width) for _ in range(blocks))
