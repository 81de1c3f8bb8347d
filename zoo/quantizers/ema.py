"""Vector quantization with a codebook of running means."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from zoo.quantizers.assignments import Assignments
from zoo.quantizers.base import Quantized, Quantizer, check_restarts, count_codes, perplexity, straight_through
from zoo.quantizers.kmeans import shared_kmeans
from zoo.quantizers.nearest_code import nearest_code


class EMAQuantizer(Quantizer):
    """Nearest code; every code is the running mean of the vectors that chose it; the loss is the commitment loss.

    van den Oord et al., arXiv:1711.00937, appendix A.1: N <- g N + (1 - g) n, m <- g m + (1 - g) sum of z, e = m / N~,
    with n and the sums over the batches of all ranks since the last optimizer step, and N~ = N with Laplace smoothing,
    (N + eps) / (sum N + K eps) sum N. :meth:`update` does that. The buffers ``embed`` (d, K), ``cluster_size`` and
    ``embed_avg`` have the names and shapes of rosinality/vq-vae-2-pytorch.

    Args:
        vocab_size: codes.
        dim: width of a code.
        beta: weight of the commitment loss |z - sg[e]|^2, a mean over all elements.
        decay: g.
        epsilon: of the Laplace smoothing.
        debias: start N and m at zero and divide them by 1 - g^t, as in deepmind/sonnet; codes that nobody has chosen
            are then zero after the first step. By default N starts at one and m at the codes: starting at zero
            without the division multiplies unused codes by 1e5 in the first step.
        kmeans_init: start from k-means on the first training batch. A buffer remembers that this was done.
        restart_threshold: a code with N below this moves to a random vector of the batch, and its N and m with it; 0
            for never.
    """

    cluster_size: Tensor
    embed_avg: Tensor
    updates: Tensor
    initialised: Tensor

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        beta: float = 0.25,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        debias: bool = False,
        kmeans_init: bool = False,
        restart_threshold: float = 0.0,
    ):
        super().__init__(vocab_size, dim)
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        check_restarts(restart_threshold)
        self.beta, self.decay, self.epsilon, self.debias = beta, decay, epsilon, debias
        self.kmeans_init, self.restart_threshold = kmeans_init, restart_threshold
        codes = torch.randn(dim, vocab_size)
        self._buffers["embed"] = codes  # past register_buffer, which refuses the name of a method; see codebook
        self.register_buffer("cluster_size", torch.zeros(vocab_size) if debias else torch.ones(vocab_size))
        self.register_buffer("embed_avg", torch.zeros(dim, vocab_size) if debias else codes.clone())
        if debias or restart_threshold:
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        if kmeans_init:
            self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))
        self._ready = not kmeans_init
        self._assignments = Assignments(vocab_size, sums=True, rows=restart_threshold > 0)

    def forward(self, z: Float[Tensor, "b *n d"]) -> Quantized:
        """Quantize; the codebook changes in :meth:`update`."""
        with torch.autocast(z.device.type, enabled=False):
            flat = z.float().reshape(-1, self.dim)
            if self.training and not self._ready:
                self._initialise(flat)
            ids = nearest_code(flat, self.codebook)
            codes = F.embedding(ids, self.codebook)
            if self.training:
                self._assignments.watch(flat, ids)
            commitment = F.mse_loss(flat, codes)
            vectors = straight_through(flat, codes)
        terms = {
            "commitment": commitment.detach(),
            "perplexity": perplexity(count_codes(ids, self.vocab_size)),
        }
        return Quantized(vectors.reshape(z.shape), ids.reshape(z.shape[:-1]), self.beta * commitment, terms)

    def encode(self, z: Float[Tensor, "b *n d"]) -> Int[Tensor, "b *n"]:
        return nearest_code(z.float().reshape(-1, self.dim), self.codebook).reshape(z.shape[:-1])

    def embed(self, ids: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        return F.embedding(ids, self.codebook)

    @property
    def codebook(self) -> Float[Tensor, "k d"]:
        """The buffer ``embed``, one code per row; what stands in it must be changed in place."""
        codes = self._buffers["embed"]
        assert codes is not None
        return codes.t()

    @torch.no_grad()
    def update(self) -> None:
        """One step of the running means, and restarts."""
        if (found := self._assignments.take(self.codebook)) is None:
            return
        self.cluster_size.lerp_(found.counts, 1 - self.decay)
        self.embed_avg.lerp_(found.sums.t(), 1 - self.decay)
        if self.debias or self.restart_threshold:
            self.updates += 1
        bias = 1 - self.decay ** self.updates.double() if self.debias else 1.0
        size, total = self.cluster_size / bias, self.embed_avg / bias
        smooth = (size + self.epsilon) / (size.sum() + self.vocab_size * self.epsilon) * size.sum()
        self.codebook.copy_((total / smooth).t())
        if self.restart_threshold and (dead := size < self.restart_threshold).any():
            rows = found.sample(self.vocab_size, seed=int(self.updates))
            self.codebook.copy_(torch.where(dead[:, None], rows, self.codebook))
            # N and m too, or the next step would bring the old code back
            start = max(1.0, self.restart_threshold) * bias
            self.cluster_size.copy_(torch.where(dead, start, self.cluster_size))
            self.embed_avg.copy_(torch.where(dead, start * rows.t(), self.embed_avg))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _initialise(self, flat: Float[Tensor, "n d"]) -> None:
        if not self.initialised:
            centres, counts = shared_kmeans(flat.detach(), self.vocab_size)
            self.codebook.copy_(centres)
            if not self.debias:
                counts = counts.clamp(min=1)  # a code without vectors keeps its place instead of falling to zero
                self.cluster_size.copy_(counts)
                self.embed_avg.copy_((centres * counts[:, None]).t())
            self.initialised.fill_(True)
        self._ready = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._ready = not self.kmeans_init  # look at the buffer again
