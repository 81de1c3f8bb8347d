"""Quantization by a Gumbel-softmax sample over the codebook."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.quantizers.base import Quantized, Quantizer, count_codes, perplexity
from zoo.tokens.precision import without_tf32


class GumbelQuantizer(Quantizer):
    """A linear classifier over the codes; training samples from it, anything else takes the most likely code.

    Jang et al., arXiv:1611.01144, and van den Oord et al. as in CompVis/taming-transformers (``GumbelQuantize``), whose
    names ``proj`` and ``embed`` are kept. There, evaluation samples too, so that ids differ from call to call; here
    they do not.

    Args:
        vocab_size: codes.
        dim: width of a code.
        in_dim: width of the input; that of a code by default.
        tau: temperature of the relaxation; the attribute of the same name may be changed at each step.
        kl_weight: of the KL divergence to the uniform distribution, mean over the positions.
        straight_through: one-hot forward and soft backward; off: soft in both directions.
    """

    embed: nn.Embedding

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        in_dim: int | None = None,
        tau: float = 1.0,
        kl_weight: float = 5e-4,
        straight_through: bool = True,
    ):
        super().__init__(vocab_size, dim)
        self.tau, self.kl_weight, self.straight_through = tau, kl_weight, straight_through
        self.proj = nn.Conv2d(in_dim or dim, vocab_size, 1)
        self.embed = nn.Embedding(vocab_size, dim)

    def forward(self, z: Float[Tensor, "b *n c"], gumbel: Float[Tensor, "b *n k"] | None = None) -> Quantized:
        """Quantize; ``gumbel`` replaces the noise that training draws."""
        with torch.autocast(z.device.type, enabled=False):
            logits = self.logits(z)
            q = logits.softmax(-1)
            kl = (q * (q * self.vocab_size + 1e-10).log()).sum(-1).mean()  # 1e-10 as in taming's quantize.py
            soft, likely = None, logits.detach().argmax(-1)
            if self.training:
                noise = -torch.empty_like(logits).exponential_().log() if gumbel is None else gumbel
                soft = ((logits + noise) / self.tau).softmax(-1)
                ids = soft.argmax(-1)
            else:
                ids = likely
            if soft is None:
                vectors = self.embed(ids)
            elif self.straight_through:
                mixed = soft @ self.embed.weight.detach()
                vectors = self.embed(ids) + (mixed - mixed.detach())
            else:
                vectors = soft @ self.embed.weight
        # noise spreads samples over all codes, also where one of them is the likeliest everywhere
        terms = {"kl": kl.detach(), "perplexity": perplexity(count_codes(likely, self.vocab_size))}
        return Quantized(vectors, ids, self.kl_weight * kl, terms, likely)

    def encode(self, z: Float[Tensor, "b *n c"]) -> Int[Tensor, "b *n"]:
        return self.logits(z).argmax(-1)

    def logits(self, z: Float[Tensor, "b *n c"]) -> Float[Tensor, "b *n k"]:
        """Unnormalised log-probabilities of the codes, in float32: ids near ties do not survive TF32."""
        with torch.autocast(z.device.type, enabled=False), without_tf32():
            return F.linear(z.float(), self.proj.weight[:, :, 0, 0], self.proj.bias)
