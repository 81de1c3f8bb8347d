"""Finding texts by images and images by texts: by the scores of a model, or by the likelihood of a language model."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zoo.metrics.captions import retrieval_recall
from zoo.tokens import evaluating
from zoo.tokens.abilities import Scorer
from zoo.tokens.batch import repeated, rows_of


@torch.no_grad()
def likelihoods(model: Scorer, images: Tensor, texts: Sequence[str], batch_size: int = 64) -> Float[Tensor, "n m"]:
    """Logarithm of the probability of each text given each image.

    Args:
        model: any that scores texts, be its tokens ids or vectors.
        images: ``n 3 h w``.
        texts: m of them.
        batch_size: pairs at once.
    """
    found = torch.empty(len(images), len(texts))
    with evaluating(model):
        starts = range(0, len(images), batch_size)
        tokens = [row for i in starts for row in rows_of(model.encode(images[i : i + batch_size]))]
        for j in range(0, len(texts), batch_size):
            some = texts[j : j + batch_size]
            for i, row in enumerate(tokens):
                found[i, j : j + len(some)] = model.log_likelihood(repeated(row, len(some)), some).float().cpu()
    return found


def by_surprise(scores: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """Likelihoods without what a text has in common over all images: how much each image speaks for it.

    A short or frequent text is likely beside every image; the mean over the images, in probability, is taken off.
    """
    return scores - (scores.logsumexp(0, keepdim=True) - torch.tensor(float(len(scores))).log())


def recalls(
    image_to_text: Float[Tensor, "n m"], text_to_image: Float[Tensor, "n m"], belongs: Bool[Tensor, "n m"]
) -> dict[str, float]:
    """Recall at 1, 5 and 10 in both directions, and their mean.

    Args:
        image_to_text: scores for finding texts of an image.
        text_to_image: scores for finding images of a text.
        belongs: which text is of which image.
    """
    found = {f"i2t_{name}": value for name, value in retrieval_recall(image_to_text, belongs).items()}
    found |= {f"t2i_{name}": value for name, value in retrieval_recall(text_to_image.t(), belongs.t()).items()}
    return found | {"mean_recall": sum(found.values()) / len(found)}
