"""Taming Transformers for High-Resolution Image Synthesis: VQGAN (Esser, Rombach, Ommer 2021), and MaskGIT's VQGAN.

arXiv:2012.09841. Official code: CompVis/taming-transformers (commit 3ba01b2, MIT); of the variant in MaskGIT (Chang et
al. 2022, arXiv:2202.04200) google-research/maskgit (commit 1db2359, Apache-2.0), without its training code.

Implemented: encoder, decoder and codebook of all released configurations of taming (that of depth maps too), Latent
Diffusion, MaskGIT and LlamaGen; gradient, EMA, Gumbel, l2-normalised, FSQ and LFQ codes; L1 or L2 and perceptual loss;
PatchGAN and StyleGAN2 discriminators with hinge, vanilla or non-saturating loss, adaptive or constant weight, LeCam and
R1.
Not implemented: taming's remapping to a subset of the codes, ActNorm in the discriminator, MaskGIT's perceptual network
(LPIPS instead).
Deviations: both networks are updated at once from one backward pass instead of one after the other, the second on
reconstructions of the updated autoencoder; so steps are batches, and clipping, accumulation and EMA are Lightning's.
LPIPS stays in eval mode; in taming its dropout is active during training. The gradients behind the adaptive weight and
the discriminator's batch statistics are those of all processes together. Before the discriminator is trained it is not
run, so its running statistics start then. Gumbel codes in eval mode are the most likely ones; taming's are sampled.

Equations: Eq. 2-3 -> `VQGAN.encode`; Eq. 4 -> `zoo.quantizers.gradient`; Eq. 5 -> `zoo.losses.adversarial`;
Eq. 6 -> `VQGAN.losses`; Eq. 7 -> `losses.adversarial.adaptive_weight`.
"""

import sys
from math import sqrt
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch._functorch import config as aot_autograd

from zoo.checkpoints.published import diffusers_vq, llamagen, maskgit_flax, taming
from zoo.choices import one_of
from zoo.distributed import mean_over_ranks
from zoo.losses import adversarial as gan
from zoo.losses.perceptual import LPIPS, LPIPSLite0
from zoo.module import ZooModule
from zoo.nn.maskgit_autoencoder import MaskGITDecoder, MaskGITEncoder
from zoo.nn.patchgan import PatchGAN
from zoo.nn.stylegan_discriminator import StyleGANDiscriminator
from zoo.nn.taming import TamingDecoder, TamingEncoder
from zoo.optim import Optim, cosine
from zoo.presets import Weights, register
from zoo.quantizers.base import update_codebooks
from zoo.quantizers.by_name import make_quantizer
from zoo.quantizers.gradient import VectorQuantizer
from zoo.quantizers.gumbel import GumbelQuantizer
from zoo.tokens import Segment, Tokens, TokenSpec, as_pixels, id_range
from zoo.tokens.batch import Batch, images_of

LECAM_DECAY = 0.999  # of the running means of logits, as in bytedance/1d-tokenizer
NO_DISCRIMINATOR = "these weights are for tokens and pixels only; training starts a new discriminator"


class VQGAN(ZooModule):
    """Images to a grid of codes and back, trained with a perceptual and an adversarial loss.

    Args:
        image_size: side of the training images in pixels; other multiples of the downsampling factor work too.
        channels: that the networks see: 3, or 1 for depth maps, which take the mean of the image's three channels and
            come out in all three. Depth is scaled to [0, 1] per map, as in taming.
        architecture: ``taming``, or ``maskgit`` (no attention, no convolutions around the codebook).
        width: channels of the first level.
        multipliers: channels of each level as multiples of ``width``; every level after the first halves the
            resolution.
        blocks: residual blocks per level of the encoder.
        attention: resolutions with self-attention, counted from ``image_size``.
        mid_attention: self-attention in the middle.
        norm_groups: of the normalisation in taming's networks; fewer than the published 32 for narrow networks, where a
            group of one channel would lose the brightness of flat areas.
        z_channels: channels between the networks and the 1x1 convolutions around the codebook.
        vocab_size: codes.
        code_width: width of a code.
        quantizer: ``vq`` (codes trained by gradients), ``ema`` (running means), ``gumbel``, ``l2`` (vq on the unit
            sphere), ``fsq`` or ``lfq``.
        beta: weight of the commitment loss.
        legacy: put beta on the codebook loss instead, as in all published weights of taming and LDM.
        levels: of ``fsq``, per channel.
        entropy_weight: of the entropy loss of ``vq``, ``l2`` and ``lfq``.
        kl_weight: of the KL divergence of ``gumbel``.
        tau: temperature of ``gumbel``: start, end, steps of the cosine between them.
        codebook_decay: of the running means of ``ema``.
        codebook_init: ``random`` as published, or ``kmeans`` on the first training batch.
        restart_threshold: codes that are used less often per step than this move to a vector of the batch; 0 for
            never, as published.
        codebook_weight: of the quantizer's loss.
        pixel_loss: ``l1`` or ``l2``, on the pixels that the networks see: [-1, 1], with ``maskgit`` [0, 1].
        perceptual: ``lpips_vgg`` as published, ``lite0`` (LPIPS on EfficientNet-Lite0, needs no download) or ``none``.
        perceptual_backbone: file with the weights of torchvision's VGG-16; None looks in torch's hub folder.
        perceptual_weight: of the perceptual loss.
        adversarial: ``hinge``, ``vanilla`` or ``non_saturating`` losses.
        disc: the discriminator: ``patchgan``, ``stylegan`` (as in MaskGIT) or ``none``.
        disc_width: channels of its first convolution.
        disc_layers: strided convolutions of ``patchgan``.
        disc_start: optimizer step, i.e. batch, from which the adversarial loss counts.
        disc_warmup: train the discriminator this many steps earlier; 0 as published, where it starts untrained.
        disc_weight: weight of the generator's adversarial loss.
        disc_factor: a second factor, on the discriminator's loss too.
        adaptive: multiply ``disc_weight`` with the ratio of gradients of Eq. 7.
        lecam: weight of LeCam regularisation.
        r1: weight of the gradient penalty, for ``stylegan``.
        optim: optimizer and schedule of both networks.
        weights: start from these: a registry name or a path.
    """

    training_only = ("discriminator", "lecam_means")
    must_match = ("norm_groups",)
    spec: TokenSpec

    def __init__(
        self,
        image_size: int = 256,
        channels: Literal[1, 3] = 3,
        architecture: Literal["taming", "maskgit"] = "taming",
        width: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        attention: tuple[int, ...] = (16,),
        mid_attention: bool = True,
        norm_groups: int = 32,
        z_channels: int = 256,
        vocab_size: int = 1024,
        code_width: int = 256,
        quantizer: Literal["vq", "ema", "gumbel", "l2", "fsq", "lfq"] = "vq",
        beta: float = 0.25,
        legacy: bool = True,
        levels: tuple[int, ...] = (),
        entropy_weight: float = 0.0,
        kl_weight: float = 1e-8,
        tau: tuple[float, float, int] = (0.9, 1e-6, 1_000_001),
        codebook_decay: float = 0.99,
        codebook_init: Literal["random", "kmeans"] = "random",
        restart_threshold: float = 0.0,
        codebook_weight: float = 1.0,
        pixel_loss: Literal["l1", "l2"] = "l1",
        perceptual: Literal["lpips_vgg", "lite0", "none"] = "lpips_vgg",
        perceptual_backbone: str | None = None,
        perceptual_weight: float = 1.0,
        adversarial: Literal["hinge", "vanilla", "non_saturating"] = "hinge",
        disc: Literal["patchgan", "stylegan", "none"] = "patchgan",
        disc_width: int = 64,
        disc_layers: int = 3,
        disc_start: int = 0,
        disc_warmup: int = 0,
        disc_weight: float = 0.8,
        disc_factor: float = 1.0,
        adaptive: bool = True,
        lecam: float = 0.0,
        r1: float = 0.0,
        optim: Optim = Optim(lr=4.5e-6, betas=(0.5, 0.9), weight_decay=0.0, schedule="constant"),
        weights: str | None = None,
    ):
        super().__init__(optim)
        self.factor = 2 ** (len(multipliers) - 1)
        if image_size % self.factor:
            raise ValueError(
                f"image_size {image_size} is not divisible by {self.factor}, the factor of {len(multipliers)} levels"
            )
        if channels not in (1, 3):
            raise ValueError(f"channels must be 3 for images or 1 for depth maps, got {channels}")
        self.image_size, self.channels = image_size, channels
        self.pixel_loss = one_of("pixel_loss", pixel_loss, ("l1", "l2"))
        self.perceptual = one_of("perceptual", perceptual, ("lpips_vgg", "lite0", "none"))
        self.adversarial = one_of("adversarial", adversarial, gan.KINDS)
        self.perceptual_backbone, self.perceptual_weight = perceptual_backbone, perceptual_weight
        self.codebook_weight, self.tau = codebook_weight, tau
        self.disc_start, self.disc_warmup = disc_start, disc_warmup
        self.disc_weight, self.disc_factor, self.adaptive = disc_weight, disc_factor, adaptive
        self.lecam, self.r1 = lecam, r1
        self.signed = one_of("architecture", architecture, ("taming", "maskgit")) == "taming"
        sizes: dict[str, Any] = {"width": width, "multipliers": multipliers, "blocks": blocks, "z_channels": z_channels}
        sizes["channels"] = channels
        # Channels-last convolutions are faster on a CPU and on tensor cores.
        if self.signed:
            _check_attention(attention, image_size, len(multipliers))
            sizes |= {"resolution": image_size, "attention": attention, "mid_attention": mid_attention}
            sizes |= {"groups": norm_groups}
            self.encoder = TamingEncoder(**sizes).to(memory_format=torch.channels_last)
            self.decoder = TamingDecoder(**sizes).to(memory_format=torch.channels_last)
        elif norm_groups != 32:
            raise ValueError(f"norm_groups is for the taming architecture; maskgit has 32 groups, not {norm_groups}")
        elif z_channels != code_width:
            raise ValueError(
                f"the maskgit architecture quantizes the encoder's output: z_channels {z_channels} must be code_width "
                f"{code_width}"
            )
        else:
            self.encoder = MaskGITEncoder(**sizes).to(memory_format=torch.channels_last)
            self.decoder = MaskGITDecoder(**sizes).to(memory_format=torch.channels_last)
        self.quantize = make_quantizer(
            quantizer, vocab_size, code_width, beta=beta, legacy=legacy, levels=levels, entropy_weight=entropy_weight,
            kl_weight=kl_weight, tau=tau, decay=codebook_decay, codebook_init=codebook_init,
            restart_threshold=restart_threshold,
        )  # fmt: skip
        if not self.signed and isinstance(self.quantize, VectorQuantizer):  # variance_scaling(1, fan_in, uniform)
            nn.init.uniform_(self.quantize.embedding.weight, -sqrt(3 / vocab_size), sqrt(3 / vocab_size))
        self.quant_conv = nn.Conv2d(z_channels, code_width, 1) if self.signed else nn.Identity()
        self.post_quant_conv = nn.Conv2d(code_width, z_channels, 1) if self.signed else nn.Identity()
        self.discriminator: nn.Module | None = None
        _check_adversarial(disc, r1, lecam, disc_start, disc_warmup)
        if disc == "patchgan":
            self.discriminator = PatchGAN(disc_width, disc_layers, channels)
        elif disc == "stylegan":
            self.discriminator = StyleGANDiscriminator(image_size, disc_width, channels)
        if lecam:
            self.register_buffer("lecam_means", torch.zeros(2))  # of the logits of images and of reconstructions
        side = image_size // self.factor
        self.spec = TokenSpec(
            segments=(Segment("grid", (side, side), offset=0, size=vocab_size),),
            dim=self.quantize.dim,
            order="raster",
            vocabulary="learned",
            decodes="pixels",
        )
        self.load_weights(weights)

    def encode(self, images: Shaped[Tensor, "b 3 h w"]) -> Tokens:
        """Nearest, or with ``gumbel`` most likely, code of each cell."""
        ids = self.quantize.encode(self.features(as_pixels(images, multiple_of=self.factor)))
        return Tokens(rearrange(ids, "b gh gw -> b (gh gw)"), None, self.spec.with_grid((ids.shape[1], ids.shape[2])))

    def decode(self, tokens: Tokens) -> Float[Tensor, "b 3 h w"]:
        """Pixels of the codes, clamped to [0, 1]."""
        if tokens.ids is None or tokens.spec.vocab_size != self.spec.vocab_size:
            raise ValueError(
                f"these tokens are of another vocabulary ({tokens.spec.vocab_size} ids) than this VQGAN's "
                f"({self.spec.vocab_size}): decode them with the tokenizer that made them"
            )
        low, high = id_range(tokens.ids)
        if low < 0 or high >= self.spec.vocab_size:
            raise ValueError(f"ids must lie in 0..{self.spec.vocab_size - 1}, got {low}..{high}")
        return self.to_unit_range(self.pixels(self.embed(tokens.grid())).float()).clamp(0, 1)

    def embed(self, ids: Int[Tensor, "b *n"]) -> Float[Tensor, "b *n d"]:
        """Rows of the codebook."""
        return self.quantize.embed(ids)

    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b gh gw d"]:
        """What is quantized, of images in [0, 1] that are checked already."""
        x = self.to_network_range(images).contiguous(memory_format=torch.channels_last)
        return rearrange(self.quant_conv(self.encoder(x)), "b d gh gw -> b gh gw d")

    def pixels(self, vectors: Float[Tensor, "b gh gw d"]) -> Float[Tensor, "b c h w"]:
        """The decoder's pixels in the channels and the range that the networks see, not clamped."""
        z = rearrange(vectors, "b gh gw d -> b d gh gw").contiguous(memory_format=torch.channels_last)
        return self.decoder(self.post_quant_conv(z))

    def to_network_range(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h w"]:
        """From [0, 1] to the channels and the range of the networks."""
        images = images if self.channels == 3 else images.mean(1, keepdim=True)
        return 2 * images - 1 if self.signed else images

    def to_unit_range(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h w"]:
        """From the channels and the range of the networks to three channels in [0, 1], not clamped."""
        return ((pixels + 1) / 2 if self.signed else pixels).expand(-1, 3, -1, -1)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 4-7: reconstruction, codebook and adversarial terms of the autoencoder plus the discriminator's loss.

        Outside training the loss is that of the autoencoder without the adversarial term.
        """
        images = as_pixels(images_of(batch, self), multiple_of=self.factor)
        if isinstance(self.quantize, GumbelQuantizer) and self.training:
            self.quantize.tau = cosine(self.global_step, *self.tau)
        if self.channels == 1:
            images = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)  # what a depth map can be compared with
        target = self.to_network_range(images)
        quantized = self.quantize(self.features(images))
        output = self.pixels(quantized.vectors).float()
        distance = F.l1_loss(output, target) if self.pixel_loss == "l1" else F.mse_loss(output, target)
        terms = {"pixel": distance}
        if self.perceptual != "none":
            terms["perceptual"] = self.perceptual_distance(self.to_unit_range(output), images).mean()
            distance = distance + self.perceptual_weight * terms["perceptual"]
        terms |= {"reconstruction": distance, "codebook": quantized.loss}
        loss = distance + self.codebook_weight * quantized.loss
        if self.discriminator is not None:
            added, adversarial = self.adversarial_terms(self.discriminator, target, output, distance)
            loss, terms = loss + added, terms | adversarial
        terms |= {"mse": F.mse_loss(self.to_unit_range(output.detach()).clamp(0, 1), images)} | quantized.terms
        return {"loss": loss} | {name: value.detach() for name, value in terms.items()}

    def adversarial_terms(
        self,
        discriminator: nn.Module,
        target: Float[Tensor, "b c h w"],
        output: Float[Tensor, "b c h w"],
        distance: Float[Tensor, ""],
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """What both networks add to the objective, and what to look at.

        As in taming ``generator_weight`` is without ``disc_factor``, and ``discriminator`` with it.
        """
        fitting = self._trainer is not None and self.trainer.state.fn == "fit"
        step = self.global_step if self.training or fitting else sys.maxsize
        added = target.new_zeros(())
        if step < self.disc_start - self.disc_warmup:
            # zero gradients rather than none: DDP wants every parameter
            return sum((0 * p.sum() for p in discriminator.parameters()), added), {}
        factor = self.disc_factor
        terms = {"disc_factor": target.new_tensor(factor)}
        if step >= self.disc_start and self.training:
            generator = gan.generator_loss(self.adversarial, gan.fixed_discriminator(discriminator, output))
            weight = torch.full_like(generator, self.disc_weight)
            if self.adaptive:
                weight = weight * gan.adaptive_weight(distance, generator, self.decoder.conv_out.weight)
            added = factor * weight * generator
            terms |= {"generator": generator, "generator_weight": weight}
        penalised = self.training and self.r1 > 0
        target = target.detach().requires_grad_(penalised)
        real, fake = discriminator(target), discriminator(output.detach())
        loss = gan.discriminator_loss(self.adversarial, real, fake)
        terms |= {"discriminator": factor * loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
        if penalised:
            terms["r1"] = gan.r1_penalty(real, target)
            loss = loss + self.r1 * terms["r1"]
        if self.lecam and self.training:
            terms["lecam"] = gan.lecam(real, fake, *self.lecam_means.clone())
            loss = loss + self.lecam * terms["lecam"]
            means = torch.stack([terms["logits_real"], terms["logits_fake"]]).detach().float()
            self.lecam_means.lerp_(mean_over_ranks(means), 1 - LECAM_DECAY)
        return added + factor * loss if self.training else added, terms

    def perceptual_distance(
        self, output: Float[Tensor, "b 3 h w"], images: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """One distance per image in [0, 1]; builds the network at first use, which tokens do not need."""
        if "perceptual" not in self.frozen:
            backbone = Path(self.perceptual_backbone) if self.perceptual_backbone else None
            network = LPIPSLite0() if self.perceptual == "lite0" else LPIPS("vgg", backbone)
            self.add_frozen("perceptual", network.to(self.device))
        with torch.autocast(output.device.type, enabled=False):
            return self.frozen["perceptual"](output, images)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.perceptual != "none" and stage != "predict":  # a missing backbone is named before the first step
            self.perceptual_distance(*torch.zeros(2, 1, 3, 32, 32, device=self.device))

    def compile_networks(self, **options: Any) -> None:
        """Compile in place what a step can differentiate: with ``r1``, no second derivative of compiled code exists."""
        if self.adaptive and self.discriminator is not None:
            aot_autograd.donated_buffer = False  # Eq. 7 passes the decoder's backward several times
        discriminator = self.discriminator
        self.discriminator = None if self.r1 else discriminator
        super().compile_networks(**options)
        self.discriminator = discriminator

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        update_codebooks(self)

    @classmethod
    def from_taming_config(cls, path: str | Path, **overrides: Any) -> "VQGAN":
        """The model of a ``config.yaml`` of taming or Latent Diffusion; ``overrides`` may hold ``weights``."""
        return cls(**taming.constructor_arguments(path) | overrides)

    @classmethod
    def from_diffusers_config(cls, folder: str | Path, **overrides: Any) -> "VQGAN":
        """The model of a folder that diffusers' ``VQModel`` wrote; ``overrides`` may hold ``weights``."""
        return cls(**diffusers_vq.constructor_arguments(folder, overrides.get("image_size")) | overrides)

    def drop_discriminator(self) -> None:
        """Leave the discriminator out of weights that are written from now on, and say so in them."""
        self.not_in_file["discriminator."] = NO_DISCRIMINATOR


def _check_attention(attention: tuple[int, ...], image_size: int, levels: int) -> None:
    sides = [image_size // 2**i for i in range(levels)]
    if strange := [side for side in attention if side not in sides]:
        raise ValueError(
            f"attention {strange[0]} matches no level, whose sides at {image_size} px are "
            f"{', '.join(map(str, sides))}: take some of these, or leave image_size at that of the weights, whose "
            "networks take other sizes too"
        )


def _check_adversarial(disc: str, r1: float, lecam: float, start: int, warmup: int) -> None:
    one_of("disc", disc, ("patchgan", "stylegan", "none"))
    for name, weight in (("r1", r1), ("lecam", lecam)):
        if weight and disc == "none":
            raise ValueError(f"{name} regularises the discriminator and disc is none: set {name} to 0, or take one")
    if r1 and disc == "patchgan":
        raise ValueError(
            "r1 penalises the gradient of single images, which batch normalisation mixes: "
            "use disc: stylegan, or set r1 to 0"
        )
    if min(start, warmup) < 0:
        raise ValueError(f"disc_start and disc_warmup count steps and must not be negative, got {start} and {warmup}")


VQGAN.formats = (
    taming.VQGAN, diffusers_vq.VQMODEL, maskgit_flax.TOKENIZER, maskgit_flax.PORT, llamagen.VQ,
)  # fmt: skip

PAPER = "arXiv:2012.09841"
MASKGIT = "arXiv:2202.04200"
LDM = "arXiv:2112.10752"
LLAMAGEN = "arXiv:2406.06525"
TINY = {
    "image_size": 32, "width": 32, "multipliers": (1, 1, 2), "blocks": 1, "attention": (8,), "z_channels": 16,
    "vocab_size": 64, "code_width": 16, "perceptual": "none", "disc_width": 8, "disc_layers": 2, "disc_weight": 0.1,
    "optim": Optim(lr=1e-3, betas=(0.5, 0.9), weight_decay=0.0, schedule="constant"),
}  # fmt: skip
register("vqgan_tiny", VQGAN, paper=PAPER, **TINY)
register("vqgan_gumbel_tiny", VQGAN, paper=PAPER, **TINY | {"quantizer": "gumbel", "kl_weight": 5e-4})
register(
    "vqgan_maskgit_tiny", VQGAN, paper=MASKGIT,
    **TINY | {
        "architecture": "maskgit", "legacy": False, "entropy_weight": 0.1, "pixel_loss": "l2",
        "adversarial": "non_saturating", "disc": "stylegan", "disc_factor": 0.1, "adaptive": False, "r1": 0.01,
    },
)  # fmt: skip


def _published(origin: str, licence: str, note: str, tag: str = "published") -> dict[str, Weights]:
    return {tag: Weights(origin=origin, licence=licence, note=note)}


README = "the table of pretrained models in the README of CompVis/"
# 8 GPUs x 12 images x base_learning_rate 4.5e-6 (configs/imagenet_vqgan.yaml)
IMAGENET = Optim(lr=4.32e-4, betas=(0.5, 0.9), weight_decay=0.0, schedule="constant")
register(
    "vqgan_imagenet_f16_1024", VQGAN, paper=PAPER, recipe="paper/vqgan_imagenet_f16.yaml", disc_start=250_001,
    weights=_published(README + "taming-transformers", "MIT", "ImageNet, 256 px"), optim=IMAGENET,
)  # fmt: skip
register(
    "vqgan_imagenet_f16_16384", VQGAN, paper=PAPER, vocab_size=16384, disc_weight=0.75, disc_layers=2, optim=IMAGENET,
    weights=_published(README + "taming-transformers", "MIT", "ImageNet, 256 px"),
)  # fmt: skip
register(
    "vqgan_imagenet_depth", VQGAN, paper=PAPER, channels=1, disc_start=50_001, disc_weight=0.75,
    weights=_published("section D-RIN in the README of CompVis/taming-transformers", "MIT", "depth maps, 256 px"),
)  # fmt: skip
register(
    "vqgan_gumbel_f8", VQGAN, paper=PAPER, multipliers=(1, 1, 2, 4), attention=(32,), vocab_size=8192,
    quantizer="gumbel", weights=_published(README + "taming-transformers", "MIT", "OpenImages, 256 px"),
)  # fmt: skip
for name, sizes in {
    "f4": {"multipliers": (1, 2, 4), "attention": (), "z_channels": 3, "vocab_size": 8192},
    "f4_noattn": {
        "multipliers": (1, 2, 4), "attention": (), "mid_attention": False, "z_channels": 3, "vocab_size": 8192,
        "disc_start": 11,
    },
    "f8": {
        "multipliers": (1, 2, 2, 4), "attention": (32,), "z_channels": 4, "vocab_size": 16384, "disc_layers": 2,
        "disc_start": 1, "disc_weight": 0.6,
    },
    "f8_n256": {
        "multipliers": (1, 2, 2, 4), "attention": (32,), "z_channels": 4, "vocab_size": 256, "disc_start": 250_001,
    },
    "f16": {"z_channels": 8, "vocab_size": 16384, "disc_layers": 2, "disc_start": 250_001},
}.items():  # fmt: skip
    register(
        f"ldm_vq_{name}", VQGAN, paper=LDM, code_width=sizes["z_channels"], **{"disc_weight": 0.75} | sizes,
        weights=_published(README + "latent-diffusion", "MIT", "OpenImages, 256 px"),
    )  # fmt: skip
for size in (256, 512):
    register(
        f"vqgan_maskgit_{size}", VQGAN, paper=MASKGIT, image_size=size, architecture="maskgit", legacy=False,
        entropy_weight=0.1, pixel_loss="l2", perceptual_weight=0.1, adversarial="non_saturating", disc="stylegan",
        disc_weight=0.1, adaptive=False, r1=10.0,
        optim=Optim(lr=1e-4, betas=(0.0, 0.99), weight_decay=0.0, schedule="constant"),
        weights=_published(
            f"https://storage.googleapis.com/maskgit-public/checkpoints/tokenizer_imagenet{size}_checkpoint",
            "Apache-2.0", f"ImageNet, {size} px", "google",
        ),
    )  # fmt: skip
for name, sizes in {"16": {}, "8": {"multipliers": (1, 2, 2, 4), "attention": (32,)}}.items():
    register(
        f"llamagen_vq{name}", VQGAN, paper=LLAMAGEN, **sizes, vocab_size=16384, code_width=8, quantizer="l2",
        legacy=False, pixel_loss="l2", disc_start=20_000, disc_weight=0.5, adaptive=False,
        optim=Optim(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, schedule="constant"),
        weights=_published(f"vq_ds{name}_c2i.pt of FoundationVision/LlamaGen", "MIT", "ImageNet, 256 px"),
    )  # fmt: skip
register(
    "vqgan_emoji", VQGAN, paper=PAPER, recipe="vqgan.yaml",
    weights={"emoji": Weights(file="vqgan_emoji.safetensors", note="recipes/vqgan.yaml on Twemoji, 64 px")},
    image_size=64, width=32, multipliers=(1, 1, 2), blocks=1,
    attention=(), norm_groups=8, z_channels=32, vocab_size=512, code_width=16, quantizer="ema", codebook_decay=0.95,
    codebook_init="kmeans", restart_threshold=0.2, pixel_loss="l2", perceptual="lite0", perceptual_weight=0.05,
    disc_width=16, disc_layers=2, disc_start=1800, disc_warmup=200, disc_weight=0.1,
    optim=Optim(lr=2e-3, betas=(0.9, 0.99), min_lr=2e-5, warmup_steps=50, weight_decay=0.0),
)  # fmt: skip
