"""Features of tokens that have no place in the image, for models that else predict one id per patch; ours."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class SequenceDecoder(nn.Module):
    """One feature per token of a sequence, read from the features of all patches.

    A pre-norm transformer decoder layer whose queries are learned positions of the sequence, and a norm.

    Args:
        num_tokens: of the sequence.
        width: of patches and tokens.
        heads: of the attention.
        mlp_ratio: hidden width of the MLP in units of ``width``.
        eps: of every LayerNorm.
    """

    def __init__(self, num_tokens: int, width: int, heads: int, mlp_ratio: float = 4.0, eps: float = 1e-6):
        super().__init__()
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, num_tokens, width), std=0.02))
        self.layer = nn.TransformerDecoderLayer(
            width, heads, int(width * mlp_ratio), dropout=0.0, activation="gelu", layer_norm_eps=eps, batch_first=True,
            norm_first=True,
        )  # fmt: skip
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, patches: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        """Let every token of the sequence look at the others and at all patches."""
        return self.norm(self.layer(self.pos_embed.expand(len(patches), -1, -1), patches))
