"""BEiT fine-tuned or linearly probed: image classifiers on its transformer (Bao, Dong, Piao, Wei, 2021).

arXiv:2106.08254 v2. Official code: microsoft/unilm ``beit/`` (commit 768a3c8, MIT).

Implemented: fine-tuning with layer-wise learning rates, mixup and cutmix, linear probes of all blocks, larger images
than in pre-training, raw feature maps for segmentation; reading of published masked-image models and classifiers.
Not implemented: the segmentation heads, the two-stage intermediate fine-tuning script (run fine-tuning twice).
Deviations: none.

Equations: Section 2.6 -> `BEiTClassifier.losses`, `nn.beit_vit.layer_of`; Section 3.1, Table 6 ->
`BEiTClassifier(linear_probe=True)`.
"""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from zoo.checkpoints.published import hf_beit, timm_beit, unilm
from zoo.choices import one_of
from zoo.losses.mixing import mix_images, top_k_accuracy
from zoo.module import ZooModule
from zoo.nn.beit_trunk import BeitTrunk
from zoo.nn.beit_vit import ABSOLUTE, EMOJI, EPS, LARGE, TINY, BeitViT
from zoo.nn.normalisation import STATISTICS, Normalisation
from zoo.nn.relative_position import ResizeMethod
from zoo.optim import Optim
from zoo.presets import register
from zoo.tokens.batch import Batch, class_labels, images_of


class BEiTClassifier(BeitTrunk, ZooModule):
    """BEiT fine-tuned, or linearly probed, on labelled images.

    Args:
        image_size: side of the input in pixels, or (height, width); weights of another size are resized.
        patch_size: side of a patch in pixels.
        width: of the tokens.
        depth: blocks.
        heads: of the attention.
        mlp_ratio: hidden width of the MLPs in units of ``width``.
        layer_scale: initial residual gain, 0.1 (base), 1e-5 (large), 0 for none.
        absolute_positions: learned position embeddings.
        relative_positions: attention bias; a shared table of a pre-trained model is copied into every block.
        drop_path: probability to skip a residual branch of the last block; that of earlier ones falls linearly to 0.
        num_classes: number of labels.
        pool: classify the ``mean`` of the patches (normalised by ``fc_norm``) or the ``cls`` token.
        normalisation: of the pixels, as in pre-training.
        label_smoothing: of the training targets.
        mixup: alpha of mixup, 0.8 in the paper; 0 for none.
        cutmix: alpha of cutmix, 1.0 in the paper; 0 for none. With both, one of the two is drawn for each batch.
        init_scale: factor on the initial classifier.
        position_resize: how relative position tables of another size are resized: ``unilm-cubic`` as published,
            ``timm-linear``, or ``bilinear`` as transformers does.
        linear_probe: freeze the transformer and train one linear layer per block on [class token, mean of patches].
        probe_block: the block (from 1) whose probe gives ``forward`` and ``accuracy``; None takes three quarters of
            the depth (the paper's best of 12 is the 9th).
        decay_convention: ``unilm`` decays position bias tables, ``timm`` does not.
        norm_eps: of every norm; 1e-6 as published, while configurations of transformers say 1e-12.
        grad_checkpointing: recompute the blocks in the backward pass instead of keeping their activations.
        optim: optimizer and schedule; ``layer_decay`` works here.
        weights: start from these: a registry name or a path; any masked-image-modelling checkpoint will do.
    """

    must_match = ("heads", "normalisation", "norm_eps")

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
        relative_positions: Literal["shared", "per_block", "none"] = "per_block",
        drop_path: float = 0.1,
        num_classes: int = 1000,
        pool: Literal["mean", "cls"] = "mean",
        normalisation: Normalisation = "half",
        label_smoothing: float = 0.1,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        init_scale: float = 0.001,
        position_resize: ResizeMethod = "unilm-cubic",
        linear_probe: bool = False,
        probe_block: int | None = None,
        decay_convention: Literal["unilm", "timm"] = "unilm",
        norm_eps: float = EPS,
        grad_checkpointing: bool = False,
        optim: Optim = Optim(lr=4e-3, min_lr=1e-6, weight_decay=0.05, layer_decay=0.65),
        weights: str | None = None,
    ):
        super().__init__(optim)
        if num_classes < 1 or min(mixup, cutmix, label_smoothing) < 0 or label_smoothing >= 1:
            raise ValueError(
                f"num_classes must be at least 1, mixup and cutmix not negative and label_smoothing in [0, 1), got "
                f"{num_classes}, {mixup}, {cutmix} and {label_smoothing}"
            )
        self.normalisation = one_of("normalisation", normalisation, tuple(STATISTICS))
        self.decay_convention = one_of("decay_convention", decay_convention, ("unilm", "timm"))
        self.position_resize = one_of("position_resize", position_resize, get_args(ResizeMethod))
        self.num_classes, self.label_smoothing, self.init_scale = num_classes, label_smoothing, init_scale
        self.mixup, self.cutmix = mixup, cutmix
        self.vit = BeitViT(
            image_size, patch_size, width, depth, heads, mlp_ratio, layer_scale, absolute_positions, relative_positions,
            drop_path, num_classes=num_classes, pool=pool, init="finetuning", grad_checkpointing=grad_checkpointing,
            eps=norm_eps,
        )  # fmt: skip
        self.probe_block = max(1, round(depth * 0.75)) if probe_block is None else probe_block
        if not 1 <= self.probe_block <= depth:
            raise ValueError(f"probe_block must lie in 1..{depth}, got {probe_block}")
        self.probes: nn.ModuleList | None = None
        if linear_probe:
            self.vit.norm, self.vit.fc_norm, self.vit.head = nn.Identity(), None, None  # probes look at raw blocks
            self.vit.eval().requires_grad_(False)
            self.probes = nn.ModuleList(nn.Linear(2 * width, num_classes) for _ in range(depth))
        self.reset_head(num_classes)
        self.load_weights(weights)

    def reset_head(self, num_classes: int) -> None:
        """Replace the classifier by a new one for other labels; the transformer stays as it is.

        Raises:
            ValueError: for no class at all, or what is no whole number.
        """
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"a classifier needs at least one class, got num_classes {num_classes!r}")
        self.num_classes = self.hparams["num_classes"] = num_classes
        device = self.vit.cls_token.device
        with torch.no_grad():
            if self.probes is not None:
                probes = [nn.Linear(2 * self.vit.width, num_classes) for _ in self.probes]
                self.probes = nn.ModuleList(probes).to(device)
                for probe in probes:
                    nn.init.normal_(probe.weight, std=0.01)
                    nn.init.zeros_(probe.bias)
                return
            self.vit.head = nn.Linear(self.vit.width, num_classes, device=device)
            nn.init.trunc_normal_(self.vit.head.weight, std=0.02)
            nn.init.zeros_(self.vit.head.bias)
            self.vit.head.weight.mul_(self.init_scale)

    def train(self, mode: bool = True) -> "BEiTClassifier":
        """Switch to training or evaluation; a transformer that is probed stays in evaluation mode."""
        super().train(mode)
        if self.probes is not None:
            self.vit.eval()
        return self

    def forward(self, images: Shaped[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        """Class logits of images in [0, 1] or uint8; of probes, those of ``probe_block``."""
        return self.logits(self.to_network_range(images))[-1]

    def logits(self, x: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c"]]:
        """Class logits: one entry for a classifier; for probes one per block, then that of ``probe_block`` again.

        Args:
            x: normalised pixels.
        """
        if self.probes is None:
            return [self.vit(x)]
        with torch.no_grad():
            outputs = self.vit.block_outputs(x, list(range(self.vit.depth)))
            features = [torch.cat([y[:, 0], y[:, 1:].mean(1)], dim=-1) for y in outputs]
        every = [probe(f) for probe, f in zip(self.probes, features, strict=True)]
        return [*every, every[self.probe_block - 1]]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy in nats, of mixed and smoothed targets in training; the sum over blocks for probes."""
        x, label = self.to_network_range(images_of(batch, self)), class_labels(batch, self.num_classes, self)
        target: Tensor = label
        mixed = self.training and bool(self.mixup or self.cutmix)
        if mixed:
            x, target = mix_images(x, label, self.mixup, self.cutmix, self.label_smoothing, self.num_classes)
        smoothing = self.label_smoothing if self.training and not mixed else 0.0
        logits = [y.float() for y in self.logits(x)]
        every = logits[:-1] if self.probes is not None else logits
        losses = [F.cross_entropy(y, target, label_smoothing=smoothing) for y in every]
        terms = {"loss": sum(losses[1:], start=losses[0])}
        if mixed:
            return terms  # there is no one right label
        terms["accuracy"] = top_k_accuracy(logits[-1], label, 1)
        if not self.training and self.num_classes > 5:
            terms["accuracy_top5"] = top_k_accuracy(logits[-1], label, 5)
        if self.probes is not None:
            terms |= {f"accuracy_block{i}": top_k_accuracy(y, label, 1) for i, y in enumerate(every, start=1)}
        return terms

    def predict_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, "b c"]:  # type: ignore[override]
        """Class probabilities; a classifier has no tokens."""
        return self(images_of(batch, self)).softmax(-1)


BEiTClassifier.formats = (unilm.BEIT, hf_beit.BEIT, timm_beit.BEIT)

PAPER = "arXiv:2106.08254"
register("beit_classifier_tiny", BEiTClassifier, paper=PAPER, **TINY, num_classes=9, optim=Optim(lr=3e-3))
register(
    "beit_emoji_classifier", BEiTClassifier, paper=PAPER, recipe="beit_finetune.yaml", **EMOJI, num_classes=9,
    optim=Optim(lr=3e-3, warmup_steps=50, min_lr=1e-6, weight_decay=0.05, layer_decay=0.9),
)  # fmt: skip
register(
    "beit_emoji_probe", BEiTClassifier, paper=PAPER, recipe="beit_linear_probe.yaml", **EMOJI, num_classes=9,
    linear_probe=True, optim=Optim(lr=4e-3, min_lr=0.0, weight_decay=1e-4, layer_decay=1.0),
)  # fmt: skip
# fine-tuning from ImageNet-22k pre-training as published (unilm beit/README.md): 20 or 5 epochs of warm-up, batch 1,024
AFTER_22K: dict[str, Any] = {
    "optim": Optim(lr=4e-3, warmup_steps=25_000, min_lr=1e-6, weight_decay=0.05, layer_decay=0.65)
}
LARGE_AFTER_22K: dict[str, Any] = {
    "optim": Optim(lr=1e-3, warmup_steps=6_250, min_lr=1e-6, weight_decay=0.05, layer_decay=0.75)
}
MIX: dict[str, Any] = {"label_smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0}
register(
    "beit_base_patch16_224_in1k_classifier", BEiTClassifier, paper=PAPER, normalisation="imagenet", **MIX,
    recipe="paper/beit_base_imagenet1k_finetune.yaml", **AFTER_22K,
)  # fmt: skip
for size in (224, 384):
    register(f"beit_base_patch16_{size}_classifier", BEiTClassifier, paper=PAPER, image_size=size, **MIX, **AFTER_22K)
register("beit_base_patch16_224_abs_classifier", BEiTClassifier, paper=PAPER, **ABSOLUTE, **MIX, **AFTER_22K)
for size in (224, 384, 512):
    register(
        f"beit_large_patch16_{size}_classifier", BEiTClassifier, paper=PAPER, image_size=size, **LARGE, **MIX,
        drop_path=0.2, **LARGE_AFTER_22K,
    )  # fmt: skip
