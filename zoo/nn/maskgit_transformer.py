"""The bidirectional transformer of MaskGIT: BERT's layers over the ids of a tokenizer.

Source: google-research/maskgit ``nets/maskgit_transformer.py``: layer norm after each residual sum, tanh GELU, epsilon
1e-12, output embedding tied to the input embedding. Ids: codes first, then one per class, then (an option of ours, for
classifier-free guidance) the absent class, then the mask. The class token stands before the image tokens.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-12
INIT_STD = 0.02
NO_CLASS = -1


class MaskGITTransformer(nn.Module):
    """Logits of all ids at every image position, from partly masked image tokens.

    Args:
        vocab_size: codes of the tokenizer.
        num_tokens: per image.
        num_classes: 0 makes an unconditional network without a class token.
        null_class: reserve an id for the absent class.
        width: of the tokens.
        depth: layers.
        heads: of the attention.
        mlp_width: hidden width of the MLPs; None takes four times ``width``.
        dropout: of embeddings, attention weights and residual branches.
    """

    def __init__(
        self,
        vocab_size: int,
        num_tokens: int,
        num_classes: int = 0,
        null_class: bool = False,
        width: int = 768,
        depth: int = 24,
        heads: int = 16,
        mlp_width: int | None = None,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.vocab_size, self.num_tokens, self.num_classes = vocab_size, num_tokens, num_classes
        #: where no class is given, an id of its own, if there is one
        self.null_id = vocab_size + num_classes if null_class else None
        self.mask_id = vocab_size + num_classes + null_class
        self.depth = depth
        self.word_embeddings = nn.Embedding(self.mask_id + 1, width)
        self.position_embeddings = nn.Embedding(num_tokens + (num_classes > 0), width)
        self.embeddings_norm = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        mlp_width = 4 * width if mlp_width is None else mlp_width
        self.layers = nn.ModuleList(PostNormLayer(width, heads, mlp_width, dropout) for _ in range(depth))
        self.head_dense = nn.Linear(width, width)
        self.head_norm = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.head_bias = nn.Parameter(torch.zeros(self.mask_id + 1))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, ids: Int[Tensor, "b n"], labels: Int[Tensor, " b"] | None = None) -> Float[Tensor, "b n v"]:
        """Logits of all ids, codes first, at the image positions.

        Args:
            ids: image tokens, ``mask_id`` where they are hidden.
            labels: class of each image, -1 for the absent class; None for an unconditional network.
        """
        if labels is None:
            return self.sequence_logits(ids)
        token = labels + self.vocab_size
        if self.null_id is not None:
            token = torch.where(labels == NO_CLASS, self.null_id, token)
        return self.sequence_logits(torch.cat([token.unsqueeze(1), ids], 1))[:, 1:]

    def set_heads(self, heads: int) -> None:
        """Take another number of attention heads; parameters have the same shapes for any.

        Raises:
            ValueError: for one that does not divide the width.
        """
        check_heads(self.word_embeddings.embedding_dim, heads)
        for layer in self.layers:
            assert isinstance(layer, PostNormLayer)
            layer.heads = heads

    def sequence_logits(self, sequence: Int[Tensor, "b s"]) -> Float[Tensor, "b s v"]:
        """Logits of all ids at every position of a sequence with its class token in front.

        Raises:
            ValueError: for more tokens than positions.
        """
        if sequence.shape[1] > self.position_embeddings.num_embeddings:
            raise ValueError(
                f"the sequence has {sequence.shape[1]} tokens, this network has "
                f"{self.position_embeddings.num_embeddings} positions: take images of the size it was built for"
            )
        x = self.word_embeddings(sequence) + self.position_embeddings.weight[: sequence.shape[1]]
        x = self.dropout(self.embeddings_norm(x))
        for layer in self.layers:
            x = layer(x)
        x = self.head_norm(F.gelu(self.head_dense(x), approximate="tanh"))
        return F.linear(x, self.word_embeddings.weight) + self.head_bias


def check_heads(width: int, heads: int) -> None:
    """Refuse a number of attention heads that does not divide the width."""
    if heads < 1 or width % heads:
        raise ValueError(f"width {width} is not divisible by {heads} heads")


class PostNormLayer(nn.Module):
    """Self-attention and MLP, each followed by its residual sum and a layer norm.

    Args:
        width: of the tokens.
        heads: of the attention.
        mlp_width: hidden width of the MLP.
        dropout: of attention weights and both branches.
    """

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.mlp_in = nn.Linear(width, mlp_width)
        self.mlp_out = nn.Linear(mlp_width, width)
        self.mlp_norm = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        q, k, v = rearrange(self.qkv(x), "b s (three h e) -> three b h s e", three=3, h=self.heads)
        drop = self.dropout.p if self.training else 0.0
        attended = rearrange(F.scaled_dot_product_attention(q, k, v, dropout_p=drop), "b h s e -> b s (h e)")
        x = self.attention_norm(x + self.dropout(self.out(attended)))
        return self.mlp_norm(x + self.dropout(self.mlp_out(F.gelu(self.mlp_in(x), approximate="tanh"))))
