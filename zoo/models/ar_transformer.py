"""Taming Transformers for High-Resolution Image Synthesis, stage 2: the autoregressive transformer (Esser et al. 2021).

arXiv:2012.09841, Section 3.2. Official code: CompVis/taming-transformers (commit 3ba01b2, MIT),
``taming/models/cond_transformer.py`` and ``taming/modules/transformer/mingpt.py``.

Implemented: next-token prediction over the ids of any discrete tokenizer in their flat order, unconditional and
class-conditional, random replacement of inputs (``pkeep``), top-k and nucleus sampling with a key/value cache, reading
of the published class-conditional checkpoints.
Not implemented: conditions that are images (depth, segmentation), sliding windows, other orders of the tokens.
Deviations: ``class_ids="own"`` (an option of ours) gives classes and the start token rows of their own in the table.

Equations: Eq. 8 -> `ARTransformer.losses`; Section 3.2 network -> `nn.gpt.GPT`; sampling -> `nn.next_token.draw_next`.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from zoo.checkpoints import taming_gpt
from zoo.choices import one_of
from zoo.module import Batch, ZooModule
from zoo.nn.gpt import GPT
from zoo.nn.next_token import draw_next
from zoo.optim import Optim
from zoo.registry import Weights, register
from zoo.second_stage import allowed_ids, discrete_tokenizer, ids_of, labels_of, wanted_labels
from zoo.tokens import Tokens, TokenSpec, evaluating

START = 0  # id of the first input of an unconditional model where it shares the table with the codes


class ARTransformer(ZooModule):
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
        optim: optimizer and schedule; the paper's betas and weight decay by default.
        weights: start from these: a registry name or a path.
    """

    spec: TokenSpec

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
        optim: Optim = Optim(lr=4.5e-6, betas=(0.9, 0.95), weight_decay=0.01, schedule="constant"),
        weights: str | None = None,
    ):
        super().__init__(optim)
        if num_classes < 0 or not 0 < pkeep <= 1:
            raise ValueError(f"num_classes must not be negative and pkeep lie in (0, 1], got {num_classes}, {pkeep}")
        self.add_tower("tokenizer", discrete_tokenizer(tokenizer))
        self.spec = self.tokenizer.spec
        self.num_classes, self.pkeep = num_classes, pkeep
        self.class_ids = one_of("class_ids", class_ids, ("shared", "own"))
        vocab_size = self.spec.vocab_size
        if class_ids == "shared" and num_classes > vocab_size:
            raise ValueError(
                f"{num_classes} classes cannot share the table of {vocab_size} codes: set class_ids to 'own'"
            )
        #: added to a class to make its input id
        self.offset = vocab_size if class_ids == "own" else 0
        rows = vocab_size + max(1, num_classes) if class_ids == "own" else vocab_size
        self.transformer = GPT(rows, vocab_size, self.spec.num_tokens, width, depth, heads, dropout)
        self.register_buffer("allowed", allowed_ids(self.spec), persistent=False)
        self.load_weights(weights)

    @property
    def tokenizer(self) -> Any:
        """The frozen tokenizer."""
        return self.frozen["tokenizer"]

    # ------------------------------------------------------------------ tokens

    def encode(self, images: Shaped[Tensor, "b 3 h w"]) -> Tokens:
        """Through the tokenizer."""
        return self.tokenizer.encode(images)

    def decode(self, tokens: Tokens) -> Float[Tensor, "b ..."]:
        """Through the tokenizer."""
        return self.tokenizer.decode(tokens)

    def embed(self, ids: Int[Tensor, "b *n"]) -> Float[Tensor, "b *n d"]:
        return self.tokenizer.embed(ids)

    # ------------------------------------------------------------------ generation

    @torch.no_grad()
    def generate(
        self,
        labels: Any = None,
        num_images: int | None = None,
        *,
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
            num_images: how many; with one label, that many of it.
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
        if (
            not 0 <= temperature < float("inf")
            or (top_k is not None and top_k < 1)
            or (top_p is not None and not 0 < top_p <= 1)
        ):
            raise ValueError(
                f"temperature must not be negative, and finite, top_k at least 1 and top_p in (0, 1], got "
                f"{temperature}, {top_k}, {top_p}"
            )
        classes, count = wanted_labels(labels, num_images, self.num_classes, False, self.device)
        if seed is not None:
            generator = torch.Generator(self.device).manual_seed(seed)
        sequence = self._first_input(classes, count).unsqueeze(1)
        with evaluating(self):
            cache = self.transformer.new_cache(count) if use_cache else None
            for position in range(self.spec.num_tokens):
                logits = self.transformer(sequence if cache is None else sequence[:, -1:], cache)[:, -1]
                if self.allowed is not None:
                    logits = logits.masked_fill(~self.allowed[position], -torch.inf)
                token = draw_next(logits, temperature, top_k, top_p, generator)
                sequence = torch.cat([sequence, token.unsqueeze(1)], 1)
            tokens = Tokens(sequence[:, 1:], None, self.spec)
            return tokens if as_tokens else self.decode(tokens)

    # ------------------------------------------------------------------ training

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 8: mean negative log-likelihood per token in nats."""
        target = ids_of(batch, self.tokenizer)
        labels = labels_of(batch, self.num_classes)
        inputs = target
        if self.training and self.pkeep < 1:
            keep = torch.rand(target.shape, device=target.device) < self.pkeep
            inputs = torch.where(keep, target, torch.randint_like(target, self.spec.vocab_size))
        first = self._first_input(labels, len(target))
        logits = self.transformer(torch.cat([first.unsqueeze(1), inputs[:, :-1]], 1)).float()
        return {
            "loss": F.cross_entropy(logits.transpose(1, 2), target),
            "accuracy": (logits.detach().argmax(-1) == target).float().mean(),
        }

    def _first_input(self, labels: Int[Tensor, " b"] | None, count: int) -> Int[Tensor, " b"]:
        if labels is None:
            return torch.full((count,), START + self.offset, device=self.device)
        return labels + self.offset

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
