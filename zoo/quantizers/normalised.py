"""Vector quantization on the unit sphere."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from zoo.quantizers.gradient import VectorQuantizer


class NormalisedQuantizer(VectorQuantizer):
    """:class:`VectorQuantizer` on vectors and codes of length one; the decoder gets the normalised code.

    Yu et al., arXiv:2110.04627 (ViT-VQGAN), Section 3.2; used with few dimensions (32 there, 8 in LlamaGen, 12 in
    TiTok), where large codebooks stay in use. The projections to and from them belong to the model.
    Arguments are those of :class:`VectorQuantizer`.
    """

    @property
    def codebook(self) -> Float[Tensor, "k d"]:
        return F.normalize(self.embedding.weight, dim=-1)

    def _prepare(self, flat: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return F.normalize(flat, dim=-1)
