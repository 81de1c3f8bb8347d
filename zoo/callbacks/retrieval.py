"""Retrieval over a whole evaluation set: do images find their texts, and texts their images?"""

from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer

from zoo.callbacks.scored_set import ScoredSet, Stage
from zoo.metrics.retrieval import RetrievalReport
from zoo.tokens.abilities import Retriever
from zoo.tokens.batch import Batch, images_of, references_of

WHO = "the callback Retrieval"


class Retrieval(ScoredSet):
    """Log recall at 1, 5 and 10 among all images and texts of the validation or test set.

    For models that are a :class:`~zoo.tokens.abilities.Retriever`.

    ``val/i2t_r@1`` and so on are by contrast alone, ``val/rerank_i2t_r@1`` with the best candidates scored again by the
    matching head. Each rank scores what it sees, and the mean over the ranks is logged; numbers to report are measured
    on one device. After a test, ``retrieval.json`` in the log folder has the values with their protocol, as
    ``benchmarks/vision_language.py`` writes them.

    Args:
        rerank: candidates that are scored again; the published protocol takes 128. 0 leaves it out.
        rerank_in_validation: also in validation, where it takes a good part of the time.
    """

    asks_model_at_end = True
    in_progress_bar: ClassVar[tuple[str, ...]] = ("i2t_r@1",)

    def __init__(self, rerank: int = 128, rerank_in_validation: bool = False):
        if rerank < 0:
            raise ValueError(f"rerank must not be negative, got {rerank}")
        self.rerank, self.rerank_in_validation = rerank, rerank_in_validation
        self.report = RetrievalReport(rerank)

    def check_model(self, model: LightningModule, stage: str) -> None:
        if not isinstance(model, Retriever):
            raise ValueError(f"{type(model).__name__} retrieves nothing: leave the callback Retrieval out")

    def begin(self, stage: Stage, trainer: Trainer, model: Any) -> bool:
        self.report.reset()
        return True

    def take(self, stage: Stage, trainer: Trainer, model: Any, batch: Batch) -> None:
        self.report.update(images_of(batch, WHO), references_of(batch, WHO))

    def finish(self, stage: Stage, trainer: Trainer, model: Any) -> dict[str, float]:
        if (count := self.report.num_images) < 2:
            return {}
        again = self.rerank if stage == "test" or self.rerank_in_validation else 0
        values = self.report.compute(model, model.device, rerank=again)
        if stage == "test":
            metrics = values | {"chance_r@1": self.report.chance()}
            protocol = self.report.protocol()
            self.write_record(trainer, model, "vision_language", "retrieval.json", metrics, count, protocol)
        self.report.reset()
        return values
