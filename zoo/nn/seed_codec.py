"""Between the causal embeddings of an image and SEED's codes: task layers, transformer blocks, and the de-tokenizer.

Source: SEED (arXiv:2307.08041), Section 3.2; sizes and names from AILab-CVC/SEED ``models/seed_qformer/
qformer_quantizer.py`` (commit 93b3cf4, Apache-2.0), whose published weights have the MLP de-tokenizer.
"""

from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.choices import one_of
from zoo.nn.qformer import QFormer

DOWN = (256, 128, 32)  # widths of the MLP de-tokenizer
EPS = 1e-6  # of the blocks' norms


def task_layer(width: int, out_width: int) -> nn.Sequential:
    """Linear, tanh, linear; the hidden layer is as wide as the input."""
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out_width))


def codec_blocks(width: int, depth: int, heads: int, mlp_ratio: float = 4.0) -> nn.Sequential:
    """Pre-norm transformer blocks over the tokens, without a final norm."""
    from functools import partial

    from timm.models.vision_transformer import Block

    norm = partial(nn.LayerNorm, eps=EPS)
    return nn.Sequential(*(Block(width, heads, mlp_ratio, qkv_bias=True, norm_layer=norm) for _ in range(depth)))


class Detokenizer(nn.Module):
    """From what the blocks make of the codes to the generation embedding.

    ``mlp``: three linear layers without bias per token, all tokens joined, one linear layer (the published SEED-2).
    ``reverse_qformer``: a Q-Former whose queries read the tokens, one linear layer per query (SEED-1 with 77 queries,
    and the training code of SEED-2 with one).

    Args:
        kind: of these.
        num_tokens: codes per image.
        width: of the tokens.
        out_width: of the generation embedding.
        queries: of the reverse Q-Former.
        depth: its layers.
        heads: its attention heads.
        mlp_width: its hidden units.
        dropout: of its hidden states and attention.
    """

    def __init__(
        self,
        kind: Literal["mlp", "reverse_qformer"],
        num_tokens: int,
        width: int,
        out_width: int,
        queries: int = 1,
        depth: int = 4,
        heads: int = 12,
        mlp_width: int = 3072,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.kind = one_of("detokenizer", kind, ("mlp", "reverse_qformer"))
        if kind == "mlp":
            widths = (width, *DOWN)
            layers: list[nn.Module] = []
            for low, high in pairwise(widths):
                layers += [nn.Linear(low, high, bias=False), nn.ReLU()]
            self.image_down = nn.Sequential(*layers[:-1])
            self.distill_image_proj = nn.Linear(num_tokens * DOWN[-1], out_width)
        else:
            self.reverse_tokens = nn.Parameter(torch.randn(1, queries, width) * 0.02)
            self.Reverse_Qformer = QFormer(width, depth, heads, mlp_width, width, vocab_size=0, dropout=dropout)
            self.distill_image_proj = nn.Linear(width, out_width)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b ..."]:
        """One vector per image, or one per query where there are several."""
        if self.kind == "mlp":
            return self.distill_image_proj(self.image_down(tokens).flatten(1))
        queries = self.reverse_tokens.expand(len(tokens), -1, -1)
        found = self.distill_image_proj(self.Reverse_Qformer(queries, tokens).queries)
        return found.squeeze(1) if found.shape[1] == 1 else found
