"""The masked transformer of valeoai/Maskgit-pytorch v1.0, which is another network than MaskGIT's own.

Source: ``Network/transformer.py`` there (MIT). Layer norm before each branch, two dense layers before the first and one
after the last block, exact GELU, a bias per position and id, the class token behind the image tokens. Ids: codes, mask,
classes, absent class. Parameter names are the published ones.
"""

from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.nn.maskgit_transformer import INIT_STD, LAYER_NORM_EPS, NO_CLASS, check_heads


class PreNormMaskGIT(nn.Module):
    """Logits of codes and mask at every image position, from partly masked image tokens.

    Args:
        vocab_size: codes of the tokenizer.
        num_tokens: per image.
        num_classes: 0 always takes the absent class.
        width: of the tokens.
        depth: blocks.
        heads: of the attention.
        mlp_width: hidden width of the MLPs; None takes four times ``width``.
        dropout: of the network.
    """

    def __init__(
        self,
        vocab_size: int,
        num_tokens: int,
        num_classes: int = 0,
        width: int = 768,
        depth: int = 24,
        heads: int = 16,
        mlp_width: int | None = None,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.vocab_size, self.num_tokens, self.num_classes = vocab_size, num_tokens, num_classes
        self.mask_id = vocab_size
        self.null_id = vocab_size + 1 + num_classes
        self.tok_emb = nn.Embedding(self.null_id + 1, width)
        self.pos_emb = nn.Parameter(nn.init.trunc_normal_(torch.zeros(1, num_tokens + 1, width), std=INIT_STD))
        self.first_layer = nn.Sequential(
            nn.LayerNorm(width, LAYER_NORM_EPS), nn.Dropout(dropout), nn.Linear(width, width), nn.GELU(),
            nn.LayerNorm(width, LAYER_NORM_EPS), nn.Dropout(dropout), nn.Linear(width, width),
        )  # fmt: skip
        mlp_width = 4 * width if mlp_width is None else mlp_width
        blocks = (
            nn.ModuleList([AttentionBranch(width, heads, dropout), MLPBranch(width, mlp_width, dropout)])
            for _ in range(depth)
        )
        self.transformer = nn.ModuleDict({"layers": nn.ModuleList(blocks)})
        self.last_layer = nn.Sequential(
            nn.LayerNorm(width, LAYER_NORM_EPS), nn.Dropout(dropout), nn.Linear(width, width), nn.GELU(),
            nn.LayerNorm(width, LAYER_NORM_EPS),
        )  # fmt: skip
        self.bias = nn.Parameter(torch.zeros(num_tokens + 1, self.null_id + 1))

    def forward(self, ids: Int[Tensor, "b n"], labels: Int[Tensor, " b"] | None = None) -> Float[Tensor, "b n v"]:
        """Logits of the codes and, last, of the mask id.

        Args:
            ids: image tokens, ``mask_id`` where they are hidden.
            labels: class of each image, -1 for the absent class; None makes all of them absent.
        """
        if labels is None:
            labels = ids.new_full((len(ids),), NO_CLASS)
        token = torch.where(labels == NO_CLASS, self.null_id, labels + self.vocab_size + 1)
        x = self.first_layer(self.tok_emb(torch.cat([ids, token.unsqueeze(1)], 1)) + self.pos_emb)
        for branches in cast("nn.ModuleList", self.transformer["layers"]):
            attention, mlp = cast("nn.ModuleList", branches)
            x = x + attention(x)
            x = x + mlp(x)
        kept = self.vocab_size + 1
        return F.linear(self.last_layer(x)[:, :-1], self.tok_emb.weight[:kept]) + self.bias[:-1, :kept]

    def set_heads(self, heads: int) -> None:
        """Take another number of attention heads; parameters have the same shapes for any.

        Raises:
            ValueError: for one that does not divide the width.
        """
        check_heads(self.tok_emb.embedding_dim, heads)
        for module in self.modules():
            if isinstance(module, AttentionBranch):
                module.heads = heads


class AttentionBranch(nn.Module):
    """Layer norm and self-attention.

    Args:
        width: of the tokens.
        heads: of the attention.
        dropout: of the attention weights.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        check_heads(width, heads)
        self.norm = nn.LayerNorm(width)
        #: its forward is not used: it leaves the fused kernels where gradients are needed
        self.fn = nn.ModuleDict({"mha": nn.MultiheadAttention(width, heads, dropout, batch_first=True)})
        self.heads, self.dropout = heads, dropout

    def forward(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        mha: nn.MultiheadAttention = self.fn["mha"]  # type: ignore[assignment]
        qkv = F.linear(self.norm(x), mha.in_proj_weight, mha.in_proj_bias)
        q, k, v = rearrange(qkv, "b s (three h e) -> three b h s e", three=3, h=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return mha.out_proj(rearrange(attended, "b h s e -> b s (h e)"))


class MLPBranch(nn.Module):
    """Layer norm and MLP.

    Args:
        width: of the tokens.
        mlp_width: hidden width.
        dropout: of both layers.
    """

    def __init__(self, width: int, mlp_width: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        net = nn.Sequential(
            nn.Linear(width, mlp_width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(mlp_width, width),
            nn.Dropout(dropout),
        )
        self.fn = nn.ModuleDict({"net": net})

    def forward(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        return self.fn["net"](self.norm(x))
