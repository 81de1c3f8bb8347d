"""The caption report: every metric of written captions over a set of images, in one object.

The callback ``Captions`` and the benchmarks hold the same object, so that ``lightning test`` and
``benchmarks/vision_language.py`` agree to the last digit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.metrics.captions import bleu, caption_tokens, check_references, cider_d, rouge_l
from zoo.metrics.entries import entries_of_all_ranks

Written = dict[str, Any]


class CaptionReport:
    """CIDEr-D, BLEU-4, ROUGE-L and the number of different captions."""

    def __init__(self) -> None:
        self._records: list[Written] = []
        self._places: list[int | None] = []

    @property
    def num_images(self) -> int:
        """Images of this rank."""
        return len(self._records)

    def reset(self) -> None:
        """Forget all captions."""
        self._records, self._places = [], []

    def update(
        self,
        captions: Sequence[str],
        references: Sequence[Sequence[str]],
        places: Sequence[int | None] | None = None,
    ) -> None:
        """Add images.

        Args:
            captions: what the model wrote, one per image.
            references: one or more per image.
            places: of the images in the data set, which several ranks need to count each of them once.

        Raises:
            ValueError: for another number of references than captions, or an image without any.
        """
        check_references(captions, references)
        pairs = zip(captions, references, strict=True)
        self._records += [{"caption": caption, "references": list(given)} for caption, given in pairs]
        self._places += [None] * len(captions) if places is None else list(places)

    def records_here(self) -> list[Written]:
        """``caption`` and ``references`` of each image of this rank, in the order in which they came."""
        return list(self._records)

    def records(self) -> list[Written]:
        """``caption`` and ``references`` of each image, of all ranks; every rank must call this."""
        return entries_of_all_ranks(self._records, self._places)

    def compute(self, records: Sequence[Written] | None = None) -> dict[str, float]:
        """All metrics.

        Args:
            records: of :meth:`records`, where they are there already; else every rank must call this.

        Raises:
            ValueError: before the first update.
        """
        records = self.records() if records is None else records
        if not records:
            raise ValueError("there are no captions to score: call update first")
        images = [(caption_tokens(r["caption"]), [caption_tokens(given) for given in r["references"]]) for r in records]
        return {
            "cider_d": cider_d(images),
            "bleu_4": bleu(images),
            "rouge_l": rouge_l(images),
            "distinct_captions": float(len({r["caption"] for r in records})),
        }

    def protocol(self, writing: Mapping[str, Any]) -> dict[str, Any]:
        """Say what the values depend on besides the images.

        Args:
            writing: settings of the model's ``caption``: ``num_beams``, ``max_new_tokens`` and others.
        """
        rest = dict(writing)
        beams, most = rest.pop("num_beams"), rest.pop("max_new_tokens")
        rules = "references tokenised by zoo.metrics.captions.caption_tokens; CIDEr-D counts its words in these images"
        facts: dict[str, Any] = {"captions": f"{beams} beams, at most {most} tokens; {rules}"}
        return facts | ({"writing": rest} if rest else {})
