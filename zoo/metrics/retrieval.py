"""Retrieval: texts of images and images of texts, by the scores of a model or the likelihoods of a language model.

The callback ``Retrieval`` and the benchmarks hold the same :class:`RetrievalReport`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from zoo.tokens import evaluating
from zoo.tokens.abilities import Retriever, Scorer
from zoo.tokens.batch import repeated, rows_of


def retrieval_recall(
    scores: Float[Tensor, "n m"], belongs: Bool[Tensor, "n m"], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Share of rows of which some belonging column is among the best k.

    Equal scores count against the model, so that constant scores find nothing.

    Args:
        scores: of each candidate (column) for each query (row); larger is better.
        belongs: which candidates are right.
        ks: how many candidates are looked at.

    Raises:
        ValueError: for a row without a right candidate, or scores that are NaN, which nothing would be ahead of.
    """
    if missing := int(scores.isnan().sum()):
        raise ValueError(
            f"{missing} of {scores.numel()} scores are NaN, which rank nothing: the model has diverged, take an "
            "earlier checkpoint"
        )
    if not belongs.any(1).all():
        raise ValueError("some rows have no right candidate: leave them out")
    best = scores.masked_fill(~belongs, -math.inf).amax(1, keepdim=True)
    ahead = ((scores >= best) & ~belongs).sum(1)
    return {f"r@{k}": (ahead < k).double().mean().item() for k in ks}


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


@torch.no_grad()
def caption_log_likelihood(
    model: Scorer, images: Shaped[Tensor, "n 3 h w"], texts: Sequence[str], batch_size: int = 64
) -> Float[Tensor, "n m"]:
    """Natural logarithm of the probability of each text given each image.

    Args:
        model: any that scores texts, be its tokens ids or vectors.
        images: n of them.
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


def pointwise_mutual_information(log_likelihood: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """Pointwise mutual information of images and texts: log p(text | image) - log p(text), in nats.

    A short or frequent text is likely beside every image. Its own probability, which is taken off, is the mean of those
    beside the n images.

    Args:
        log_likelihood: of :func:`caption_log_likelihood`.
    """
    return log_likelihood - (log_likelihood.logsumexp(0, keepdim=True) - torch.tensor(float(len(log_likelihood))).log())


class RetrievalReport:
    """Recall at 1, 5 and 10 among all images and texts of a set, by every kind of score that a model has.

    A :class:`~zoo.tokens.abilities.Retriever` gives ``i2t_r@1`` and so on by contrast, and ``rerank_i2t_r@1`` with the
    best candidates scored again; a :class:`~zoo.tokens.abilities.Scorer` gives ``likelihood_i2t_r@1`` by pointwise
    mutual information.

    Args:
        rerank: candidates that are scored again; 0 leaves it out.
        likelihood: score all pairs of images and texts by a language model, which takes n x m passes.
        batch_size: images, texts or pairs at once.
    """

    def __init__(self, rerank: int = 0, likelihood: bool = False, batch_size: int = 64):
        self.rerank, self.likelihood, self.batch_size = rerank, likelihood, batch_size
        self._images: list[Tensor] = []
        self._texts: list[list[str]] = []

    @property
    def num_images(self) -> int:
        """Images of this rank."""
        return len(self._texts)

    def reset(self) -> None:
        """Forget all images and texts."""
        self._images, self._texts = [], []

    def update(self, images: Shaped[Tensor, "b 3 h w"], texts: Sequence[Sequence[str]]) -> None:
        """Add images and the texts of each; both are kept in memory."""
        self._images.append(images.cpu())
        self._texts += [list(some) for some in texts]

    def belongs(self) -> Bool[Tensor, "n m"]:
        """True where a text is of an image."""
        owner = torch.tensor([i for i, some in enumerate(self._texts) for _ in some])
        return torch.arange(len(self._texts))[:, None] == owner[None]

    def chance(self) -> float:
        """Recall at 1 of random scores."""
        return self.belongs().double().mean().item()

    def compute(self, model: Any, device: torch.device | str, rerank: int | None = None) -> dict[str, float]:
        """Score all that is there; nothing for a model that scores no texts.

        Args:
            model: to be measured, in evaluation mode.
            device: of the model.
            rerank: in place of the report's own.

        Raises:
            ValueError: before the first update, and for scores that are NaN.
        """
        if not self._texts:
            raise ValueError("there are no images and texts to score: call update first")
        images, belongs = torch.cat(self._images).to(device), self.belongs()
        texts = [text for some in self._texts for text in some]
        again = self.rerank if rerank is None else rerank
        values: dict[str, float] = {}
        if isinstance(model, Retriever):
            scores = model.retrieve(images, texts, rerank=again, batch_size=self.batch_size)
            contrast = scores.contrast.float().cpu()
            values |= recalls(contrast, contrast, belongs)
            if again:
                ranked = recalls(scores.image_to_text.float().cpu(), scores.text_to_image.float().cpu(), belongs)
                values |= {f"rerank_{name}": value for name, value in ranked.items()}
        if self.likelihood and isinstance(model, Scorer):
            information = pointwise_mutual_information(caption_log_likelihood(model, images, texts, self.batch_size))
            found = recalls(information, information, belongs)
            values |= {f"likelihood_{name}": value for name, value in found.items()}
        return values

    def protocol(self) -> dict[str, Any]:
        """Say what the values depend on besides images and texts."""
        return {
            "retrieval": "each image has its own texts, all texts and images are candidates; ties count as misses",
            "likelihood": "log p(text | image) - log mean over images of p(text | image)",
            "rerank": self.rerank,
        }
