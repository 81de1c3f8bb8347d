"""Zero-Shot Text-to-Image Generation, stage 1: the discrete VAE (Ramesh et al. 2021).

arXiv:2102.12092. Official code: openai/DALL-E (commit 5be4b23, modified MIT), inference only; the training objective
follows Section 2.1 and A.2-A.3 of the paper and the first author's answers in that repository (issues 1, 8, 26).

Implemented: encoder and decoder, Gumbel-softmax relaxation with its temperature schedule, logit-Laplace likelihood,
KL to the uniform prior on the raw logits with its weight schedule, AdamW with cosine, EMA (callback), augmentation of
Listing 1 (``datamodules``), reading of the published weights.
Not implemented: per-resblock gradient scaling and fp16 storage of the official training run (bf16 or fp32 instead).
Deviations: none by default. ``codebook_init="kmeans"``, ``encoder_start``, ``marginal_entropy``, ``loss="mse"`` and
``relaxation="straight_through"`` are options of ours; a recipe that uses one says so in its header.

Equations: Eq. 1 -> `DVAE.losses`; Section A.2 relaxation -> `DVAE.relax`; Section A.2 schedules -> `optim.cosine`;
Section A.3 likelihood -> `losses.logit_laplace.logit_laplace_nll`; KL -> `losses.categorical.kl_to_uniform`.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.utils.data import DataLoader

from zoo.checkpoints.published import flava, openai, openmmlab
from zoo.choices import one_of
from zoo.losses.categorical import kl_to_uniform, marginal_entropy_gap
from zoo.losses.logit_laplace import logit_laplace_nll, map_pixels, unmap_pixels
from zoo.module import ZooModule
from zoo.nn.dalle import DalleDecoder, DalleEncoder
from zoo.optim import Optim, cosine
from zoo.presets import Weights, register
from zoo.quantizers.kmeans import codebook_from_features
from zoo.tokens import NotInvertible, Segment, Tokens, TokenSpec, as_pixels, id_range
from zoo.tokens.batch import Batch, images_of

MSE_SIGMA = 0.1  # of the Gaussian that ``loss="mse"`` puts on mapped pixels; sets the scale against the KL term
KMEANS_BATCHES = 8  # training batches that ``codebook_init="kmeans"`` looks at
KMEANS_CHUNK = 32  # of their images at once, which bounds the memory


class DVAE(ZooModule):
    """DALL-E's discrete VAE: images to a grid of ids, and back.

    Args:
        image_size: side of the training images in pixels; other multiples of the downsampling factor work too.
        width: channels of the first group of the encoder (``n_hid``).
        blocks: residual blocks per group.
        groups: 4 in the paper; the downsampling factor is ``2 ** (groups - 1)``.
        vocab_size: codes.
        code_width: width of a code's embedding (``n_init``).
        loss: the paper's ``logit_laplace``, or ``mse``: a Gaussian of fixed width on mapped pixels.
        relaxation: ``soft`` Gumbel-softmax samples as in the paper, or ``straight_through`` hard ones.
        tau: temperature of the relaxation: start, end, steps of the cosine between them.
        beta: weight of the KL term: start, end, steps.
        marginal_entropy: weight of ln K - H(mean q over the batch of a process), which fights codebook collapse in
            short runs: start, end, steps.
        codebook_init: ``random`` as published, or ``kmeans`` on the encoder's features of a few batches.
        encoder_start: step from which the encoder is trained too; before, the decoder learns its codes.
        optim: optimizer and schedule; the paper's by default.
        weights: start from these: a registry name or a path.
    """

    spec: TokenSpec

    def __init__(
        self,
        image_size: int = 256,
        width: int = 256,
        blocks: int = 2,
        groups: int = 4,
        vocab_size: int = 8192,
        code_width: int = 128,
        loss: Literal["logit_laplace", "mse"] = "logit_laplace",
        relaxation: Literal["soft", "straight_through"] = "soft",
        tau: tuple[float, float, int] = (1.0, 1 / 16, 150_000),
        beta: tuple[float, float, int] = (0.0, 6.6, 5_000),
        marginal_entropy: tuple[float, float, int] = (0.0, 0.0, 0),
        codebook_init: Literal["random", "kmeans"] = "random",
        encoder_start: int = 0,
        optim: Optim = Optim(lr=1e-4, min_lr=1.25e-6, weight_decay=1e-4, decay="all"),
        weights: str | None = None,
    ):
        super().__init__(optim)
        if min(blocks, groups, vocab_size, code_width) < 1 or width < 4 or width % 4:
            raise ValueError(
                "blocks, groups, vocab_size and code_width must be at least 1 and width a multiple of 4, got "
                f"{blocks}, {groups}, {vocab_size}, {code_width} and {width}"
            )
        self.factor = 2 ** (groups - 1)
        if image_size % self.factor:
            raise ValueError(
                f"image_size {image_size} is not divisible by {self.factor}, the factor of {groups} groups"
            )
        self.image_size = image_size
        self.loss = one_of("loss", loss, ("logit_laplace", "mse"))
        self.relaxation = one_of("relaxation", relaxation, ("soft", "straight_through"))
        self.tau, self.beta, self.marginal_entropy = tau, beta, marginal_entropy
        self.codebook_init = one_of("codebook_init", codebook_init, ("random", "kmeans"))
        self.encoder_start = encoder_start
        # Channels-last convolutions are a third faster on a CPU and on tensor cores.
        self.encoder = DalleEncoder(width, blocks, groups, vocab_size).to(memory_format=torch.channels_last)
        self.decoder = DalleDecoder(width, blocks, groups, vocab_size, code_width).to(memory_format=torch.channels_last)
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
        """Most likely code of each cell; no noise."""
        ids = self.logits(images).argmax(1)
        return Tokens(rearrange(ids, "b gh gw -> b (gh gw)"), None, self.spec.with_grid((ids.shape[1], ids.shape[2])))

    def decode(self, tokens: Tokens) -> Float[Tensor, "b 3 h w"]:
        """The mode of the pixel distribution, in [0, 1]."""
        if tokens.ids is None or tokens.spec.vocab_size != self.spec.vocab_size:
            raise ValueError(
                f"these tokens are of another vocabulary ({tokens.spec.vocab_size} ids) than this dVAE's "
                f"({self.spec.vocab_size}): decode them with the tokenizer that made them"
            )
        low, high = id_range(tokens.ids)
        if low < 0 or high >= self.spec.vocab_size:
            raise ValueError(f"ids must lie in 0..{self.spec.vocab_size - 1}, got {low}..{high}")
        codes = rearrange(self.embed(tokens.grid()), "b gh gw d -> b d gh gw")
        return self.pixels(codes)[0]

    def embed(self, ids: Int[Tensor, "b *n"]) -> Float[Tensor, "b *n d"]:
        """Rows of the decoder's first convolution, which is the codebook."""
        if "decoder." in self.not_in_file:
            raise NotInvertible(self.not_in_file["decoder."])
        return self.decoder.embed(ids)

    def set_not_in_file(self, parts: dict[str, str]) -> None:
        """An encoder alone, as FLAVA and OpenMMLab publish it, decodes nothing."""
        super().set_not_in_file(parts)
        self.spec = replace(self.spec, decodes=None if "decoder." in parts else "pixels")

    def logits(self, images: Shaped[Tensor, "b 3 h w"]) -> Float[Tensor, "b k gh gw"]:
        """Unnormalised log-probabilities of the codes."""
        return self._logits(as_pixels(images, multiple_of=self.factor))

    def _logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k gh gw"]:
        """The same for images that are checked already: the check makes a GPU wait."""
        if "encoder." in self.not_in_file:
            raise ValueError(self.not_in_file["encoder."])
        return self.encoder(map_pixels(images).contiguous(memory_format=torch.channels_last))

    def pixels(
        self, codes: Float[Tensor, "b d gh gw"]
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 3 h w"], Float[Tensor, "b 3 h w"]]:
        """Image in [0, 1], and location and log-scale of its logit-Laplace distribution."""
        mu, log_scale = self.decoder(codes.contiguous(memory_format=torch.channels_last)).chunk(2, dim=1)
        return unmap_pixels(mu.float().sigmoid()), mu, log_scale

    def relax(self, logits: Float[Tensor, "b k gh gw"], tau: float) -> Float[Tensor, "b k gh gw"]:
        """A sample of the relaxed posterior, softmax((logits + Gumbel) / tau); one-hot in eval mode.

        The paper uses it soft in both directions; ``straight_through`` makes the forward pass one-hot.
        """
        if not self.training:
            return self.one_hot(logits)
        gumbel = -torch.empty_like(logits).exponential_().log()
        soft = ((logits + gumbel) / tau).softmax(1)
        return soft if self.relaxation == "soft" else self.one_hot(soft) + soft - soft.detach()

    def one_hot(self, logits: Float[Tensor, "b k gh gw"]) -> Float[Tensor, "b k gh gw"]:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 1, normalised as in Section A.2: sums over pixels and cells, divided by the number of pixel values."""
        images = as_pixels(images_of(batch, self), multiple_of=self.factor)
        step = self.global_step if self.training else sys.maxsize  # validation: the weights that the run ends with
        tau, beta, entropy_weight = (cosine(step, *s) for s in (self.tau, self.beta, self.marginal_entropy))
        logits = self._logits(images)
        if self.training and step < self.encoder_start:
            logits = logits.detach() + 0 * logits  # zero gradients rather than none: DDP wants every parameter
        image, mu, log_scale = self.pixels(self.decoder.mix(self.relax(logits, tau)))
        if self.loss == "logit_laplace":
            reconstruction = logit_laplace_nll(map_pixels(images), mu.float(), log_scale.float()).mean()
        else:
            reconstruction = F.mse_loss(mu.float().sigmoid(), map_pixels(images)) / (2 * MSE_SIGMA**2)
        kl = kl_to_uniform(logits)
        loss = reconstruction + beta * kl.sum() / images.numel()
        if entropy_weight:
            loss = loss + entropy_weight * marginal_entropy_gap(logits)
        return {
            "loss": loss,
            "reconstruction": reconstruction,
            "kl": kl.mean(),
            "mse": F.mse_loss(image.detach(), images),
            "tau": loss.new_tensor(tau),
            "beta": loss.new_tensor(beta),
        }

    def code_sources(self) -> dict[str, tuple[int, Callable[[Tensor], Tensor]]]:
        """Codes that :class:`zoo.callbacks.CollapseGuard` counts: the most likely ones of the encoder's logits."""
        return {"encoder": (self.spec.vocab_size, lambda logits: logits.detach().argmax(1))}

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.codebook_init == "kmeans" and self.global_step == 0 and not self.started_from_weights:
            if "FSDP" in type(self.trainer.strategy).__name__:
                raise ValueError("k-means cannot write into sharded parameters: use ddp, or codebook_init=random")
            loader = self.trainer.train_dataloader
            if isinstance(loader, DataLoader):  # one of its own: workers that persist serve one iteration at a time
                loader = DataLoader(loader.dataset, batch_sampler=loader.batch_sampler, collate_fn=loader.collate_fn)
            batches = filter(None, islice(loader, KMEANS_BATCHES))
            self.initialise_codebook(torch.cat([images_of(batch, self) for batch in batches]).to(self.device))

    @torch.no_grad()
    def initialise_codebook(self, images: Shaped[Tensor, "b 3 h w"]) -> None:
        """Spread the codes over the encoder's features of these images, so that training starts with all in use.

        The last convolution then computes a soft assignment to k-means centres, -|f - c|^2 / T up to a constant, and
        the decoder's embedding of a code is a random projection of its centre, so that near codes look alike.
        """
        encoder, decoder = cast("Any", self.encoder.blocks), cast("Any", self.decoder.blocks)
        trunk = encoder[:-1]
        parts = as_pixels(images, multiple_of=self.factor).split(KMEANS_CHUNK)
        features = [rearrange(F.relu(trunk(map_pixels(x))), "b d gh gw -> (b gh gw) d") for x in parts]
        weight, bias, embedding = codebook_from_features(torch.cat(features), self.spec.vocab_size, self.spec.dim)
        tensors = [rearrange(weight, "k d -> k d 1 1"), bias, rearrange(embedding, "k d -> d k 1 1")]
        targets = [encoder.output.conv.w, encoder.output.conv.b, decoder.input.w]
        for target, value in zip(targets, tensors, strict=True):
            target.copy_(self.trainer.strategy.broadcast(value.cpu()) if self._trainer is not None else value)


DVAE.formats = (openai.DALLE, flava.CODEBOOK, openmmlab.ENCODER)

PAPER = "arXiv:2102.12092"
register(
    "dvae_tiny", DVAE, paper=PAPER, image_size=32, width=8, blocks=1, groups=3, vocab_size=64, code_width=16,
    tau=(1.0, 1 / 16, 200), beta=(0.0, 0.1, 50), optim=Optim(lr=3e-3, weight_decay=1e-4, decay="all"),
)  # fmt: skip
register(
    "dvae_openai",
    DVAE,
    paper=PAPER,
    recipe="paper/dvae_openai_imagenet.yaml",
    weights={
        "openai": Weights(
            origin="https://cdn.openai.com/dall-e/encoder.pkl and .../decoder.pkl (put both into one folder)",
            licence="Modified MIT (openai/DALL-E)",
            note="250 million text-image pairs, 256 px",
        )
    },
    optim=Optim(lr=1e-4, min_lr=1.25e-6, total_steps=1_200_000, weight_decay=1e-4, decay="all"),
)
register(
    "dvae_emoji",
    DVAE,
    paper=PAPER,
    recipe="dvae.yaml",
    weights={"emoji": Weights(file="dvae_emoji.safetensors", note="recipes/dvae.yaml on Twemoji, 64 px")},
    image_size=64,
    width=48,
    blocks=1,
    groups=3,
    vocab_size=512,
    loss="mse",
    tau=(0.5, 1 / 16, 1400),
    beta=(0.0, 0.1, 400),
    marginal_entropy=(1.0, 0.0, 1200),
    codebook_init="kmeans",
    optim=Optim(lr=4e-3, min_lr=4e-5, warmup_steps=50, weight_decay=1e-4, decay="all"),
)
