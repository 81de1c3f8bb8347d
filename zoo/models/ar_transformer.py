"""Taming Transformers for High-Resolution Image Synthesis, stage 2: the autoregressive transformer (Esser et al. 2021).

arXiv:2012.09841, Section 3.2. Official code: CompVis/taming-transformers (commit 3ba01b2, MIT),
``taming/models/cond_transformer.py`` and ``taming/modules/transformer/mingpt.py``.

Implemented: next-token prediction over the ids of any discrete tokenizer, in their flat order or one of the published
permutations, unconditional, class-conditional, or after the tokens of a condition (a depth map, say), which may see
each other; random replacement of inputs (``pkeep``), top-k and nucleus sampling with a key/value cache, reading of the
published checkpoints.
Not implemented: sliding windows, the builders of conditions from coordinates and bounding boxes (bring their ids).
Deviations: ``class_ids="own"`` (an option of ours) gives classes and the start token rows of their own in the table.

Equations: Eq. 8 -> `ARTransformer.losses`; Section 3.2 network -> `nn.gpt.GPT`; sampling ->
`sampling.next_token.draw_next`.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from zoo.checkpoints.published import taming_gpt
from zoo.choices import one_of
from zoo.losses.mixing import mark_correct
from zoo.nn.gpt import GPT
from zoo.optim import Optim
from zoo.presets import Weights, register
from zoo.runs.untrained import warn_if_untrained
from zoo.sampling.next_token import check_sampling, draw_next
from zoo.sampling.token_order import ORDERS, Order, token_order
from zoo.second_stage import SecondStage, discrete_tokenizer
from zoo.tokens import Tokens, evaluating, id_range
from zoo.tokens.abilities import default_settings
from zoo.tokens.batch import Batch, ids_of, missing

START = 0  # id of the first input of an unconditional model where it shares the table with the codes


class ARTransformer(SecondStage):
    """Predicts the tokens of an image one after the other.

    Args:
        tokenizer: whose tokens are modelled; any discrete one of the registry, e.g. ``dvae_emoji`` or ``ckpt:PATH``.
        num_classes: of the condition; 0 for an unconditional model.
        width: of the tokens.
        depth: blocks.
        heads: of the attention.
        dropout: of the network.
        class_ids: ``shared``: class c is input id c, the same row as code c, as published; ``own``: rows of their own.
        pkeep: share of input tokens that are kept in training; others become random codes.
        order: in which the cells of the grid are read: ``raster``, ``subsample``, ``z_curve``, ``spiral_in``,
            ``spiral_out``, ``random`` or ``alternate_parsing``. Tokens go in and come out in raster order.
        n_unmasked: the first so many inputs see each other in both directions; with a condition, usually its length.
        condition_tokenizer: whose tokens of the batch's ``condition`` images stand in front; needs num_classes 0.
        condition_tokens: how many ``condition_ids`` stand in front, where no tokenizer makes them.
        optim: optimizer and schedule; the paper's betas and weight decay by default.
        weights: start from these: a registry name or a path.
    """

    must_match = ("heads", "order", "n_unmasked")

    def __init__(
        self,
        tokenizer: str = "dvae_emoji",
        num_classes: int = 1000,
        width: int = 1536,
        depth: int = 48,
        heads: int = 24,
        dropout: float = 0.0,
        class_ids: Literal["shared", "own"] = "shared",
        pkeep: float = 1.0,
        order: Order = "raster",
        n_unmasked: int = 0,
        condition_tokenizer: str | None = None,
        condition_tokens: int = 0,
        optim: Optim = Optim(lr=4.5e-6, betas=(0.9, 0.95), weight_decay=0.01, schedule="constant"),
        weights: str | None = None,
    ):
        super().__init__(optim)
        if num_classes < 0 or not 0 < pkeep <= 1:
            raise ValueError(f"num_classes must not be negative and pkeep lie in (0, 1], got {num_classes}, {pkeep}")
        self.add_tokenizer(tokenizer)
        self.num_classes, self.pkeep = num_classes, pkeep
        self.class_ids = one_of("class_ids", class_ids, ("shared", "own"))
        vocab_size = self.spec.vocab_size
        #: ids of the condition, of which there are so many in front of the tokens
        self.condition_size, self.condition_tokens = num_classes, condition_tokens
        if condition_tokenizer is not None:
            tower = discrete_tokenizer(condition_tokenizer)
            self.add_frozen("condition_tokenizer", tower, role="ids")
            found = tower.spec
            if condition_tokens not in (0, found.num_tokens):
                raise ValueError(
                    f"condition_tokens is {condition_tokens}, but {condition_tokenizer!r} makes {found.num_tokens}: "
                    "leave condition_tokens out"
                )
            self.condition_tokens, self.condition_size = found.num_tokens, found.vocab_size
        elif condition_tokens:
            self.condition_size = vocab_size
        if self.condition_tokens < 0 or (self.condition_tokens and num_classes):
            raise ValueError(
                f"the condition is a class or tokens, not both: set num_classes to 0, not {num_classes}, beside "
                f"{self.condition_tokens} condition tokens"
            )
        if class_ids == "shared" and self.condition_size > vocab_size:
            what = "condition ids" if self.condition_tokens else "classes"
            raise ValueError(
                f"{self.condition_size} {what} cannot share the table of {vocab_size} codes: set class_ids to 'own'"
            )
        #: added to a class, or an id of the condition, to make its input id
        self.offset = vocab_size if class_ids == "own" else 0
        rows = vocab_size + max(1, self.condition_size) if class_ids == "own" else vocab_size
        positions = max(1, self.condition_tokens) + self.spec.num_tokens - 1
        self.transformer = GPT(rows, vocab_size, positions, width, depth, heads, dropout, n_unmasked)
        self.order = one_of("order", order, ORDERS)
        permutation = None
        if order != "raster":
            if self.spec.grid_shape is None:
                raise ValueError(f"the tokens of {tokenizer!r} are no grid: set order to 'raster', not {order!r}")
            permutation = token_order(order, self.spec.grid_shape)
        #: raster index of the token that is read first, second, ...; None for raster order
        self.register_buffer("permutation", permutation, persistent=False)
        self.add_allowed_ids(permutation)
        self.load_weights(weights)

    # ------------------------------------------------------------------ generation

    def sampling_settings(self) -> dict[str, Any]:
        """Name and default of every setting of :meth:`generate` that decides how tokens are drawn."""
        return default_settings(self.generate)

    @torch.no_grad()
    def generate(
        self,
        labels: Any = None,
        num_images: int | None = None,
        *,
        condition: Any = None,
        known: Any = None,
        as_tokens: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        use_cache: bool = True,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """New images, token by token.

        Args:
            labels: class of each image (a number, a list or a tensor), for a class-conditional model.
            num_images: how many; with one label, or one condition, that many of it.
            condition: of a model with condition tokens: images in [0, 1] for its tokenizer, or ids.
            known: ids that stay as they are, in raster order, one row per image or one for all, and -1 where a token is
                to be drawn; a token knows only of those that are read before it.
            as_tokens: return :class:`Tokens` instead of what the tokenizer makes of them.
            temperature: divides the logits; 0 takes the most likely token.
            top_k: sample among so many; the paper's published samples use 600.
            top_p: sample within this probability; the published samples use 0.92.
            use_cache: keep keys and values; without, every step computes all tokens again, to the same result.
            seed: of the noise; with ``generator`` None as well, torch's global state is used.
            generator: of the noise.

        Returns:
            Images in [0, 1] (or what else the tokenizer decodes to), or tokens.

        Raises:
            ValueError: naming the setting that is wrong.
        """
        check_sampling(temperature, top_k, top_p)
        if condition is not None and not self.condition_tokens:
            raise ValueError("this model has no condition tokens: leave condition out")
        warn_if_untrained(self, "draws")
        classes, count = self.wanted_labels(labels, num_images)
        if seed is not None:
            generator = torch.Generator(self.device).manual_seed(seed)
        sequence = self._prefix(classes, count) if not self.condition_tokens else self._given(condition, num_images)
        prefix, cache, fixed = sequence.shape[1], None, self._known(known, len(sequence))
        with evaluating(self):
            for position in range(self.spec.num_tokens):
                read = sequence
                if cache is not None:
                    read = sequence[:, -1:]
                elif use_cache and sequence.shape[1] >= self.transformer.n_unmasked:  # from here on nothing changes
                    cache = self.transformer.new_cache(len(sequence))
                logits = self.transformer(read, cache)[:, -1]
                if self.allowed is not None:
                    logits = logits.masked_fill(~self.allowed[position], -torch.inf)
                token = draw_next(logits, temperature, top_k, top_p, generator)
                if fixed is not None:
                    token = torch.where(fixed[:, position] >= 0, fixed[:, position], token)
                sequence = torch.cat([sequence, token.unsqueeze(1)], 1)
            tokens = Tokens(self.in_raster_order(sequence[:, prefix:]), None, self.spec)
            return tokens if as_tokens else self.decode(tokens)

    def in_reading_order(self, ids: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
        """From the order of :class:`Tokens` to that in which they are predicted."""
        return ids if self.permutation is None else ids[:, self.permutation]

    def in_raster_order(self, ids: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
        """From the order in which they are predicted to that of :class:`Tokens`."""
        return ids if self.permutation is None else ids[:, self.permutation.argsort()]

    # ------------------------------------------------------------------ training

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 8: mean negative log-likelihood per token in nats."""
        target = self.in_reading_order(self.tokenize(batch))
        first = self._condition(batch) if self.condition_tokens else self._prefix(self.labels_of(batch), len(target))
        inputs = target
        if self.training and self.pkeep < 1:
            keep = torch.rand(target.shape, device=target.device) < self.pkeep
            inputs = torch.where(keep, target, torch.randint_like(target, self.spec.vocab_size))
        logits = self.transformer(torch.cat([first, inputs[:, :-1]], 1))[:, first.shape[1] - 1 :].float()
        return {
            "loss": F.cross_entropy(logits.transpose(1, 2), target),
            "accuracy": mark_correct(logits, target).mean(),
        }

    def _prefix(self, labels: Int[Tensor, " b"] | None, count: int) -> Int[Tensor, "b 1"]:
        """Input ids of classes, or of the start of an unconditional model."""
        if labels is None:
            return torch.full((count, 1), START + self.offset, device=self.device)
        return (labels + self.offset).unsqueeze(1)

    def _condition(self, batch: Batch) -> Int[Tensor, "b p"]:
        """Input ids of the batch's ``condition_ids``, else of its ``condition`` images."""
        ids, images = batch.get("condition_ids"), batch.get("condition")
        tower = self.frozen.get("condition_tokenizer")
        if ids is None and images is not None and tower is not None:
            return ids_of({"image": images}, tower).long() + self.offset
        if ids is None:
            wanted = "'condition_ids'" if tower is None else "'condition' (images) or 'condition_ids'"
            raise missing(batch, f"no {wanted}", self, f"has {self.condition_tokens} condition tokens", "bring them")
        low, high = id_range(ids)
        if ids.shape[1:] != (self.condition_tokens,) or low < 0 or high >= self.condition_size:
            raise ValueError(
                f"the condition has shape {tuple(ids.shape)} and ids in {low}..{high}; this model needs "
                f"{self.condition_tokens} ids in 0..{self.condition_size - 1}"
            )
        return ids.long() + self.offset

    def _known(self, known: Any, count: int) -> Int[Tensor, "b n"] | None:
        """Ids that ``generate`` keeps, in the order of reading, and -1 where one is drawn; None for none."""
        if known is None:
            return None
        known = torch.as_tensor(known.ids if isinstance(known, Tokens) else known, device=self.device)
        shape = (count, self.spec.num_tokens)
        if known.shape not in (shape, (1, shape[1])) or known.min() < -1 or known.max() >= self.spec.vocab_size:
            raise ValueError(
                f"known has shape {tuple(known.shape)} and ids in {int(known.min())}..{int(known.max())}: give "
                f"{shape} ids in 0..{self.spec.vocab_size - 1}, and -1 where one is to be drawn"
            )
        return self.in_reading_order(known.long().expand(shape))

    def _given(self, condition: Any, num_images: int | None) -> Int[Tensor, "b p"]:
        """Input ids of what ``generate`` was given, for so many images."""
        if condition is None:
            raise ValueError(f"this model continues {self.condition_tokens} condition tokens: give condition")
        if isinstance(condition, Tokens):
            condition = condition.ids
        condition = torch.as_tensor(condition, device=self.device)
        ids = self._condition({"condition" if condition.ndim == 4 else "condition_ids": condition})
        if num_images is not None and len(ids) == 1:
            ids = ids.expand(num_images, -1)
        if num_images not in (None, len(ids)):
            raise ValueError(f"there are {len(ids)} conditions for {num_images} images: give one, or one per image")
        return ids

    def no_decay(self, name: str, parameter: nn.Parameter) -> bool:
        """Only weights of linear layers decay."""
        return name.endswith(("tok_emb.weight", "pos_emb"))


ARTransformer.formats = (taming_gpt.TAMING,)

PAPER = "arXiv:2012.09841"
register(
    "ar_transformer_tiny", ARTransformer, paper=PAPER, tokenizer="dvae_tiny:random", num_classes=9, width=32, depth=2,
    heads=4, optim=Optim(lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01),
)  # fmt: skip
register(
    "ar_transformer_emoji", ARTransformer, paper=PAPER, recipe="ar_transformer.yaml", tokenizer="vqgan_emoji",
    num_classes=9, width=192, depth=5, heads=6, dropout=0.1, pkeep=0.9,
    optim=Optim(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01, warmup_steps=100),
)  # fmt: skip
register(
    "ar_transformer_cin", ARTransformer, paper=PAPER, tokenizer="vqgan_imagenet_f16_16384",
    weights={
        "published": Weights(
            origin="2021-04-03T19-39-50_cin_transformer, linked in the README of CompVis/taming-transformers",
            licence="MIT", note="ImageNet, 256 px; the transformer alone",
        )
    },
)  # fmt: skip
register(
    "ar_transformer_drin", ARTransformer, paper=PAPER, tokenizer="vqgan_imagenet_f16_1024", num_classes=0,
    condition_tokenizer="vqgan_imagenet_depth", width=1024, depth=24, heads=16,
    weights={
        "published": Weights(
            origin="2020-11-20T12-54-32_drin_transformer, linked in the README of CompVis/taming-transformers",
            licence="MIT", note="ImageNet, 256 px, after the tokens of a depth map; the transformer alone",
        )
    },
)  # fmt: skip
