"""Vector quantization with a codebook that is trained by gradients."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.quantizers.assignments import Assignments
from zoo.quantizers.base import Quantized, Quantizer, check_restarts, count_codes, perplexity, straight_through
from zoo.quantizers.code_entropy import code_entropy
from zoo.quantizers.kmeans import shared_kmeans
from zoo.quantizers.nearest_code import nearest_code


class VectorQuantizer(Quantizer):
    """Nearest code; straight-through gradient; codebook and commitment loss.

    van den Oord et al., arXiv:1711.00937, Eq. 3: |sg[z] - e|^2 + beta |z - sg[e]|^2, both as means over all elements.
    The parameter is ``embedding.weight``, as in CompVis/taming-transformers.

    Args:
        vocab_size: codes.
        dim: width of a code.
        beta: weight of the commitment loss.
        legacy: put beta on the codebook loss instead, as all weights published by taming and LDM were trained
            (``legacy`` of taming's VectorQuantizer2).
        entropy_weight: of the entropy loss E[H(p)] - H(E[p]) of MaskGIT (0.1 there), which keeps codes in use; it needs
            the scores of all codes with their gradient, and costs accordingly.
        entropy_temperature: of p = softmax(-|z - e|^2 / t).
        kmeans_init: start from k-means on the first training batch. A buffer remembers that this was done.
        restart_threshold: a code whose running mean of vectors per step falls below this moves to a random vector of
            the batch; 0 for never.
        decay: of that running mean.
    """

    initialised: Tensor
    cluster_size: Tensor
    updates: Tensor

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        beta: float = 0.25,
        legacy: bool = False,
        entropy_weight: float = 0.0,
        entropy_temperature: float = 0.01,
        kmeans_init: bool = False,
        restart_threshold: float = 0.0,
        decay: float = 0.99,
    ):
        super().__init__(vocab_size, dim)
        check_restarts(restart_threshold)
        self.beta, self.legacy = beta, legacy
        self.entropy_weight, self.entropy_temperature = entropy_weight, entropy_temperature
        self.kmeans_init, self.restart_threshold, self.decay = kmeans_init, restart_threshold, decay
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.uniform_(self.embedding.weight, -1 / vocab_size, 1 / vocab_size)
        if kmeans_init:
            self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))
        if restart_threshold:
            self.register_buffer("cluster_size", torch.full((vocab_size,), max(1.0, restart_threshold)))
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._ready = not kmeans_init
        self._assignments = Assignments(vocab_size, sums=False, rows=True)

    def forward(self, z: Float[Tensor, "b *n d"]) -> Quantized:
        """Quantize; the loss is computed in float32."""
        with torch.autocast(z.device.type, enabled=False):
            flat = self._prepare(z.float().reshape(-1, self.dim))
            if self.training and not self._ready:
                self._initialise(flat)
            codebook = self.codebook
            ids = nearest_code(flat, codebook)
            codes = F.embedding(ids, codebook)
            if self.training and self.restart_threshold:
                self._assignments.watch(flat, ids)
            towards_codes, towards_z = F.mse_loss(flat, codes.detach()), F.mse_loss(codes, flat.detach())
            loss = towards_codes + self.beta * towards_z if self.legacy else self.beta * towards_codes + towards_z
            terms = {
                "commitment": towards_codes.detach(),
                "perplexity": perplexity(count_codes(ids, self.vocab_size)),
            }
            if self.entropy_weight and self.training:
                each, mean = code_entropy(flat, codebook, self.entropy_temperature)
                loss = loss + self.entropy_weight * (each - mean)
                terms |= {"entropy_each": each.detach(), "entropy_mean": mean.detach()}
            vectors = straight_through(flat, codes)
        return Quantized(vectors.reshape(z.shape), ids.reshape(z.shape[:-1]), loss, terms)

    def encode(self, z: Float[Tensor, "b *n d"]) -> Int[Tensor, "b *n"]:
        return nearest_code(self._prepare(z.float().reshape(-1, self.dim)), self.codebook).reshape(z.shape[:-1])

    def embed(self, ids: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        return F.embedding(ids, self.codebook)

    @property
    def codebook(self) -> Float[Tensor, "k d"]:
        """The codes that vectors are compared with, one per row."""
        return self.embedding.weight

    def _prepare(self, flat: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The form of the vectors that is compared with the codes."""
        return flat

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _initialise(self, flat: Float[Tensor, "n d"]) -> None:
        if not self.initialised:
            centres, _ = shared_kmeans(flat.detach(), self.vocab_size)
            self.embedding.weight.copy_(centres)
            self.initialised.fill_(True)
        self._ready = True

    @torch.no_grad()
    def update(self) -> None:
        """Restart codes that are not used any more."""
        if not self.restart_threshold or (found := self._assignments.take(self.codebook)) is None:
            return
        self.updates += 1
        self.cluster_size.lerp_(found.counts, 1 - self.decay)
        dead = self.cluster_size < self.restart_threshold
        if dead.any():
            rows = found.sample(self.vocab_size, seed=int(self.updates))
            self.embedding.weight.copy_(torch.where(dead[:, None], rows, self.embedding.weight))
            self.cluster_size[dead] = max(1.0, self.restart_threshold)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._ready = not self.kmeans_init  # look at the buffer again
