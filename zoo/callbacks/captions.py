"""Captions that a model writes of an evaluation set: scores, a sheet of pictures, and all of them as text."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from zoo.callbacks.pictures import caption_sheet, log_picture
from zoo.callbacks.validations import EveryFewValidations
from zoo.files.atomic import write_picture_whole, write_text_whole
from zoo.files.strict_json import dump_json
from zoo.language.conversations import from_the_question
from zoo.metrics.captions import BLEU, ROUGEL, CaptionMetric, CIDErD
from zoo.runs.folder import log_folder
from zoo.tokens import Tokens, as_pixels
from zoo.tokens.batch import images_of, references_of

WHO = "the callback Captions"


class Captions(EveryFewValidations, Callback):
    """Let models with ``caption`` describe validation and test images, and log CIDEr-D, BLEU-4 and ROUGE-L.

    The references are the ``captions`` of an image, or its one ``caption``; of conversations, the first answer, for
    models that answer. ``captions/step_NNNNNN.png`` shows some images with what was written (black) and the first
    reference (grey), unless token shards came without images; ``.jsonl`` beside it holds all. CIDEr-D counts its words
    in the images that are scored, so scores over other numbers of images cannot be compared.

    Args:
        max_images: of a validation epoch and rank; None takes all, as a test does.
        num_pictures: images on the sheet.
        every_n_validations: write in every n-th validation.
        num_beams: of the beam search.
        max_new_tokens: longest caption.
        prompt: for models that take one; None takes their own.
    """

    def __init__(
        self,
        max_images: int | None = None,
        num_pictures: int = 16,
        every_n_validations: int = 1,
        num_beams: int = 1,
        max_new_tokens: int = 30,
        prompt: str | None = None,
    ):
        if every_n_validations < 1 or num_pictures < 0 or (max_images is not None and max_images < 2):
            raise ValueError(
                "every_n_validations must be at least 1, num_pictures not negative and max_images at least 2, got "
                f"{every_n_validations}, {num_pictures}, {max_images}"
            )
        self.max_images, self.num_pictures, self.every_n_validations = max_images, num_pictures, every_n_validations
        self.writing: dict[str, Any] = {"num_beams": num_beams, "max_new_tokens": max_new_tokens}
        if prompt is not None:
            self.writing["prompt"] = prompt
        self.metrics: dict[str, CaptionMetric] = {"cider_d": CIDErD(), "bleu_4": BLEU(), "rouge_l": ROUGEL()}
        self.folder: Path | None = None
        self._wanted = False
        self._records: list[dict[str, Any]] = []
        self._pictures: list[Tensor] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not hasattr(pl_module, "caption"):
            raise ValueError(f"{type(pl_module).__name__} writes no captions: leave the callback Captions out")
        self.folder = log_folder(trainer) / "captions"

    def _start(self, wanted: bool) -> None:
        self._wanted, self._records, self._pictures = wanted, [], []
        for metric in self.metrics.values():
            metric.reset()

    def _add(self, trainer: Trainer, model: Any, batch: Any, dataloader_idx: int, most: int | None) -> None:
        room = None if most is None else most - len(self._records)
        if not self._wanted or dataloader_idx > 0 or (room is not None and room < 1):
            return
        shards = "image" not in batch and "ids" in batch and hasattr(model, "caption_tokens")  # without images
        seen = Tokens(batch["ids"][:room], None, model.spec) if shards else as_pixels(images_of(batch, WHO)[:room])
        turns = None if "captions" in batch or "caption" in batch else batch.get("conversation")
        if turns is not None and hasattr(model, "answer"):  # the first question of each, and its answer
            turns = [from_the_question(said) for said in turns]
            asked, references = [said[:1] for said in turns], [[said[1]["value"]] for said in turns]
        else:
            asked, references = None, references_of(batch, WHO)
        references = references[: len(seen)]
        with trainer.precision_plugin.forward_context():  # callbacks run outside of autocast otherwise
            if asked is not None:
                written = model.answer(seen, asked[: len(seen)], **self.writing)
            else:
                written = (model.caption_tokens if shards else model.caption)(seen, **self.writing)
        for metric in self.metrics.values():
            metric.to(model.device).update(written, references)
        self._records += [{"caption": c, "references": r} for c, r in zip(written, references, strict=True)]
        if isinstance(seen, Tensor):
            missing = self.num_pictures - len(self._pictures)
            self._pictures += list(seen[: max(0, missing)].float().cpu())

    def _log(self, stage: str, trainer: Trainer, model: Any) -> None:
        if not self._wanted or not self._records:
            return
        for name, metric in self.metrics.items():
            model.log(f"{stage}/{name}", metric.compute().float(), batch_size=1, prog_bar=name == "cider_d")
        if not trainer.is_global_zero or self.folder is None:
            return
        path = self.folder / f"step_{trainer.global_step:06d}.jsonl"
        write_text_whole(path, "".join(dump_json(r, indent=None, ascii_only=False) + "\n" for r in self._records))
        if not self._pictures:
            return
        lines = [[r["caption"], r["references"][0]] for r in self._records[: len(self._pictures)]]
        sheet = caption_sheet(torch.stack(self._pictures), lines)
        write_picture_whole(path.with_suffix(".png"), sheet)
        log_picture(trainer, f"{stage}/captions", sheet)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(self.is_due(trainer))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._add(trainer, pl_module, batch, dataloader_idx, self.max_images)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        self._log("val", trainer, pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(True)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._add(trainer, pl_module, batch, dataloader_idx, None)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log("test", trainer, pl_module)
