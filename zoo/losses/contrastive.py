"""Image-text contrast over several vectors per image, and the hard negatives that it finds.

Source: BLIP-2 (arXiv:2301.12597), Section 3.1; smoothing, targets and sampling from salesforce/LAVIS
``blip2_qformer.py`` (commit 506965b).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.distributed import gather_rows, rank

HIDDEN = -10000.0  # similarity of what must not be drawn


def image_text_similarity(image: Float[Tensor, "n q d"], text: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Largest inner product over the vectors of an image, for each pair."""
    return torch.einsum("nqd,md->nqm", image, text).amax(1)


def contrastive_loss(
    image: Float[Tensor, "b q d"],
    text: Float[Tensor, "b d"],
    temperature: Float[Tensor, ""],
    same: Bool[Tensor, "b n"],
    label_smoothing: float = 0.1,
    gather_gradient: bool = False,
) -> tuple[Float[Tensor, ""], Float[Tensor, "b n"], Float[Tensor, "b n"]]:
    """Cross entropy of this rank's images against all texts, and of its texts against all images.

    Args:
        image: normalised vectors of this rank's images.
        text: normalised vector of each text.
        temperature: divides the similarities.
        same: whether text j of all ranks belongs to image i of this rank, see :func:`find_same_image`; these share the
            target probability.
        label_smoothing: probability that is spread over all candidates.
        gather_gradient: let gradients reach the gathered side too. The reference does not, which leaves the value
            unchanged and about halves the gradient.

    Returns:
        The mean of both directions, and both similarity matrices (image to text, text to image).
    """
    i2t = image_text_similarity(image, gather_rows(text, gather_gradient)) / temperature
    everyone = gather_rows(image, gather_gradient)
    t2i = torch.einsum("nqd,md->mnq", everyone, text).amax(2) / temperature
    wanted = same.float() / same.sum(1, keepdim=True)
    target = (1 - label_smoothing) * wanted + label_smoothing / same.shape[1]
    terms = [-(target * sim.log_softmax(1)).sum(1).mean() for sim in (i2t, t2i)]
    return (terms[0] + terms[1]) / 2, i2t, t2i


def find_same_image(batch_size: int, image_ids: Int[Tensor, " b"] | None, device: torch.device) -> Bool[Tensor, "b n"]:
    """Pairs (row of this rank, column of all ranks) that show the same image.

    Args:
        batch_size: of this rank.
        image_ids: equal for captions of one image; None: every row has an image of its own.
        device: of the result.
    """
    if image_ids is None:
        image_ids = torch.arange(batch_size, device=device) + rank() * batch_size
    return image_ids[:, None] == gather_rows(image_ids, gradient=False)[None]


@torch.no_grad()
def draw_negatives(
    i2t: Float[Tensor, "b n"],
    t2i: Float[Tensor, "b n"],
    same: Bool[Tensor, "b n"],
    generator: torch.Generator | None = None,
) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"]] | None:
    """For each text an image that it does not describe, for each image a text of another one; the likelier, the harder.

    One call of ``torch.multinomial`` per row, all images first and then all texts: the draws of the reference.

    Args:
        i2t: similarities of this rank's images to all texts.
        t2i: similarities of this rank's texts to all images.
        same: pairs that must not be drawn.
        generator: of the random numbers.

    Returns:
        Columns of the images and of the texts, or None where some row has no other image.
    """
    if same.all(1).any():
        return None
    drawn = []
    for sim in (t2i, i2t):
        weights = sim.float().masked_fill(same, HIDDEN).softmax(1)
        drawn.append(torch.cat([torch.multinomial(row, 1, generator=generator) for row in weights]))
    return drawn[0], drawn[1]
