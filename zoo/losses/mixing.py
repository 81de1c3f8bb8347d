"""Mixed training images with soft targets, and correct predictions."""

import math

from jaxtyping import Bool, Float, Int
from torch import Tensor


def mix_images(
    x: Float[Tensor, "b 3 h w"],
    label: Int[Tensor, "b"],
    mixup: float,
    cutmix: float,
    smoothing: float,
    num_classes: int,
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b c"]]:
    """Mixup or cutmix of one half of the batch with the other, and the soft targets (timm).

    Args:
        x: images, in any normalisation.
        label: their classes.
        mixup: alpha of mixup, 0 for none.
        cutmix: alpha of cutmix, 0 for none; with both, one of the two is drawn for each batch.
        smoothing: of the labels.
        num_classes: width of the targets.
    """
    from timm.data import Mixup

    if len(x) % 2:
        raise ValueError(f"mixup and cutmix pair the images, the batch has {len(x)}: use an even batch, drop_last")
    return Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=num_classes)(x.clone(), label)


def top_k_accuracy(logits: Float[Tensor, "b c"], label: Int[Tensor, "b"], k: int) -> Float[Tensor, ""]:
    """Fraction of images whose label is among the ``k`` likeliest; NaN where a logit is NaN."""
    right = (logits.detach().topk(k).indices == label[:, None]).any(-1).float()
    return right.masked_fill(logits.detach().isnan().any(-1), math.nan).mean()


def mark_correct(scores: Float[Tensor, "*n c"], target: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """1 where the target has the largest score, 0 elsewhere; NaN beside a NaN, which argmax takes for the largest."""
    best, found = scores.detach().max(-1)
    return (found == target).float().masked_fill(best.isnan(), math.nan)


def mark_any_correct(scores: Float[Tensor, "n c"], right: Bool[Tensor, "n c"]) -> Float[Tensor, "n"]:
    """1 where one of the right columns has the largest score of a row, 0 elsewhere; NaN beside a NaN."""
    best, found = scores.detach().max(-1, keepdim=True)
    return right.gather(1, found).float().masked_fill(best.isnan(), math.nan)[:, 0]
