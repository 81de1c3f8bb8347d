"""Models that say how well an image matches a text, by name: for re-ranking and for retrieval."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from zoo.checkpoints.published.clip import CLIP_MEAN, CLIP_STD
from zoo.registry import model_from
from zoo.tokens import as_pixels, sides_of
from zoo.tokens.abilities import Retriever, Scores, image_size_of


def find_scorer(reference: Any) -> Retriever:
    """The scorer of that name.

    Args:
        reference: as for :func:`zoo.registry.model_from`, of a model that retrieves, such as ``blip2_stage1:PATH``;
            ``clip:PATH``, a folder of CLIP in transformers' layout; or the model itself.

    Raises:
        ValueError: for a model that reads no text.
        FileNotFoundError: for a folder that is not there.
    """
    if isinstance(reference, str):
        name, _, path = reference.partition(":")
        found = ClipScorer(Path(path)) if name == "clip" else model_from(reference).eval()
    else:
        found = reference
    if not isinstance(found, Retriever):
        raise ValueError(
            f"the scorer {reference!r} does not score images against texts: take one that retrieves, such as "
            "blip2_stage1 or 'clip:PATH'"
        )
    return found


@torch.no_grad()
def score_images(scorer: Retriever, images: Float[Tensor, "n 3 h w"], captions: Sequence[str]) -> Float[Tensor, "c e"]:
    """Scores of the candidates of each caption.

    Args:
        scorer: sees them at its own size.
        images: as many of each caption, those of the first caption first.
        captions: c of them.
    """
    if (size := image_size_of(scorer)) is not None and tuple(images.shape[-2:]) != (sides := sides_of(size)):
        images = F.interpolate(images.float(), sides, mode="bicubic", antialias=True).clamp(0, 1)
    each = len(images) // len(captions)
    parts = zip(images.split(each), captions, strict=True)
    return torch.stack([scorer.retrieve(part, [caption]).contrast[:, 0] for part, caption in parts])


class ClipScorer:
    """CLIP of a folder in transformers' layout, whose tokenizer lies beside it.

    Args:
        folder: with ``config.json``, weights and tokenizer.
    """

    def __init__(self, folder: Path):
        from transformers import AutoTokenizer, CLIPModel

        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder} with a CLIP of transformers: write 'clip:PATH'")
        self.model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.image_size = int(self.model.config.vision_config.image_size)

    @torch.no_grad()
    def retrieve(
        self, images: Float[Tensor, "n 3 h w"], texts: Sequence[str], rerank: int = 0, batch_size: int = 64
    ) -> Scores:
        """Cosines of all pairs; there is nothing to re-rank with."""
        mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (CLIP_MEAN, CLIP_STD))
        pixels = ((as_pixels(images, size=self.image_size).cpu() - mean) / std).split(batch_size)
        seen = torch.cat([self.model.get_image_features(pixel_values=part).pooler_output for part in pixels])
        text = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        said = self.model.get_text_features(**text).pooler_output
        contrast = F.normalize(seen, dim=-1) @ F.normalize(said, dim=-1).t()
        return Scores(contrast, contrast, contrast)
