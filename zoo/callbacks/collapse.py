"""Say so when a codebook collapses."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from zoo.distributed import sum_over_ranks
from zoo.quantizers.base import Quantized, Quantizer, count_codes
from zoo.quantizers.gumbel import GumbelQuantizer
from zoo.tokens.abilities import CodeSources

TOKENS_PER_CODE = 4  # a window has at least that many on average: fewer say little about a large codebook
REMEDY = (
    "start the codes from k-means on the data (codebook.init=kmeans), move unused ones (codebook.restart_threshold), "
    "lower the learning rate, or take fewer codes"
)
OTHER_REMEDY = (
    "start the codes from k-means on the data (codebook_init=kmeans), let the loss ask for different ones "
    "(marginal_entropy), lower the learning rate, or take fewer codes"
)
GUMBEL_REMEDY = (
    "raise the weight of its KL divergence (codebook.kl_weight), lower the learning rate, or take fewer codes"
)


def _ids_of(output: Quantized) -> Tensor:
    return output.ids if output.likely is None else output.likely


class CollapseGuard(pl.Callback):
    """Warn once, naming the codebook and the remedy, when training uses only a small part of it.

    For every quantizer of ``zoo.nn`` in the model, and what else the model's ``code_sources`` name, codes are counted
    over the training steps of a window and over all ranks, without the noise of ``gumbel`` and of the dVAE; a GPU waits
    once per window. The share is logged as ``train/usage_<name of the module>``. A model in which there is nothing to
    count is told so once, and so is a run that ends before its first window.

    Args:
        threshold: smallest share of the codes that have to occur at least once in a window.
        steps: length of a window in optimizer steps; longer where a codebook would have fewer than 4 tokens per code.
        stop: end the run with an error instead of the warning.
    """

    def __init__(self, threshold: float = 0.05, steps: int = 500, stop: bool = False):
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold is a share of the codes and must lie in (0, 1], got {threshold}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.threshold, self.steps, self.stop = threshold, steps, stop
        self._counts: dict[str, Tensor] = {}
        self._started: dict[str, int] = {}
        self._named: set[str] = set()
        self._judged: set[str] = set()
        self._hooks: list[Any] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started, self._judged = {}, set()
        for name, module in pl_module.named_modules():
            if isinstance(module, Quantizer):
                self._watch(name, module, module.vocab_size, _ids_of, trainer.global_step)
        named = pl_module.code_sources() if isinstance(pl_module, CodeSources) else {}
        for name, source in named.items():
            self._watch(name, pl_module.get_submodule(name), *source, trainer.global_step)
        if not self._started:
            rank_zero_warn(
                f"CollapseGuard counts nothing: this {type(pl_module).__name__} trains no codebook that it knows, "
                "which is a quantizer of zoo.nn, or what the model's code_sources name; leave the callback out",
                stacklevel=2,
            )

    def _watch(self, name: str, module: nn.Module, codes: int, ids_of: Callable[[Any], Tensor], step: int) -> None:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if module.training:
                counts = count_codes(ids_of(output), codes)
                self._counts[name] = self._counts[name] + counts if name in self._counts else counts

        self._started[name] = step
        self._hooks.append(module.register_forward_hook(torch.compiler.disable(hook)))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, counts in list(self._counts.items()):
            if trainer.global_step - self._started[name] < self.steps:
                continue
            self._started[name] = trainer.global_step
            total = sum_over_ranks(counts)
            if total.sum() < TOKENS_PER_CODE * len(total):
                continue  # go on counting
            del self._counts[name]
            self._judged.add(name)
            self._judge(name, total, pl_module)

    def _judge(self, name: str, counts: Tensor, pl_module: pl.LightningModule) -> None:
        used, codes = int((counts > 0).sum()), len(counts)
        pl_module.log(f"train/usage_{name}", used / codes, rank_zero_only=True)
        if used >= self.threshold * codes:
            return
        module = pl_module.get_submodule(name)
        remedy = GUMBEL_REMEDY if isinstance(module, GumbelQuantizer) else REMEDY
        remedy = remedy if isinstance(module, Quantizer) else OTHER_REMEDY
        sentence = (
            f"the codebook {name} has collapsed: {used} of its {codes} codes ({used / codes:.1%}) occur in the last "
            f"{self.steps} or more steps, up to step {pl_module.global_step}; {remedy}"
        )
        if self.stop:
            raise ValueError(sentence)
        if name not in self._named:
            self._named.add(name)
            rank_zero_warn(sentence, stacklevel=2)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if missed := [name for name in self._started if name not in self._judged]:
            rank_zero_info(
                f"CollapseGuard says nothing of {', '.join(missed)}: the run ended before a window of {self.steps} "
                f"steps with {TOKENS_PER_CODE} tokens per code was full"
            )
        self._remove()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._remove()

    def _remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._counts = [], {}
