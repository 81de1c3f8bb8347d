"""The PatchGAN discriminator: one logit per overlapping patch.

Isola et al. 2017, arXiv:1611.07004, Section 3.2; names and initialisation of CompVis/taming-transformers
(``taming/modules/discriminator/model.py``), which took them from pix2pix.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.distributed import mean_over_ranks, world_size

MAX_MULTIPLIER = 8


class PatchGAN(nn.Module):
    """Image to a map of logits, high where a patch looks real.

    Args:
        width: channels of the first convolution (``ndf``).
        layers: strided convolutions; 3 see patches of 70 pixels (``n_layers``).
        channels: of the image.
    """

    def __init__(self, width: int = 64, layers: int = 3, channels: int = 3):
        super().__init__()
        stages: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        n_in = width
        for i in range(1, layers + 1):
            n_out = width * min(2**i, MAX_MULTIPLIER)
            conv = nn.Conv2d(n_in, n_out, 4, stride=2 if i < layers else 1, padding=1, bias=False)
            stages += [conv, JointBatchNorm2d(n_out), nn.LeakyReLU(0.2)]
            n_in = n_out
        stages.append(nn.Conv2d(n_in, 1, 4, padding=1))
        self.main = nn.Sequential(*stages)
        self.apply(_initialise)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 ph pw"]:
        return self.main(images)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class JointBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes, which hold equally many images.

    torch's own joint one refuses to run on a CPU.
    """

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if not self.training or world_size() == 1:
            return super().forward(x)
        x = x.float()
        mean = mean_over_ranks(x.mean((0, 2, 3)))
        centred = x - mean[:, None, None]
        variance = mean_over_ranks(centred.square().mean((0, 2, 3)))
        count = world_size() * x.numel() // x.shape[1]
        assert self.running_mean is not None  # as built by PatchGAN: with running statistics and a momentum
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]
