"""Retrieval over a whole evaluation set: do images find their texts, and texts their images?"""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from zoo.callbacks.ema import weights_of_validation
from zoo.metrics.retrieval import recalls
from zoo.tokens.batch import images_of, references_of


class Retrieval(Callback):
    """Log recall at 1, 5 and 10 among all images and texts of the validation or test set.

    For models with ``retrieve``.

    ``val/i2t_r@1`` and so on are by contrast alone, ``val/rerank_i2t_r@1`` with the best candidates scored again by the
    matching head. Each rank scores what it sees; numbers to report are measured on one device.

    Args:
        rerank: candidates that are scored again; the published protocol takes 128. 0 leaves it out.
        rerank_in_validation: also in validation, where it takes a good part of the time.
    """

    def __init__(self, rerank: int = 128, rerank_in_validation: bool = False):
        if rerank < 0:
            raise ValueError(f"rerank must not be negative, got {rerank}")
        self.rerank, self.rerank_in_validation = rerank, rerank_in_validation
        self._images: list[Tensor] = []
        self._texts: list[list[str]] = []
        self._values: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not hasattr(pl_module, "retrieve"):
            raise ValueError(f"{type(pl_module).__name__} retrieves nothing: leave the callback Retrieval out")

    def _start(self) -> None:
        self._images, self._texts, self._values = [], [], {}

    def _add(self, trainer: Trainer, model: Any, batch: Any, batch_idx: int, dataloader_idx: int, stage: str) -> None:
        if dataloader_idx > 0 or trainer.sanity_checking:
            return
        self._images.append(images_of(batch, "the callback Retrieval").cpu())
        self._texts += references_of(batch, "the callback Retrieval")
        batches = (trainer.num_val_batches if stage == "val" else trainer.num_test_batches)[0]
        # Now and not at the end of the epoch: there the EMA callback may have put the raw weights back already.
        if batch_idx + 1 == batches and len(self._texts) > 1:
            self._values = self._score(stage, trainer, model)

    def _score(self, stage: str, trainer: Trainer, model: Any) -> dict[str, float]:
        images = torch.cat(self._images)
        texts = [text for texts in self._texts for text in texts]
        owner = torch.tensor([i for i, texts in enumerate(self._texts) for _ in texts])
        belongs = torch.arange(len(images))[:, None] == owner[None]
        again = self.rerank if stage == "test" or self.rerank_in_validation else 0
        with trainer.precision_plugin.forward_context():
            scores = model.retrieve(images.to(model.device), texts, rerank=again)
        contrast = scores.contrast.float().cpu()
        values = recalls(contrast, contrast, belongs)
        if again:
            ranked = recalls(scores.image_to_text.float().cpu(), scores.text_to_image.float().cpu(), belongs)
            values |= {f"rerank_{name}": value for name, value in ranked.items()}
        return values

    def _log(self, stage: str, trainer: Trainer, model: Any) -> None:
        if not self._values and len(self._texts) > 1:  # fewer batches came than were announced: images are broken
            with weights_of_validation(trainer, model), torch.no_grad():
                self._values = self._score(stage, trainer, model)
        for name, value in self._values.items():
            model.log(f"{stage}/{name}", value, batch_size=1, sync_dist=True, prog_bar=name == "i2t_r@1")
        self._start()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._add(trainer, pl_module, batch, batch_idx, dataloader_idx, "val")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log("val", trainer, pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._add(trainer, pl_module, batch, batch_idx, dataloader_idx, "test")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log("test", trainer, pl_module)
