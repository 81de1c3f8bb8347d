"""Captions that a model writes of an evaluation set: scores, a sheet of pictures, and all of them as text."""

from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from zoo.callbacks.pictures import caption_sheet
from zoo.callbacks.scored_set import ScoredSet, Stage
from zoo.files.atomic import write_text_whole
from zoo.files.strict_json import dump_json
from zoo.language.conversations import drop_leading_answer
from zoo.metrics.caption_report import CaptionReport
from zoo.tokens import Tokens, as_pixels
from zoo.tokens.abilities import Answerer, Captioner, TokenCaptioner
from zoo.tokens.batch import Batch, images_of, references_of

WHO = "the callback Captions"


class Captions(ScoredSet):
    """Let a model describe validation and test images, and log CIDEr-D, BLEU-4, ROUGE-L and the different captions.

    For models that are a :class:`~zoo.tokens.abilities.Captioner`.

    The references are the ``captions`` of an image, or its one ``caption``; of conversations, the first answer, for
    models that answer. ``captions/step_NNNNNN.png`` shows some images with what was written (black) and the first
    reference (grey), unless token shards came without images; ``.jsonl`` beside it holds all. CIDEr-D counts its words
    in the images that are scored, so scores over other numbers of images cannot be compared. After a test,
    ``captions.json`` in the log folder has the values with their protocol, as ``benchmarks/vision_language.py`` writes
    them.

    Args:
        max_images: of a validation epoch and rank; None takes all, as a test does.
        num_pictures: images on the sheet.
        every_n_validations: write in every n-th validation.
        num_beams: of the beam search.
        max_new_tokens: longest caption.
        prompt: for models that take one; None takes their own.
    """

    in_progress_bar: ClassVar[tuple[str, ...]] = ("cider_d",)
    subfolder = "captions"

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
        self.report = CaptionReport()
        self._pictures: list[Tensor] = []

    def check_model(self, model: LightningModule, stage: str) -> None:
        if not isinstance(model, Captioner):
            raise ValueError(f"{type(model).__name__} writes no captions: leave the callback Captions out")

    def begin(self, stage: Stage, trainer: Trainer, model: Any) -> bool:
        self.report.reset()
        self._pictures = []
        return True

    def take(self, stage: Stage, trainer: Trainer, model: Any, batch: Batch) -> None:
        room = None if stage == "test" or self.max_images is None else self.max_images - self.report.num_images
        if room is not None and room < 1:
            return
        shards = "image" not in batch and "ids" in batch and isinstance(model, TokenCaptioner)  # without images
        seen = Tokens(batch["ids"][:room], None, model.spec) if shards else as_pixels(images_of(batch, WHO)[:room])
        turns = None if "captions" in batch or "caption" in batch else batch.get("conversation")
        if turns is not None and isinstance(seen, Tensor) and isinstance(model, Answerer):
            # the first question of each, and its answer
            turns = [drop_leading_answer(said) for said in turns[: len(seen)]]
            references = [[said[1]["value"]] for said in turns]
            written = model.answer(seen, [said[:1] for said in turns], **self.writing)
        else:
            references = references_of(batch, WHO)[: len(seen)]
            written = (model.caption_tokens if shards else model.caption)(seen, **self.writing)
        self.report.update(written, references, self.places(batch, len(seen)))
        if isinstance(seen, Tensor):
            missing = self.num_pictures - len(self._pictures)
            self._pictures += list(seen[: max(0, missing)].float().cpu())

    def finish(self, stage: Stage, trainer: Trainer, model: Any) -> dict[str, float]:
        mine, records = self.report.records_here(), self.report.records()
        if not records:
            return {}
        values = self.report.compute(records)
        if stage == "test":
            protocol = self.report.protocol(self.writing) | {"samples": records}
            self.write_record(trainer, model, "vision_language", "captions.json", values, len(records), protocol)
        if trainer.is_global_zero and self.folder is not None:
            path = self.folder / f"step_{trainer.global_step:06d}.jsonl"
            write_text_whole(path, "".join(dump_json(r, indent=None, ascii_only=False) + "\n" for r in records))
        if self._pictures:
            lines = [[r["caption"], r["references"][0]] for r in mine[: len(self._pictures)]]
            self.write_picture(trainer, f"{stage}/captions", caption_sheet(torch.stack(self._pictures), lines))
        return values
