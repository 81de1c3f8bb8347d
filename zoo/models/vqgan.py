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
Eq. 6 -> `VQGAN.losses`, `zoo.losses.discriminator.adversarial_terms`; Eq. 7 ->
`zoo.losses.adversarial.adaptive_weight`.
"""

from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch._functorch import config as aot_autograd

from zoo.checkpoints.published import diffusers_vq, llamagen, maskgit_tokenizer, open_muse, taming
from zoo.choices import one_of
from zoo.init_args import Moved, as_init_args, migrate_and_say
from zoo.losses.discriminator import Discriminator, add_discriminator, adversarial_terms, current_step
from zoo.losses.perceptual import LPIPS, LPIPSLite0
from zoo.module import ZooModule
from zoo.nn.maskgit_autoencoder import MaskGITDecoder, MaskGITEncoder
from zoo.nn.taming import TamingDecoder, TamingEncoder
from zoo.optim import Optim, cosine
from zoo.presets import Weights, register
from zoo.quantizers.base import update_codebooks
from zoo.quantizers.by_name import make_quantizer
from zoo.quantizers.codebook import Codebook
from zoo.quantizers.gradient import VectorQuantizer
from zoo.quantizers.gumbel import GumbelQuantizer
from zoo.tokens import Segment, Tokens, TokenSpec, as_pixels, id_range
from zoo.tokens.batch import Batch, images_of

TAMING_CODEBOOK = Codebook(legacy=True, kl_weight=1e-8, tau=(0.9, 1e-6, 1_000_001))
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
        codebook: codes and quantizer, see :class:`zoo.quantizers.codebook.Codebook`.
        pixel_loss: ``l1`` or ``l2``, on the pixels that the networks see: [-1, 1], with ``maskgit`` [0, 1].
        perceptual: ``lpips_vgg`` as published, ``lite0`` (LPIPS on EfficientNet-Lite0, needs no download) or ``none``.
        perceptual_backbone: file with the weights of torchvision's VGG-16; None looks in torch's hub folder.
        perceptual_weight: of the perceptual loss.
        discriminator: see :class:`zoo.losses.discriminator.Discriminator`; None trains without one.
        optim: optimizer and schedule of both networks.
        weights: start from these: a registry name or a path.
    """

    training_only = ("discriminator", "lecam_means")
    must_match = ("norm_groups",)
    moved = (
        Moved("codebook", {
            "vocab_size": "vocab_size", "code_width": "width", "quantizer": "quantizer", "beta": "beta",
            "legacy": "legacy", "levels": "levels", "entropy_weight": "entropy_weight", "kl_weight": "kl_weight",
            "tau": "tau", "codebook_decay": "decay", "codebook_init": "init", "restart_threshold": "restart_threshold",
            "codebook_weight": "weight",
        }, without_effect=lambda args: () if args.get("quantizer", "ema") == "ema" else ("codebook_decay",)),
        Moved("discriminator", {
            "disc": "kind", "disc_width": "width", "disc_layers": "layers", "adversarial": "loss",
            "disc_start": "start", "disc_warmup": "warmup", "disc_weight": "weight", "disc_factor": "factor",
            "adaptive": "adaptive", "lecam": "lecam", "r1": "r1",
        }, none=("kind", "none")),
    )  # fmt: skip
    encoder: TamingEncoder | MaskGITEncoder
    decoder: TamingDecoder | MaskGITDecoder
    discriminator: nn.Module | None
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
        codebook: Codebook = TAMING_CODEBOOK,
        pixel_loss: Literal["l1", "l2"] = "l1",
        perceptual: Literal["lpips_vgg", "lite0", "none"] = "lpips_vgg",
        perceptual_backbone: str | None = None,
        perceptual_weight: float = 1.0,
        discriminator: Discriminator | None = Discriminator(),
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
        self.perceptual_backbone, self.perceptual_weight = perceptual_backbone, perceptual_weight
        self.codebook_settings, self.adversarial = codebook, discriminator
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
        elif z_channels != codebook.width:
            raise ValueError(
                f"the maskgit architecture quantizes the encoder's output: z_channels {z_channels} must be "
                f"codebook.width {codebook.width}"
            )
        else:
            self.encoder = MaskGITEncoder(**sizes).to(memory_format=torch.channels_last)
            self.decoder = MaskGITDecoder(**sizes).to(memory_format=torch.channels_last)
        self.quantize = make_quantizer(codebook)
        if not self.signed and isinstance(self.quantize, VectorQuantizer):  # variance_scaling(1, fan_in, uniform)
            bound = sqrt(3 / codebook.vocab_size)
            nn.init.uniform_(self.quantize.embedding.weight, -bound, bound)
        self.quant_conv = nn.Conv2d(z_channels, codebook.width, 1) if self.signed else nn.Identity()
        self.post_quant_conv = nn.Conv2d(codebook.width, z_channels, 1) if self.signed else nn.Identity()
        add_discriminator(self, discriminator, image_size, channels)
        side = image_size // self.factor
        self.spec = TokenSpec(
            segments=(Segment("grid", (side, side), offset=0, size=codebook.vocab_size),),
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
        """Vectors that are quantized, of images in [0, 1] that are checked already."""
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
            self.quantize.tau = cosine(self.global_step, *self.codebook_settings.tau)
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
        loss = distance + self.codebook_settings.weight * quantized.loss
        if self.discriminator is not None:
            added, adversarial = self.adversarial_terms(target, output, distance)
            loss, terms = loss + added, terms | adversarial
        terms |= {"mse": F.mse_loss(self.to_unit_range(output.detach()).clamp(0, 1), images)} | quantized.terms
        return {"loss": loss} | {name: value.detach() for name, value in terms.items()}

    def adversarial_terms(
        self, target: Float[Tensor, "b c h w"], output: Float[Tensor, "b c h w"], distance: Float[Tensor, ""]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Terms of both networks in the objective; see :func:`zoo.losses.discriminator.adversarial_terms`."""
        assert self.adversarial is not None
        assert self.discriminator is not None
        return adversarial_terms(
            self.adversarial, self.discriminator, target, output, distance, self.decoder.conv_out.weight,
            current_step(self), dict(self.named_buffers(recurse=False)).get("lecam_means"),
        )  # fmt: skip

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
        if self.adversarial is not None and self.adversarial.adaptive:
            aot_autograd.donated_buffer = False  # Eq. 7 passes the decoder's backward several times
        discriminator = self.discriminator
        self.discriminator = None if self.adversarial is not None and self.adversarial.r1 else discriminator
        super().compile_networks(**options)
        self.discriminator = discriminator

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        update_codebooks(self)

    @classmethod
    def from_taming_config(cls, path: str | Path, **overrides: Any) -> "VQGAN":
        """The model of a ``config.yaml`` of taming or Latent Diffusion; ``overrides`` may hold ``weights``."""
        arguments = as_init_args(cls, taming.read_constructor_arguments(path))
        return cls(**as_init_args(cls, migrate_and_say(cls, overrides), arguments))

    @classmethod
    def from_diffusers_config(cls, folder: str | Path, **overrides: Any) -> "VQGAN":
        """The model of a folder that diffusers' ``VQModel`` wrote; ``overrides`` may hold ``weights``."""
        arguments = as_init_args(cls, diffusers_vq.read_constructor_arguments(folder, overrides.get("image_size")))
        return cls(**as_init_args(cls, migrate_and_say(cls, overrides), arguments))

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


VQGAN.formats = (
    taming.VQGAN, diffusers_vq.VQMODEL, maskgit_tokenizer.TOKENIZER, open_muse.TOKENIZER, llamagen.VQ,
)  # fmt: skip

PAPER = "arXiv:2012.09841"
MASKGIT = "arXiv:2202.04200"
LDM = "arXiv:2112.10752"
LLAMAGEN = "arXiv:2406.06525"
TINY: dict[str, Any] = {
    "image_size": 32, "width": 32, "multipliers": (1, 1, 2), "blocks": 1, "attention": (8,), "z_channels": 16,
    "codebook": replace(TAMING_CODEBOOK, vocab_size=64, width=16), "perceptual": "none",
    "discriminator": Discriminator(width=8, layers=2, weight=0.1),
    "optim": Optim(lr=1e-3, betas=(0.5, 0.9), weight_decay=0.0, schedule="constant"),
}  # fmt: skip
register("vqgan_tiny", VQGAN, paper=PAPER, **TINY)
register(
    "vqgan_gumbel_tiny", VQGAN, paper=PAPER,
    **TINY | {"codebook": replace(TINY["codebook"], quantizer="gumbel", kl_weight=5e-4)},
)  # fmt: skip
register(
    "vqgan_maskgit_tiny", VQGAN, paper=MASKGIT,
    **TINY | {
        "architecture": "maskgit", "codebook": replace(TINY["codebook"], legacy=False, entropy_weight=0.1),
        "pixel_loss": "l2",
        "discriminator": Discriminator(
            "stylegan", width=8, layers=2, loss="non_saturating", weight=0.1, factor=0.1, adaptive=False, r1=0.01
        ),
    },
)  # fmt: skip


def _published(origin: str, licence: str, note: str, tag: str = "published") -> dict[str, Weights]:
    return {tag: Weights(origin=origin, licence=licence, note=note)}


README = "the table of pretrained models in the README of CompVis/"
# 8 GPUs x 12 images x base_learning_rate 4.5e-6 (configs/imagenet_vqgan.yaml)
IMAGENET = Optim(lr=4.32e-4, betas=(0.5, 0.9), weight_decay=0.0, schedule="constant")
register(
    "vqgan_imagenet_f16_1024", VQGAN, paper=PAPER, recipe="paper/vqgan_imagenet_f16.yaml",
    discriminator=Discriminator(start=250_001), optim=IMAGENET,
    weights=_published(README + "taming-transformers", "MIT", "ImageNet, 256 px"),
)  # fmt: skip
register(
    "vqgan_imagenet_f16_16384", VQGAN, paper=PAPER, codebook=replace(TAMING_CODEBOOK, vocab_size=16384),
    discriminator=Discriminator(weight=0.75, layers=2), optim=IMAGENET,
    weights=_published(README + "taming-transformers", "MIT", "ImageNet, 256 px"),
)  # fmt: skip
register(
    "vqgan_imagenet_depth", VQGAN, paper=PAPER, channels=1, discriminator=Discriminator(start=50_001, weight=0.75),
    weights=_published("section D-RIN in the README of CompVis/taming-transformers", "MIT", "depth maps, 256 px"),
)  # fmt: skip
register(
    "vqgan_gumbel_f8", VQGAN, paper=PAPER, multipliers=(1, 1, 2, 4), attention=(32,),
    codebook=replace(TAMING_CODEBOOK, vocab_size=8192, quantizer="gumbel"),
    weights=_published(README + "taming-transformers", "MIT", "OpenImages, 256 px"),
)  # fmt: skip
LDM_PRESETS: dict[str, tuple[tuple[int, int], dict[str, Any], Discriminator]] = {  # codes and their width first
    "f4": ((8192, 3), {"multipliers": (1, 2, 4), "attention": ()}, Discriminator(weight=0.75)),
    "f4_noattn": (
        (8192, 3), {"multipliers": (1, 2, 4), "attention": (), "mid_attention": False},
        Discriminator(weight=0.75, start=11),
    ),
    "f8": (
        (16384, 4), {"multipliers": (1, 2, 2, 4), "attention": (32,)}, Discriminator(weight=0.6, layers=2, start=1),
    ),
    "f8_n256": (
        (256, 4), {"multipliers": (1, 2, 2, 4), "attention": (32,)}, Discriminator(weight=0.75, start=250_001),
    ),
    "f16": ((16384, 8), {}, Discriminator(weight=0.75, layers=2, start=250_001)),
}  # fmt: skip
for name, ((codes, width), sizes, discriminator) in LDM_PRESETS.items():
    register(
        f"ldm_vq_{name}", VQGAN, paper=LDM, **sizes, z_channels=width,
        codebook=replace(TAMING_CODEBOOK, vocab_size=codes, width=width), discriminator=discriminator,
        weights=_published(README + "latent-diffusion", "MIT", "OpenImages, 256 px"),
    )  # fmt: skip
for size in (256, 512):
    register(
        f"vqgan_maskgit_{size}", VQGAN, paper=MASKGIT, image_size=size, architecture="maskgit",
        codebook=replace(TAMING_CODEBOOK, legacy=False, entropy_weight=0.1), pixel_loss="l2", perceptual_weight=0.1,
        discriminator=Discriminator("stylegan", loss="non_saturating", weight=0.1, adaptive=False, r1=10.0),
        optim=Optim(lr=1e-4, betas=(0.0, 0.99), weight_decay=0.0, schedule="constant"),
        weights=_published(
            f"https://storage.googleapis.com/maskgit-public/checkpoints/tokenizer_imagenet{size}_checkpoint",
            "Apache-2.0", f"ImageNet, {size} px", "google",
        ),
    )  # fmt: skip
LLAMAGEN_PRESETS: dict[str, dict[str, Any]] = {"16": {}, "8": {"multipliers": (1, 2, 2, 4), "attention": (32,)}}
for name, sizes in LLAMAGEN_PRESETS.items():
    register(
        f"llamagen_vq{name}", VQGAN, paper=LLAMAGEN, **sizes, pixel_loss="l2",
        codebook=replace(TAMING_CODEBOOK, vocab_size=16384, width=8, quantizer="l2", legacy=False),
        discriminator=Discriminator(start=20_000, weight=0.5, adaptive=False),
        optim=Optim(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, schedule="constant"),
        weights=_published(f"vq_ds{name}_c2i.pt of FoundationVision/LlamaGen", "MIT", "ImageNet, 256 px"),
    )  # fmt: skip
register(
    "vqgan_emoji", VQGAN, paper=PAPER, recipe="vqgan.yaml",
    weights={"emoji": Weights(file="vqgan_emoji.safetensors", note="recipes/vqgan.yaml on Twemoji, 64 px")},
    image_size=64, width=32, multipliers=(1, 1, 2), blocks=1, attention=(), norm_groups=8, z_channels=32,
    codebook=replace(
        TAMING_CODEBOOK, vocab_size=512, width=16, quantizer="ema", decay=0.95, init="kmeans", restart_threshold=0.2
    ),
    pixel_loss="l2", perceptual="lite0", perceptual_weight=0.05,
    discriminator=Discriminator(width=16, layers=2, start=1800, warmup=200, weight=0.1),
    optim=Optim(lr=2e-3, betas=(0.9, 0.99), min_lr=2e-5, warmup_steps=50, weight_decay=0.0),
)  # fmt: skip
