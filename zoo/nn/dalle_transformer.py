"""DALL-E's second stage as a network: one sparse transformer over text and image tokens.

Source: Zero-Shot Text-to-Image Generation (arXiv:2102.12092), Section 2.2 and Appendix B. Its weights were never
published; parameter names are those of ruDALL-E (ai-forever/ru-dalle, Apache-2.0), the published model of the same
architecture, with the norms and the scaled gradients of CogView (arXiv:2105.13290) that it has.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.nn.sparse_attention import Kind, SegmentAttention, SegmentCache, Wraparound, attend

INIT_STD = 0.02
EPS = 1e-5


class DALLETransformer(nn.Module):
    """Logits of the next token at every position of a text and the image tokens behind it.

    Args:
        text_vocab: ids of the text, of which the last ``text_length`` are the padding of each text position.
        text_length: text tokens.
        image_vocab: ids of the image tokens.
        shapes: of the image's segments: tokens of a grid have a row and a column embedding, those of other segments
            one of their place.
        width: of the tokens.
        heads: of the attention.
        kinds: of the attention of each layer.
        start_token: put id ``start_token`` in front of the text, so that its first token is predicted too; None does
            not.
        kernel: side of the window of convolutional layers.
        wraparound: of that window at the edges of a grid.
        shift: positions by which the attention takes the text to be shorter than it is; 1 in ruDALL-E's second
            version, whose masks do not know the start token.
        sandwich: norms behind attention and MLP as well, in front of the addition (CogView).
        stable_softmax: scores are divided before they are compared and multiplied afterwards (CogView's PB-relax),
            so that they stay small in float16; the same numbers otherwise.
        embedding_gradient: factor of the gradients of the embeddings; 0.1 in CogView and ruDALL-E.
        checkpointing: compute each layer again in the backward pass instead of keeping its activations.
    """

    image_rows: Tensor
    image_cols: Tensor

    def __init__(
        self,
        text_vocab: int,
        text_length: int,
        image_vocab: int,
        shapes: Sequence[tuple[int, ...]],
        width: int,
        heads: int,
        kinds: Sequence[Kind],
        start_token: int | None = None,
        kernel: int = 11,
        wraparound: Wraparound = "raster",
        shift: int = 0,
        sandwich: bool = False,
        stable_softmax: bool = False,
        embedding_gradient: float = 1.0,
        checkpointing: bool = False,
    ):
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        self.text_vocab, self.text_length, self.image_vocab = text_vocab, text_length, image_vocab
        self.start_token, self.embedding_gradient = start_token, embedding_gradient
        self.num_image_tokens = sum(math.prod(shape) for shape in shapes)
        #: positions of the text, with the start token
        self.prefix = text_length + (start_token is not None)
        rows, cols, counts = _places(shapes)
        self.register_buffer("image_rows", rows, persistent=False)
        self.register_buffer("image_cols", cols, persistent=False)
        self.text_embeddings = nn.Embedding(text_vocab, width)
        self.text_pos_embeddings = nn.Embedding(text_length + 1, width)
        self.image_embeddings = nn.Embedding(image_vocab, width)
        self.image_row_embeddings = nn.Embedding(counts[0], width)
        self.num_columns = counts[1]
        if self.num_columns:
            self.image_col_embeddings = nn.Embedding(counts[1], width)
        self.transformer = SparseTransformer(
            width, heads, kinds, self.prefix - shift, shapes, kernel, wraparound, sandwich, stable_softmax,
            checkpointing,
        )  # fmt: skip
        self.to_logits = nn.Sequential(nn.LayerNorm(width, EPS), nn.Linear(width, text_vocab + image_vocab))
        self.apply(_initialise)

    def embed_text(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b p d"]:
        """Vectors of the text, with the start token in front where there is one."""
        if self.start_token is not None:
            ids = F.pad(ids, (1, 0), value=self.start_token)
        positions = torch.arange(ids.shape[1], device=ids.device)
        return self._scaled(self.text_embeddings(ids) + self.text_pos_embeddings(positions))

    def embed_image(self, ids: Int[Tensor, "b n"], start: int = 0) -> Float[Tensor, "b n d"]:
        """Vectors of image tokens in the order of the segments, from place ``start`` on."""
        places = slice(start, start + ids.shape[1])
        rows, cols = self.image_rows[places], self.image_cols[places]
        positions = self.image_row_embeddings(rows)
        if self.num_columns:
            positions = positions + self.image_col_embeddings(cols.clamp(0)) * (cols >= 0)[:, None]
        return self._scaled(self.image_embeddings(ids) + positions)

    def _scaled(self, vectors: Tensor) -> Tensor:
        if self.embedding_gradient == 1:
            return vectors
        return vectors * self.embedding_gradient + vectors.detach() * (1 - self.embedding_gradient)

    def forward(
        self,
        text: Int[Tensor, "b t"],
        image: Int[Tensor, "b n"] | None = None,
        caches: list[SegmentCache] | None = None,
    ) -> Float[Tensor, "b s v"]:
        """Logits over text and image ids of what follows each position.

        Args:
            text: ids with their padding.
            image: the first image tokens; the last one of the image is no input, as nothing follows it.
            caches: filled with what the layers keep of these positions, for :meth:`step`.
        """
        x = self.embed_text(text)
        if image is not None:
            x = torch.cat([x, self.embed_image(image)], 1)
        return self.to_logits(self.transformer(x, caches))

    def make_caches(self) -> list[SegmentCache]:
        """An empty cache for each layer."""
        return [layer.attention.make_cache() for layer in self.transformer.typed_layers()]

    def step(self, ids: Int[Tensor, "b 1"], place: int, caches: list[SegmentCache]) -> Float[Tensor, "b v"]:
        """Logits of what follows one more image token.

        Args:
            ids: of the token.
            place: in the image.
            caches: of all positions before; are added to.
        """
        return self.to_logits(self.transformer.step(self.embed_image(ids, place), caches))[:, 0]


def _places(shapes: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Rows of the two position tables for each image token, -1 for no column, and the sizes of the tables."""
    rows, cols, num_rows, num_cols = [], [], 0, 0
    for shape in shapes:
        count = math.prod(shape)
        place = torch.arange(count)
        if len(shape) == 2:
            rows.append(num_rows + place // shape[1])
            cols.append(num_cols + place % shape[1])
            num_rows, num_cols = num_rows + shape[0], num_cols + shape[1]
        else:
            rows.append(num_rows + place)
            cols.append(torch.full_like(place, -1))
            num_rows += count
    return torch.cat(rows), torch.cat(cols), (num_rows, num_cols)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


class SparseTransformer(nn.Module):
    """Layers of sparse attention and a norm; arguments as for :class:`DALLETransformer`."""

    def __init__(
        self,
        width: int,
        heads: int,
        kinds: Sequence[Kind],
        prefix: int,
        shapes: Sequence[tuple[int, ...]],
        kernel: int,
        wraparound: Wraparound,
        sandwich: bool,
        stable_softmax: bool,
        checkpointing: bool,
    ):
        super().__init__()
        self.prefix, self.checkpointing = prefix, checkpointing
        patterns = {
            kind: nn.ModuleList(SegmentAttention(kind, shape, kernel, wraparound) for shape in shapes)
            for kind in dict.fromkeys(kinds)
        }
        self.layers = nn.ModuleList(
            Layer(width, heads, prefix, patterns[kind], sandwich, stable_softmax) for kind in kinds
        )
        self.final_layernorm = nn.LayerNorm(width, EPS)

    def typed_layers(self) -> list["Layer"]:
        """The layers in order."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def forward(self, x: Float[Tensor, "b s d"], caches: list[SegmentCache] | None = None) -> Float[Tensor, "b s d"]:
        for i, layer in enumerate(self.typed_layers()):
            if self.checkpointing and self.training:
                x = checkpoint(layer, x, use_reentrant=False)
            else:
                x = layer(x, None if caches is None else caches[i])
        return self.final_layernorm(x)

    def step(self, x: Float[Tensor, "b 1 d"], caches: list[SegmentCache]) -> Float[Tensor, "b 1 d"]:
        """Run the forward pass for one more position."""
        for layer, cache in zip(self.typed_layers(), caches, strict=True):
            x = layer.step(x, cache)
        return self.final_layernorm(x)


class Layer(nn.Module):
    """Attention and MLP with norms in front of them, and with ``sandwich`` behind them as well."""

    def __init__(
        self,
        width: int,
        heads: int,
        prefix: int,
        segments: nn.ModuleList,
        sandwich: bool,
        stable_softmax: bool,
    ):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(width, EPS)
        self.attention = SparseSelfAttention(width, heads, prefix, segments, stable_softmax)
        self.post_attention_layernorm = nn.LayerNorm(width, EPS)
        self.mlp = MLP(width)
        norms = [nn.LayerNorm(width, EPS) if sandwich else nn.Identity() for _ in range(2)]
        self.before_first_addition_layernorm, self.before_second_addition_layernorm = norms

    def forward(self, x: Float[Tensor, "b s d"], cache: SegmentCache | None = None) -> Float[Tensor, "b s d"]:
        return self._add(x, self.attention(self.input_layernorm(x), cache))

    def step(self, x: Float[Tensor, "b 1 d"], cache: SegmentCache) -> Float[Tensor, "b 1 d"]:
        """Run the forward pass for one more position."""
        return self._add(x, self.attention.step(self.input_layernorm(x), cache))

    def _add(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.before_first_addition_layernorm(attended)
        return x + self.before_second_addition_layernorm(self.mlp(self.post_attention_layernorm(x)))


class MLP(nn.Module):
    """Four times the width, GELU in its tanh form."""

    def __init__(self, width: int):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(width, 4 * width)
        self.dense_4h_to_h = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x), approximate="tanh"))


class SparseSelfAttention(nn.Module):
    """Self-attention over a prefix and the segments behind it."""

    def __init__(self, width: int, heads: int, prefix: int, segments: nn.ModuleList, stable_softmax: bool):
        super().__init__()
        self.heads, self.prefix, self.stable_softmax = heads, prefix, stable_softmax
        self.query_key_value = nn.Linear(width, 3 * width)
        self.dense = nn.Linear(width, width)
        self.segments = segments

    def forward(self, x: Float[Tensor, "b s d"], cache: SegmentCache | None = None) -> Float[Tensor, "b s d"]:
        queries, keys, values = self._project(x)
        if cache is not None:
            cache.start(keys, values)
        return self._join(attend(queries, keys, values, self.prefix, self._patterns(), self.stable_softmax))

    def make_cache(self) -> SegmentCache:
        """An empty cache for :meth:`step`."""
        return SegmentCache(self.prefix, self._patterns(), self.stable_softmax)

    def _patterns(self) -> list[SegmentAttention]:
        return [segment for segment in self.segments if isinstance(segment, SegmentAttention)]

    def step(self, x: Float[Tensor, "b 1 d"], cache: SegmentCache) -> Float[Tensor, "b 1 d"]:
        """Run the forward pass for one more position."""
        return self._join(cache.step(*self._project(x)))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = rearrange(self.query_key_value(x), "b s (k h e) -> k b h s e", k=3, h=self.heads)
        return queries, keys, values

    def _join(self, x: Tensor) -> Tensor:
        return self.dense(rearrange(x, "b h s e -> b s (h e)"))
