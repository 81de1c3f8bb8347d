"""Encoder and decoder of DALL-E's discrete VAE (openai/DALL-E, ``encoder.py``, ``decoder.py``).

Parameter names are those of the published checkpoints, so loading them is a copy.
"""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class Conv2d(nn.Module):
    """Same-size convolution with parameters ``w`` and ``b``, weights drawn from N(0, 1 / fan-in).

    Args:
        n_in: input channels.
        n_out: output channels.
        kernel: side of the kernel.
        exact: compute in float32 under autocast, as the reference does where codes come and go (``use_float16=False``):
            ids near ties and Gumbel noise do not survive 8 bits of mantissa.
    """

    def __init__(self, n_in: int, n_out: int, kernel: int, exact: bool = False):
        super().__init__()
        self.w = nn.Parameter(torch.randn(n_out, n_in, kernel, kernel) / math.sqrt(n_in * kernel**2))
        self.b = nn.Parameter(torch.zeros(n_out))
        self.padding, self.exact = (kernel - 1) // 2, exact

    def forward(self, x: Float[Tensor, "b ci h w"]) -> Float[Tensor, "b co h w"]:
        if not self.exact:
            return F.conv2d(x, self.w, self.b, padding=self.padding)
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x.float(), self.w.float(), self.b.float(), padding=self.padding)


class Block(nn.Module):
    """Pre-activation bottleneck block; ``post_gain`` = 1 / layers^2 keeps it near the identity (Section A.1).

    Args:
        n_in: input channels.
        n_out: output channels; the bottleneck has a quarter.
        kernels: of the four convolutions; the decoder's order is the encoder's reversed.
        n_layers: number of blocks in the whole network.
        upsample: double the sides of the input (nearest) first. The two 1x1 convolutions that see the input commute
            with it and run before, on a quarter of the positions.
    """

    def __init__(
        self, n_in: int, n_out: int, kernels: tuple[int, int, int, int], n_layers: int, upsample: bool = False
    ):
        super().__init__()
        hidden = n_out // 4
        widths = (n_in, hidden, hidden, hidden, n_out)
        self.post_gain = 1 / n_layers**2
        self.id_path = Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, kernel in enumerate(kernels):
            layers[f"relu_{i + 1}"] = nn.ReLU(inplace=i > 0)  # the first would overwrite the input
            layers[f"conv_{i + 1}"] = Conv2d(widths[i], widths[i + 1], kernel)
        self.res_path = nn.Sequential(layers)
        if upsample and kernels[0] != 1:
            raise ValueError(f"a 1x1 convolution must come first to commute with upsampling, got kernels {kernels}")
        self.upsample = upsample

    def forward(self, x: Float[Tensor, "b ci h w"]) -> Float[Tensor, "b co h2 w2"]:
        identity = self.id_path(x)
        if self.upsample:
            identity = F.interpolate(identity, scale_factor=2, mode="nearest")
            hidden = F.interpolate(self.res_path[:2](x), scale_factor=2, mode="nearest")
            residual = self.res_path[2:](hidden)
        else:
            residual = self.res_path(x)
        # into memory that is there already: fresh pages for maps of this size cost as much as the addition
        if identity is not x:
            return identity.add_(residual, alpha=self.post_gain)
        if torch.is_grad_enabled():
            return torch.add(x, residual, alpha=self.post_gain)
        return torch.add(x, residual, alpha=self.post_gain, out=residual)


class DalleEncoder(nn.Module):
    """Image to logits over the vocabulary, downsampled by ``2 ** (groups - 1)``.

    Args:
        width: channels of the first group (``n_hid``); each group doubles them.
        blocks: blocks per group.
        groups: 4 in the paper, for a factor of 8.
        vocab_size: codes.
        channels: of the image.
    """

    def __init__(self, width: int = 256, blocks: int = 2, groups: int = 4, vocab_size: int = 8192, channels: int = 3):
        super().__init__()
        stages: OrderedDict[str, nn.Module] = OrderedDict(input=Conv2d(channels, width, 7))
        n_in = width
        for g in range(groups):
            n_out = width * 2**g
            group: OrderedDict[str, nn.Module] = OrderedDict()
            for i in range(blocks):
                group[f"block_{i + 1}"] = Block(n_in, n_out, (3, 3, 3, 1), groups * blocks)
                n_in = n_out
            if g < groups - 1:
                group["pool"] = nn.MaxPool2d(2)
            stages[f"group_{g + 1}"] = nn.Sequential(group)
        stages["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv2d(n_in, vocab_size, 1, exact=True)))
        self.blocks = nn.Sequential(stages)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k gh gw"]:
        return self.blocks(x)


class DalleDecoder(nn.Module):
    """Codes to the parameters of the pixel distribution; its first 1x1 convolution is the codebook.

    Args:
        width: channels of the last group.
        blocks: blocks per group.
        groups: 4 in the paper.
        vocab_size: codes.
        code_width: width of a code's embedding (``n_init``).
        channels: output channels, two per colour.
    """

    def __init__(
        self,
        width: int = 256,
        blocks: int = 2,
        groups: int = 4,
        vocab_size: int = 8192,
        code_width: int = 128,
        channels: int = 6,
    ):
        super().__init__()
        stages: OrderedDict[str, nn.Module] = OrderedDict(input=Conv2d(vocab_size, code_width, 1, exact=True))
        n_in = code_width
        for g in range(groups):
            n_out = width * 2 ** (groups - 1 - g)
            group: OrderedDict[str, nn.Module] = OrderedDict()
            for i in range(blocks):
                group[f"block_{i + 1}"] = Block(n_in, n_out, (1, 3, 3, 3), groups * blocks, upsample=g > 0 and i == 0)
                n_in = n_out
            stages[f"group_{g + 1}"] = nn.Sequential(group)
        stages["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv2d(n_in, channels, 1)))
        self.blocks = nn.Sequential(stages)

    def embed(self, ids: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        """Rows of the first convolution: equal to it applied to one-hot codes, without building them."""
        codebook: Conv2d = self.blocks.input  # type: ignore[assignment]
        return F.embedding(ids, codebook.w[:, :, 0, 0].t()) + codebook.b

    def mix(self, probabilities: Float[Tensor, "b k gh gw"]) -> Float[Tensor, "b d gh gw"]:
        """The same for soft codes."""
        return self.blocks.input(probabilities)  # type: ignore[operator]

    def forward(self, embedded: Float[Tensor, "b d gh gw"]) -> Float[Tensor, "b c h w"]:
        """From :meth:`embed` or :meth:`mix`, with the width as second axis."""
        for stage in list(self.blocks)[1:]:
            embedded = stage(embedded)
        return embedded
