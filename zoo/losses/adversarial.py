"""Adversarial objectives of autoencoders: losses of discriminator and generator, their weight, and regularisers.

VQGAN (Esser et al. 2021, arXiv:2012.09841, Eq. 6-7; constants of CompVis/taming-transformers
``taming/modules/losses/vqperceptual.py``).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from zoo.distributed import mean_over_ranks

KINDS = ("hinge", "vanilla", "non_saturating")
EPS = 1e-4  # under the ratio of gradients
MAX_WEIGHT = 1e4


def discriminator_loss(
    kind: str, real: Float[Tensor, "b *patches"], fake: Float[Tensor, "b *patches"]
) -> Float[Tensor, ""]:
    """The objective of the discriminator, to be minimised.

    Args:
        kind: ``hinge``: (mean relu(1 - D(x)) + mean relu(1 + D(y))) / 2; ``vanilla``: the same with softplus(-D(x))
            and softplus(D(y)), which is the cross-entropy; ``non_saturating``: that without the half (MaskGIT).
        real: logits of images.
        fake: logits of reconstructions.
    """
    real, fake = real.float(), fake.float()
    if kind == "hinge":
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    cross_entropy = F.softplus(-real).mean() + F.softplus(fake).mean()
    return cross_entropy / 2 if kind == "vanilla" else cross_entropy


def generator_loss(kind: str, fake: Float[Tensor, "b *patches"]) -> Float[Tensor, ""]:
    """The objective of the generator, to be minimised: -mean D(y), or mean softplus(-D(y)) with ``non_saturating``."""
    return F.softplus(-fake.float()).mean() if kind == "non_saturating" else -fake.float().mean()


def fixed_discriminator(discriminator: nn.Module, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b *patches"]:
    """Logits with gradients for the images only: no parameter gets one, no running statistic moves."""
    state = {name: p.detach() for name, p in discriminator.named_parameters()}
    state |= {name: b.clone() for name, b in discriminator.named_buffers()}
    return torch.func.functional_call(discriminator, state, (images,))


def adaptive_weight(
    reconstruction: Float[Tensor, ""], adversarial: Float[Tensor, ""], last_weight: Float[Tensor, "..."]
) -> Float[Tensor, ""]:
    """Weight lambda of Eq. 7: ratio of the gradients of both terms at the last layer of the decoder.

    The gradients are averaged over processes first, so that all of them use the weight of the joint batch. In
    float32, because the gradient of the adversarial term is small. 0 where no gradients are computed.

    Args:
        reconstruction: the reconstruction loss, perceptual term included.
        adversarial: the generator's loss, not yet weighted.
        last_weight: the weight of the last convolution.
    """
    if not (reconstruction.requires_grad and adversarial.requires_grad):
        return reconstruction.new_zeros(())
    grads = [torch.autograd.grad(loss, last_weight, retain_graph=True)[0] for loss in (reconstruction, adversarial)]
    numerator, denominator = mean_over_ranks(torch.stack(grads).float()).flatten(1).norm(dim=1)
    return (numerator / (denominator + EPS)).clamp(0.0, MAX_WEIGHT).detach()


def lecam(
    real: Float[Tensor, "b *patches"],
    fake: Float[Tensor, "b *patches"],
    mean_real: Float[Tensor, ""],
    mean_fake: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Keeps the logits of images near the running mean of those of reconstructions, and the other way round.

    Tseng et al. 2021, arXiv:2104.03310, Eq. 5, one-sided as in google/lecam-gan: a discriminator with little data may
    not move away from where it was.
    """
    return F.relu(real.float() - mean_fake).square().mean() + F.relu(mean_real - fake.float()).square().mean()


def r1_penalty(logits: Float[Tensor, "b *patches"], images: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Mean over images of |dD(x)/dx|^2 (Mescheder et al. 2018, arXiv:1801.04406, Eq. 9, without its half)."""
    (gradient,) = torch.autograd.grad(logits.float().sum(), images, create_graph=True)
    return gradient.float().square().sum((1, 2, 3)).mean()
