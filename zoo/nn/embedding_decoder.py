"""From one vector to an image: a small convolutional network that is told the vector at every resolution."""

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class EmbeddingDecoder(nn.Module):
    """4x4 cells from the vector, then residual blocks and nearest-neighbour doubling; pixels through a sigmoid.

    Args:
        in_width: of the vector, about of mean 0 and deviation 1.
        hidden: what it is reduced to.
        widths: channels at 4, 8, 16, ... pixels.
    """

    def __init__(self, in_width: int, hidden: int, widths: tuple[int, ...]):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(in_width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.start = nn.Linear(hidden, widths[0] * 16)
        previous = (widths[0], *widths)
        self.blocks = nn.ModuleList(_Block(low, high, hidden) for low, high in zip(previous, widths, strict=False))
        self.norm = nn.GroupNorm(_groups(widths[-1]), widths[-1])
        self.out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, vector: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 h w"]:
        """Images in [0, 1]."""
        code = self.inner(vector)
        x = rearrange(self.start(code), "b (c h w) -> b c h w", h=4, w=4)
        for i, block in enumerate(self.blocks):
            x = block(F.interpolate(x, scale_factor=2.0, mode="nearest") if i else x, code)
        return self.out(F.silu(self.norm(x))).sigmoid()


class _Block(nn.Module):
    """Two convolutions whose norm is scaled and shifted by the vector, and a shortcut."""

    def __init__(self, in_width: int, width: int, hidden: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(_groups(in_width), in_width), nn.Conv2d(in_width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(_groups(width), width), nn.Conv2d(width, width, 3, padding=1)
        self.told = nn.Linear(hidden, 2 * width)
        self.shortcut = nn.Conv2d(in_width, width, 1) if in_width != width else nn.Identity()

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.told(code)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.shortcut(x) + h


def _groups(width: int) -> int:
    """About eight channels to a group."""
    return next(g for g in (8, 6, 4, 3, 2, 1) if width % g == 0 and width // g >= 2)
