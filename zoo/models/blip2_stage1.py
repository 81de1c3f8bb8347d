"""BLIP-2, first stage: a Q-Former between a frozen image encoder and text (Li et al. 2023).

arXiv:2301.12597. Official code: salesforce/LAVIS ``lavis/models/blip2_models`` (commit 506965b, BSD-3).

Implemented: Q-Former with its text branch, image-text contrast, matching with hard negatives and image-grounded
generation, in one image pass and one query pass; several captions per image through ``image_id``; retrieval with and
without re-ranking; EVA ViT-g as a frozen tower; reading of LAVIS's first-stage weights.
Not implemented: the second stage (language models), fine-tuning of the image encoder, captions from the Q-Former.
Deviations: none by default but ``min_temperature``: the temperature is kept above 0.001 where the published one is
free; and it does not decay, as it does in LAVIS by accident. ``mixing`` and ``norm`` of ``qformer`` and
``gather_grad="full"`` are options of ours. The learning rate follows the paper's cosine over steps; LAVIS's moves once
per epoch.

Equations: Section 3.1 queries -> `zoo.nn.qformer.QFormer`; Section 3.1 ITC ->
`zoo.losses.contrastive.contrastive_loss`; ITM -> `BLIP2Stage1.match`; ITG -> `zoo.losses.image_text.generation_loss`;
Figure 2 masks -> `zoo.nn.qformer_masks.itc_mask`, `itm_mask`, `itg_mask`.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from zoo.checkpoints.published import hf_blip2, lavis
from zoo.checkpoints.published.bert import start_from_bert
from zoo.choices import check_number, one_of
from zoo.distributed import gather_rows, rank, sum_over_ranks, world_size
from zoo.init_args import Moved
from zoo.language.wordpiece import WordPiece
from zoo.losses.contrastive import contrastive_loss, draw_negatives, find_same_image, image_text_similarity
from zoo.losses.image_text import generation_loss, matching_loss
from zoo.losses.mixing import mark_any_correct, mark_correct
from zoo.module import ZooModule
from zoo.nn.qformer import QFormer, select_rows
from zoo.nn.qformer_masks import itc_mask, itg_mask, itm_mask
from zoo.nn.qformer_sizes import FLAT_NAMES, QFormerSizes
from zoo.optim import Optim
from zoo.presets import Weights, register
from zoo.runs.untrained import warn_if_untrained
from zoo.tokens import NotInvertible, Segment, Tokens, TokenSpec, as_pixels, evaluating
from zoo.tokens.abilities import Scores
from zoo.tokens.batch import Batch, captions_of, image_ids_of, images_of
from zoo.vision.encoders import LN_VISION_EPS, vision_tower

UNRANKED = -100.0  # score of a pair that was not re-ranked


class BLIP2Stage1(ZooModule):
    """BLIP-2's first stage: images to query tokens, learned from captions.

    Args:
        image_size: side of the images in pixels.
        vision: frozen image encoder, see :func:`zoo.vision.encoders.vision_tower`.
        vocabulary: of the captions, see :class:`zoo.language.wordpiece.WordPiece`.
        max_text_tokens: longest caption, special tokens included.
        qformer: queries and the transformer that they read the image with, see
            :class:`zoo.nn.qformer_sizes.QFormerSizes`.
        max_positions: size of the table of text positions.
        projection_width: of the vectors that are compared.
        temperature: divisor of the similarities at the start; it is learned.
        min_temperature: lower bound of it in use; 0 for none, as published.
        label_smoothing: of contrast and generation.
        gather_grad: whether gradients reach the gathered side of the contrast: not in ``lavis``, yes in ``full``.
        itm_negatives: hard negatives from the batches of all processes (``global``) or from the own one (``local``).
        text_init: start the Q-Former from a BERT: ``minilm`` (from a pip package), or a folder of bert-base-uncased as
            published; None starts at random.
        vision_cache: images whose features are kept, for data without augmentation.
        optim: optimizer and schedule; the paper's by default.
        weights: start from these: a registry name or a path.
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
        max_positions: int = 512,
        projection_width: int = 256,
        temperature: float = 0.07,
        min_temperature: float = 1e-3,
        label_smoothing: float = 0.1,
        gather_grad: Literal["lavis", "full"] = "lavis",
        itm_negatives: Literal["global", "local"] = "global",
        text_init: str | None = None,
        vision_cache: int = 0,
        optim: Optim = Optim(lr=1e-4, min_lr=1e-5, betas=(0.9, 0.98), weight_decay=0.05, warmup_steps=2000),
        weights: str | None = None,
    ):
        super().__init__(optim)
        self.gather_grad = one_of("gather_grad", gather_grad, ("lavis", "full"))
        self.itm_negatives = one_of("itm_negatives", itm_negatives, ("global", "local"))
        if not 3 <= max_text_tokens <= max_positions:
            raise ValueError(f"max_text_tokens must lie in 3..max_positions ({max_positions}), got {max_text_tokens}")
        check_number("temperature", temperature, above=0)
        self.image_size, self.max_text_tokens, self.label_smoothing = image_size, max_text_tokens, label_smoothing
        self.min_temperature = min_temperature
        self.text_codec = WordPiece(vocabulary)
        tower = vision_tower(vision, image_size, vision_cache)
        self.add_frozen("vision", tower, role="vectors")
        self.ln_vision = nn.LayerNorm(tower.width, LN_VISION_EPS)
        self.query_tokens = nn.Parameter(torch.randn(1, qformer.queries, qformer.width) * 0.02)
        self.Qformer = QFormer.of(qformer, tower.width, self.text_codec.vocab_size, max_positions)
        self.vision_proj = nn.Linear(qformer.width, projection_width)
        self.text_proj = nn.Linear(qformer.width, projection_width)
        self.itm_head = nn.Linear(qformer.width, 2)
        self.temp = nn.Parameter(torch.tensor(float(temperature)))
        self.spec = TokenSpec(
            segments=(Segment("queries", (qformer.queries,)),), dim=qformer.width, order="set", vocabulary=None,
            decodes=None,
        )  # fmt: skip
        if text_init is not None and torch.empty(0).device.type != "meta":
            start_from_bert(self.Qformer, text_init)
        self.load_weights(weights)

    def encode(self, images: Shaped[Tensor, "b 3 h w"]) -> Tokens:
        """Last hidden states of the queries: what a language model gets in the second stage."""
        features = self._features(as_pixels(images, size=self.image_size))
        return Tokens(None, self._queries(self._read(features)).queries, self.spec)

    def decode(self, tokens: Tokens) -> Tensor:
        """Refuse: BLIP-2 has no decoder.

        Raises:
            NotInvertible: always.
        """
        raise NotInvertible(
            "BLIP-2's query tokens keep what is informative of a text (Section 3.1) and there is no decoder to pixels: "
            "they are read by a language model"
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """ITC + ITM + ITG with weight 1 each, Section 3.1.

        The batch holds ``image``, ``caption`` (one string per image) and optionally ``image_id`` (numbers or strings,
        equal for captions of one image).
        """
        images = as_pixels(images_of(batch, self), size=self.image_size)
        ids, mask = self.tokenise(captions_of(batch, self, len(images)), full=world_size() > 1)
        image_ids = image_ids_of(batch)
        image_ids = None if image_ids is None else image_ids.to(ids.device)
        return self.objectives(self._features(images), ids, mask, image_ids)

    def objectives(
        self,
        features: Float[Tensor, "b n e"],
        ids: Int[Tensor, "b t"],
        mask: Int[Tensor, "b t"],
        image_ids: Int[Tensor, " b"] | None = None,
        negatives: tuple[Int[Tensor, " b"], Int[Tensor, " b"]] | None = None,
    ) -> dict[str, Tensor]:
        """The three losses of images that went through the image encoder.

        Args:
            features: of the image encoder, before ``ln_vision``.
            ids: captions, from ``[CLS]`` to ``[SEP]``.
            mask: 1 for tokens, 0 for padding.
            image_ids: equal for captions of one image.
            negatives: images and texts of the negative pairs; None draws them.

        Raises:
            ValueError: in training, where a batch shows one image only.
        """
        embeds = self.ln_vision(features)
        read = self.Qformer.read_image(embeds)  # keys and values of the image serve all passes
        seen = self._queries(read)  # one pass serves contrast and generation
        queries = self.spec.num_tokens
        text = self.Qformer(text=ids, mask=itc_mask(mask, queries)[:, :, queries:, queries:]).text
        same = find_same_image(len(ids), image_ids, ids.device)
        with torch.autocast(ids.device.type, enabled=False):
            image_vectors = F.normalize(self.vision_proj(seen.queries.float()), dim=-1)
            text_vectors = F.normalize(self.text_proj(text[:, 0].float()), dim=-1)
            temperature = self.temp.clamp_min(self.min_temperature) if self.min_temperature else self.temp
            contrast, i2t, t2i = contrastive_loss(
                image_vectors, text_vectors, temperature, same, self.label_smoothing, self.gather_grad == "full"
            )
        if negatives is None:
            negatives = self._negatives(i2t, t2i, same)
        logits = self._match_batch(embeds, read, ids, mask, negatives)
        matching = matching_loss(logits, len(ids))
        start = torch.cat([torch.full_like(ids[:, :1], self.Qformer.vocab_size - 1), ids[:, 1:]], dim=1)
        hidden = self.Qformer(text=start, mask=itg_mask(mask, queries)[:, :, queries:], cache=seen.cache).text
        generation = generation_loss(self.Qformer.word_logits(hidden).float(), ids, mask, self.label_smoothing)
        matched = mark_correct(logits, (torch.arange(len(logits), device=ids.device) < len(ids)).long())
        return {
            "loss": contrast + matching + generation,
            "itc": contrast,
            "itm": matching,
            "itg": generation,
            "itm_accuracy": matched.mean(),  # 2/3 for a model that always says no
            "i2t_recall": mark_any_correct(i2t, same).mean(),
            "t2i_recall": mark_any_correct(t2i, same).mean(),
            "temperature": temperature.detach(),
        }

    def match(self, read: Any, ids: Int[Tensor, "b t"], mask: Int[Tensor, "b t"]) -> Float[Tensor, "b 2"]:
        """Logits of (no match, match) of pairs: mean over the queries, which see the text.

        Args:
            read: keys and values of the images, from :meth:`zoo.nn.qformer.QFormer.read_image`.
            ids: captions.
            mask: 1 for tokens, 0 for padding.
        """
        queries = self.query_tokens.expand(len(ids), -1, -1)
        found = self.Qformer(queries, None, ids, itm_mask(mask, self.spec.num_tokens), read=read).queries
        return self.itm_head(found).mean(1).float()

    @torch.no_grad()
    def retrieve(
        self, images: Shaped[Tensor, "n 3 h w"], texts: Sequence[str], rerank: int = 0, batch_size: int = 64
    ) -> Scores:
        """Score all pairs of images and texts.

        Args:
            images: to be searched or searched for.
            texts: likewise.
            rerank: of the best candidates of each row and column, by contrast + matching logit (the published
                protocol takes 128); the others get -100. 0: contrast alone.
            batch_size: images, texts or pairs at once.
        """
        warn_if_untrained(self, "ranks")
        with evaluating(self):
            parts = as_pixels(images, size=self.image_size).split(batch_size)
            embeds = torch.cat([self.ln_vision(self._features(part)) for part in parts])
            read = self.Qformer.read_image
            ids, mask = self.tokenise(list(texts))
            queries = self.spec.num_tokens
            found = [self._queries(read(part)).queries for part in embeds.split(batch_size)]
            firsts = []
            for some, their in zip(ids.split(batch_size), mask.split(batch_size), strict=True):
                hidden = self.Qformer(text=some, mask=itc_mask(their, queries)[:, :, queries:, queries:]).text
                firsts.append(hidden[:, 0])
            with torch.autocast(ids.device.type, enabled=False):  # in 8 bits of precision many texts would tie
                shown = F.normalize(self.vision_proj(torch.cat(found).float()), dim=-1)
                written = F.normalize(self.text_proj(torch.cat(firsts).float()), dim=-1)
                contrast = image_text_similarity(shown, written)
            if not rerank:
                return Scores(contrast, contrast, contrast)
            found = []
            for sim in (contrast, contrast.t()):
                best = sim.topk(min(rerank, sim.shape[1]), dim=1).indices
                row = torch.arange(len(sim), device=sim.device)[:, None].expand_as(best).flatten()
                column = best.flatten()
                image, text = (row, column) if not found else (column, row)
                pairs = zip(image.split(batch_size), text.split(batch_size), strict=True)
                logits = torch.cat([self.match(read(embeds[i]), ids[t], mask[t])[:, 1] for i, t in pairs])
                scores = torch.full_like(sim, UNRANKED)
                scores[row, column] = logits + sim[row, column]
                found.append(scores)
            return Scores(contrast, found[0], found[1].t())

    def tokenise(self, captions: Sequence[str], full: bool = False) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """Ids and mask of captions, on the model's device."""
        ids, mask = self.text_codec.batch(captions, self.max_text_tokens, full)
        return ids.to(self.device), mask.to(self.device)

    @torch.no_grad()
    def _features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n e"]:
        return self.frozen["vision"](images)

    def _read(self, features: Float[Tensor, "b n e"]) -> Any:
        return self.Qformer.read_image(self.ln_vision(features))

    def _queries(self, read: Any) -> Any:
        count = next(pair[0].shape[0] for pair in read if pair is not None)
        return self.Qformer(self.query_tokens.expand(count, -1, -1), read=read)

    def _negatives(self, i2t: Tensor, t2i: Tensor, same: Tensor) -> tuple[Tensor, Tensor] | None:
        """Columns of the joint batch; in evaluation the same in every run."""
        start = rank() * len(same)
        own = slice(start, start + len(same)) if self.itm_negatives == "local" else slice(None)
        generator = None if self.training else torch.Generator(same.device).manual_seed(0)
        drawn = draw_negatives(i2t[:, own], t2i[:, own], same[:, own], generator)
        if sum_over_ranks(torch.tensor(drawn is None, dtype=torch.int64, device=same.device)):
            drawn = None  # on one rank is on all: the others would wait for it
        if drawn is None and self.training:
            raise ValueError(
                "all captions of a batch belong to one image, so matching has no negative pairs: "
                "use batches of more images"
            )
        first = own.start or 0
        return None if drawn is None else (drawn[0] + first, drawn[1] + first)

    def _match_batch(
        self, embeds: Tensor, read: Any, ids: Tensor, mask: Tensor, negatives: tuple[Tensor, Tensor] | None
    ) -> Float[Tensor, "n 2"]:
        """Pairs first, then (negative image, text), then (image, negative text); pairs alone without negatives."""
        if negatives is None:
            return self.match(read, ids, mask)
        image, text = negatives
        own = torch.arange(len(ids), device=ids.device)
        all_ids, all_mask = gather_rows(ids, gradient=False), gather_rows(mask, gradient=False)
        if world_size() == 1:
            read = select_rows(read, torch.cat([own, image, own]))
        else:
            others = self.Qformer.read_image(gather_rows(embeds)[image])
            pairs = zip(read, others, strict=True)
            read = [a and tuple(torch.cat([x, y, x]) for x, y in zip(a, b, strict=True)) for a, b in pairs]
        return self.match(read, torch.cat([ids, ids, all_ids[text]]), torch.cat([mask, mask, all_mask[text]]))


BLIP2Stage1.formats = (lavis.STAGE1, hf_blip2.RETRIEVAL)

PAPER = "arXiv:2301.12597"
LAVIS = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/blip2_pretrained.pth"
register(
    "blip2_stage1_tiny", BLIP2Stage1, paper=PAPER, image_size=32, vision="tiny_random", vocabulary="characters",
    max_text_tokens=16, qformer=QFormerSizes(4, 24, 2, 2, 48, dropout=0.0), max_positions=20, projection_width=16,
    optim=Optim(lr=3e-3),
)  # fmt: skip
register(
    "blip2_stage1_vit_g",
    BLIP2Stage1,
    paper=PAPER,
    recipe="paper/blip2_stage1_coco.yaml",
    weights={
        "lavis": Weights(origin=LAVIS, licence="BSD-3 (salesforce/LAVIS)", note="129 million images, first stage")
    },
    optim=Optim(lr=1e-4, min_lr=1e-5, betas=(0.9, 0.98), weight_decay=0.05, warmup_steps=2000, total_steps=250_000),
)
register(
    "blip2_stage1_emoji", BLIP2Stage1, paper=PAPER, recipe="blip2_stage1.yaml", image_size=128, vision="lite0",
    max_text_tokens=24, qformer=QFormerSizes(queries=8, width=384, depth=6, mlp_width=1536), max_positions=64,
    projection_width=128,
    text_init="minilm", optim=Optim(lr=2e-4, min_lr=1e-6, betas=(0.9, 0.98), warmup_steps=50),
)  # fmt: skip
