"""A small image decoder for generation embeddings, in the place of SEED's Stable Diffusion (Ge et al. 2023).

arXiv:2307.08041, Section 3.2.2: SEED hands its generation embedding to the frozen U-Net of Stable Diffusion. That
decoder is a model of several gigabytes; this one is a convolutional network of a megabyte that is trained on the
embedded data. Official code: AILab-CVC/SEED (commit 93b3cf4, Apache-2.0) has no such decoder.

Implemented: images from the teacher's vectors, or from the generation embeddings of a SEED tokenizer, with squared
error and a perceptual loss; it is a tokenizer itself, with one continuous token.
Not implemented: sampling. One embedding gives one image, the mean of what it may show, so details are soft.
Deviations: everything but the conditioning is ours.

Equations: Section 3.2.2, pixels of a generation embedding -> `SEEDPixels.images_of`.
"""

import inspect
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from zoo.losses.perceptual import LPIPSLite0
from zoo.module import ZooModule
from zoo.nn.embedding_decoder import EmbeddingDecoder
from zoo.optim import Optim
from zoo.presets import Weights, register
from zoo.registry import class_of, model_from
from zoo.second_stage import embedding_shape, refuse_newly_initialised
from zoo.tokens import Segment, Tokens, TokenSpec, as_pixels
from zoo.tokens.batch import Batch, images_of
from zoo.vision.teachers import image_embedder


class SEEDPixels(ZooModule):
    """Pixels of a generation embedding.

    Args:
        image_size: side of the images in pixels.
        teacher: whose vectors are decoded, see :func:`zoo.vision.teachers.image_embedder`.
        tokenizer: learn from the generation embeddings that this SEED tokenizer makes of the images, which are what the
            decoder meets in use; None learns from the teacher's vectors themselves.
        vision: image encoder of the tokenizer, such as ``eva_vit_g:PATH``; None leaves it.
        widths: channels from 4x4 pixels on, each twice as large as the one before; the last is the image's size.
        hidden: width of the embedding inside.
        noise: standard deviation of the noise on embeddings in training, as a fraction of theirs.
        perceptual: network of the perceptual loss, or ``none``.
        perceptual_weight: of that loss beside the squared error.
        vision_cache: images whose vectors are kept, for data without augmentation.
        optim: optimizer and schedule.
        weights: start from these: a registry name or a path.
    """

    spec: TokenSpec

    def __init__(
        self,
        image_size: int = 128,
        teacher: str = "lite0",
        tokenizer: str | None = None,
        vision: str | None = None,
        widths: tuple[int, ...] = (192, 128, 96, 64, 32, 16),
        hidden: int = 256,
        noise: float = 0.0,
        perceptual: Literal["lite0", "none"] = "none",
        perceptual_weight: float = 0.1,
        vision_cache: int = 0,
        optim: Optim = Optim(lr=2e-3, weight_decay=0.0),
        weights: str | None = None,
    ):
        super().__init__(optim)
        if 4 * 2 ** (len(widths) - 1) != image_size:
            raise ValueError(
                f"{len(widths)} widths make images of {4 * 2 ** (len(widths) - 1)} pixels, not {image_size}: "
                "give one width per doubling from 4 pixels on"
            )
        self.image_size, self.noise, self.perceptual_weight = image_size, noise, perceptual_weight
        embedder = image_embedder(teacher, image_size, vision_cache)
        self.add_frozen("teacher", embedder)
        width = embedder.width
        if tokenizer is not None:
            found = self._add_tokenizer(tokenizer, vision_cache, vision)
            if found != width:
                raise ValueError(
                    f"{tokenizer!r} decodes to vectors of width {found}, those of the teacher {teacher!r} have "
                    f"{width}: set teacher to what the tokenizer learned from"
                )
        if perceptual != "none":
            self.add_frozen("perceptual", LPIPSLite0())
        self.decoder = EmbeddingDecoder(width, hidden, tuple(widths))
        #: mean and deviation of the embeddings, from the first batches: their scale is the teacher's
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.register_buffer("measured", torch.zeros((), dtype=torch.int64))
        self.spec = TokenSpec(
            segments=(Segment("embedding", (1,)),), dim=width, order="set", vocabulary=None, decodes="pixels"
        )
        self.load_weights(weights)

    def _add_tokenizer(self, reference: str, cache: int, vision: str | None) -> int:
        """Hold the tokenizer whose embeddings are drawn, and return their width."""
        takes = inspect.signature(class_of(reference)).parameters
        given = {"vision_cache": cache} | ({"vision": vision} if vision else {})
        tokenizer = model_from(reference, **{name: value for name, value in given.items() if name in takes})
        if tokenizer.spec is None or tokenizer.spec.decodes != "embedding":
            raise ValueError(f"{reference!r} does not decode to an embedding: take a SEED tokenizer")
        *count, width = embedding_shape(tokenizer)
        if count:
            raise ValueError(f"{reference!r} decodes to {count[0]} vectors per image, and this decoder draws one")
        refuse_newly_initialised(tokenizer, reference)
        self.add_frozen("tokenizer", tokenizer, role="ids")
        return width

    # ------------------------------------------------------------------ tokens

    def encode(self, images: Shaped[Tensor, "b 3 h w"]) -> Tokens:
        """The embedding that stands for an image: the tokenizer's, where there is one, else the teacher's."""
        return Tokens(None, self._embedding(as_pixels(images, size=self.image_size))[:, None], self.spec)

    def decode(self, tokens: Tokens) -> Float[Tensor, "b 3 h w"]:
        """Images in [0, 1]."""
        if tokens.embeddings is None:
            raise ValueError("these tokens have no embeddings, which SEEDPixels draws")
        return self.images_of(tokens.embeddings[:, 0]).clamp(0, 1)

    def images_of(self, embedding: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 h w"]:
        """Images in [0, 1] of generation embeddings.

        Raises:
            ValueError: for vectors of another width.
        """
        if embedding.shape[1:] != (self.spec.dim,):
            raise ValueError(
                f"this decoder draws vectors of width {self.spec.dim}, these are {tuple(embedding.shape[1:])}: take "
                "the tokenizer that it was trained with"
            )
        return self.decoder((embedding.float() - self.mean) / self.std)

    @torch.no_grad()
    def _embedding(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        frozen: dict[str, Any] = self.frozen
        if "tokenizer" in frozen:
            tokenizer = frozen["tokenizer"]
            with torch.autocast(images.device.type, enabled=False):  # what decodes them is exact like the ids
                return tokenizer.decode(tokenizer.encode(images))
        return frozen["teacher"].embed(images)

    # ------------------------------------------------------------------ training

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Squared error, and the perceptual loss, of the images of noisy embeddings."""
        images = as_pixels(images_of(batch, self), size=self.image_size)
        embedding = self._embedding(images)
        if self.training:
            self._measure(embedding)
            embedding = embedding + self.noise * self.std * torch.randn_like(embedding)
        made = self.images_of(embedding)
        terms = {"mse": F.mse_loss(made, images)}
        loss = terms["mse"]
        if "perceptual" in self.frozen:
            terms["perceptual"] = self.frozen["perceptual"](made, images).mean()
            loss = loss + self.perceptual_weight * terms["perceptual"]
        return {"loss": loss, **terms}

    @torch.no_grad()
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _measure(self, embedding: Float[Tensor, "b d"], batches: int = 20) -> None:
        """Running mean and deviation over the first batches, then fixed; the ranks' batches are pooled."""
        if self.measured >= batches or len(embedding) < 2:
            return
        from zoo.distributed import sum_over_ranks, world_size

        count = world_size()
        mean = sum_over_ranks(embedding.mean(0)) / count
        spread = sum_over_ranks((embedding - mean).square().mean(0)) / count
        share = 1 / (float(self.measured) + 1)
        self.mean.lerp_(mean, share)
        self.std.copy_((self.std.square() * (1 - share) + spread * share).sqrt().clamp(min=1e-3))
        self.measured += 1


PAPER = "arXiv:2307.08041"
register(
    "seed_pixels_tiny", SEEDPixels, paper=PAPER, image_size=32, teacher="tiny_random", widths=(16, 12, 8, 8), hidden=24,
    optim=Optim(lr=3e-3),
)  # fmt: skip
register(
    "seed_pixels_emoji", SEEDPixels, paper=PAPER, recipe="seed_pixels.yaml", tokenizer="seed_stage2_emoji",
    widths=(80, 80, 64, 48, 32, 16), hidden=192, noise=0.1, perceptual="lite0", vision_cache=2000,
    optim=Optim(lr=2e-3, min_lr=2e-5, weight_decay=0.0, warmup_steps=50),
    weights={
        "emoji": Weights(file="seed_pixels_emoji.safetensors", note="recipes/seed_pixels.yaml on Twemoji, 128 px"),
    },
)  # fmt: skip
