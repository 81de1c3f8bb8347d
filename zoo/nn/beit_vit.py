"""The vision transformer of BEiT in both published forms (microsoft/unilm ``beit/modeling_finetune.py``).

Absolute positions without LayerScale are the paper's main tables; shared or per-block relative position bias with
LayerScale is "BEiT+" (Appendix A) and every released ImageNet-22k checkpoint. Parameter names are those of unilm.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.nn.relative_position import RelativePositionBias, position_bias, relative_position_index, table_rows
from zoo.nn.sequence_decoder import SequenceDecoder
from zoo.nn.stochastic_depth import add_branch, draw_depth
from zoo.tokens import sides_of

EPS = 1e-6  # of every published LayerNorm; transformers' BeitConfig says 1e-12 and differs by 1e-3 in the logits
STD = 0.02
#: arguments of the networks that the presets of pre-training and of classifiers share
TINY: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 4}
ABSOLUTE: dict[str, Any] = {"layer_scale": 0.0, "absolute_positions": True, "relative_positions": "none"}
EMOJI: dict[str, Any] = {"image_size": 64, "patch_size": 8, "width": 160, "depth": 6, "heads": 5, **ABSOLUTE}
LARGE: dict[str, Any] = {"width": 1024, "depth": 24, "heads": 16, "layer_scale": 1e-5}


class PatchEmbed(nn.Module):
    """Cut the image into patches and project each, in raster order; no normalisation."""

    def __init__(self, patch_size: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, patch_size)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        return rearrange(self.proj(x), "b d gh gw -> b (gh gw) d")


class Attention(nn.Module):
    """Multi-head self-attention whose queries and values have a bias and whose keys have none.

    Args:
        width: of the tokens.
        heads: number of heads.
        grid: given where the block has its own relative position bias table.
    """

    relative_position_index: Int[Tensor, "n n"]

    def __init__(self, width: int, heads: int, grid: tuple[int, int] | None = None):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)
        self.relative_position_bias_table: nn.Parameter | None = None
        if grid is not None:
            self.relative_position_bias_table = nn.Parameter(torch.zeros(table_rows(grid), heads))
            self.register_buffer("relative_position_index", relative_position_index(grid), persistent=False)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        bias: Float[Tensor, "1 heads n n"] | None = None,
        rows: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n d"] | Float[Tensor, "m d"]:
        """Attend; with ``rows`` only these tokens of the batch are computed and returned, one after the other."""
        if self.relative_position_bias_table is not None:
            bias = position_bias(self.relative_position_bias_table, self.relative_position_index)
        width = x.shape[-1]
        if rows is None:
            biases = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
            q, k, v = self._heads(F.linear(x, self.qkv.weight, biases), 3)
            return self.proj(rearrange(attend(q, k, v, bias), "b heads n e -> b n (heads e)"))
        # Queries of the asked tokens, padded with others to the same number in every image; keys and values of all.
        count = rows.sum(1)
        token = rows.byte().argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]
        asked = (torch.arange(token.shape[1], device=x.device) < count[:, None]).flatten().nonzero()[:, 0]
        places = token + torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
        queries = x.flatten(0, 1).index_select(0, places.flatten()).unflatten(0, places.shape)
        q = self._heads(F.linear(queries, self.qkv.weight[:width], self.q_bias), 1)[0]
        biases = torch.cat([torch.zeros_like(self.v_bias), self.v_bias])
        k, v = self._heads(F.linear(x, self.qkv.weight[width:], biases), 2)
        if bias is not None:
            bias = rearrange(bias[0].index_select(1, token.flatten()), "heads (b m) n -> b heads m n", b=len(x))
        y = rearrange(attend(q, k, v, bias), "b heads m e -> (b m) (heads e)")
        return self.proj(torch.index_select(y, 0, asked))

    def _heads(self, x: Float[Tensor, "b n _"], parts: int) -> Float[Tensor, "{parts} b heads n e"]:
        return rearrange(x, "b n (p heads e) -> p b heads n e", p=parts, heads=self.heads)


def attend(
    q: Float[Tensor, "b heads m e"],
    k: Float[Tensor, "b heads n e"],
    v: Float[Tensor, "b heads n e"],
    bias: Float[Tensor, "_ heads m n"] | None,
) -> Float[Tensor, "b heads m e"]:
    """Softmax attention with an additive bias.

    Written out where PyTorch has no fused kernel: on the CPU with a bias that is trained, its own fallback takes more
    passes over the scores.
    """
    bias = None if bias is None else bias.to(q.dtype)
    if bias is None or q.device.type != "cpu" or not (bias.requires_grad and torch.is_grad_enabled()):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return scores.add_(bias).softmax(-1) @ v


class Mlp(nn.Module):
    """Two layers with exact GELU."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale and stochastic depth.

    Args:
        width: of the tokens.
        heads: of the attention.
        mlp_ratio: hidden width of the MLP in units of ``width``.
        layer_scale: initial value of the residual gains ``gamma_1``, ``gamma_2``; 0 for none.
        drop_path: probability to skip a residual branch, per image.
        grid: given where the block has its own relative position bias table.
        eps: of both norms.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        layer_scale: float = 0.0,
        drop_path: float = 0.0,
        grid: tuple[int, int] | None = None,
        eps: float = EPS,
    ):
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, grid)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.gamma_1 = nn.Parameter(torch.full((width,), layer_scale)) if layer_scale else None
        self.gamma_2 = nn.Parameter(torch.full((width,), layer_scale)) if layer_scale else None

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        bias: Float[Tensor, "1 heads n n"] | None = None,
        rows: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n d"] | Float[Tensor, "m d"]:
        """Transform all tokens; with ``rows`` only these, of which the attention alone needs the others."""
        rate = self.drop_path if self.training else 0.0
        samples, weight = draw_depth(len(x), rate, x.device)
        seen = x if samples is None else x.index_select(0, samples)
        asked = rows if samples is None or rows is None else rows.index_select(0, samples)
        y = self.attn(self.norm1(seen), bias, asked)
        image, batch = None, len(x)
        if rows is not None:
            image = rows.nonzero()[:, 0]
            x = torch.index_select(x.flatten(0, 1), 0, rows.flatten().nonzero()[:, 0])
            samples, weight = _per_row(samples, weight, image)
        x = add_branch(x, y, self.gamma_1, samples, weight)
        samples, weight = draw_depth(batch, rate, x.device)
        if image is not None:
            samples, weight = _per_row(samples, weight, image)
        seen = x if samples is None else x.index_select(0, samples)
        return add_branch(x, self.mlp(self.norm2(seen)), self.gamma_2, samples, weight)


def _per_row(
    samples: Tensor | None, weight: float | Tensor, image: Int[Tensor, " m"]
) -> tuple[Tensor | None, float | Tensor]:
    """Carry the draw of :func:`draw_depth` from images to their tokens; ``image`` is the image of each token."""
    if samples is not None:
        return torch.isin(image, samples).nonzero()[:, 0], weight
    return None, weight[image] if isinstance(weight, Tensor) else weight


class BeitViT(nn.Module):
    """BEiT's transformer; ``vocab_size`` adds what masked image modelling needs, ``num_classes`` the classifier.

    Args:
        image_size: side of the input, or (height, width), in pixels.
        patch_size: side of a patch, in pixels.
        width: of the tokens.
        depth: blocks.
        heads: of the attention.
        mlp_ratio: hidden width of the MLPs in units of ``width``.
        layer_scale: initial residual gain, 0.1 (base), 1e-5 (large), 0 for none.
        absolute_positions: learned position embeddings.
        relative_positions: bias of the attention, one table ``shared`` by all blocks, one ``per_block``, or ``none``.
        drop_path: stochastic depth of the last block, growing linearly from 0 at the first.
        vocab_size: of the tokenizer; 0 builds neither ``mask_token`` nor ``lm_head``.
        sequence_length: of tokenizers whose ids belong to no patch: the head predicts that many; 0 for one per patch.
        num_classes: of the classifier; 0 builds none.
        pool: a classifier looks at the ``mean`` of the patches (normalised by ``fc_norm``) or at the ``cls`` token.
        init: truncated normal cut at one sigma (``pretraining``), or practically uncut with PyTorch's own
            initialisation of the patch projection (``finetuning``), as the two published scripts do.
        grad_checkpointing: recompute the blocks in the backward pass instead of keeping their activations.
        eps: of every norm.

    Raises:
        ValueError: for sizes that do not divide, and other impossible settings.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        layer_scale: float = 0.1,
        absolute_positions: bool = False,
        relative_positions: Literal["shared", "per_block", "none"] = "shared",
        drop_path: float = 0.0,
        vocab_size: int = 0,
        sequence_length: int = 0,
        num_classes: int = 0,
        pool: Literal["mean", "cls"] = "mean",
        init: Literal["pretraining", "finetuning"] = "pretraining",
        grad_checkpointing: bool = False,
        eps: float = EPS,
    ):
        super().__init__()
        self.image_sides, self.patch_size = sides_of(image_size), patch_size
        self.grid = patch_grid(image_size, patch_size)
        if min(width, depth, heads) < 1:
            raise ValueError(f"width, depth and heads must be at least 1, got {width}, {depth} and {heads}")
        if width % heads:
            raise ValueError(f"width {width} is not divisible by heads {heads}: change one of them")
        if relative_positions not in ("shared", "per_block", "none"):
            raise ValueError(f"relative_positions is 'shared', 'per_block' or 'none', not {relative_positions!r}")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path must lie in [0, 1), got {drop_path}")
        if pool not in ("mean", "cls"):
            raise ValueError(f"pool is 'mean' or 'cls', not {pool!r}")
        self.width, self.depth, self.pool, self.init = width, depth, pool, init
        self.grad_checkpointing = grad_checkpointing
        self.patch_embed = PatchEmbed(patch_size, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width)) if vocab_size else None
        tokens = 1 + math.prod(self.grid)
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width)) if absolute_positions else None
        self.rel_pos_bias = RelativePositionBias(self.grid, heads) if relative_positions == "shared" else None
        grid = self.grid if relative_positions == "per_block" else None
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, layer_scale, rate, grid, eps) for rate in rates)
        mean_pool = bool(num_classes) and pool == "mean"
        self.norm = nn.Identity() if mean_pool else nn.LayerNorm(width, eps=eps)
        self.fc_norm = nn.LayerNorm(width, eps=eps) if mean_pool else None
        self.sequence = SequenceDecoder(sequence_length, width, heads, mlp_ratio, eps) if sequence_length else None
        self.lm_head = nn.Linear(width, vocab_size) if vocab_size else None
        self.head = nn.Linear(width, num_classes) if num_classes else None
        self.reset_parameters()

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Side of the images in pixels, or (height, width) of those that are no squares."""
        height, width = self.image_sides
        return height if height == width else (height, width)

    def reset_parameters(self) -> None:
        """The published initialisation; see ``init``. Position bias tables start at zero, LayerScale at its value."""
        cut = STD if self.init == "pretraining" else 2.0
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and self.init == "pretraining"):
                    nn.init.trunc_normal_(module.weight, std=STD, a=-cut, b=cut)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
            for token in (self.cls_token, self.mask_token, self.pos_embed):
                if token is not None:
                    nn.init.trunc_normal_(token, std=STD, a=-cut, b=cut)
            for layer, block in enumerate(self.blocks, start=1):
                assert isinstance(block, Block)
                block.attn.proj.weight.div_(math.sqrt(2 * layer))  # Section 2.5: keeps the residual stream's variance
                block.mlp.fc2.weight.div_(math.sqrt(2 * layer))

    def embed_patches(
        self, x: Float[Tensor, "b 3 h w"], mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b m d"]:
        """Patches, hidden ones replaced by the mask token, then class token and positions (Section 2.3)."""
        patches = self.patch_embed(x)
        if mask is not None:
            if self.mask_token is None:
                raise ValueError("this network has no mask token: build it with vocab_size")
            patches = torch.where(mask[..., None], self.mask_token.to(patches.dtype), patches)
        # the class token is float32, and so is then the residual stream, under autocast as well
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], dim=1)
        return tokens if self.pos_embed is None else tokens + self.pos_embed

    def forward_features(
        self, x: Float[Tensor, "b 3 h w"], mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b m d"]:
        """All tokens after the final norm, class token first.

        Args:
            x: normalised pixels.
            mask: True where a patch is hidden, in raster order.
        """
        x, bias = self.embed_patches(x, mask), self.shared_bias()
        for block in self.blocks:
            x = self._run(block, x, bias)
        return self.norm(x)

    def masked_logits(self, x: Float[Tensor, "b 3 h w"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "m v"]:
        """Logits of the hidden patches of the whole batch in row-major order (Section 2.3).

        Nothing behind the last attention is computed for tokens whose prediction nobody asks for.
        """
        if self.lm_head is None or self.sequence is not None:
            raise ValueError("this network predicts no token per patch: build it with vocab_size, not sequence_length")
        x, bias = self.embed_patches(x, mask), self.shared_bias()
        for block in self.blocks[:-1]:
            x = self._run(block, x, bias)
        return self.lm_head(self.norm(self._run(self.blocks[-1], x, bias, F.pad(mask, (1, 0)))))

    def token_logits(
        self, x: Float[Tensor, "b 3 h w"], mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b _ v"]:
        """Logits at every patch, hidden or not, or of every token of the sequence."""
        if self.lm_head is None:
            raise ValueError("this network predicts no tokens: build it with vocab_size")
        features = self.forward_features(x, mask)
        return self.lm_head(features[:, 1:] if self.sequence is None else self.sequence(features))

    def forward(
        self, x: Float[Tensor, "b 3 h w"], mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b c"] | Float[Tensor, "m v"] | Float[Tensor, "b _ v"]:
        """Logits for training, the call that is compiled: of classes for a classifier, else of tokens.

        Args:
            x: normalised pixels.
            mask: True where a patch is hidden; the logits are then those of :meth:`masked_logits`, but without a mask
                and for a sequence those of :meth:`token_logits`.
        """
        if self.head is not None:
            return self.head(self.pooled(self.forward_features(x)))
        if mask is None or self.sequence is not None:
            return self.token_logits(x, mask)
        return self.masked_logits(x, mask)

    def pooled(self, tokens: Float[Tensor, "b m d"]) -> Float[Tensor, "b d"]:
        """The feature under the classifier: normalised mean of the patches, or the class token."""
        return tokens[:, 0] if self.fc_norm is None else self.fc_norm(tokens[:, 1:].mean(1))

    def block_outputs(
        self, x: Float[Tensor, "b 3 h w"], indices: tuple[int, ...] | list[int]
    ) -> list[Float[Tensor, "b m d"]]:
        """Raw outputs of the blocks with these 0-based indices, in their order, class token first."""
        wrong = [i for i in indices if not 0 <= i < self.depth]
        if wrong or not indices:
            raise ValueError(f"block indices must lie in 0..{self.depth - 1}, got {list(indices)}")
        x, bias = self.embed_patches(x), self.shared_bias()
        outputs = {}
        for i, block in enumerate(self.blocks[: max(indices) + 1]):
            outputs[i] = x = self._run(block, x, bias)
        return [outputs[i] for i in indices]

    def forward_intermediates(
        self, images: Float[Tensor, "b 3 h w"], indices: int | tuple[int, ...] | list[int] | None = None
    ) -> list[Float[Tensor, "b d gh gw"]]:
        """Feature maps for segmentation: raw block outputs without the class token, no final norm.

        Args:
            images: normalised pixels.
            indices: 0-based blocks, negative ones counted from the end; a number takes the last so many, as in timm;
                None takes the reference's, 3 5 7 11 of 12 and 7 11 15 23 of 24. (The pinned transformers feeds blocks
                1 3 5 9 under the reference's setting.)

        Raises:
            ValueError: for blocks that there are not.
        """
        if indices is None:
            indices = [max(0, self.depth * part // 6 - 1) for part in (2, 3, 4, 6)]
        elif isinstance(indices, int):
            if not 1 <= indices <= self.depth:
                raise ValueError(f"a number of indices takes the last so many of {self.depth} blocks, got {indices}")
            indices = list(range(self.depth - indices, self.depth))
        else:
            if wrong := [i for i in indices if not -self.depth <= i < self.depth]:
                raise ValueError(
                    f"block indices must lie in 0..{self.depth - 1}, got {wrong}; negative ones count from the end"
                )
            indices = [i % self.depth for i in indices]
        gh, gw = self.grid
        outputs = self.block_outputs(images, indices)
        return [rearrange(y[:, 1:], "b (gh gw) d -> b d gh gw", gh=gh, gw=gw).contiguous() for y in outputs]

    def shared_bias(self) -> Float[Tensor, "1 heads n n"] | None:
        """The attention bias that all blocks share, looked up once."""
        return None if self.rel_pos_bias is None else self.rel_pos_bias()

    def _run(self, block: nn.Module, x: Tensor, bias: Tensor | None, rows: Tensor | None = None) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, bias, rows, use_reentrant=False)
        return block(x, bias, rows)


def patch_grid(image_size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches.

    Raises:
        ValueError: when the image does not consist of whole patches.
    """
    height, width = sides_of(image_size)
    if height % patch_size or width % patch_size:
        raise ValueError(f"image size {height}x{width} is not divisible by patch_size {patch_size}: change one of them")
    return height // patch_size, width // patch_size


def layer_of(name: str, depth: int) -> int:
    """Layer of a parameter for layer-wise learning rates (unilm ``beit/optim_factory.py``).

    0 for tokens, positions and patch projection, ``k + 1`` for block k, ``depth + 1`` for everything behind them and
    for a shared position bias.
    """
    if name.startswith(("cls_token", "mask_token", "pos_embed", "patch_embed.")):
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1


def exempt_from_decay(name: str, convention: Literal["unilm", "timm"]) -> bool:
    """Tell whether a parameter with two or more axes is spared from weight decay.

    ``unilm`` decays ``mask_token`` and the position bias tables, ``timm`` spares the tables.
    """
    leaf = name.rpartition(".")[2]
    return leaf in ("cls_token", "pos_embed") or (convention == "timm" and leaf == "relative_position_bias_table")
