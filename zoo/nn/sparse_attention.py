"""Attention of a token grid behind a prefix, of which each position sees the whole prefix and few tokens of the grid.

Source: Zero-Shot Text-to-Image Generation (arXiv:2102.12092), Appendix B.1 and Figure 11. With ``W`` columns and tokens
counted in raster order, position ``q`` of the grid sees position ``k <= q`` where

* ``row``: ``q - k <= W``: itself and the previous ``W`` tokens, back to the same column of the previous row,
* ``column``: ``(q - k) mod W = 0``: itself and the tokens above it,
* ``conv``: ``k`` lies in a square window around ``q``,
* ``full``: always.

The paper's window runs on "with wraparound" at the ends of rows, which can be read in three ways: in raster order, as
its row attention does (``raster``, taken here for the paper); modulo the grid in both axes (``torus``); or not at all
(``none``).

The cost follows the mask: the queries of a row of the grid (of a column, for ``column``) are one block, and meet only
the rows that the mask lets them see. Nothing here masks a score that is not in one of these blocks.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.choices import one_of

Kind = Literal["full", "row", "column", "conv"]
Wraparound = Literal["raster", "torus", "none"]
KINDS: tuple[Kind, ...] = ("full", "row", "column", "conv")
WRAPAROUNDS: tuple[Wraparound, ...] = ("raster", "torus", "none")


def lay_out_kinds(depth: int) -> list[Kind]:
    """The attention of each layer by the paper's rule (Appendix B.1).

    The last layer is convolutional, layer ``i``, counted from 1, a column layer where ``(i - 2) mod 4 = 0``, and all
    others are row layers. A last layer that falls on the column rule stays a column layer, as in ruDALL-E; none of the
    paper's depths does.

    Args:
        depth: number of layers.
    """
    rule: list[Kind] = ["column" if i % 4 == 1 else "row" for i in range(depth)]
    return rule if rule and rule[-1] == "column" else [*rule[:-1], "conv"][:depth]


def image_mask(
    kind: Kind, shape: tuple[int, int], kernel: int = 11, wraparound: Wraparound = "raster"
) -> Bool[Tensor, "n n"]:
    """The mask within a grid: True where the position of the row sees that of the column.

    Args:
        kind: of the attention.
        shape: rows and columns of the grid.
        kernel: side of the window of ``conv``, odd.
        wraparound: of the window at the edges of the grid.

    Raises:
        ValueError: for an unknown kind or wraparound, or an even window.
    """
    one_of("kind", kind, KINDS)
    one_of("wraparound", wraparound, WRAPAROUNDS)
    height, width = shape
    q, k = torch.arange(height * width)[:, None], torch.arange(height * width)[None]
    causal = q >= k
    if kind == "full":
        return causal
    if kind == "row":
        return causal & (q - k <= width)
    if kind == "column":
        return causal & ((q - k) % width == 0)
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"the window of convolutional attention has an odd side, got kernel {kernel}")
    reach = kernel // 2
    if wraparound == "raster":
        steps = torch.arange(-reach, reach + 1)
        offsets = (steps[:, None] * width + steps).flatten()
        return causal & torch.isin(k - q, offsets)
    down, right = (q // width - k // width).abs(), (q % width - k % width).abs()
    if wraparound == "torus":
        down, right = torch.minimum(down, height - down), torch.minimum(right, width - right)
    return causal & (down <= reach) & (right <= reach)


def joint_mask(
    kind: Kind,
    prefix: int,
    shapes: Sequence[tuple[int, ...]],
    kernel: int = 11,
    wraparound: Wraparound = "raster",
) -> Bool[Tensor, "s s"]:
    """The dense mask of a prefix and the segments behind it, which the sparse attention is tested against.

    Args:
        kind: of the attention within grids; segments of other shapes are seen in full.
        prefix: positions in front, causal.
        shapes: of the segments, in order; each sees all positions before its first.
        kernel: see :func:`image_mask`.
        wraparound: see :func:`image_mask`.
    """
    mask = torch.ones(prefix, prefix, dtype=torch.bool).tril()
    for shape in shapes:
        own = image_mask(*_kind_and_grid(kind, shape), kernel, wraparound)
        mask = F.pad(mask, (0, len(own), 0, len(own)))
        mask[-len(own) :, : -len(own)] = True
        mask[-len(own) :, -len(own) :] = own
    return mask


def _kind_and_grid(kind: Kind, shape: tuple[int, ...]) -> tuple[Kind, tuple[int, int]]:
    return (kind, (shape[0], shape[1])) if len(shape) == 2 else ("full", (1, math.prod(shape)))


#: by which scores are divided while they are compared, and multiplied afterwards, in CogView and ruDALL-E
RELAXATION = 32


def gather_values(
    queries: Float[Tensor, "*b s e"],
    keys: Float[Tensor, "*b k e"],
    values: Float[Tensor, "*b k e"],
    mask: Bool[Tensor, "*m s k"] | None = None,
    stable: bool = False,
) -> Float[Tensor, "*b s e"]:
    """Softmax attention.

    Args:
        queries: one vector per position.
        keys: of what they look at.
        values: likewise.
        mask: True where a query sees a key; None where it sees all.
        stable: keep scores small until their maximum is subtracted, for float16 (CogView, arXiv:2105.13290, Section
            2.4: precision bottleneck relaxation); the same numbers otherwise, more slowly.
    """
    if not stable:
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    scores = (queries * (queries.shape[-1] ** -0.5 / RELAXATION)) @ keys.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = ((scores - scores.amax(-1, keepdim=True).detach()) * RELAXATION).softmax(-1)
    return weights @ values


def _lay_out_blocks(
    mask: Bool[Tensor, "n n"], shape: tuple[int, int], transposed: bool
) -> tuple[Int[Tensor, "r s"], Bool[Tensor, "r c k"]]:
    """Rows of the grid that each of its rows sees (columns, where transposed), and which of their tokens."""
    height, width = shape
    blocks = mask.view(height, width, height, width)
    if transposed:
        blocks, height = blocks.permute(1, 0, 3, 2), width
    needed = blocks.any(3).any(1)
    offsets = torch.tensor(sorted({int(i - j) for i, j in needed.nonzero()}))
    rows = torch.arange(height)[:, None] - offsets
    visible = blocks[torch.arange(height)[:, None], :, rows.clamp(0)].transpose(1, 2)
    return rows.clamp(0), (visible & (rows >= 0)[:, None, :, None]).flatten(2)


class SegmentAttention(nn.Module):
    """Causal attention within one segment, and to all positions before it.

    Args:
        kind: of the attention; segments that are no grid take ``full``.
        shape: of the segment.
        kernel: side of the window of ``conv``.
        wraparound: of the window at the edges of the grid.
    """

    rows: Tensor
    visible: Tensor
    seen: Tensor

    def __init__(self, kind: Kind, shape: tuple[int, ...], kernel: int = 11, wraparound: Wraparound = "raster"):
        super().__init__()
        self.kind, (height, width) = _kind_and_grid(kind, shape)
        self.num_tokens, self.transposed = height * width, self.kind == "column"
        self.block_shape = (width, height) if self.transposed else (height, width)
        with torch.device("cpu"):  # sizes of blocks follow from the values, which the meta device does not have
            mask = image_mask(self.kind, (height, width), kernel, wraparound)
            back = (torch.arange(self.num_tokens)[:, None] - torch.arange(self.num_tokens))[mask]
            #: steps back that any position looks
            self.steps = torch.unique(back).tolist()
            rows, visible = _lay_out_blocks(mask, (height, width), self.transposed)
        seen = mask if self.kind == "conv" else torch.empty(0)
        for name, values in (("rows", rows), ("visible", visible), ("seen", seen)):
            self.register_buffer(name, values.to(torch.get_default_device()), persistent=False)

    def forward(
        self,
        queries: Float[Tensor, "b h n e"],
        keys: Float[Tensor, "b h s e"],
        values: Float[Tensor, "b h s e"],
        start: int,
        stable: bool = False,
    ) -> Float[Tensor, "b h n e"]:
        """Gather values for the positions of the segment.

        Args:
            queries: of the segment's positions; the last ones may be missing.
            keys: of all positions up to the last query.
            values: likewise.
            start: index of the segment's first position.
            stable: see :func:`gather_values`.
        """
        count = queries.shape[2]
        if self.kind == "full":
            mask = torch.ones(count, start + count, dtype=torch.bool, device=queries.device).tril(start)
            return gather_values(queries, keys, values, mask, stable)
        mask = F.pad(self.visible, (start, 0), value=True).repeat(len(queries), 1, 1)[:, None]
        blocks = rearrange(self._blocks(queries), "b h r c e -> (b r) h c e")
        found = gather_values(blocks, self._seen(keys, start), self._seen(values, start), mask, stable)
        order = "(b c) h r e -> b h (r c) e" if self.transposed else "(b r) h c e -> b h (r c) e"
        return rearrange(found, order, b=len(queries))[:, :, :count]

    def _seen(self, values: Float[Tensor, "b h s e"], start: int) -> Float[Tensor, "br h k e"]:
        """For every block the prefix and the rows that it sees, side by side, so that one softmax runs over both."""
        rows = rearrange(self._blocks(values[:, :, start:])[:, :, self.rows], "b h r s c e -> (b r) h (s c) e")
        prefix = repeat(values[:, :, :start], "b h s e -> (b r) h s e", r=len(self.rows))
        return torch.cat([prefix, rows], 2)

    def _blocks(self, values: Float[Tensor, "b h n e"]) -> Float[Tensor, "b h r c e"]:
        """Rows of the grid, or columns where those are the blocks; positions that are still missing are zeros."""
        values = F.pad(values, (0, 0, 0, self.num_tokens - values.shape[2]))
        height, width = self.block_shape
        if self.transposed:
            return rearrange(values, "b h (c r) e -> b h r c e", r=height)
        return rearrange(values, "b h (r c) e -> b h r c e", c=width)


def attend(
    queries: Float[Tensor, "b h s e"],
    keys: Float[Tensor, "b h s e"],
    values: Float[Tensor, "b h s e"],
    prefix: int,
    segments: Sequence[SegmentAttention],
    stable: bool = False,
) -> Float[Tensor, "b h s e"]:
    """Attention over a prefix and the segments behind it, each of which sees all that is before it.

    Args:
        queries: of all positions; the sequence may end within a segment.
        keys: likewise.
        values: likewise.
        prefix: causal positions in front.
        segments: the attention of each of the others.
        stable: see :func:`gather_values`.
    """
    length, prefix = queries.shape[2], min(prefix, queries.shape[2])
    causal = torch.ones(prefix, prefix, dtype=torch.bool, device=queries.device).tril()
    first = queries[:, :, :prefix], keys[:, :, :prefix], values[:, :, :prefix]
    found = [gather_values(*first, causal, stable)]
    start = prefix
    for segment in segments:
        if start >= length:
            break
        end = min(start + segment.num_tokens, length)
        found.append(segment(queries[:, :, start:end], keys[:, :, :end], values[:, :, :end], start, stable))
        start = end
    return torch.cat(found, 2)


class SegmentCache:
    """Keys and values of one layer while tokens are drawn one by one: of a grid only what can still be seen.

    The positions before the last segment are kept whole. Of the last segment ``row`` keeps ``W + 1`` positions,
    ``conv`` as many as its window reaches back, in a ring; ``column`` and ``full`` keep all, and read a column each.

    Args:
        prefix: causal positions in front of the segments.
        segments: the attention of each segment.
        stable: see :func:`gather_values`.
    """

    def __init__(self, prefix: int, segments: Sequence[SegmentAttention], stable: bool = False):
        self.prefix, self.segments, self.stable = prefix, list(segments), stable
        self.starts = [prefix + sum(s.num_tokens for s in self.segments[:i]) for i in range(len(self.segments))]
        self.length = 0
        self._before: list[Tensor] = []
        self._ring: list[Tensor] = []

    @property
    def num_kept(self) -> int:
        """Positions whose keys are kept."""
        return sum(part[0].shape[2] for part in (self._before, self._ring) if part)

    def start(self, keys: Float[Tensor, "b h s e"], values: Float[Tensor, "b h s e"]) -> None:
        """Take the keys and values of the first positions, all at once; they must be those of the prefix or more."""
        self.length = keys.shape[2]
        last = self.starts[-1] if self.segments else self.length
        self._before = [x[:, :, : min(last, self.length)] for x in (keys, values)]
        if not self.segments:
            return
        size = self._ring_size()
        self._ring = [x.new_zeros(*x.shape[:2], size, x.shape[3]) for x in (keys, values)]
        for position in range(max(last, self.length - size), self.length):
            self._put(position, keys[:, :, position : position + 1], values[:, :, position : position + 1])

    def _ring_size(self) -> int:
        segment = self.segments[-1]
        return (
            segment.num_tokens if segment.kind in ("full", "column") else min(segment.num_tokens, segment.steps[-1] + 1)
        )

    def _put(self, position: int, keys: Tensor, values: Tensor) -> None:
        slot = (position - self.starts[-1]) % self._ring[0].shape[2]
        for kept, new in zip(self._ring, (keys, values), strict=True):
            kept[:, :, slot : slot + 1] = new

    def step(
        self,
        queries: Float[Tensor, "b h 1 e"],
        keys: Float[Tensor, "b h 1 e"],
        values: Float[Tensor, "b h 1 e"],
    ) -> Float[Tensor, "b h 1 e"]:
        """Add one position, and return what it gathers."""
        position, last = self.length, self.starts[-1]
        self.length += 1
        if position < last:
            self._before = [torch.cat([kept, new], 2) for kept, new in zip(self._before, (keys, values), strict=True)]
            segment, start = self._segment_at(position)
            seen = self._visible(segment, position - start)
            index = torch.cat([torch.arange(start), start + seen]).to(queries.device)
            chosen = [x[:, :, index] for x in self._before]
        else:
            self._put(position, keys, values)
            seen = self._visible(self.segments[-1], position - last)
            slots = (seen % self._ring[0].shape[2]).to(queries.device)
            chosen = [torch.cat([x, y[:, :, slots]], 2) for x, y in zip(self._before, self._ring, strict=True)]
        return gather_values(queries, chosen[0], chosen[1], stable=self.stable)

    def _segment_at(self, position: int) -> tuple[SegmentAttention | None, int]:
        for segment, start in zip(self.segments, self.starts, strict=True):
            if start <= position < start + segment.num_tokens:
                return segment, start
        return None, 0

    @staticmethod
    def _visible(segment: SegmentAttention | None, place: int) -> Int[Tensor, " k"]:
        """Places in the segment that its position ``place`` sees; all before it in the prefix."""
        if segment is None or segment.kind == "full":
            return torch.arange(place + 1)
        if segment.kind == "conv":
            return segment.seen[place].nonzero().flatten().cpu()
        steps = torch.tensor(segment.steps)
        return place - steps[steps <= place]
