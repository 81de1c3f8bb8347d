"""EVA-CLIP's vision transformer without its last block, the image encoder of BLIP-2.

Source: EVA (arXiv:2211.07636), as used by BLIP-2 (arXiv:2301.12597), Section 3.4; sizes and parameter names from
salesforce/LAVIS ``lavis/models/eva_vit.py`` (commit 506965b). The published network has 40 blocks: BLIP-2 takes the
features before the last one, so only 39 are built, and there is no final norm and no head.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

EPS = 1e-6


class EvaViT(nn.Module):
    """Class token and patches of an image, without a final norm.

    Args:
        image_size: side in pixels.
        patch_size: side of a patch.
        width: of the tokens.
        depth: blocks.
        heads: attention heads.
        mlp_width: hidden units; ``int(1408 * 4.3637)`` in the published network.
    """

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 14,
        width: int = 1408,
        depth: int = 39,
        heads: int = 16,
        mlp_width: int = 6144,
    ):
        super().__init__()
        if image_size % patch_size or width % heads:
            raise ValueError(
                f"image_size {image_size} must be a multiple of patch_size {patch_size}, width {width} of heads {heads}"
            )
        self.width, self.num_tokens = width, (image_size // patch_size) ** 2 + 1
        self.patch_embed = _PatchEmbed(width, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.num_tokens, width))
        self.blocks = nn.ModuleList(_Block(width, heads, mlp_width) for _ in range(depth))
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        """Tokens of normalised images; the class token is first."""
        x = rearrange(self.patch_embed.proj(images), "b d gh gw -> b (gh gw) d")
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x


def resize_positions(positions: Float[Tensor, "1 n d"], num_tokens: int) -> Float[Tensor, "1 m d"]:
    """Positions of another square grid, bicubic with ``align_corners=False``; the class token's is kept."""
    old, new = (round((n - 1) ** 0.5) for n in (positions.shape[1], num_tokens))
    if old == new:
        return positions
    grid = rearrange(positions[:, 1:], "1 (gh gw) d -> 1 d gh gw", gh=old)
    grid = F.interpolate(grid.float(), size=(new, new), mode="bicubic", align_corners=False).to(positions.dtype)
    return torch.cat([positions[:, :1], rearrange(grid, "1 d gh gw -> 1 (gh gw) d")], dim=1)


class _PatchEmbed(nn.Module):
    """Projection of patches, one level down as LAVIS names it."""

    def __init__(self, width: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, patch_size)


class _MLP(nn.Module):
    """Two layers with exact GELU."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    """Pre-norm attention and MLP, without LayerScale."""

    def __init__(self, width: int, heads: int, mlp_width: int):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, EPS), _Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, EPS), _MLP(width, mlp_width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Attention(nn.Module):
    """Self-attention whose keys have no bias."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias.to(self.qkv.weight.dtype))
        q, k, v = rearrange(qkv, "b n (three heads c) -> three b heads n c", three=3, heads=self.heads)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n c -> b n (heads c)"))
