"""SEED's tokenizer: 32 discrete, causal tokens per image that decode to a generation embedding (Ge et al. 2023).

arXiv:2307.08041 (SEED) and arXiv:2310.01218 (SEED-LLaMA, whose tokenizer is published as SEED-2). Official code:
AILab-CVC/SEED (commit 93b3cf4, Apache-2.0), ``models/seed_qformer/qformer_quantizer.py`` and, for training,
``blip2_qformer_codebook_all_image.py``.

Implemented: the causal Q-Former of the first stage, frozen; codes by squared distance; reconstruction of the causal
embeddings; both de-tokenizers (the MLP of the published weights, the reverse Q-Former of the released training code
and, with 77 queries, of SEED-1); pixels through an injected decoder; reading of ``seed_quantizer.pt`` and of the first
stage.
Not implemented: the loss on CLIP's text embeddings of the captions, switched off in the released training.
Deviations: the frozen Q-Former is in eval mode (``frozen_eval=False`` leaves its dropout on, as published). Codebooks
from k-means and restarts of unused codes are options of ours.

Equations: Section 3.2.2 quantization and reconstruction -> `SEEDTokenizer.losses`, `SEEDTokenizer.reconstruct_causal`;
Section 3.2.2 generation embedding -> `SEEDTokenizer.decode`, `zoo.nn.seed_codec.Detokenizer`.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from zoo.checkpoints.published import seed
from zoo.choices import check_number, one_of
from zoo.init_args import Moved
from zoo.module import ZooModule
from zoo.nn.qformer import QFormer
from zoo.nn.qformer_masks import causal_mask
from zoo.nn.qformer_sizes import FLAT_NAMES, QFormerSizes
from zoo.nn.seed_codec import Detokenizer, codec_blocks, task_layer
from zoo.optim import Optim
from zoo.presets import Weights, register
from zoo.quantizers.base import count_codes, update_codebooks
from zoo.quantizers.by_name import make_quantizer
from zoo.quantizers.codebook import Codebook
from zoo.tokens import Segment, Tokens, TokenSpec, as_pixels, evaluating, id_range
from zoo.tokens.batch import Batch, images_of
from zoo.vision.encoders import LN_VISION_EPS, vision_tower
from zoo.vision.teachers import image_embedder

CODEBOOK = Codebook(8192, 32, legacy=True, weight=5.0)
FROZEN = ("Qformer", "query_tokens", "ln_vision")  # in the second stage, which trains the codec around them


class SEEDTokenizer(ZooModule):
    """Discrete, causal tokens of images that a language model can read and write.

    Args:
        image_size: side of the images in pixels.
        vision: frozen image encoder, see :func:`zoo.vision.encoders.vision_tower`.
        qformer: queries and the transformer that they read the image with, see
            :class:`zoo.nn.qformer_sizes.QFormerSizes`.
        causal: whether a token depends on the queries before it only.
        frozen_eval: keep the frozen Q-Former in eval mode; False leaves its dropout on, as published.
        codebook: codes and quantizer (``vq`` as published, ``l2`` or ``ema``), see
            :class:`zoo.quantizers.codebook.Codebook`; its ``weight`` is that of the quantization loss.
        codec_depth: transformer blocks on each side of the codes.
        codec_heads: their attention heads.
        codec_mlp_ratio: hidden units of their MLPs as a multiple of ``width``.
        detokenizer: ``mlp`` (the published weights) or ``reverse_qformer`` (the released training code).
        reverse_queries: of the reverse Q-Former: 1, or 77 in SEED-1.
        reverse_depth: its layers.
        teacher: whose vector of the image is to be decoded, see :func:`zoo.vision.teachers.image_embedder`; ``vision``
            is the mean of the image encoder's own tokens; None where there is only inference.
        embedding_width: of that vector.
        reconstruction_weight: of the cosine loss on the causal embeddings.
        generation_weight: of the squared error of the generation embedding.
        vision_cache: images whose features are kept, for data without augmentation.
        optim: optimizer and schedule; the released ones by default.
        weights: start from these: a registry name or a path, of this model or of the first stage.
    """

    moved = (
        Moved("qformer", FLAT_NAMES),
        Moved("codebook", {
            "vocab_size": "vocab_size", "code_width": "width", "codebook_init": "init",
            "restart_threshold": "restart_threshold", "vq_weight": "weight",
        }),
    )  # fmt: skip
    spec: TokenSpec

    def __init__(
        self,
        image_size: int = 224,
        vision: str = "eva_vit_g",
        qformer: QFormerSizes = QFormerSizes(),
        causal: bool = True,
        frozen_eval: bool = True,
        codebook: Codebook = CODEBOOK,
        codec_depth: int = 4,
        codec_heads: int = 12,
        codec_mlp_ratio: float = 4.0,
        detokenizer: Literal["mlp", "reverse_qformer"] = "mlp",
        reverse_queries: int = 1,
        reverse_depth: int = 4,
        teacher: str | None = None,
        embedding_width: int = 1024,
        reconstruction_weight: float = 2.0,
        generation_weight: float = 0.5,
        vision_cache: int = 0,
        optim: Optim = Optim(lr=1e-4, min_lr=1e-5, weight_decay=0.05, warmup_steps=2000),
        weights: str | None = None,
    ):
        super().__init__(optim)
        one_of("codebook.quantizer of SEED", codebook.quantizer, ("vq", "l2", "ema"))
        check_number("reverse_queries", reverse_queries, least=1, whole=True)
        if qformer.width % codec_heads:
            raise ValueError(f"qformer.width must be a multiple of codec_heads, got {qformer.width} and {codec_heads}")
        if detokenizer == "mlp" and reverse_queries != 1:
            raise ValueError(f"{reverse_queries} reverse queries need a reverse Q-Former: set detokenizer to that")
        self.image_size, self.causal, self.frozen_eval = image_size, causal, frozen_eval
        weights_of_losses = (codebook.weight, reconstruction_weight, generation_weight)
        self.loss_weights = dict(zip(("vq", "reconstruction", "generation"), weights_of_losses, strict=True))
        tower = vision_tower(vision, image_size, vision_cache)
        self.add_frozen("vision", tower, role="vectors")
        self.teacher, width_of_target = teacher, int(tower.width)
        if teacher not in (None, "vision"):
            embedder = image_embedder(teacher, image_size, vision_cache)
            self.add_frozen("teacher", embedder)
            width_of_target = embedder.width
        if teacher is not None and width_of_target != embedding_width:
            raise ValueError(f"the vectors of {teacher!r} have width {width_of_target}: set embedding_width to that")
        self.ln_vision = nn.LayerNorm(tower.width, LN_VISION_EPS)
        queries, width = qformer.queries, qformer.width
        self.query_tokens = nn.Parameter(torch.randn(1, queries, width) * 0.02)
        self.Qformer = QFormer.of(qformer, tower.width)
        self.encode_task_layer = task_layer(width, codebook.width)
        self.quantize: Any = make_quantizer(codebook)  # of the three kinds with a table of codes
        self.decode_task_layer = task_layer(codebook.width, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, queries, width))
        self.blocks = codec_blocks(width, codec_depth, codec_heads, codec_mlp_ratio)
        self.pos_embed_image = nn.Parameter(torch.zeros(1, queries, width))
        self.blocks_image = codec_blocks(width, codec_depth, codec_heads, codec_mlp_ratio)
        self.detokenizer = Detokenizer(
            detokenizer, queries, width, embedding_width, reverse_queries, reverse_depth, qformer.heads,
            qformer.mlp_width, qformer.dropout,
        )  # fmt: skip
        for position in (self.pos_embed, self.pos_embed_image):
            nn.init.trunc_normal_(position, std=0.02)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not name.startswith(FROZEN))
        self.spec = TokenSpec(
            segments=(Segment("tokens", (queries,), size=codebook.vocab_size),), dim=codebook.width,
            order="causal" if causal else "set", decodes="embedding",
        )  # fmt: skip
        self.load_weights(weights)

    def train(self, mode: bool = True) -> "SEEDTokenizer":
        """The frozen Q-Former stays in eval mode, so that its embeddings, the targets, do not vary."""
        super().train(mode)
        if self.frozen_eval:
            self.Qformer.eval()
        return self

    # ------------------------------------------------------------------ tokens

    def encode(self, images: Shaped[Tensor, "b 3 h w"]) -> Tokens:
        """Ids, the same number for every image; each depends on those before it alone."""
        images = as_pixels(images, size=self.image_size)
        z = self.encode_task_layer(self.causal_embeddings(images))
        return Tokens(self.quantize.encode(z), None, self.spec)

    def decode(self, tokens: Tokens) -> Float[Tensor, "b ..."]:
        """The generation embedding: what an image decoder is conditioned on, one vector per image (77 in SEED-1).

        Args:
            tokens: ids; of a prefix, ``tokens.first(m)``, the mean of all codes stands for the tokens left out.

        Raises:
            ValueError: for tokens without ids, or ids that are no codes.
        """
        return self._generation(self._up(tokens))

    def embed(self, ids: Int[Tensor, "b *n"]) -> Float[Tensor, "b *n d"]:
        """The codes.

        Raises:
            ValueError: for ids that are no codes.
        """
        self._check(ids)
        return self.quantize.embed(ids)

    def causal_embeddings(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b q d"]:
        """Embeddings of the first stage that the codes quantize, without gradient."""
        return self._causal(self.frozen["vision"](images))

    @torch.no_grad()
    def _causal(self, features: Float[Tensor, "b n e"]) -> Float[Tensor, "b q d"]:
        queries = self.query_tokens.expand(len(features), -1, -1)
        mask = causal_mask(queries.shape[1]).to(features.device) if self.causal else None
        return self.Qformer(queries, self.ln_vision(features), mask=mask).queries

    def reconstruct_causal(self, tokens: Tokens) -> Float[Tensor, "b q d"]:
        """The causal embeddings that the codes stand for; the last of them can be compared with texts.

        Raises:
            ValueError: for a prefix, or where the weights came without ``blocks``, which only training needs.
        """
        if reason := self.not_in_file.get("blocks."):
            raise ValueError(f"these weights do not reconstruct the causal embeddings: {reason}")
        up = self._up(tokens)
        if tokens.spec.prefix_of is not None:
            raise ValueError(
                f"the causal embeddings need all {self.spec.num_tokens} ids of an image, these are "
                f"{tokens.spec.num_tokens}: of a prefix there is a generation embedding alone, see decode"
            )
        return self.blocks(up + self.pos_embed)

    @torch.no_grad()
    def decode_pixels(self, tokens: Tokens, decoder: Any = None, **settings: Any) -> Float[Tensor, "b 3 h w"]:
        """Images of tokens, through a decoder that knows what the generation embedding means.

        Args:
            tokens: ids.
            decoder: the name of a model with ``images_of`` (``seed_pixels_emoji``, ``ckpt:PATH``), such a model, or a
                ``StableUnCLIPImg2ImgPipeline`` of diffusers, e.g. from :func:`zoo.vision.unclip.unclip_pipeline`.
            settings: handed to a pipeline, such as ``num_inference_steps`` and ``guidance_scale``.

        Raises:
            ValueError: without a decoder, or for one that is neither.
        """
        from zoo.vision.unclip import pixels_of_embedding

        with evaluating(self):
            return pixels_of_embedding(self.decode(tokens), decoder, **settings)

    def _up(self, tokens: Tokens) -> Float[Tensor, "b n d"]:
        ids, count = tokens.ids, self.spec.num_tokens
        if ids is None:
            raise ValueError("these tokens have no ids, and SEED decodes codes")
        whole = ids.shape[1] == count and tokens.spec.prefix_of is None
        if not whole and (ids.shape[1] >= count or tokens.spec != self.spec.first(ids.shape[1])):
            raise ValueError(
                f"an image has {count} ids, these are {ids.shape[1]}: decode all of them, or tokens.first(m) of the "
                "tokens of this tokenizer"
            )
        self._check(ids)
        codes = self.quantize.embed(ids)
        if missing := count - ids.shape[1]:
            mean = self.quantize.codebook.mean(0)
            codes = torch.cat([codes, mean.expand(len(codes), missing, -1)], dim=1)
        return self.decode_task_layer(codes)

    def _check(self, ids: Int[Tensor, "b *n"]) -> None:
        if torch.compiler.is_compiling():
            return
        low, high = id_range(ids)
        if low < 0 or high >= self.spec.vocab_size:
            raise ValueError(
                f"ids must lie in 0..{self.spec.vocab_size - 1}, got {low}..{high}: take the "
                "image ids of a language model less their offset"
            )

    def _generation(self, up: Float[Tensor, "b n d"]) -> Float[Tensor, "b ..."]:
        return self.detokenizer(self.blocks_image(up + self.pos_embed_image))

    # ------------------------------------------------------------------ training

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """5 L_vq + 2 L_rec + 0.5 L_gen, Section 3.2.2 with the released weights.

        The batch holds ``image``; the target of the generation embedding is the teacher's vector of it.
        """
        if self.teacher is None:
            raise ValueError("SEED's second stage learns from a teacher: set teacher to vision or clip_vit_h14:PATH")
        images = as_pixels(images_of(batch, self), size=self.image_size)
        features = self.frozen["vision"](images)
        teacher: Any = self.frozen.get("teacher")
        target = features.mean(1) if teacher is None else teacher.embed(images)
        return self.objectives(self._causal(features), target)

    def objectives(self, causal: Float[Tensor, "b q d"], target: Float[Tensor, "b ..."]) -> dict[str, Tensor]:
        """The losses of images that went through the Q-Former.

        Args:
            causal: causal embeddings.
            target: of the generation embedding.
        """
        found = self.quantize(self.encode_task_layer(causal))
        up = self.decode_task_layer(found.vectors)
        again = self.blocks(up + self.pos_embed)
        made = self._generation(up)
        if made.shape != target.shape:
            raise ValueError(
                f"the generation embedding has shape {tuple(made.shape[1:])} and the teacher's vector "
                f"{tuple(target.shape[1:])}: training with several reverse queries needs a teacher that is not here"
            )
        terms = {
            "vq": found.loss,
            "reconstruction": (1 - F.cosine_similarity(again.float(), causal.float(), dim=-1)).mean(),
            "generation": F.mse_loss(made.float(), target.float()),
        }
        with torch.no_grad():
            counts = count_codes(found.ids, self.spec.vocab_size)
            cosine = F.cosine_similarity(made.float().flatten(1), target.float().flatten(1), dim=-1).mean()
        loss = sum(self.loss_weights[name] * value for name, value in terms.items())
        usage = (counts > 0).float().mean()
        return {"loss": loss, **terms, "generation_cosine": cosine, "batch_usage": usage} | found.terms

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        update_codebooks(self)


SEEDTokenizer.formats = (seed.PUBLISHED, seed.FIRST_STAGE)

PAPER = "arXiv:2307.08041"
register(
    "seed_stage2_tiny", SEEDTokenizer, paper=PAPER, image_size=32, vision="tiny_random",
    qformer=QFormerSizes(4, 24, 2, 2, 48, dropout=0.0), codebook=replace(CODEBOOK, vocab_size=32, width=8),
    codec_depth=1, codec_heads=2, teacher="tiny_random", embedding_width=16, optim=Optim(lr=3e-3),
)  # fmt: skip
register(
    "seed_stage2_emoji", SEEDTokenizer, paper=PAPER, recipe="seed_stage2.yaml", image_size=128, vision="lite0",
    qformer=QFormerSizes(queries=16, width=384, depth=3, mlp_width=128),
    codebook=replace(CODEBOOK, vocab_size=512, width=16, init="kmeans", restart_threshold=1.0), codec_depth=1,
    codec_heads=6, codec_mlp_ratio=0.5, teacher="vision", embedding_width=1280,
    reconstruction_weight=4.0, generation_weight=10.0, vision_cache=2000,
    optim=Optim(lr=1e-3, min_lr=1e-5, weight_decay=0.01, warmup_steps=50),
    weights={
        "emoji": Weights(file="seed_stage2_emoji.safetensors", note="recipes/seed_stage2.yaml on Twemoji, 128 px"),
    },
)  # fmt: skip
HUB = "seed_quantizer.pt of AILab-CVC/seed-tokenizer-2 on the Hugging Face hub"
register(
    "seed2", SEEDTokenizer, paper="arXiv:2310.01218",
    weights={"seed2": Weights(origin=HUB, note="the published SEED-2 tokenizer; the image encoder is eva_vit_g.pth")},
)  # fmt: skip
register(
    "seed2_reverse", SEEDTokenizer, paper="arXiv:2310.01218", recipe="paper/seed_stage2_cc3m.yaml",
    detokenizer="reverse_qformer", teacher="clip_vit_h14",
)  # fmt: skip
