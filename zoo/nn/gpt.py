"""The GPT of taming-transformers' second stage: a pre-norm decoder with learned positions and a key/value cache.

Source: CompVis/taming-transformers ``taming/modules/transformer/mingpt.py`` (MIT); parameter names are the published
ones. Exact GELU, biases everywhere but in the head, separate projections for queries, keys and values.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

INIT_STD = 0.02


def attention_mask(positions: int, n_unmasked: int = 0) -> Bool[Tensor, "n n"]:
    """True where a row's position sees a column's: itself, those before, and among the first ``n_unmasked`` all."""
    mask = torch.ones(positions, positions, dtype=torch.bool).tril()
    mask[:n_unmasked, :n_unmasked] = True
    return mask


class KeyValueCache:
    """Keys and values of the tokens that were seen, for all blocks.

    Args:
        depth: blocks.
        shape: ``(batch, heads, tokens, head width)`` of a block's keys.
        like: a tensor of the wanted type and device.
    """

    def __init__(self, depth: int, shape: tuple[int, int, int, int], like: Tensor):
        self.keys = like.new_empty(depth, *shape)
        self.values = like.new_empty(depth, *shape)
        self.length = 0

    def add(
        self, block: int, keys: Float[Tensor, "b h s e"], values: Float[Tensor, "b h s e"]
    ) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t e"]]:
        """Append to one block and return all of its keys and values; ``length`` moves on with the last block."""
        end = self.length + keys.shape[2]
        self.keys[block, :, :, self.length : end] = keys
        self.values[block, :, :, self.length : end] = values
        if block == len(self.keys) - 1:
            self.length = end
        return self.keys[block, :, :, :end], self.values[block, :, :, :end]


class GPT(nn.Module):
    """Logits of the next id at every position.

    Args:
        num_ids: rows of the input table.
        vocab_size: ids that can be predicted.
        block_size: positions.
        width: of the tokens.
        depth: blocks.
        heads: of the attention.
        dropout: of embeddings, attention weights and residual branches.
        n_unmasked: the first so many tokens see each other, whatever their order; 0 or 1 for none.
    """

    prefix_mask: Tensor | None

    def __init__(
        self,
        num_ids: int,
        vocab_size: int,
        block_size: int,
        width: int,
        depth: int,
        heads: int,
        dropout: float = 0.0,
        n_unmasked: int = 0,
    ):
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        if not 0 <= n_unmasked <= block_size:
            raise ValueError(f"n_unmasked must lie in 0..{block_size}, the positions, got {n_unmasked}")
        self.block_size, self.heads, self.n_unmasked = block_size, heads, n_unmasked
        mask = attention_mask(block_size, n_unmasked) if n_unmasked > 1 else None
        self.register_buffer("prefix_mask", mask, persistent=False)
        self.tok_emb = nn.Embedding(num_ids, width)
        self.pos_emb = nn.Parameter(torch.zeros(1, block_size, width))
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, ids: Int[Tensor, "b s"], cache: KeyValueCache | None = None) -> Float[Tensor, "b s v"]:
        """Logits of what follows each token.

        Args:
            ids: of the input table; with a cache, only those that it has not seen.
            cache: of the tokens before; is added to.

        Raises:
            ValueError: for more tokens than positions, or a cache that begins inside the unmasked prefix.
        """
        start = 0 if cache is None else cache.length
        if cache is not None and start + ids.shape[1] < self.n_unmasked:
            raise ValueError(
                f"the first {self.n_unmasked} tokens see each other, so a cache takes them all at once, not "
                f"{start + ids.shape[1]} of them"
            )
        if start + ids.shape[1] > self.block_size:
            raise ValueError(
                f"the sequence has {start + ids.shape[1]} tokens, this network has {self.block_size} positions: "
                "take images of the size it was built for"
            )
        x = self.drop(self.tok_emb(ids) + self.pos_emb[:, start : start + ids.shape[1]])
        mask = None
        if self.prefix_mask is not None and start == 0:
            mask = self.prefix_mask[: ids.shape[1], : ids.shape[1]]
        for i, block in enumerate(self.blocks):
            x = block(x, i, cache, mask)
        return self.head(self.ln_f(x))

    def new_cache(self, batch: int) -> KeyValueCache:
        """Room for all positions."""
        width = self.pos_emb.shape[2]
        return KeyValueCache(
            len(self.blocks), (batch, self.heads, self.block_size, width // self.heads), self.tok_emb.weight
        )


class Block(nn.Module):
    """Layer norm and causal self-attention, layer norm and MLP, each with its residual sum.

    Args:
        width: of the tokens.
        heads: of the attention.
        dropout: of attention weights and both branches.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.ln1 = nn.LayerNorm(width)
        self.ln2 = nn.LayerNorm(width)
        self.attn = CausalSelfAttention(width, heads, dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(
        self,
        x: Float[Tensor, "b s d"],
        number: int,
        cache: KeyValueCache | None,
        mask: Bool[Tensor, "s s"] | None = None,
    ) -> Float[Tensor, "b s d"]:
        x = x + self.attn(self.ln1(x), number, cache, mask)
        return x + self.mlp(self.ln2(x))


class CausalSelfAttention(nn.Module):
    """Attention to this token and those before it, or to what a mask allows.

    Args:
        width: of the tokens.
        heads: of the attention.
        dropout: of attention weights and output.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)
        self.resid_drop = nn.Dropout(dropout)
        self.heads = heads

    def forward(
        self,
        x: Float[Tensor, "b s d"],
        number: int,
        cache: KeyValueCache | None,
        mask: Bool[Tensor, "s s"] | None = None,
    ) -> Float[Tensor, "b s d"]:
        q, k, v = (
            rearrange(layer(x), "b s (h e) -> b h s e", h=self.heads) for layer in (self.query, self.key, self.value)
        )
        alone = cache is None or cache.length == 0
        if cache is not None:
            if not alone and x.shape[1] > 1:
                raise ValueError("after the first tokens, a cache takes one at a time")
            k, v = cache.add(number, k, v)
        drop = self.resid_drop.p if self.training else 0.0
        causal = mask is None and alone and x.shape[1] > 1
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop, is_causal=causal)
        return self.resid_drop(self.proj(rearrange(attended, "b h s e -> b s (h e)")))
