"""Say so when a codebook collapses."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from zoo.nn.gumbel_quantizer import GumbelQuantizer
from zoo.nn.quantized import Quantized, Quantizer, count_codes
from zoo.nn.ranks import sum_over_ranks

TOKENS_PER_CODE = 4  # a window has at least that many on average: fewer say little about a large codebook
REMEDY = (
    "start the codes from k-means on the data (codebook_init=kmeans), move unused ones (restart_threshold), lower the "
    "learning rate, or take fewer codes"
)
GUMBEL_REMEDY = "raise the weight of its KL divergence (kl_weight), lower the learning rate, or take fewer codes"


class CollapseGuard(pl.Callback):
    """Warn once, naming the codebook and the remedy, when training uses only a small part of it.

    For every quantizer of ``zoo.nn`` in the model, codes are counted over the training steps of a window and over all
    ranks, without the noise of ``gumbel``; a GPU waits once per window. The share is logged as
    ``train/usage_<name of the module>``.

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
        self._hooks: list[Any] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, module in pl_module.named_modules():
            if isinstance(module, Quantizer):
                self._started[name] = trainer.global_step
                self._hooks.append(module.register_forward_hook(self._count(name)))

    def _count(self, name: str) -> Any:
        @torch.compiler.disable
        def hook(module: Quantizer, inputs: Any, output: Quantized) -> None:
            if module.training:
                counts = count_codes(output.ids if output.likely is None else output.likely, module.vocab_size)
                self._counts[name] = self._counts[name] + counts if name in self._counts else counts

        return hook

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
            self._judge(name, total, pl_module)

    def _judge(self, name: str, counts: Tensor, pl_module: pl.LightningModule) -> None:
        used, codes = int((counts > 0).sum()), len(counts)
        pl_module.log(f"train/usage_{name}", used / codes, rank_zero_only=True)
        if used >= self.threshold * codes:
            return
        gumbel = isinstance(pl_module.get_submodule(name), GumbelQuantizer)
        sentence = (
            f"the codebook {name} has collapsed: {used} of its {codes} codes ({used / codes:.1%}) occur in the last "
            f"{self.steps} or more steps, up to step {pl_module.global_step}; {GUMBEL_REMEDY if gumbel else REMEDY}"
        )
        if self.stop:
            raise ValueError(sentence)
        if name not in self._named:
            self._named.add(name)
            rank_zero_warn(sentence, stacklevel=2)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._remove()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._remove()

    def _remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._counts = [], {}
