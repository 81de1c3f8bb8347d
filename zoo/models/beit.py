"""BEiT: BERT Pre-Training of Image Transformers (Bao, Dong, Piao, Wei, 2021).

arXiv:2106.08254 v2. Official code: microsoft/unilm ``beit/`` (commit 768a3c8, MIT).

Implemented: masked image modelling on the tokens of any discrete tokenizer (Section 2), blockwise and uniform masks,
both published networks (absolute positions; relative position bias with LayerScale), the initialisation, raw feature
maps for segmentation; fine-tuning and linear probes in :mod:`zoo.models.beit_classifier`.
Not implemented: the segmentation heads.
Deviations: ids that belong to no patch, as SEED's, are predicted by a decoder layer of ours. The tokenizer's view is
a second Lanczos resize of the crop only under ``train_transform: beit``; other transforms and evaluation reduce
``image`` itself by a Lanczos filter, and without ``token_image`` the model reduces ``image`` by antialiased bicubic
interpolation. Masks are drawn in the model, not in the data workers; validation masks depend on the image only.

Equations: Algorithm 1 -> `sampling.patch_masks.BlockwiseMask`; Section 2.3 input ->
`nn.beit_vit.BeitViT.embed_patches`; Section 2.3 prediction -> `BeitViT.masked_logits`; Eq. 1 -> `BEiT.losses`;
Section 2.5 initialisation -> `BeitViT.reset_parameters`.
"""

import math
import random
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from zoo.checkpoints.published import hf_beit, timm_beit, unilm
from zoo.choices import one_of
from zoo.losses.mixing import mark_correct
from zoo.models.beit_classifier import BEiTClassifier as BEiTClassifier  # configs and checkpoints name it here
from zoo.nn.beit_trunk import BeitTrunk
from zoo.nn.beit_vit import ABSOLUTE, EMOJI, EPS, LARGE, TINY, BeitViT
from zoo.nn.normalisation import STATISTICS, Normalisation
from zoo.nn.relative_position import ResizeMethod
from zoo.optim import Optim
from zoo.presets import Weights, register
from zoo.sampling.patch_masks import BlockwiseMask, flat_mask, nonempty, random_mask
from zoo.second_stage import SecondStage
from zoo.tokens import Tokens, as_pixels, evaluating, sides_of
from zoo.tokens.batch import Batch, images_of, indices_of, view_ids_of


class BEiT(BeitTrunk, SecondStage):
    """Predicts a tokenizer's ids at hidden patches; is itself a quantizer of images.

    Its tokens decode at the tokenizer's scale: to 112 pixels for 14x14 tokens of DALL-E's.

    Args:
        image_size: side of the input in pixels, or (height, width).
        patch_size: side of a patch in pixels.
        width: of the tokens.
        depth: blocks.
        heads: of the attention.
        mlp_ratio: hidden width of the MLPs in units of ``width``.
        layer_scale: initial residual gain, 0.1 (base), 1e-5 (large), 0 for none.
        absolute_positions: learned position embeddings (the paper's main tables).
        relative_positions: attention bias ``shared`` by all blocks (the released models), ``per_block`` or ``none``.
        drop_path: probability to skip a residual branch of the last block; that of earlier ones falls linearly to 0.
        tokenizer: model whose ids are predicted: any discrete one of the registry, e.g. ``dvae_openai:PATH``. Where its
            ids are not one grid (sequences, pyramids), all of them are predicted from the patches that are not hidden.
        vocab_size: number of ids that the tokenizer is expected to have; None takes any number.
        num_masked: patches to hide per image; None takes the paper's share, 75 of 196.
        min_block: smallest hidden block in patches; None takes the paper's share, 16 of 196.
        max_block: largest block; None allows ``num_masked``, as published.
        min_aspect: height over width of a block lies between this and its inverse; 0.3 as published.
        masking: ``blockwise`` or, for the ablation of Table 4, ``random``.
        normalisation: ``half`` maps pixels to [-1, 1] (ImageNet-22k runs), ``imagenet`` uses its mean and deviation.
        decay_convention: ``unilm`` decays position bias tables, ``timm`` does not.
        norm_eps: of every norm; 1e-6 as published, while configurations of transformers say 1e-12.
        grad_checkpointing: recompute the blocks in the backward pass instead of keeping their activations.
        optim: optimizer and schedule; the paper's at batch 2,048 by default.
        weights: start from these: a registry name or a path.
    """

    must_match = ("heads", "normalisation", "norm_eps")
    encodes_by_tokenizer = False  # but by what it predicts
    position_resize: ResizeMethod = "unilm-cubic"  # of relative position tables of another size

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
        drop_path: float = 0.1,
        tokenizer: str = "dvae_openai",
        vocab_size: int | None = None,
        num_masked: int | None = None,
        min_block: int | None = None,
        max_block: int | None = None,
        min_aspect: float = 0.3,
        masking: Literal["blockwise", "random"] = "blockwise",
        normalisation: Normalisation = "half",
        decay_convention: Literal["unilm", "timm"] = "unilm",
        norm_eps: float = EPS,
        grad_checkpointing: bool = False,
        optim: Optim = Optim(lr=1.5e-3, warmup_steps=10_000, min_lr=1e-5, weight_decay=0.05),
        weights: str | None = None,
    ):
        super().__init__(optim)
        self.add_tokenizer(tokenizer)
        spec = self.spec
        if vocab_size not in (None, spec.vocab_size):
            raise ValueError(
                f"vocab_size is {vocab_size}, but the tokenizer {tokenizer!r} has {spec.vocab_size} ids: "
                "leave vocab_size out or take the tokenizer that the head was trained for"
            )
        self.normalisation = one_of("normalisation", normalisation, tuple(STATISTICS))
        self.decay_convention = one_of("decay_convention", decay_convention, ("unilm", "timm"))
        self.vit = BeitViT(
            image_size, patch_size, width, depth, heads, mlp_ratio, layer_scale, absolute_positions, relative_positions,
            drop_path, spec.vocab_size, 0 if spec.grid_shape else spec.num_tokens, init="pretraining",
            grad_checkpointing=grad_checkpointing, eps=norm_eps,
        )  # fmt: skip
        self.grid = self.vit.grid
        self.spec = spec.with_grid(self.grid) if spec.grid_shape else spec
        self.add_allowed_ids()
        patches = math.prod(self.grid)
        num_masked = max(1, round(patches * 75 / 196)) if num_masked is None else num_masked
        min_block = max(1, round(patches * 16 / 196)) if min_block is None else min_block
        one_of("masking", masking, ("blockwise", "random"))
        blockwise = BlockwiseMask(self.grid, num_masked, min_block, max_block, min_aspect)
        self.draw_mask = blockwise if masking == "blockwise" else partial(random_mask, self.grid, num_masked)
        self.load_weights(weights)

    @property
    def view_size(self) -> tuple[int, int]:
        """Height and width in pixels of the tokenizer's images, which give as many tokens as BEiT has patches.

        A tokenizer whose ids are no grid takes images of its own size.
        """
        sides = sides_of(self.tokenizer.image_size)
        if self.vit.sequence is not None:
            return sides
        factor = sides[0] // self.tokenizer.spec.grid_shape[0]  # pixels per token, 8 for DALL-E's
        return self.grid[0] * factor, self.grid[1] * factor

    # ------------------------------------------------------------------ tokens

    @torch.no_grad()
    def encode(self, images: Shaped[Tensor, "b 3 h w"], mask: Bool[Tensor, "b gh gw"] | None = None) -> Tokens:
        """The most likely ids, one per patch or the tokenizer's sequence of the image.

        Args:
            images: in [0, 1] or uint8.
            mask: True at patches that are hidden from the network; None hides none.
        """
        logits = self.vit.token_logits(self.to_network_range(images), None if mask is None else self.flat(mask, images))
        return Tokens(self.keep_allowed(logits).argmax(-1), None, self.spec)

    def tokenize(self, batch: Batch) -> Int[Tensor, "b n"]:
        """The tokenizer's ids of a batch: its ``ids``, else those of ``token_image``, else of ``image`` resized.

        Raises:
            ValueError: for ids or images that do not fit the grid of patches.
        """
        return view_ids_of(batch, self.tokenizer, self.spec, self.view_size, self)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tokens:
        return self.encode(images_of(batch, self))

    # ------------------------------------------------------------------ training

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 1: mean cross entropy in nats over the hidden patches of the whole batch; visible ones do not count.

        Of a sequence every token counts, since each may describe hidden patches.

        Args:
            batch: with ``image``; ``ids``, ``token_image`` and ``mask`` are used where it has them.

        Returns:
            ``loss``, ``accuracy`` of the predictions that count, and ``masked``, the share of hidden patches.
        """
        images = images_of(batch, self)
        mask = self.flat(self.masks(batch), images)
        target = self.tokenize(batch)
        logits = self.vit(self.to_network_range(images), mask).float()
        if self.vit.sequence is None:
            target = target[mask]
        else:
            logits, target = self.keep_allowed(logits).flatten(0, 1), target.flatten()
        return {
            "loss": F.cross_entropy(logits, target),
            "accuracy": mark_correct(logits, target).mean(),
            "masked": mask.float().mean(),
        }

    def masks(self, batch: Batch) -> Bool[Tensor, "b gh gw"]:
        """``batch["mask"]`` where it is; else masks that are new in training and follow ``index`` in evaluation."""
        if (mask := batch.get("mask")) is not None:
            return mask
        images = images_of(batch, self)
        if self.training:
            rng = random.Random(int(torch.randint(2**62, ())))  # torch is seeded anew for every step
            drawn = [nonempty(self.draw_mask, rng) for _ in images]
        else:
            drawn = [nonempty(self.draw_mask, random.Random(i)) for i in indices_of(batch, len(images))]
        return torch.stack(drawn).to(images.device)

    # ------------------------------------------------------------------ looking at it

    def complete(
        self, images: Shaped[Tensor, "b 3 h w"], mask: Bool[Tensor, "b gh gw"], ids: Int[Tensor, "b n"] | None = None
    ) -> Tokens:
        """Tokens of a partly hidden image: BEiT's prediction where it is hidden, the tokenizer's ids elsewhere.

        ``decode(complete(images, mask))`` is the reconstruction under a mask; ``ids`` are the tokenizer's, where known.
        A sequence is predicted as a whole.
        """
        predicted = self.encode(images, mask)
        if self.vit.sequence is not None:
            return predicted
        ids = self.tokenize({"image": images}) if ids is None else ids
        assert predicted.ids is not None
        return Tokens(torch.where(self.flat(mask, images), predicted.ids, ids), None, self.spec)

    @torch.no_grad()
    def picture_rows(self, images: Shaped[Tensor, "b 3 h w"], batch: Batch) -> dict[str, Float[Tensor, "b 3 h w"]]:
        """Rows of the picture grid, all at the size of the images; without pixels of tokens where those do not decode.

        Args:
            images: the first images of the batch.
            batch: its other entries are used for as many images.
        """
        batch = {k: v[: len(images)] for k, v in batch.items() if isinstance(v, Tensor)} | {"image": images}
        with evaluating(self):
            mask = self.masks(batch)
            pixels, patch = as_pixels(images, size=self.vit.image_sides).float(), self.vit.patch_size
            hidden = repeat(mask, "b gh gw -> b 1 (gh p) (gw q)", p=patch, q=patch)
            rows = {"original": pixels, "masked_input": torch.where(hidden, 0.5, pixels)}
            if self.spec.decodes != "pixels":
                return rows
            target = Tokens(self.tokenize(batch), None, self.spec)
            tokens = {
                "tokenizer": target,
                "predicted_under_mask": self.complete(images, mask, target.ids),
                "predicted_from_all": self.encode(images),
            }
            return rows | {name: self._enlarge(self.decode(t)) for name, t in tokens.items()}

    def flat(self, mask: Bool[Tensor, "b gh gw"], images: Tensor) -> Bool[Tensor, "b n"]:
        """Masks in raster order, checked against the images and the grid."""
        return flat_mask(mask, (len(images), self.grid[0], self.grid[1]))

    def _enlarge(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        size = self.vit.image_sides
        return images if images.shape[-2:] == size else F.interpolate(images.float(), size, mode="bilinear")


BEiT.formats = (unilm.BEIT, hf_beit.BEIT, timm_beit.BEIT)

PAPER = "arXiv:2106.08254"
register("beit_tiny", BEiT, paper=PAPER, **TINY, tokenizer="dvae_tiny:random", optim=Optim(lr=3e-3))
register(
    "beit_emoji", BEiT, paper=PAPER, recipe="beit.yaml", **EMOJI, drop_path=0.0, tokenizer="dvae_emoji",
    weights={"emoji": Weights(file="beit_emoji.safetensors", note="recipes/beit.yaml on Twemoji, 64 px")},
    optim=Optim(lr=2e-3, warmup_steps=100, min_lr=1e-5, weight_decay=0.05),
)  # fmt: skip
register("beit_base_patch16_224", BEiT, paper=PAPER, tokenizer="dvae_openai")
register(
    "beit_base_patch16_224_in1k", BEiT, paper=PAPER, recipe="paper/beit_base_imagenet1k.yaml", normalisation="imagenet",
    optim=Optim(lr=1.5e-3, warmup_steps=6250, min_lr=1e-5, weight_decay=0.05),
)  # fmt: skip
register("beit_base_patch16_224_abs", BEiT, paper=PAPER, **ABSOLUTE, tokenizer="dvae_openai")
register("beit_large_patch16_224", BEiT, paper=PAPER, **LARGE, tokenizer="dvae_openai")
