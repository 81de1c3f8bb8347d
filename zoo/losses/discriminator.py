"""A discriminator beside an autoencoder: its settings, the network, and what both add to an objective.

VQGAN (Esser et al. 2021, arXiv:2012.09841, Eq. 5-7) as in CompVis/taming-transformers, with both networks updated from
one backward pass; StyleGAN2's discriminator, non-saturating losses and R1 as in google-research/maskgit.
"""

import sys
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.choices import check_number, one_of
from zoo.distributed import mean_over_ranks
from zoo.losses import adversarial as gan
from zoo.nn.patchgan import PatchGAN
from zoo.nn.stylegan_discriminator import StyleGANDiscriminator

LECAM_DECAY = 0.999  # of the running means of logits, as in bytedance/1d-tokenizer


@dataclass(frozen=True)
class Discriminator:
    """Settings of a discriminator and of the losses that come with it; steps are optimizer steps, i.e. batches.

    Args:
        kind: ``patchgan``, or ``stylegan`` (as in MaskGIT).
        width: channels of its first convolution.
        layers: strided convolutions of ``patchgan``.
        loss: ``hinge``, ``vanilla`` or ``non_saturating`` losses.
        start: step from which the adversarial loss counts.
        warmup: train the discriminator this many steps earlier; 0 as published, where it starts untrained.
        weight: of the generator's adversarial loss.
        factor: a second factor, on the discriminator's loss too.
        adaptive: multiply ``weight`` with the ratio of gradients of Eq. 7.
        lecam: weight of LeCam regularisation.
        r1: weight of the gradient penalty, for ``stylegan``.
    """

    kind: Literal["patchgan", "stylegan"] = "patchgan"
    width: int = 64
    layers: int = 3
    loss: Literal["hinge", "vanilla", "non_saturating"] = "hinge"
    start: int = 0
    warmup: int = 0
    weight: float = 0.8
    factor: float = 1.0
    adaptive: bool = True
    lecam: float = 0.0
    r1: float = 0.0

    def __post_init__(self) -> None:
        one_of("discriminator.kind", self.kind, ("patchgan", "stylegan"))
        one_of("discriminator.loss", self.loss, gan.KINDS)
        for name, least in (("width", 1), ("layers", 1), ("start", 0), ("warmup", 0)):
            check_number(f"discriminator.{name}", getattr(self, name), least=least, whole=True)
        for name in ("weight", "factor", "lecam", "r1"):
            check_number(f"discriminator.{name}", getattr(self, name), least=0)
        if self.r1 and self.kind == "patchgan":
            raise ValueError(
                "discriminator.r1 penalises the gradient of single images, which batch normalisation mixes: "
                "set discriminator.kind to stylegan, or r1 to 0"
            )

    def is_trained_at(self, step: int) -> bool:
        """Tell whether the discriminator is run and trained at this step."""
        return step >= self.start - self.warmup

    def network(self, image_size: int, channels: int = 3) -> nn.Module:
        """The discriminator.

        Args:
            image_size: side of the images in pixels.
            channels: of the images.
        """
        if self.kind == "stylegan":
            return StyleGANDiscriminator(image_size, self.width, channels)
        return PatchGAN(self.width, self.layers, channels)


def add_discriminator(model: Any, settings: Discriminator | None, image_size: int, channels: int = 3) -> None:
    """Give a model the attribute ``discriminator``, and with LeCam the buffer ``lecam_means``.

    Args:
        model: gets them; both are for its ``training_only``.
        settings: None for no discriminator: the attribute is None.
        image_size: side of the images in pixels.
        channels: of the images.
    """
    model.register_module("discriminator", None if settings is None else settings.network(image_size, channels))
    if settings is not None and settings.lecam:
        model.register_buffer("lecam_means", torch.zeros(2))  # of the logits of images and of reconstructions


def current_step(model: Any) -> int:
    """The optimizer step of a fit, which its validation sees as well; elsewhere the step at which all has begun.

    Args:
        model: a :class:`lightning.pytorch.LightningModule`.
    """
    trainer = getattr(model, "_trainer", None)
    fitting = trainer is not None and trainer.state.fn == "fit"
    return int(model.global_step) if model.training or fitting else sys.maxsize


def adversarial_terms(
    settings: Discriminator,
    discriminator: nn.Module,
    target: Float[Tensor, "b c h w"],
    output: Float[Tensor, "b c h w"],
    distance: Float[Tensor, ""],
    last_weight: Float[Tensor, "..."],
    step: int,
    lecam_means: Float[Tensor, "2"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Terms of generator and discriminator in the objective, and values to look at; in eval mode nothing is added.

    As in taming ``generator_weight`` is without ``factor``, and ``discriminator`` with it.

    Args:
        settings: of the discriminator.
        discriminator: the network, in the mode of the model.
        target: images, in the range that the networks see.
        output: their reconstructions.
        distance: the reconstruction loss, perceptual term included.
        last_weight: of the decoder's last convolution, for the adaptive weight.
        step: of the optimizer, see :func:`current_step`.
        lecam_means: running means of the logits, which are changed in place; for LeCam.
    """
    training, added = discriminator.training, target.new_zeros(())
    if not settings.is_trained_at(step):
        # zero gradients rather than none: DDP wants every parameter
        return sum((0 * p.sum() for p in discriminator.parameters()), added), {}
    factor = settings.factor
    terms = {"disc_factor": target.new_tensor(factor)}
    if step >= settings.start and training:
        generator = gan.generator_loss(settings.loss, gan.fixed_discriminator(discriminator, output))
        weight = torch.full_like(generator, settings.weight)
        if settings.adaptive:
            weight = weight * gan.adaptive_weight(distance, generator, last_weight)
        added = factor * weight * generator
        terms |= {"generator": generator, "generator_weight": weight}
    penalised = training and settings.r1 > 0
    target = target.detach().requires_grad_(penalised)
    real, fake = discriminator(target), discriminator(output.detach())
    loss = gan.discriminator_loss(settings.loss, real, fake)
    terms |= {"discriminator": factor * loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
    if penalised:
        terms["r1"] = gan.r1_penalty(real, target)
        loss = loss + settings.r1 * terms["r1"]
    if lecam_means is not None and training:
        terms["lecam"] = gan.lecam(real, fake, *lecam_means.clone())
        loss = loss + settings.lecam * terms["lecam"]
        means = torch.stack([terms["logits_real"], terms["logits_fake"]]).detach().float()
        lecam_means.lerp_(mean_over_ranks(means), 1 - LECAM_DECAY)
    return added + factor * loss if training else added, terms
