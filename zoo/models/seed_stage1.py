"""SEED's tokenizer, first stage: a Q-Former with causal queries, learned by contrast with captions (Ge et al. 2023).

arXiv:2307.08041 (SEED) and arXiv:2310.01218 (SEED-LLaMA). Official code: AILab-CVC/SEED (commit 93b3cf4, Apache-2.0),
training code ``SEED_Tokenizer/lavis/models/blip2_models/blip2_qformer_casual.py``.

Implemented: any number of queries, causal or not; contrast of the last query with the text, gathered without gradient,
smoothed; retrieval; starting from BLIP-2's first stage, LAVIS's or ours, or from a BERT.
Not implemented: the matching and captioning losses, which are switched off in the released training.
Deviations: causality is a setting; the published code derives it from a count of 32, and any other count silently loses
it. The learning rate follows one warm-up and one cosine over steps. A penalty on queries that repeat each other
(``diversity_weight``, 0 by default) is ours.

Equations: Section 3.2 causal Q-Former -> `zoo.nn.qformer_masks.causal_mask`, `SEEDStage1.causal_embeddings`; Section
3.2.1 contrast -> `SEEDStage1.losses`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from zoo.checkpoints.published import lavis
from zoo.checkpoints.published.bert import start_from_bert
from zoo.choices import check_number
from zoo.distributed import world_size
from zoo.init_args import Moved
from zoo.language.wordpiece import WordPiece
from zoo.losses.contrastive import contrastive_loss, find_same_image, image_text_similarity
from zoo.losses.mixing import mark_any_correct
from zoo.module import ZooModule
from zoo.nn.qformer import QFormer
from zoo.nn.qformer_masks import causal_mask, itc_mask
from zoo.nn.qformer_sizes import FLAT_NAMES, QFormerSizes
from zoo.optim import Optim
from zoo.presets import register
from zoo.runs.untrained import warn_if_untrained
from zoo.tokens import NotInvertible, Segment, Tokens, TokenSpec, as_pixels, evaluating
from zoo.tokens.abilities import Scores
from zoo.tokens.batch import Batch, captions_of, image_ids_of, images_of
from zoo.vision.encoders import LN_VISION_EPS, vision_tower


def query_overlap(embeddings: Float[Tensor, "b q d"]) -> Float[Tensor, ""]:
    """Mean squared cosine of two queries of an image, each less its mean: 0 where no query repeats another.

    1 where all queries say the same of an image, whose tokens are then copies of one; 0 where no two have a direction
    in common. Ours, not of the paper.
    """
    count = embeddings.shape[1]
    if count < 2:
        return embeddings.new_zeros(())
    said = F.normalize(embeddings - embeddings.mean(0), dim=-1)
    squares = (said @ said.transpose(1, 2)).square()
    return (squares.sum((1, 2)) - squares.diagonal(dim1=1, dim2=2).sum(1)).mean() / (count * (count - 1))


class SEEDStage1(ZooModule):
    """Images to causal query embeddings, learned from captions.

    Args:
        image_size: side of the images in pixels.
        vision: frozen image encoder, see :func:`zoo.vision.encoders.vision_tower`.
        vocabulary: of the captions, see :class:`zoo.language.wordpiece.WordPiece`.
        max_text_tokens: longest caption, special tokens included.
        qformer: queries and the transformer that they read the image with, see
            :class:`zoo.nn.qformer_sizes.QFormerSizes`.
        causal: whether a query sees the queries before it only.
        max_positions: size of the table of text positions.
        projection_width: of the vectors that are compared.
        temperature: divisor of the similarities at the start; it is learned.
        min_temperature: lower bound of it in use; 0 for none, as published.
        label_smoothing: of the contrast.
        diversity_weight: of a penalty on queries that say the same of an image, see :func:`query_overlap`. The contrast
            sees the last query alone: without it, and not started from BLIP-2's queries, all may end as copies of it.
        text_init: start the Q-Former from a BERT: ``minilm`` or a folder; None does not.
        vision_cache: images whose features are kept, for data without augmentation.
        optim: optimizer and schedule; the released ones by default.
        weights: start from these: a registry name or a path, of this model or of BLIP-2's first stage.
    """

    start_only = ("weights", "text_init")
    moved = (Moved("qformer", FLAT_NAMES),)

    spec: TokenSpec

    def __init__(
        self,
        image_size: int = 224,
        vision: str = "eva_vit_g",
        vocabulary: str = "bert_base_uncased",
        max_text_tokens: int = 32,
        qformer: QFormerSizes = QFormerSizes(),
        causal: bool = True,
        max_positions: int = 512,
        projection_width: int = 256,
        temperature: float = 0.07,
        min_temperature: float = 1e-3,
        label_smoothing: float = 0.1,
        diversity_weight: float = 0.0,
        text_init: str | None = None,
        vision_cache: int = 0,
        optim: Optim = Optim(lr=3e-5, min_lr=3e-6, weight_decay=0.05, warmup_steps=2000),
        weights: str | None = None,
    ):
        super().__init__(optim)
        if not 3 <= max_text_tokens <= max_positions:
            raise ValueError(f"max_text_tokens must lie in 3..max_positions ({max_positions}), got {max_text_tokens}")
        check_number("temperature", temperature, above=0)
        self.image_size, self.max_text_tokens, self.label_smoothing = image_size, max_text_tokens, label_smoothing
        check_number("diversity_weight", diversity_weight, least=0)
        self.causal, self.min_temperature, self.diversity_weight = causal, min_temperature, diversity_weight
        self.text_codec = WordPiece(vocabulary)
        tower = vision_tower(vision, image_size, vision_cache)
        self.add_frozen("vision", tower, role="vectors")
        self.ln_vision = nn.LayerNorm(tower.width, LN_VISION_EPS)
        self.query_tokens = nn.Parameter(torch.randn(1, qformer.queries, qformer.width) * 0.02)
        self.Qformer = QFormer.of(qformer, tower.width, self.text_codec.vocab_size, max_positions, word_head=False)
        self.vision_proj = nn.Linear(qformer.width, projection_width)
        self.text_proj = nn.Linear(qformer.width, projection_width)
        self.temp = nn.Parameter(torch.tensor(float(temperature)))
        self.spec = TokenSpec(
            segments=(Segment("queries", (qformer.queries,)),), dim=qformer.width, order="causal" if causal else "set",
            vocabulary=None, decodes=None,
        )  # fmt: skip
        if text_init is not None and torch.empty(0).device.type != "meta":
            start_from_bert(self.Qformer, text_init)
        self.load_weights(weights)

    def encode(self, images: Shaped[Tensor, "b 3 h w"]) -> Tokens:
        """Last hidden states of the queries: what the second stage makes codes of."""
        return Tokens(None, self.causal_embeddings(as_pixels(images, size=self.image_size)), self.spec)

    def decode(self, tokens: Tokens) -> Tensor:
        """Refuse: SEED's first stage has no decoder.

        Raises:
            NotInvertible: always.
        """
        raise NotInvertible(
            "SEED's first stage aligns causal embeddings with text (Section 3.2) and has no decoder: train the second "
            "stage, whose codes decode to a generation embedding"
        )

    def causal_embeddings(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b q d"]:
        """One embedding per query; with ``causal``, number k depends on queries up to k."""
        features = self.ln_vision(self.frozen["vision"](images))
        queries = self.query_tokens.expand(len(images), -1, -1)
        mask = causal_mask(queries.shape[1]).to(features.device) if self.causal else None
        return self.Qformer(queries, features, mask=mask).queries

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Contrast of the last query with the text, Section 3.2.1.

        The batch holds ``image``, ``caption`` and optionally ``image_id``, equal for captions of one image.
        """
        images = as_pixels(images_of(batch, self), size=self.image_size)
        ids, mask = self.tokenise(captions_of(batch, self, len(images)), full=world_size() > 1)
        embeddings = self.causal_embeddings(images)
        shown, written = self.image_vectors(embeddings), self.text_vectors(ids, mask)
        numbers = image_ids_of(batch)
        same = find_same_image(len(ids), None if numbers is None else numbers.to(ids.device), ids.device)
        with torch.autocast(ids.device.type, enabled=False):
            temperature = self.temp.clamp_min(self.min_temperature) if self.min_temperature else self.temp
            loss, i2t, t2i = contrastive_loss(
                shown.float()[:, None], written.float(), temperature, same, self.label_smoothing, gather_gradient=False
            )
            overlap = query_overlap(embeddings.float())
        return {
            "loss": loss + self.diversity_weight * overlap if self.diversity_weight else loss,
            "query_overlap": overlap.detach(),
            "i2t_recall": mark_any_correct(i2t, same).mean(),
            "t2i_recall": mark_any_correct(t2i, same).mean(),
            "temperature": temperature.detach(),
        }

    def image_vectors(self, embeddings: Float[Tensor, "b q d"]) -> Float[Tensor, "b p"]:
        """Unit vectors that are compared with those of texts: the last query, projected.

        Args:
            embeddings: of :meth:`causal_embeddings`, or reconstructed from codes.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            return F.normalize(self.vision_proj(embeddings[:, -1].float()), dim=-1)

    def text_vectors(self, ids: Int[Tensor, "b t"], mask: Int[Tensor, "b t"]) -> Float[Tensor, "b p"]:
        """Unit vectors that are compared with those of images: the first token, projected."""
        queries = self.spec.num_tokens
        hidden = self.Qformer(text=ids, mask=itc_mask(mask, queries)[:, :, queries:, queries:]).text
        with torch.autocast(hidden.device.type, enabled=False):
            return F.normalize(self.text_proj(hidden[:, 0].float()), dim=-1)

    @torch.no_grad()
    def retrieve(
        self,
        images: Shaped[Tensor, "n 3 h w"] | None,
        texts: Sequence[str],
        rerank: int = 0,
        batch_size: int = 64,
        embeddings: Float[Tensor, "n q d"] | None = None,
    ) -> Scores:
        """Score all pairs of images and texts by cosine.

        Args:
            images: to be searched or searched for.
            texts: likewise.
            rerank: ignored; there is no matching head.
            batch_size: images or texts at once.
            embeddings: in place of images, e.g. reconstructed from codes.
        """
        warn_if_untrained(self, "ranks")
        with evaluating(self):
            if embeddings is None:
                if images is None:
                    raise ValueError("nothing to compare the texts with: give images, or embeddings in their place")
                parts = as_pixels(images, size=self.image_size).split(batch_size)
                embeddings = torch.cat([self.causal_embeddings(part) for part in parts])
            ids, mask = self.tokenise(list(texts))
            pairs = zip(ids.split(batch_size), mask.split(batch_size), strict=True)
            written = torch.cat([self.text_vectors(some, their) for some, their in pairs])
            contrast = image_text_similarity(self.image_vectors(embeddings)[:, None].float(), written.float())
        return Scores(contrast, contrast, contrast)

    def tokenise(self, captions: Sequence[str], full: bool = False) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """Ids and mask of captions, on the model's device."""
        ids, mask = self.text_codec.batch(captions, self.max_text_tokens, full)
        return ids.to(self.device), mask.to(self.device)


SEEDStage1.formats = (lavis.SEED_START,)

PAPER = "arXiv:2307.08041"
register(
    "seed_stage1_tiny", SEEDStage1, paper=PAPER, image_size=32, vision="tiny_random", vocabulary="characters",
    max_text_tokens=16, qformer=QFormerSizes(4, 24, 2, 2, 48, dropout=0.0), max_positions=20, projection_width=16,
    optim=Optim(lr=3e-3),
)  # fmt: skip
register(
    "seed_stage1_emoji", SEEDStage1, paper=PAPER, recipe="seed_stage1.yaml", image_size=128, vision="lite0",
    max_text_tokens=24,
    qformer=QFormerSizes(queries=16, width=384, depth=3, mlp_width=1536, query_mlp_width=128, dropout=0.0),
    max_positions=64, projection_width=128, diversity_weight=0.1, text_init="minilm",
    optim=Optim(lr=3e-4, min_lr=1e-6, warmup_steps=50),
)  # fmt: skip
register("seed_stage1_vit_g", SEEDStage1, paper=PAPER, recipe="paper/seed_stage1_coco.yaml")
