"""Settings of a Q-Former, the same for every model that has one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from zoo.choices import check_number, one_of

#: flat constructor arguments of older versions -> fields
FLAT_NAMES: Mapping[str, str] = {"num_queries": "queries"} | {
    name: name
    for name in (
        "width", "depth", "heads", "mlp_width", "query_mlp_width", "cross_every", "mixing", "norm", "dropout",
    )
}  # fmt: skip


@dataclass(frozen=True)
class QFormerSizes:
    """Learned queries and the transformer through which they read an image; BLIP-2's by default.

    Args:
        queries: tokens per image.
        width: of queries and text.
        depth: layers.
        heads: attention heads.
        mlp_width: hidden units of the feed-forward networks.
        query_mlp_width: of those of the queries, where they differ from the text's; None takes ``mlp_width``.
        cross_every: layers ``0, n, 2n, ...`` read the image.
        mixing: how they do, see :class:`zoo.nn.qformer.QFormer`; ``cross_only`` has no place for text.
        norm: ``post`` as published, or ``pre``.
        dropout: of hidden states and attention.
    """

    queries: int = 32
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    query_mlp_width: int | None = None
    cross_every: int = 2
    mixing: Literal["self_then_cross", "joint", "cross_only"] = "self_then_cross"
    norm: Literal["post", "pre"] = "post"
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("queries", "width", "depth", "heads", "mlp_width", "cross_every"):
            check_number(f"qformer.{name}", getattr(self, name), least=1, whole=True)
        if self.query_mlp_width is not None:
            check_number("qformer.query_mlp_width", self.query_mlp_width, least=1, whole=True)
        if self.width % self.heads:
            raise ValueError(f"qformer.width must be a multiple of qformer.heads, got {self.width} and {self.heads}")
        one_of("qformer.mixing", self.mixing, ("self_then_cross", "joint", "cross_only"))
        one_of("qformer.norm", self.norm, ("post", "pre"))
        check_number("qformer.dropout", self.dropout, least=0, below=1)
