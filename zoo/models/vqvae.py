"""VQ-VAE and VQ-VAE-2.

van den Oord, Vinyals, Kavukcuoglu, Neural Discrete Representation Learning, 2017, arXiv:1711.00937; Razavi, van den
Oord, Vinyals, Generating Diverse High-Fidelity Images with VQ-VAE-2, 2019, arXiv:1906.00446.
Official code: deepmind/sonnet (the quantizers, and VQ-VAE as an example notebook); VQ-VAE-2's was not released. Its
public weights are those of rosinality/vq-vae-2-pytorch, whose networks and names are kept.
Implemented: one level and two, codebooks by running means or by gradients, published sizes, and rosinality's weights.
Not implemented: the PixelCNN and PixelSnail priors, whose place any second stage of the zoo takes; speech and video.
Deviations: running means start at one instead of zero with de-biasing, see ``EMAQuantizer``; the reconstruction error
is not divided by the variance of the data; one level has the 1x1 convolution in front of the codes that Sonnet's
example has; k-means and restarts of unused codes are options of ours, off by default.
Equations: VQ-VAE Eq. 1, 2 -> ``quantizers.nearest_code.nearest_code``; Eq. 3 -> ``VQVAE.losses``,
``quantizers.gradient.VectorQuantizer``; A.1 -> ``quantizers.ema.EMAQuantizer``; VQ-VAE-2 Algorithm 1 ->
``VQVAE.quantize``.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from zoo.checkpoints.published import rosinality
from zoo.choices import one_of
from zoo.init_args import Moved
from zoo.module import ZooModule
from zoo.nn.vqvae import VQVAEDecoder, VQVAEEncoder
from zoo.optim import Optim
from zoo.presets import Weights, register
from zoo.quantizers.base import Quantized, update_codebooks
from zoo.quantizers.by_name import make_quantizer
from zoo.quantizers.codebook import Codebook
from zoo.tokens import Segment, Tokens, TokenSpec, as_pixels, id_range
from zoo.tokens.batch import Batch, images_of

CODEBOOK = Codebook(512, 64, "ema")


class VQVAE(ZooModule):
    """Images to one grid of codes, or to a coarse and a fine one, and back.

    Args:
        image_size: side of the training images in pixels; other multiples of the downsampling factor work too.
        levels: 1 for VQ-VAE: one grid, a quarter of the image's side; 2 for VQ-VAE-2: ``top``, an eighth of the side,
            then ``bottom``, a quarter, which sees what the top has kept.
        width: channels of encoder and decoder.
        blocks: residual blocks of each encoder and decoder.
        block_width: channels inside a residual block.
        codebook: of each level, see :class:`zoo.quantizers.codebook.Codebook`: running means (``ema``), or codes
            trained by gradients (``vq``, ``l2``).
        optim: optimizer and schedule.
        weights: start from these: a registry name or a path.
    """

    moved = (
        Moved("codebook", {
            "vocab_size": "vocab_size", "code_width": "width", "quantizer": "quantizer", "beta": "beta",
            "decay": "decay", "codebook_init": "init", "restart_threshold": "restart_threshold",
        }, values={"quantizer": {"gradient": "vq"}}),
    )  # fmt: skip
    spec: TokenSpec

    def __init__(
        self,
        image_size: int = 256,
        levels: int = 2,
        width: int = 128,
        blocks: int = 2,
        block_width: int = 32,
        codebook: Codebook = CODEBOOK,
        optim: Optim = Optim(lr=3e-4, weight_decay=0.0),
        weights: str | None = None,
    ):
        super().__init__(optim)
        if levels not in (1, 2):
            raise ValueError(f"levels must be 1 (VQ-VAE) or 2 (VQ-VAE-2), got {levels}")
        if min(blocks, block_width) < 1 or width < 2 or width % 2:
            raise ValueError(
                f"blocks and block_width must be at least 1 and width even, got {blocks}, {block_width} and {width}"
            )
        self.levels, self.factor = levels, 4 * levels
        if image_size % self.factor:
            raise ValueError(
                f"image_size {image_size} is not divisible by {self.factor}, the factor of {levels} levels"
            )
        self.image_size = image_size
        one_of("codebook.quantizer of a VQ-VAE", codebook.quantizer, ("ema", "vq", "l2"))
        self.codebook_settings, code_width = codebook, codebook.width
        inner = (width, blocks, block_width)
        self.enc_b = VQVAEEncoder(3, *inner, stride=4)
        if levels == 2:
            self.enc_t = VQVAEEncoder(width, *inner, stride=2)
            self.quantize_conv_t = nn.Conv2d(width, code_width, 1)
            self.quantize_t = make_quantizer(codebook)
            self.dec_t = VQVAEDecoder(code_width, code_width, *inner, stride=2)
            self.upsample_t = nn.ConvTranspose2d(code_width, code_width, 4, 2, 1)
        self.quantize_conv_b = nn.Conv2d(width + (code_width if levels == 2 else 0), code_width, 1)
        self.quantize_b = make_quantizer(codebook)
        self.dec = VQVAEDecoder(code_width * levels, 3, *inner, stride=4)
        self.to(memory_format=torch.channels_last)  # faster convolutions, and quantizers want channels last
        self.spec = self._spec(image_size, image_size)
        self.load_weights(weights)

    def encode(self, images: Shaped[Tensor, "b 3 h w"]) -> Tokens:
        """Nearest codes; ids of the top level first."""
        images = as_pixels(images, multiple_of=self.factor)
        ids = [rearrange(q.ids, "b gh gw -> b (gh gw)") for q in self.quantize(images)]
        spec = self._spec(*images.shape[-2:])
        shifted = [level + segment.offset for level, segment in zip(ids, spec.segments, strict=True)]
        return Tokens(torch.cat(shifted, dim=1), None, spec)

    def decode(self, tokens: Tokens) -> Float[Tensor, "b 3 h w"]:
        """Mean of the pixel distribution, in [0, 1].

        Raises:
            ValueError: for tokens of another vocabulary, or ids outside of their level.
        """
        if tokens.spec.prefix_of is not None:
            raise ValueError(
                f"VQ-VAE-2 decodes its levels together, and these are the first {tokens.spec.num_tokens} of "
                f"{tokens.spec.prefix_of} tokens: give all of them"
            )
        if tokens.ids is None or [s.size for s in tokens.spec.segments] != [s.size for s in self.spec.segments]:
            raise ValueError(
                f"these tokens are of another vocabulary ({len(tokens.spec.segments)} levels, "
                f"{tokens.spec.vocab_size} ids) than this VQ-VAE's ({self.levels} levels, {self.spec.vocab_size} ids): "
                "decode them with the tokenizer that made them"
            )
        vectors = []
        for segment, quantizer in zip(tokens.spec.segments, self.quantizers, strict=True):
            ids = tokens.grid(segment.name) - segment.offset
            low, high = (x + segment.offset for x in id_range(ids))
            if low < segment.offset or high >= segment.offset + segment.size:
                raise ValueError(
                    f"ids of {segment.name} must lie in {segment.offset}..{segment.offset + segment.size - 1}, "
                    f"got {low}..{high}"
                )
            vectors.append(rearrange(quantizer.embed(ids), "b gh gw d -> b d gh gw"))
        return ((self.pixels(vectors).float() + 1) / 2).clamp(0, 1)

    def embed(self, ids: Int[Tensor, "b *n"]) -> Float[Tensor, "b *n d"]:
        """Rows of the codebooks, the top's first."""
        return F.embedding(ids, torch.cat([quantizer.codebook for quantizer in self.quantizers]))

    @property
    def quantizers(self) -> list[Any]:
        """One per level, in the order of the segments."""
        return [self.quantize_b] if self.levels == 1 else [self.quantize_t, self.quantize_b]

    def quantize(self, images: Float[Tensor, "b 3 h w"]) -> list[Quantized]:
        """Codes of each level for pixels in [0, 1]; VQ-VAE-2, Algorithm 1."""
        fine = self.enc_b((2 * images - 1).contiguous(memory_format=torch.channels_last))
        found = []
        if self.levels == 2:
            top = self.quantize_t(_last(self.quantize_conv_t(self.enc_t(fine))))
            fine = torch.cat([self.dec_t(_first(top.vectors)), fine], dim=1)
            found.append(top)
        return [*found, self.quantize_b(_last(self.quantize_conv_b(fine)))]

    def pixels(self, vectors: list[Float[Tensor, "b d _gh _gw"]]) -> Float[Tensor, "b 3 h w"]:
        """Image in [-1, 1] from the vectors of each level."""
        if self.levels == 2:
            vectors = [self.upsample_t(vectors[0]), vectors[1]]
        return self.dec(torch.cat(vectors, dim=1))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 3 with a mean squared error on pixels in [-1, 1]."""
        images = as_pixels(images_of(batch, self), multiple_of=self.factor)
        found = self.quantize(images)
        output = self.pixels([_first(q.vectors) for q in found])
        reconstruction = F.mse_loss(output.float(), 2 * images - 1)
        loss = reconstruction + self.codebook_settings.weight * sum(q.loss for q in found)
        terms = {"loss": loss, "reconstruction": reconstruction}
        for segment, q in zip(self.spec.segments, found, strict=True):
            terms |= {f"{name}_{segment.name}": value for name, value in q.terms.items()}
        return terms | {"mse": reconstruction.detach() / 4}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The optimizer's step, then that of the codebooks: once, whatever was accumulated before."""
        super().optimizer_step(*args, **kwargs)
        update_codebooks(self)

    def _spec(self, height: int, width: int) -> TokenSpec:
        size = self.codebook_settings.vocab_size
        bottom = Segment("grid", (height // 4, width // 4), size=size)
        segments: tuple[Segment, ...] = (bottom,)
        if self.levels == 2:
            top = Segment("top", (height // 8, width // 8), size=size)
            segments = (top, replace(bottom, name="bottom", offset=size))
        return TokenSpec(
            segments=segments,
            dim=self.codebook_settings.width,
            order="raster" if self.levels == 1 else "pyramid",
            vocabulary="learned",
            decodes="pixels",
        )


def _last(x: Float[Tensor, "b d gh gw"]) -> Float[Tensor, "b gh gw d"]:
    return rearrange(x, "b d gh gw -> b gh gw d")


def _first(x: Float[Tensor, "b gh gw d"]) -> Float[Tensor, "b d gh gw"]:
    return rearrange(x, "b gh gw d -> b d gh gw")


VQVAE.formats = (rosinality.VQVAE2,)

PAPER, PAPER_2 = "arXiv:1711.00937", "arXiv:1906.00446"
register(
    "vqvae_tiny", VQVAE, paper=PAPER, image_size=32, levels=1, width=16, blocks=1, block_width=8,
    codebook=Codebook(32, 8, "ema", decay=0.9), optim=Optim(lr=3e-3, weight_decay=0.0),
)  # fmt: skip
register(
    "vqvae2_tiny", VQVAE, paper=PAPER_2, image_size=32, width=16, blocks=1, block_width=8,
    codebook=Codebook(32, 8, "vq"), optim=Optim(lr=3e-3, weight_decay=0.0),
)  # fmt: skip
register(
    "vqvae_imagenet", VQVAE, paper=PAPER, recipe="paper/vqvae_imagenet.yaml", image_size=128, levels=1, width=256,
    block_width=256, optim=Optim(lr=2e-4, schedule="constant", weight_decay=0.0),
)  # fmt: skip
register(
    "vqvae2_rosinality",
    VQVAE,
    paper=PAPER_2,
    weights={
        "rosinality": Weights(
            origin="checkpoint/vqvae_560.pt in github.com/rosinality/vq-vae-2-pytorch",
            licence="see the repository",
            note="256 px; 560 epochs",
        )
    },
    optim=Optim(lr=3e-4, schedule="constant", weight_decay=0.0),
)
register(
    "vqvae_emoji",
    VQVAE,
    paper=PAPER,
    recipe="vqvae.yaml",
    image_size=64,
    levels=1,
    width=96,
    codebook=Codebook(512, 64, "ema", decay=0.95, init="kmeans", restart_threshold=0.5),
    optim=Optim(lr=2e-3, min_lr=2e-5, warmup_steps=50, weight_decay=0.0),
)
