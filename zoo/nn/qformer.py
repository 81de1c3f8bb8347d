"""Q-Former: a transformer whose learned queries read an image, with a text branch that shares its self-attention.

Source: BLIP-2 (Li et al. 2023, arXiv:2301.12597), Section 3.1; constants from salesforce/LAVIS
``lavis/models/blip2_models/Qformer.py`` (commit 506965b), whose parameter names are kept.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.choices import one_of
from zoo.nn.qformer_masks import HIDDEN
from zoo.nn.qformer_sizes import QFormerSizes

EPS = 1e-12  # of BERT's LayerNorms
KeysValues = tuple[Tensor, Tensor]  # of one layer, ``b heads s c`` each
Cache = list  # of one (keys, values) per layer; the shape checks look into typed lists with code that does not compile


@dataclass(frozen=True)
class QFormerOutput:
    """Last hidden states.

    Args:
        queries: of the queries, or None where there were none.
        text: of the text, or None where there was none.
        cache: keys and values of every layer's self-attention, ``b heads s c`` each, without those of the image.
    """

    queries: Float[Tensor, "b q d"] | None
    text: Float[Tensor, "b t d"] | None
    cache: Cache


class QFormer(nn.Module):
    """Queries that read an image, text that reads queries, or both in one sequence [queries ; text].

    Args:
        width: of queries and text.
        depth: layers.
        heads: attention heads.
        mlp_width: hidden units of the feed-forward networks.
        image_width: of the image tokens.
        vocab_size: words of the text branch; 0 builds none, as in BLIP-2's second stage.
        max_positions: longest text.
        cross_every: layers ``0, n, 2n, ...`` read the image.
        mixing: how they do: ``self_then_cross`` (BLIP-2: self-attention, then a cross-attention of its own);
            ``joint`` (one attention with keys and values from [image ; queries ; text], as in Flamingo's resampler);
            ``cross_only`` (queries read the image and never each other; without a text branch).
        norm: LayerNorm after the embeddings and each residual sum (``post``, BERT and BLIP-2), or before each sublayer
            and at the end (``pre``, as in Flamingo's resampler).
        bias: whether linear layers have one.
        dropout: of hidden states and attention.
        head_width: of an attention head; None takes ``width / heads``.
        eps: of the LayerNorms.
        word_head: whether a text branch has a head that predicts words.
        query_mlp_width: hidden units of the queries' own feed-forward networks; None takes ``mlp_width``. With another
            number they do not start as a copy of the text branch.
    """

    def __init__(
        self,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_width: int = 3072,
        image_width: int = 1408,
        vocab_size: int = 30523,
        max_positions: int = 512,
        cross_every: int = 2,
        mixing: Literal["self_then_cross", "joint", "cross_only"] = "self_then_cross",
        norm: Literal["post", "pre"] = "post",
        bias: bool = True,
        dropout: float = 0.1,
        head_width: int | None = None,
        eps: float = EPS,
        word_head: bool = True,
        query_mlp_width: int | None = None,
    ):
        super().__init__()
        one_of("mixing", mixing, ("self_then_cross", "joint", "cross_only"))
        one_of("norm", norm, ("post", "pre"))
        if min(width, depth, heads, mlp_width, image_width, cross_every) < 1 or (head_width is None and width % heads):
            raise ValueError(f"width must be a multiple of heads, and all sizes at least 1; got {width} and {heads}")
        if mixing == "cross_only" and (vocab_size or cross_every != 1):
            raise ValueError(
                "mixing='cross_only' has no path between queries and text, and its queries need the image in every "
                "layer: set vocab_size=0 and cross_every=1, or take self_then_cross or joint"
            )
        self.width, self.depth, self.heads, self.mixing = width, depth, heads, mixing
        self.vocab_size, self.max_positions = vocab_size, max_positions
        self.mlp_widths = (mlp_width, query_mlp_width or mlp_width)
        self.bert = _Bert(
            depth,
            cross_every,
            image_width,
            vocab_size,
            max_positions,
            _Sizes(
                width, heads, head_width or width // heads, *self.mlp_widths, mixing, norm == "pre", bias, dropout, eps
            ),
        )
        if vocab_size and word_head:
            head = _LanguageHead(width, vocab_size, eps)
            self.cls = nn.ModuleDict({"predictions": head})
            head.decoder.weight = self.bert.embeddings.word_embeddings.weight
        self.reset_parameters()

    @classmethod
    def of(
        cls,
        sizes: QFormerSizes,
        image_width: int,
        vocab_size: int = 0,
        max_positions: int = 0,
        word_head: bool = True,
    ) -> "QFormer":
        """The Q-Former of these settings.

        Args:
            sizes: all but the number of queries, which belong to the model.
            image_width: of the image tokens.
            vocab_size: words of the text branch; 0 builds none.
            max_positions: longest text.
            word_head: whether a text branch has a head that predicts words.

        Raises:
            ValueError: for ``cross_only`` where it cannot be.
        """
        s = sizes
        if s.mixing == "cross_only" and vocab_size:
            raise ValueError("qformer.mixing cross_only has no place for text: take self_then_cross or joint")
        if s.mixing == "cross_only" and s.cross_every != 1:
            raise ValueError(
                f"with qformer.mixing cross_only every layer reads the image: set qformer.cross_every to 1, not "
                f"{s.cross_every}"
            )
        return cls(
            s.width, s.depth, s.heads, s.mlp_width, image_width, vocab_size, max_positions, s.cross_every, s.mixing,
            s.norm, dropout=s.dropout, word_head=word_head, query_mlp_width=s.query_mlp_width,
        )  # fmt: skip

    def reset_parameters(self) -> None:
        """N(0, 0.02) for matrices and embeddings, as BERT; the query branch starts as a copy of the text branch."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.vocab_size:
            self.copy_text_to_query_branch()

    @torch.no_grad()
    def copy_text_to_query_branch(self) -> None:
        """Start the queries' feed-forward networks from the text's, as BLIP-2 does after loading BERT."""
        if self.mlp_widths[0] != self.mlp_widths[1]:
            return
        for layer in self.bert.encoder.layers():
            layer.intermediate_query.load_state_dict(layer.intermediate.state_dict())
            layer.output_query.load_state_dict(layer.output.state_dict())

    def forward(
        self,
        queries: Float[Tensor, "b q d"] | None = None,
        image: Float[Tensor, "b n e"] | None = None,
        text: Int[Tensor, "b t"] | None = None,
        mask: Float[Tensor, "#b 1 _ _"] | None = None,
        cache: Cache | None = None,
        offset: int = 0,
        read: Cache | None = None,
    ) -> QFormerOutput:
        """One pass over [queries ; text].

        Args:
            queries: learned queries; they get no positions.
            image: what the queries read.
            text: ids; positions start at ``offset``, whatever stands in front.
            mask: added to the scores of the self-attention, rows of this pass by columns of the cache and this pass;
                see ``zoo.nn.qformer_masks``. None: everything is visible.
            cache: keys and values of an earlier pass, which stand in front of this one's.
            offset: position of the first text token.
            read: keys and values of the image, from :meth:`read_image`, in place of ``image``.

        Raises:
            ValueError: for queries without an image, for text without a text branch, or for too long a text.
        """
        if (queries is None) != (image is None and read is None):
            raise ValueError("queries read an image: give both, or neither for a pass over text alone")
        if text is not None and not self.vocab_size:
            raise ValueError("this Q-Former has no text branch (vocab_size is 0)")
        if text is not None and offset + text.shape[1] > self.max_positions:
            raise ValueError(
                f"a text of {offset + text.shape[1]} tokens is longer than the {self.max_positions} positions: cut it"
            )
        if image is not None:
            read = self.read_image(image)
        x = self.bert.embeddings(queries, text, offset)
        found: Cache = []
        for i, layer in enumerate(self.bert.encoder.layers()):
            num_queries = 0 if queries is None else queries.shape[1]
            x, keys_values = layer(x, num_queries, read and read[i], mask, cache and cache[i])
            found.append(keys_values)
        x = self.bert.encoder.final(x)
        split = 0 if queries is None else queries.shape[1]
        return QFormerOutput(x[:, :split] if split else None, x[:, split:] if text is not None else None, found)

    def read_image(self, image: Float[Tensor, "b n e"], index: Int[Tensor, " r"] | None = None) -> Cache:
        """Keys and values of the image for every layer that reads it, None for the others.

        They do not depend on the queries, so one image serves several passes.

        Args:
            image: tokens.
            index: which image each row of the pass reads; None: row i reads image i.
        """
        keys = [layer.read_image(image) for layer in self.bert.encoder.layers()]
        return keys if index is None else select_rows(keys, index)

    def word_logits(self, text: Float[Tensor, "b t d"]) -> Float[Tensor, "b t v"]:
        """Scores of the next word from the last hidden states of the text."""
        return self.cls["predictions"](text)


def select_rows(read: Cache, index: Int[Tensor, " r"]) -> Cache:
    """Keys and values of :meth:`QFormer.read_image` for the rows of another pass."""
    return [None if pair is None else (pair[0][index], pair[1][index]) for pair in read]


class _Sizes(NamedTuple):
    """Sizes and settings of every layer."""

    width: int
    heads: int
    head_width: int
    mlp_width: int
    query_mlp_width: int
    mixing: str
    pre: bool
    bias: bool
    dropout: float
    eps: float


class _Bert(nn.Module):
    """The container that gives the published names their prefix."""

    def __init__(
        self, depth: int, cross_every: int, image_width: int, vocab_size: int, max_positions: int, sizes: _Sizes
    ):
        super().__init__()
        self.embeddings = _Embeddings(vocab_size, max_positions, sizes)
        widths = [image_width if i % cross_every == 0 else 0 for i in range(depth)]
        self.encoder = _Encoder(widths, bool(vocab_size), sizes)


class _Encoder(nn.Module):
    """The layers, and a last LayerNorm where it stands before each sublayer.

    Args:
        image_widths: of the image that each layer reads; 0 where it reads none.
        text: whether layers have a text branch.
        sizes: of every layer.
    """

    def __init__(self, image_widths: list[int], text: bool, sizes: _Sizes):
        super().__init__()
        self.layer = nn.ModuleList(_Layer(image_width, text, sizes) for image_width in image_widths)
        self.final = nn.LayerNorm(sizes.width, sizes.eps) if sizes.pre else nn.Identity()

    def layers(self) -> "list[_Layer]":
        return cast("list[_Layer]", list(self.layer))


class _Embeddings(nn.Module):
    """Words with positions behind the queries, then one LayerNorm (post-norm) and dropout over both."""

    def __init__(self, vocab_size: int, max_positions: int, sizes: _Sizes):
        super().__init__()
        if vocab_size:
            self.word_embeddings = nn.Embedding(vocab_size, sizes.width)
            self.position_embeddings = nn.Embedding(max_positions, sizes.width)
        self.LayerNorm = nn.Identity() if sizes.pre else nn.LayerNorm(sizes.width, sizes.eps)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, queries: Tensor | None, text: Tensor | None, offset: int) -> Tensor:
        parts = [] if queries is None else [queries]
        if text is not None:
            positions = torch.arange(offset, offset + text.shape[1], device=text.device)
            parts.append(self.word_embeddings(text) + self.position_embeddings(positions))
        if not parts:
            raise ValueError("a pass needs queries, text, or both")
        return self.dropout(self.LayerNorm(torch.cat(parts, dim=1)))


class _Layer(nn.Module):
    """Self-attention over all, cross-attention of the queries, then one feed-forward network per branch."""

    def __init__(self, image_width: int, text: bool, sizes: _Sizes):
        super().__init__()
        self.mixing, self.reads_image = sizes.mixing, bool(image_width)
        if self.mixing != "cross_only":
            self.attention = _Attention(sizes, sizes.width, image_width if self.mixing == "joint" else 0)
        if self.reads_image and self.mixing != "joint":
            self.crossattention = _Attention(sizes, image_width)
        if text:
            self.intermediate = _Dense(sizes.mlp_width, sizes)
            self.output = _Output(sizes.mlp_width, sizes)
        self.intermediate_query = _Dense(sizes.query_mlp_width, sizes)
        self.output_query = _Output(sizes.query_mlp_width, sizes)

    def read_image(self, image: Tensor) -> KeysValues | None:
        if not self.reads_image:
            return None
        return self.attention.keys_of_image(image) if self.mixing == "joint" else self.crossattention.keys(image)

    def forward(
        self, x: Tensor, num_queries: int, read: KeysValues | None, mask: Tensor | None, cache: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        keys_values = (x[:, :0], x[:, :0])
        if self.mixing != "cross_only":
            x, keys_values = self.attention(x, mask, cache, read if self.mixing == "joint" else None, num_queries)
        queries, text = x[:, :num_queries], x[:, num_queries:]
        parts = []
        if num_queries:
            if self.reads_image and self.mixing != "joint":
                assert read is not None
                queries = self.crossattention.over(queries, read)
            parts.append(self.output_query(queries, self.intermediate_query))
        if text.shape[1]:
            parts.append(self.output(text, self.intermediate))
        return torch.cat(parts, dim=1), keys_values


class _Projections(nn.Module):
    """Queries, keys and values, under the published names."""

    def __init__(self, width: int, source_width: int, inner: int, bias: bool):
        super().__init__()
        self.query = nn.Linear(width, inner, bias)
        self.key = nn.Linear(source_width, inner, bias)
        self.value = nn.Linear(source_width, inner, bias)


class _Attention(nn.Module):
    """Attention, projection, dropout, residual sum and LayerNorm."""

    def __init__(self, sizes: _Sizes, source_width: int, joint_width: int = 0):
        super().__init__()
        self.heads, self.dropout = sizes.heads, sizes.dropout
        width, inner, bias = sizes.width, sizes.heads * sizes.head_width, sizes.bias
        self.self = _Projections(width, source_width, inner, bias)
        self.output = _Output(inner, sizes)
        if joint_width:
            # Keys and values of the image are those of the queries' own projections, so the widths must agree.
            self.image_projection = nn.Linear(joint_width, width, bias) if joint_width != width else nn.Identity()
            self.image_LayerNorm = nn.LayerNorm(width, sizes.eps) if sizes.pre else nn.Identity()

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        cache: KeysValues | None = None,
        joint: KeysValues | None = None,
        num_queries: int = 0,
    ) -> tuple[Tensor, KeysValues]:
        """Self-attention, of [image ; cache ; x] where there is a joint image, and its keys and values."""
        normed = self.output.before(x)
        keys_values = key, value = self.keys(normed)
        if cache is not None:
            key, value = torch.cat([cache[0], key], dim=2), torch.cat([cache[1], value], dim=2)
        if joint is not None:  # image first, as in Flamingo; text rows do not see it
            if mask is not None or num_queries < x.shape[1]:
                own = x.new_zeros(1, 1, x.shape[1], key.shape[2]) if mask is None else mask
                seen = own.new_zeros(own.shape[0], 1, x.shape[1], joint[0].shape[2])
                seen[:, :, num_queries:] = HIDDEN
                mask = torch.cat([seen, own.expand(-1, -1, x.shape[1], -1)], dim=-1)
            key, value = torch.cat([joint[0], key], dim=2), torch.cat([joint[1], value], dim=2)
        return self.output.residual(x, self.attend(normed, key, value, mask)), keys_values

    def over(self, x: Tensor, keys_values: KeysValues) -> Tensor:
        """Cross-attention over given keys and values."""
        return self.output.residual(x, self.attend(self.output.before(x), *keys_values))

    def attend(self, normed: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Softmax attention of all heads, joined."""
        query = rearrange(self.self.query(normed), "b s (heads c) -> b heads s c", heads=self.heads)
        found = F.scaled_dot_product_attention(
            query, key, value, None if mask is None else mask.to(query.dtype), self.dropout if self.training else 0.0
        )
        return rearrange(found, "b heads s c -> b s (heads c)")

    def keys_of_image(self, image: Tensor) -> KeysValues:
        """Keys and values of the image by the queries' own projections."""
        return self.keys(self.image_LayerNorm(self.image_projection(image)))

    def keys(self, source: Tensor) -> KeysValues:
        """Keys and values per head."""
        parts = (self.self.key(source), self.self.value(source))
        key, value = (rearrange(part, "b s (heads c) -> b heads s c", heads=self.heads) for part in parts)
        return key, value


class _Dense(nn.Module):
    """The wide half of a feed-forward network, with exact GELU."""

    def __init__(self, mlp_width: int, sizes: _Sizes):
        super().__init__()
        self.dense = nn.Linear(sizes.width, mlp_width, sizes.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class _Output(nn.Module):
    """A projection, dropout and the residual sum, with the LayerNorm before the sublayer or after the sum."""

    def __init__(self, source_width: int, sizes: _Sizes):
        super().__init__()
        self.pre = sizes.pre
        self.dense = nn.Linear(source_width, sizes.width, sizes.bias)
        self.LayerNorm = nn.LayerNorm(sizes.width, sizes.eps)
        self.dropout = nn.Dropout(sizes.dropout)

    def before(self, x: Tensor) -> Tensor:
        """The input of the sublayer: normalised before it where the network is pre-norm."""
        return self.LayerNorm(x) if self.pre else x

    def residual(self, x: Tensor, found: Tensor) -> Tensor:
        """The sum of the sublayer's input and its projected result."""
        x = x + self.dropout(self.dense(found))
        return x if self.pre else self.LayerNorm(x)

    def forward(self, x: Tensor, sublayer: nn.Module) -> Tensor:
        return self.residual(x, sublayer(self.before(x)))


class _LanguageHead(nn.Module):
    """BERT's head: dense, GELU, LayerNorm, then the transposed word embeddings and a bias."""

    def __init__(self, width: int, vocab_size: int, eps: float):
        super().__init__()
        self.transform = nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps)})
        self.decoder = nn.Linear(width, vocab_size)
        self.bias = self.decoder.bias  # the published files hold it under both names

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.transform["LayerNorm"](F.gelu(self.transform["dense"](x))))
