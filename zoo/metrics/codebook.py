"""Usage of a codebook: the share of its codes that occur in a whole set of images, and their perplexity."""

import torch
from jaxtyping import Int
from torch import Tensor
from torchmetrics import Metric


class CodebookUsage(Metric):
    """Usage, perplexity, entropy and dead codes from one histogram of ids.

    The histogram is summed over batches and over ranks, so that the values are those of the whole set: usage averaged
    over batches would be too low, and usage of a batch says little about a large codebook.

    ``compute`` returns ``usage`` (fraction of the codes that occur at least once), ``perplexity`` (exp of the entropy
    in nats, between 1 and ``vocab_size``), ``entropy`` (in bits) and ``dead`` (codes that never occur).

    Args:
        vocab_size: number of codes.
        offset: first id of the codes; for one segment of an id space, give ``Segment.offset`` and ``Segment.size``.

    Raises:
        ValueError: for an id outside of ``[offset, offset + vocab_size)``.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    histogram: Tensor

    def __init__(self, vocab_size: int, offset: int = 0):
        super().__init__()
        if vocab_size < 1:
            raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
        self.vocab_size, self.offset = vocab_size, offset
        self.add_state("histogram", torch.zeros(vocab_size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, ids: Int[Tensor, "..."]) -> None:
        """Count ids of any shape."""
        ids = ids.flatten().long() - self.offset
        if ids.numel():
            low, high = (int(x) + self.offset for x in ids.aminmax())
            if low < self.offset or high >= self.offset + self.vocab_size:
                raise ValueError(
                    f"ids must lie in [{self.offset}, {self.offset + self.vocab_size}), got [{low}, {high}]: "
                    f"vocab_size and offset must be those of the tokenizer"
                )
        self.histogram += torch.bincount(ids, minlength=self.vocab_size)

    def compute(self) -> dict[str, Tensor]:
        used = (self.histogram > 0).sum()
        p = self.histogram.double() / self.histogram.sum().clamp(min=1)
        entropy = torch.special.entr(p).sum()  # -p ln p, 0 at p = 0
        return {
            "usage": used / self.vocab_size,
            "perplexity": entropy.exp(),
            "entropy": entropy / torch.log(torch.tensor(2.0, dtype=torch.float64)),
            "dead": self.vocab_size - used,
        }
