"""MaskGIT: Masked Generative Image Transformer (Chang, Zhang, Jiang, Liu, Freeman, 2022).

arXiv:2202.04200. Official code: google-research/maskgit (commit 1db2359, Apache-2.0), inference only; the training
objective follows Section 3.1 and the loss and configuration files of that repository.

Implemented: masked token modelling over the ids of any discrete tokenizer, all mask schedules, parallel decoding,
class-conditional and unconditional generation, inpainting, outpainting, class-conditional editing; the released
transformer and that of valeoai/Maskgit-pytorch; reading of both checkpoints.
Not implemented: rejection sampling with a classifier.
Deviations: options of ours or of successors, off by default: class dropout with classifier-free guidance, the Halton
order. Validation masks depend on the image only, so that the number does not jitter.

Equations: Eq. 1 -> `MaskGIT.losses`; Section 3.2 -> `sampling.parallel_decoding.parallel_decode`; Section 3.3 ->
`sampling.mask_schedule.mask_ratio`; Section 3.1 network -> `nn.maskgit_transformer.MaskGITTransformer`; Section 4.3 ->
`MaskGIT.edit`, `MaskGIT.inpaint`, `MaskGIT.outpaint`.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from zoo.checkpoints.published import maskgit_transformer, maskgit_valeoai
from zoo.choices import known_names, one_of
from zoo.losses.mixing import mark_correct
from zoo.nn.maskgit_transformer import MaskGITTransformer
from zoo.nn.prenorm_maskgit import PreNormMaskGIT
from zoo.optim import Optim
from zoo.presets import Weights, register
from zoo.runs.untrained import warn_if_untrained
from zoo.sampling.editing import cut_next_window, extend, paste, refuse_tokens, resize_to, tokens_to_replace
from zoo.sampling.halton import spread_order
from zoo.sampling.image_masks import grey_out, token_mask
from zoo.sampling.labels import NO_CLASS
from zoo.sampling.mask_schedule import MaskSchedule, mask_ratio
from zoo.sampling.parallel_decoding import Decoding, Noise, parallel_decode
from zoo.second_stage import SecondStage
from zoo.tokens import Tokens, as_pixels, evaluating, sides_of
from zoo.tokens.abilities import default_settings
from zoo.tokens.batch import Batch, indices_of

PUBLISHED_HEADS = 16  # of the released configuration; the paper says 8
Pictures = dict[str, Float[Tensor, "b 3 h w"]]
ORDERS = ("confidence", "halton")


class MaskGIT(SecondStage):
    """Predicts masked tokens of an image; generates, completes and edits images in a few passes.

    Args:
        tokenizer: whose tokens are modelled; any discrete one of the registry, e.g. ``dvae_emoji`` or ``ckpt:PATH``.
        num_classes: of the condition; 0 for an unconditional model.
        width: of the tokens.
        depth: layers.
        heads: of the attention; None takes what loaded weights say or show, else 16, the published models'.
        mlp_width: hidden width of the MLPs; None takes four times ``width``.
        dropout: of the network.
        class_dropout: share of training images without their class, for classifier-free guidance.
        schedule: of the masks in training.
        label_smoothing: over all ids, those of classes and the mask included.
        layout: the paper's network as ``google`` released it, or that of ``valeoai``/Maskgit-pytorch, which always has
            an absent class.
        optim: optimizer and schedule; the released configuration's by default.
        weights: start from these: a registry name or a path.
    """

    must_match = ("heads",)

    def __init__(
        self,
        tokenizer: str = "dvae_emoji",
        num_classes: int = 1000,
        width: int = 768,
        depth: int = 24,
        heads: int | None = None,
        mlp_width: int | None = None,
        dropout: float = 0.1,
        class_dropout: float = 0.0,
        schedule: MaskSchedule = "cosine",
        label_smoothing: float = 0.1,
        layout: Literal["google", "valeoai"] = "google",
        optim: Optim = Optim(lr=1e-4, betas=(0.9, 0.96), weight_decay=0.045, warmup_steps=5000, schedule="constant"),
        weights: str | None = None,
    ):
        super().__init__(optim)
        if num_classes < 0 or not 0 <= class_dropout < 1:
            raise ValueError(
                f"num_classes must not be negative and class_dropout lie in [0, 1), got {num_classes}, {class_dropout}"
            )
        if class_dropout and not num_classes:
            raise ValueError("class_dropout needs classes: set num_classes, or class_dropout to 0")
        self.add_tokenizer(tokenizer)
        self.num_classes, self.class_dropout = num_classes, class_dropout
        self.schedule = one_of("schedule", schedule, get_args(MaskSchedule))
        self.label_smoothing = label_smoothing
        self.layout = one_of("layout", layout, ("google", "valeoai"))
        self.has_null = num_classes > 0 and (class_dropout > 0 or layout == "valeoai")
        if heads is None and weights is None and width % PUBLISHED_HEADS:
            raise ValueError(
                f"width {width} is not divisible by the {PUBLISHED_HEADS} heads of the published model: set heads, or "
                "start from weights that say it"
            )
        open_heads = PUBLISHED_HEADS if width % PUBLISHED_HEADS == 0 else 1  # for now: see take_open_settings
        sizes = (width, depth, open_heads if heads is None else heads, mlp_width, dropout)
        vocab_size, length = self.spec.vocab_size, self.spec.num_tokens
        self.network: MaskGITTransformer | PreNormMaskGIT
        if layout == "valeoai":
            self.network = PreNormMaskGIT(vocab_size, length, num_classes, *sizes)
        else:
            self.network = MaskGITTransformer(vocab_size, length, num_classes, class_dropout > 0, *sizes)
        self.add_allowed_ids()
        self.load_weights(weights)

    def take_open_settings(self, settings: Mapping[str, Any], source: str) -> tuple[str, ...]:
        """Take the number of heads where the constructor left it open: parameters have the same shapes for any.

        Raises:
            ValueError: where the weights do not say it and the published number does not fit, or theirs does not.
        """
        if self.hparams["heads"] is not None:
            return ()
        width, heads = int(self.hparams["width"]), settings.get("heads")
        if heads is None:
            if width % PUBLISHED_HEADS:
                raise ValueError(
                    f"{source} does not say how many attention heads its weights have, and the {PUBLISHED_HEADS} of "
                    f"the published ones do not divide width {width}: set heads"
                )
            note, heads = f"{PUBLISHED_HEADS} attention heads, as published: {source} does not say it", PUBLISHED_HEADS
        else:
            note = f"{heads} attention heads, as the weights have"
        self.network.set_heads(heads)
        self.hparams["heads"] = heads
        return (note,)

    # ------------------------------------------------------------------ generation

    def sampling_settings(self) -> dict[str, Any]:
        """Name and default of every setting of :meth:`complete` that decides how tokens are drawn."""
        return default_settings(self.complete)

    def generate(
        self,
        labels: Any = None,
        num_images: int | None = None,
        *,
        as_tokens: bool = False,
        return_steps: bool = False,
        **sampling: Any,
    ) -> Any:
        """New images.

        Args:
            labels: class of each image (a number, a list or a tensor), for a class-conditional model; -1 for no class
                where it was trained with ``class_dropout``.
            num_images: how many; with one label, that many of it.
            as_tokens: return :class:`Tokens` instead of what the tokenizer makes of them.
            return_steps: return ``(result, Decoding)``, with what every step believed and hid.
            sampling: see :meth:`complete`.

        Returns:
            Images in [0, 1] (or what else the tokenizer decodes to), or tokens.

        Raises:
            ValueError: naming the setting that is wrong.
            TypeError: naming one that there is not.
        """
        known_names("sampling", sampling, SAMPLING)
        classes, count = self.wanted_labels(labels, num_images)
        ids = torch.full((count, self.spec.num_tokens), self.network.mask_id, device=self.device)
        decoding = self.complete(ids, classes, **sampling)
        return self._finish(decoding, as_tokens, return_steps)

    @torch.no_grad()
    def complete(
        self,
        ids: Int[Tensor, "b n"],
        labels: Int[Tensor, " b"] | None = None,
        *,
        steps: int = 8,
        start: int = 0,
        schedule: str | None = None,
        choice_temperature: float = 4.5,
        sampling_temperature: float = 1.0,
        guidance: float = 0.0,
        guidance_schedule: str = "constant",
        order: str = "confidence",
        noise: Noise | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Decoding:
        """Fill in hidden tokens by parallel decoding (Section 3.2).

        Args:
            ids: tokens, ``network.mask_id`` where they are hidden.
            labels: class of each image, -1 for none.
            steps: passes of the whole schedule; the paper takes 8 for 256 tokens and 12 for 1,024.
            start: first pass to execute.
            schedule: how many tokens stay hidden; None takes ``cosine``, and ``arccos`` for the Halton order.
            choice_temperature: of the noise on the confidence, which falls to 0 over the steps.
            sampling_temperature: divides the logits; 0 takes the most likely token.
            guidance: w of classifier-free guidance, logits = (1 + w) conditional - w unconditional; 0 switches it off
                (other code counts from 1: its scale is w + 1).
            guidance_schedule: w in every step (``constant``), or from 0 in the first to w in the last (``linear``).
            order: keep the most confident tokens (``confidence``, as the paper) or the next ones of the Halton sequence
                (``halton``).
            noise: recorded noise to replay.
            seed: of the noise; with ``generator`` None as well, torch's global state is used.
            generator: of the noise.

        Raises:
            ValueError: naming the setting, label or id that is wrong.
        """
        warn_if_untrained(self, "draws")
        one_of("order", order, ORDERS)
        one_of("guidance_schedule", guidance_schedule, ("constant", "linear"))
        schedule = ("arccos" if order == "halton" else "cosine") if schedule is None else schedule
        one_of("schedule", schedule, get_args(MaskSchedule))
        if not math.isfinite(guidance):
            raise ValueError(f"guidance must be a finite number, got {guidance}: 0 switches it off")
        if guidance and not self.num_classes:
            raise ValueError(
                "guidance pulls towards a class and this model is unconditional (num_classes is 0): set it to 0"
            )
        if guidance and not self.has_null:
            raise ValueError("guidance needs a model that knows images without a class: train with class_dropout > 0")
        if ids.shape[1] != self.spec.num_tokens:
            raise ValueError(
                f"there are {ids.shape[1]} tokens per image, this model has positions for {self.spec.num_tokens}"
            )
        strange = (ids < 0) | ((ids >= self.spec.vocab_size) & (ids != self.network.mask_id))
        if strange.any():
            raise ValueError(
                f"ids must lie in 0..{self.spec.vocab_size - 1}, or be network.mask_id = {self.network.mask_id} where "
                f"they are hidden, got {int(ids[strange][0])}"
            )
        labels, _ = self.wanted_labels(labels, len(ids), ids.device)
        if seed is not None:
            generator = torch.Generator(self.device).manual_seed(seed)

        def logits_of(ids: Tensor, step: int) -> Tensor:
            weight = guidance * (step / max(1, steps - 1) if guidance_schedule == "linear" else 1.0)
            return self._code_logits(ids, labels, weight)

        with evaluating(self):
            return parallel_decode(
                ids, logits_of, self.network.mask_id, steps, schedule, choice_temperature, sampling_temperature, start,
                spread_order([s.shape for s in self.spec.segments]).to(ids.device) if order == "halton" else None,
                noise, generator,
            )  # fmt: skip

    def inpaint(
        self,
        images: Shaped[Tensor, "b 3 h w"],
        mask: Bool[Tensor, "..."],
        labels: Any = None,
        *,
        as_tokens: bool = False,
        return_steps: bool = False,
        **sampling: Any,
    ) -> Any:
        """Fill in the hidden parts of images.

        Args:
            images: in [0, 1] or uint8, of the tokenizer's size.
            mask: True where hidden, in pixels, one for all images or one each; a token with any hidden pixel is
                predicted. Tokens that stand for no place in the image are predicted if anything is hidden.
            labels: class of each image, for a class-conditional model.
            as_tokens: as in :meth:`generate`.
            return_steps: as in :meth:`generate`.
            sampling: see :meth:`complete`.

        Raises:
            ValueError: for a mask of another size, or a tokenizer without a grid.
        """
        known_names("sampling", sampling, SAMPLING)
        ids = self.tokenize({"image": images})
        size = (images.shape[-2], images.shape[-1])
        hidden = token_mask(self.spec, mask, len(images), size).to(images.device)
        classes, _ = self.wanted_labels(labels, len(images))
        ids = ids.masked_fill(hidden, self.network.mask_id)
        return self._finish(self.complete(ids, classes, **sampling), as_tokens, return_steps)

    def edit(
        self,
        images: Shaped[Tensor, "b 3 h w"],
        labels: Any = None,
        *,
        box: Sequence[Any] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
        steps: int = 12,
        start: int = 2,
        **sampling: Any,
    ) -> Float[Tensor, "b 3 h w"]:
        """Replace a part of images by something of a class, with soft edges (Section 4.3, class-conditional editing).

        Args:
            images: in [0, 1] or uint8, of the tokenizer's size.
            labels: class of what appears.
            box: ``(top, left, height, width)`` in pixels. One that begins and ends between tokens is widened by one
                token on each side; of others, by the floors of the released code, the end may stay as it is.
            mask: instead, any part, as in :meth:`inpaint`.
            steps: passes of the schedule.
            start: first one to execute; the released code leaves out two of twelve.
            sampling: see :meth:`complete`.

        Raises:
            ValueError: for neither or both of box and mask, or one that does not fit the images.
        """
        refuse_tokens("edit", sampling)
        known_names("sampling", sampling, SAMPLING)
        hidden, ids = tokens_to_replace(self.spec, images, box, mask), self.tokenize({"image": images})
        classes, _ = self.wanted_labels(labels, len(images))
        ids = ids.masked_fill(hidden, self.network.mask_id)
        decoding = self.complete(ids, classes, steps=steps, start=start, **sampling)
        new = self._decoded(Tokens(decoding.ids, None, self.spec))
        return paste(new, as_pixels(images).float(), hidden, self.spec)

    def outpaint(
        self,
        images: Shaped[Tensor, "b 3 h w"],
        side: str = "right",
        pixels: int | None = None,
        labels: Any = None,
        **sampling: Any,
    ) -> Float[Tensor, "b 3 h2 w2"]:
        """Extend images beyond one side (Section 4.3); call it again with the result for longer ones.

        Args:
            images: in [0, 1] or uint8, of the tokenizer's size across; along, they may be longer.
            side: ``left``, ``right``, ``up`` or ``down``.
            pixels: to add; None takes half a window, so that the model sees as much as it makes.
            labels: class of each image, for a class-conditional model.
            sampling: see :meth:`complete`.

        Raises:
            ValueError: naming the setting that is wrong.
        """
        refuse_tokens("outpaint", sampling)
        images, sides = as_pixels(images).float(), sides_of(self.tokenizer.image_size)
        if (size := sides[0]) != sides[1]:
            raise ValueError(
                f"outpainting needs square windows, and this tokenizer takes images of {sides[0]}x{sides[1]}: "
                "take one of squares"
            )
        pixels = size // 2 if pixels is None else pixels
        window, hidden = cut_next_window(images, side, pixels, size)
        filled_in = resize_to(self.inpaint(window, hidden, labels, **sampling), (size, size))
        return extend(images, filled_in, side, pixels)

    def decoding_steps(self, labels: Any = None, num_images: int | None = None, **sampling: Any) -> Pictures:
        """Rows of pictures, one image per row: what each step of :meth:`generate` kept, hidden tokens in grey."""
        _, decoding = self.generate(labels, num_images, as_tokens=True, return_steps=True, **sampling)
        rows: Pictures = {}
        for i in range(len(decoding.ids)):
            hidden = decoding.after[i] == self.network.mask_id
            hidden[-1] = False
            images = self._decoded(Tokens(decoding.sampled[i], None, self.spec))
            rows[f"sample {i + 1}"] = grey_out(images, hidden, self.spec)
        return rows

    def _code_logits(
        self, ids: Int[Tensor, "b n"], labels: Int[Tensor, " b"] | None, guidance: float
    ) -> Float[Tensor, "b n k"]:
        """Logits of the codes, guided, ``-inf`` where a code cannot stand."""
        if guidance and labels is not None:
            nothing = torch.full_like(labels, NO_CLASS)
            both = self.network(ids.repeat(2, 1), torch.cat([labels, nothing]))
            with_class, without = both.float().chunk(2)  # a difference of two bfloat16 would lose what it is about
            logits = (1 + guidance) * with_class - guidance * without
        else:
            logits = self.network(ids, labels)
        return self.keep_allowed(logits[..., : self.spec.vocab_size])

    def _finish(self, decoding: Decoding, as_tokens: bool, return_steps: bool) -> Any:
        tokens = Tokens(decoding.ids, None, self.spec)
        result = tokens if as_tokens else self._decoded(tokens)
        return (result, decoding) if return_steps else result

    def _decoded(self, tokens: Tokens) -> Float[Tensor, "b ..."]:
        with torch.no_grad(), evaluating(self):
            return self.decode(tokens)

    # ------------------------------------------------------------------ training

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 1: cross entropy of the hidden tokens, averaged per image and then over images, as the released code."""
        target = self.tokenize(batch)
        labels = self.labels_of(batch)
        mask = self.masks(batch, target)
        if labels is not None and self.training and self.class_dropout:
            labels = labels.masked_fill(torch.rand(labels.shape, device=labels.device) < self.class_dropout, NO_CLASS)
        logits = self.network(target.masked_fill(mask, self.network.mask_id), labels).float()
        # flat: a softmax over the last dimension is three times as fast as one over the middle of three
        every = F.cross_entropy(
            rearrange(logits, "b n v -> (b n) v"), target.flatten(), reduction="none",
            label_smoothing=self.label_smoothing,
        ).view_as(target)  # fmt: skip
        right = mark_correct(logits, target).masked_fill(~mask, 0)
        return {
            "loss": ((every * mask).sum(1) / mask.sum(1)).mean(),
            "accuracy": right.sum() / mask.sum(),
            "masked": mask.float().mean(),
        }

    def masks(self, batch: Batch, ids: Int[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
        """``batch["mask"]``, or new ones in training, or in evaluation those that belong to each ``index``.

        ``ceil(gamma(r) n)`` tokens are hidden, r uniform in [0, 1) for each image (Section 3.1).
        """
        if (mask := batch.get("mask")) is not None:
            if mask.shape != ids.shape or not mask.any(1).all():
                raise ValueError(f"masks must be bool of shape {tuple(ids.shape)} and hide a token of each image")
            return mask
        count, n = ids.shape
        if self.training:
            noise = torch.rand(count, n + 1, device=ids.device)
        else:
            every = [torch.Generator().manual_seed(i) for i in indices_of(batch, count)]
            noise = torch.stack([torch.rand(n + 1, generator=generator) for generator in every])
            noise = noise.to(ids.device)
        length = torch.full((count,), n, device=ids.device)
        hidden = (mask_ratio(self.schedule, noise[:, 0], length) * n).ceil().clamp(1, n)
        return noise[:, 1:].argsort(1).argsort(1) < hidden.unsqueeze(1)


#: what :meth:`MaskGIT.complete` can be told about sampling
SAMPLING = tuple(p.name for p in inspect.signature(MaskGIT.complete).parameters.values() if p.kind is p.KEYWORD_ONLY)


MaskGIT.formats = (maskgit_transformer.GOOGLE, maskgit_valeoai.VALEOAI)

PAPER = "arXiv:2202.04200"
register(
    "maskgit_tiny", MaskGIT, paper=PAPER, tokenizer="dvae_tiny:random", num_classes=9, width=32, depth=2, heads=4,
    class_dropout=0.1, optim=Optim(lr=3e-3, betas=(0.9, 0.96)),
)  # fmt: skip
register(
    "maskgit_emoji", MaskGIT, paper=PAPER, recipe="maskgit.yaml", tokenizer="vqgan_emoji", num_classes=9, width=192,
    depth=5, heads=6, mlp_width=512, class_dropout=0.1,
    optim=Optim(lr=1.5e-3, betas=(0.9, 0.96), weight_decay=0.045, warmup_steps=100),
    weights={"emoji": Weights(file="maskgit_emoji.safetensors", note="recipes/maskgit.yaml on Twemoji, 64 px")},
)  # fmt: skip
for size in (256, 512):
    register(
        f"maskgit_imagenet{size}", MaskGIT, paper=PAPER, tokenizer=f"vqgan_maskgit_{size}",
        recipe="paper/maskgit_imagenet256.yaml" if size == 256 else None,
        weights={
            "google": Weights(
                origin=f"https://storage.googleapis.com/maskgit-public/checkpoints/maskgit_imagenet{size}_checkpoint",
                note=f"ImageNet, {size} px; the transformer alone",
            )
        },
    )  # fmt: skip
register(
    "maskgit_imagenet256_valeoai", MaskGIT, paper=PAPER, tokenizer="vqgan_imagenet_f16_1024", class_dropout=0.1,
    schedule="arccos", layout="valeoai",
    optim=Optim(lr=1e-4, betas=(0.9, 0.96), weight_decay=1e-5, decay="all", schedule="constant", warmup_steps=2500),
    weights={
        "valeoai": Weights(
            origin="MaskGIT_ImageNet_256.pth of llvictorll/Maskgit-pytorch on the Hugging Face hub", licence="MIT",
            note="ImageNet, 256 px; the transformer alone",
        )
    },
)  # fmt: skip
