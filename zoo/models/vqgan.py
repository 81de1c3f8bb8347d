"""Taming Transformers for High-Resolution Image Synthesis: VQGAN (Esser, Rombach, Ommer 2021).

arXiv:2012.09841. Official code: CompVis/taming-transformers (commit 3ba01b2, MIT).

Implemented: encoder, decoder, codebook with taming's placement of beta, PatchGAN with hinge or vanilla loss, perceptual
loss, adaptive weight, start of the discriminator.
Not implemented: taming's remapping of a subset of the codes, ActNorm in the discriminator, one-channel depth images.
Deviations: both networks are updated at once from one backward pass instead of one after the other, the second on
reconstructions of the updated autoencoder; so steps are batches, and clipping, accumulation and EMA are Lightning's.
LPIPS stays in eval mode; in taming its dropout is active during training. The gradients behind the adaptive weight and
the discriminator's batch statistics are those of all processes together. Before the discriminator is trained it is not
run, so its running statistics start then.

Equations: Eq. 2-3 -> `VQGAN.encode`; Eq. 4 -> `zoo.nn.vector_quantizer`; Eq. 5 -> `zoo.losses.adversarial`;
Eq. 6 -> `VQGAN.losses`; Eq. 7 -> `losses.adversarial.adaptive_weight`.
"""

import sys
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from zoo.choices import one_of
from zoo.losses.adversarial import (
    KINDS,
    adaptive_weight,
    discriminator_loss,
    fixed_discriminator,
    generator_loss,
)
from zoo.losses.perceptual import LPIPS, LPIPSLite0
from zoo.module import Batch, ZooModule
from zoo.nn.patchgan import PatchGAN
from zoo.nn.quantized import Quantizer, update_codebooks
from zoo.nn.taming import TamingDecoder, TamingEncoder
from zoo.nn.vector_quantizer import VectorQuantizer
from zoo.optim import Optim
from zoo.registry import register
from zoo.tokens import Segment, Tokens, TokenSpec, as_pixels


class VQGAN(ZooModule):
    """Images to a grid of codes and back, trained with a perceptual and an adversarial loss.

    Args:
        image_size: side of the training images in pixels; other multiples of the downsampling factor work too.
        width: channels of the first level.
        multipliers: channels of each level as multiples of ``width``; every level after the first halves the
            resolution.
        blocks: residual blocks per level of the encoder.
        attention: resolutions with self-attention, counted from ``image_size``.
        mid_attention: self-attention in the middle.
        z_channels: channels between the networks and the 1x1 convolutions around the codebook.
        vocab_size: codes.
        code_width: width of a code.
        quantizer: ``vq``, codes trained by gradients.
        beta: weight of the commitment loss.
        legacy: put beta on the codebook loss instead, as in all published weights of taming and LDM.
        codebook_init: ``random`` as published, or ``kmeans`` on the first training batch.
        restart_threshold: codes that are used less often per step than this move to a vector of the batch; 0 for
            never, as published.
        codebook_weight: of the quantizer's loss.
        pixel_loss: ``l1`` or ``l2``, on the pixels that the networks see.
        perceptual: ``lpips_vgg`` as published, ``lite0`` (LPIPS on EfficientNet-Lite0, needs no download) or ``none``.
        perceptual_backbone: file with the weights of torchvision's VGG-16; None looks in torch's hub folder.
        perceptual_weight: of the perceptual loss.
        adversarial: loss of the discriminator: ``hinge``, ``vanilla`` or ``non_saturating``.
        disc_width: channels of the discriminator's first convolution.
        disc_layers: its strided convolutions.
        disc_start: optimizer step, i.e. batch, from which the adversarial loss counts.
        disc_warmup: train the discriminator this many steps earlier; 0 as published, where it starts untrained.
        disc_weight: weight of the generator's adversarial loss.
        disc_factor: a second factor, on the discriminator's loss too.
        adaptive: multiply ``disc_weight`` with the ratio of gradients of Eq. 7.
        optim: optimizer and schedule of both networks.
        weights: start from these: a registry name or a path.
    """

    spec: TokenSpec

    def __init__(
        self,
        image_size: int = 256,
        width: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        attention: tuple[int, ...] = (16,),
        mid_attention: bool = True,
        z_channels: int = 256,
        vocab_size: int = 1024,
        code_width: int = 256,
        quantizer: Literal["vq"] = "vq",
        beta: float = 0.25,
        legacy: bool = True,
        codebook_init: Literal["random", "kmeans"] = "random",
        restart_threshold: float = 0.0,
        codebook_weight: float = 1.0,
        pixel_loss: Literal["l1", "l2"] = "l1",
        perceptual: Literal["lpips_vgg", "lite0", "none"] = "lpips_vgg",
        perceptual_backbone: str | None = None,
        perceptual_weight: float = 1.0,
        adversarial: Literal["hinge", "vanilla", "non_saturating"] = "hinge",
        disc_width: int = 64,
        disc_layers: int = 3,
        disc_start: int = 0,
        disc_warmup: int = 0,
        disc_weight: float = 0.8,
        disc_factor: float = 1.0,
        adaptive: bool = True,
        optim: Optim = Optim(lr=4.5e-6, betas=(0.5, 0.9), weight_decay=0.0, schedule="constant"),
        weights: str | None = None,
    ):
        super().__init__(optim)
        self.factor = 2 ** (len(multipliers) - 1)
        if image_size % self.factor:
            raise ValueError(
                f"image_size {image_size} is not divisible by {self.factor}, the factor of {len(multipliers)} levels"
            )
        self.image_size = image_size
        one_of("quantizer", quantizer, ("vq",))
        self.pixel_loss = one_of("pixel_loss", pixel_loss, ("l1", "l2"))
        self.perceptual = one_of("perceptual", perceptual, ("lpips_vgg", "lite0", "none"))
        self.adversarial = one_of("adversarial", adversarial, KINDS)
        kmeans = one_of("codebook_init", codebook_init, ("random", "kmeans")) == "kmeans"
        self.perceptual_backbone, self.perceptual_weight = perceptual_backbone, perceptual_weight
        self.codebook_weight = codebook_weight
        self.disc_start, self.disc_warmup = disc_start, disc_warmup
        self.disc_weight, self.disc_factor, self.adaptive = disc_weight, disc_factor, adaptive
        sizes: dict[str, Any] = {
            "resolution": image_size,
            "width": width,
            "multipliers": multipliers,
            "blocks": blocks,
            "attention": attention,
            "z_channels": z_channels,
            "mid_attention": mid_attention,
        }
        # Channels-last convolutions are faster on a CPU and on tensor cores.
        self.encoder = TamingEncoder(**sizes).to(memory_format=torch.channels_last)
        self.decoder = TamingDecoder(**sizes).to(memory_format=torch.channels_last)
        self.quantize: Quantizer = VectorQuantizer(
            vocab_size, code_width, beta, legacy, kmeans_init=kmeans, restart_threshold=restart_threshold
        )
        self.quant_conv = nn.Conv2d(z_channels, code_width, 1)
        self.post_quant_conv = nn.Conv2d(code_width, z_channels, 1)
        self.discriminator = PatchGAN(disc_width, disc_layers)
        side = image_size // self.factor
        self.spec = TokenSpec(
            segments=(Segment("grid", (side, side), offset=0, size=vocab_size),),
            dim=code_width,
            order="raster",
            vocabulary="learned",
            decodes="pixels",
        )
        self.load_weights(weights)

    def encode(self, images: Shaped[Tensor, "b 3 h w"]) -> Tokens:
        """Nearest code of each cell."""
        ids = self.quantize.encode(self.features(as_pixels(images, multiple_of=self.factor)))
        return Tokens(rearrange(ids, "b gh gw -> b (gh gw)"), None, self.spec.with_grid((ids.shape[1], ids.shape[2])))

    def decode(self, tokens: Tokens) -> Float[Tensor, "b 3 h w"]:
        """Pixels of the codes, clamped to [0, 1]."""
        if tokens.ids is None or tokens.spec.vocab_size != self.spec.vocab_size:
            raise ValueError(
                f"these tokens are of another vocabulary ({tokens.spec.vocab_size} ids) than this VQGAN's "
                f"({self.spec.vocab_size}): decode them with the tokenizer that made them"
            )
        low, high = (int(x) for x in tokens.ids.aminmax())
        if low < 0 or high >= self.spec.vocab_size:
            raise ValueError(f"ids must lie in 0..{self.spec.vocab_size - 1}, got {low}..{high}")
        return ((self.pixels(self.embed(tokens.grid())).float() + 1) / 2).clamp(0, 1)

    def embed(self, ids: Int[Tensor, "b *n"]) -> Float[Tensor, "b *n d"]:
        """Rows of the codebook."""
        return self.quantize.embed(ids)

    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b gh gw d"]:
        """What is quantized, of images in [0, 1] that are checked already."""
        x = (2 * images - 1).contiguous(memory_format=torch.channels_last)
        return rearrange(self.quant_conv(self.encoder(x)), "b d gh gw -> b gh gw d")

    def pixels(self, vectors: Float[Tensor, "b gh gw d"]) -> Float[Tensor, "b 3 h w"]:
        """The decoder's pixels, about in [-1, 1]."""
        z = rearrange(vectors, "b gh gw d -> b d gh gw").contiguous(memory_format=torch.channels_last)
        return self.decoder(self.post_quant_conv(z))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 4-7: reconstruction, codebook and adversarial terms of the autoencoder plus the discriminator's loss.

        Outside training the loss is that of the autoencoder without the adversarial term.
        """
        images = as_pixels(batch["image"], multiple_of=self.factor)
        target = 2 * images - 1
        quantized = self.quantize(self.features(images))
        output = self.pixels(quantized.vectors).float()
        distance = F.l1_loss(output, target) if self.pixel_loss == "l1" else F.mse_loss(output, target)
        terms = {"pixel": distance}
        if self.perceptual != "none":
            terms["perceptual"] = self.perceptual_distance((output + 1) / 2, images).mean()
            distance = distance + self.perceptual_weight * terms["perceptual"]
        terms |= {"reconstruction": distance, "codebook": quantized.loss}
        loss = distance + self.codebook_weight * quantized.loss
        loss = loss + self.adversarial_terms(target, output, distance, terms)
        terms |= {"mse": F.mse_loss(output.detach().clamp(-1, 1), target) / 4} | quantized.terms
        return {"loss": loss} | {name: value.detach() for name, value in terms.items()}

    def adversarial_terms(
        self,
        target: Float[Tensor, "b 3 h w"],
        output: Float[Tensor, "b 3 h w"],
        distance: Float[Tensor, ""],
        terms: dict[str, Tensor],
    ) -> Tensor:
        """What both networks add to the objective; adds to ``terms`` what to look at."""
        step = self.global_step if self.training else sys.maxsize
        if step < self.disc_start - self.disc_warmup:
            # zero gradients rather than none: DDP wants every parameter
            return sum((0 * p.sum() for p in self.discriminator.parameters()), target.new_zeros(()))
        factor = self.disc_factor if step >= self.disc_start else 0.0
        added = target.new_zeros(())
        if factor and self.training:
            generator = generator_loss(self.adversarial, fixed_discriminator(self.discriminator, output))
            weight = self.disc_weight * factor * generator.new_ones(())
            if self.adaptive:
                weight = weight * adaptive_weight(distance, generator, self.decoder.conv_out.weight)
            added = weight * generator
            terms |= {"generator": generator, "generator_weight": weight}
        real, fake = self.discriminator(target), self.discriminator(output.detach())
        discriminator = discriminator_loss(self.adversarial, real, fake)
        terms |= {"discriminator": discriminator, "logits_real": real.mean(), "logits_fake": fake.mean()}
        return added + self.disc_factor * discriminator if self.training else added

    def perceptual_distance(
        self, output: Float[Tensor, "b 3 h w"], images: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """One distance per image; builds the network at first use, which tokens do not need."""
        if "perceptual" not in self.frozen:
            backbone = Path(self.perceptual_backbone) if self.perceptual_backbone else None
            network = LPIPSLite0() if self.perceptual == "lite0" else LPIPS("vgg", backbone)
            self.add_tower("perceptual", network.to(self.device))
        with torch.autocast(output.device.type, enabled=False):
            return self.frozen["perceptual"](output, images)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.perceptual != "none" and stage != "predict":  # a missing backbone is named before the first step
            self.perceptual_distance(*torch.zeros(2, 1, 3, 32, 32, device=self.device))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        update_codebooks(self)


PAPER = "arXiv:2012.09841"
register(
    "vqgan_tiny", VQGAN, paper=PAPER, image_size=32, width=32, multipliers=(1, 1, 2), blocks=1, attention=(8,),
    z_channels=16, vocab_size=64, code_width=8, perceptual="none", disc_width=8, disc_layers=2, disc_weight=0.1,
    optim=Optim(lr=1e-3, betas=(0.5, 0.9), weight_decay=0.0, schedule="constant"),
)  # fmt: skip
register("vqgan_imagenet_f16_1024", VQGAN, paper=PAPER)
register(
    "vqgan_emoji", VQGAN, paper=PAPER, recipe="vqgan.yaml", image_size=64, width=32, multipliers=(1, 1, 2), blocks=1,
    attention=(), z_channels=32, vocab_size=512, code_width=16, codebook_init="kmeans", restart_threshold=0.1,
    perceptual="lite0", perceptual_weight=0.1, disc_width=16, disc_layers=2, disc_start=1400, disc_warmup=100,
    disc_weight=0.1, optim=Optim(lr=2e-3, betas=(0.9, 0.99), min_lr=2e-5, warmup_steps=50, weight_decay=0.0),
)  # fmt: skip
