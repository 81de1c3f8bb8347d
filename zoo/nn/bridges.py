"""Bridges from the tokens of an image encoder to those that a language model reads.

All have the same contract, ``b n e -> b t d``, with ``num_tokens`` (t) and ``width`` (d).

Sources: BLIP-2 (arXiv:2301.12597) for queries, LLaVA (arXiv:2304.08485, arXiv:2310.03744) for one and more linear
layers, MiniGPT-4's Llama-2 version (Vision-CAIR/MiniGPT-4, commit d94738a) for merged tokens.
"""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from zoo.nn.qformer import EPS, QFormer
from zoo.nn.qformer_sizes import QFormerSizes


class QueryBridge(nn.Module):
    """Learned queries that read the image: BLIP-2's Q-Former without text, or Flamingo's resampler.

    ``mixing="self_then_cross", norm="post", cross_every=2`` is BLIP-2's; ``mixing="joint", norm="pre", cross_every=1,
    bias=False, eps=1e-5`` is Flamingo's resampler, one attention with k = v = [image ; queries] per layer.

    Args:
        num_queries: tokens that come out.
        width: of the queries.
        depth: layers.
        heads: attention heads.
        mlp_width: hidden units of the feed-forward networks.
        image_width: of the image tokens.
        cross_every: layers ``0, n, 2n, ...`` read the image.
        mixing: how, see :class:`zoo.nn.qformer.QFormer`.
        norm: ``post`` or ``pre``, likewise.
        bias: whether linear layers have one.
        dropout: of hidden states and attention.
        head_width: of an attention head; None takes ``width / heads``.
        eps: of the LayerNorms.
        query_mlp_width: in place of ``mlp_width``, as there is no text here.
    """

    def __init__(
        self,
        num_queries: int = 32,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_width: int = 3072,
        image_width: int = 1408,
        cross_every: int = 2,
        mixing: Literal["self_then_cross", "joint", "cross_only"] = "self_then_cross",
        norm: Literal["post", "pre"] = "post",
        bias: bool = True,
        dropout: float = 0.1,
        head_width: int | None = None,
        eps: float = EPS,
        query_mlp_width: int | None = None,
    ):
        super().__init__()
        if num_queries < 1:
            raise ValueError(f"num_queries must be at least 1, got {num_queries}")
        self.num_tokens, self.width = num_queries, width
        self.query_tokens = nn.Parameter(torch.randn(1, num_queries, width) * 0.02)
        self.Qformer = QFormer(
            width,
            depth,
            heads,
            mlp_width,
            image_width,
            0,
            0,
            cross_every,
            mixing,
            norm,
            bias,
            dropout,
            head_width,
            eps,
            query_mlp_width=query_mlp_width,
        )  # fmt: skip

    @classmethod
    def of(cls, sizes: QFormerSizes, image_width: int) -> "QueryBridge":
        """The bridge of these settings for image tokens of a width."""
        s = sizes
        return cls(
            s.queries, s.width, s.depth, s.heads, s.mlp_width, image_width, s.cross_every, s.mixing, s.norm,
            dropout=s.dropout, query_mlp_width=s.query_mlp_width,
        )  # fmt: skip

    def forward(self, image: Float[Tensor, "b n e"]) -> Float[Tensor, "b t d"]:
        """Last hidden states of the queries."""
        return self.Qformer(self.query_tokens.expand(len(image), -1, -1), image).queries


class MLPBridge(nn.Sequential):
    """Every image token by itself through linear layers with exact GELU between them; one layer is LLaVA-1.0's.

    Args:
        image_width: of the image tokens.
        width: of what comes out.
        num_tokens: image tokens.
        depth: linear layers: 1 in LLaVA-1.0, 2 in LLaVA-1.5.
    """

    def __init__(self, image_width: int, width: int, num_tokens: int, depth: int = 2):
        if depth < 1:
            raise ValueError(f"a projector has at least 1 linear layer, got {depth}")
        layers: list[nn.Module] = [nn.Linear(image_width, width)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(width, width)]
        super().__init__(*layers)
        self.num_tokens, self.width = num_tokens, width


def merge_tokens(tokens: Float[Tensor, "b n e"], group: int) -> Float[Tensor, "b m f"]:
    """Join neighbours of the raster order into one wider token, as MiniGPT-4's Llama-2 version does with four.

    Raises:
        ValueError: where the number of tokens is no multiple.
    """
    if tokens.shape[1] % group:
        raise ValueError(f"{tokens.shape[1]} image tokens cannot be merged by {group}: take a divisor")
    return rearrange(tokens, "b (m g) e -> b m (g e)", g=group)
