"""Lookup-free quantization: the signs of the channels."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from zoo.distributed import mean_over_ranks
from zoo.quantizers.base import Quantized, Quantizer, straight_through
from zoo.quantizers.code_entropy import mixture_entropy


class LFQ(Quantizer):
    """Each channel becomes +1 where it is positive and -1 elsewhere; an entropy loss in training keeps codes in use.

    Yu et al., arXiv:2310.05737 (MAGVIT-v2), Section 3.1: ids are binary numbers, bit i with weight 2^i; the loss is
    entropy_weight (E[H(p)] - diversity H(E[p])) + beta |z - sg[q]|^2 with p = softmax(2 z.q / temperature) over all
    codes. H(p) is a sum over the channels, exactly; H(E[p]) is computed per group of channels and summed, which is an
    upper bound where there is more than one group.

    Args:
        bits: channels; there are 2^bits codes.
        entropy_weight: 0.1 in TencentARC/SEED-Voken.
        diversity: weight of H(E[p]) against E[H(p)].
        beta: weight of the commitment loss.
        temperature: of p; 0.01 in SEED-Voken.
        group_bits: channels per group at most; its cost grows as 2^group_bits.
    """

    powers: Tensor

    def __init__(
        self,
        bits: int,
        entropy_weight: float = 0.1,
        diversity: float = 1.0,
        beta: float = 0.25,
        temperature: float = 0.01,
        group_bits: int = 10,
    ):
        if not 1 <= bits <= 30:
            raise ValueError(f"bits must lie in 1..30, got {bits}")
        super().__init__(2**bits, bits)
        self.bits, self.group_bits = bits, group_bits
        self.entropy_weight, self.diversity = entropy_weight, diversity
        self.beta, self.temperature = beta, temperature
        self.register_buffer("powers", 2 ** torch.arange(bits), persistent=False)

    def forward(self, z: Float[Tensor, "b *n d"]) -> Quantized:
        """Quantize; vectors are -1 and +1."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            signs = self._signs(z)
            commitment = F.mse_loss(z, signs)
            loss = self.beta * commitment
            terms = {"commitment": commitment.detach()}
            if self.entropy_weight and self.training:
                each, mean = self.entropies(z.reshape(-1, self.bits))
                loss = loss + self.entropy_weight * (each - self.diversity * mean)
                terms |= {"entropy_each": each.detach(), "entropy_mean": mean.detach()}
            return Quantized(straight_through(z, signs), self.encode(z), loss, terms)

    def encode(self, z: Float[Tensor, "b *n d"]) -> Int[Tensor, "b *n"]:
        return ((z > 0) * self.powers).sum(-1)  # whole numbers: floats would lose the low bits

    def embed(self, ids: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        return (ids[..., None] // self.powers % 2 * 2 - 1).float()

    def entropies(self, z: Float[Tensor, "n d"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """E[H(p)] and H(E[p]) in nats; the mean of p is taken over all ranks."""
        logits = 4 * z / self.temperature  # of +1 against -1
        on = logits.sigmoid()
        each = (F.softplus(logits) - on * logits).sum(1).mean()
        mean = z.new_zeros(())
        for group in on.split(self.group_bits, dim=1):
            joint = group.new_ones(len(group), 1)
            for p in group.unbind(1):
                joint = rearrange(joint[..., None] * torch.stack([1 - p, p], 1)[:, None], "n k two -> n (k two)")
            mean = mean + mixture_entropy(mean_over_ranks(joint.mean(0)))
        return each, mean

    def _signs(self, z: Float[Tensor, "b *n d"]) -> Float[Tensor, "b *n d"]:
        return torch.where(z > 0, 1.0, -1.0)
