"""The evaluation callback: reconstruction metrics of any model that decodes to pixels."""

from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer

from zoo.callbacks.scored_set import ScoredSet, Stage
from zoo.files.atomic import write_text_whole
from zoo.files.strict_json import dump_json, find_non_finite
from zoo.metrics.evaluate import data_facts
from zoo.metrics.reconstruction import ReconstructionReport, reconstruct_batch
from zoo.tokens import Tokenizer
from zoo.tokens.batch import Batch


class Evaluation(ScoredSet):
    """Reconstruct every validation and test image and log what is left of it.

    After ``test`` there is a ``protocol.json`` in the log folder: images, definitions, extractor, packages, values.

    In validation the cheap metrics (``val/psnr``, ``val/codebook_usage``, ``val/perplexity``, ``val/dead_codes``), in
    test all of them, also ``test/ssim``, ``test/lpips_lite0`` and ``test/rfid`` or ``test/fd_lite0``. Models that do
    not decode to pixels are left alone. Metrics run over the first data loader, over all ranks, and are held here
    rather than in the model, so that no checkpoint contains Inception. The weights are those that validation sees:
    the averaged ones where the EMA callback is used.

    Args:
        inception_weights: local file for rFID; None takes the one in torch's hub folder if it is there, and otherwise
            reports ``fd_lite0``.
        full_validation: all metrics in validation, too.
        lite0: use EfficientNet-Lite0 (extra ``demo``) for ``lpips_lite0`` and ``fd_lite0``.
        lpips_backbones: ``vgg`` or ``alex`` -> torchvision's checkpoint, for the published LPIPS.
        foreground: also the PSNR of pixels that are not white.
    """

    in_sanity_check = True
    in_progress_bar: ClassVar[tuple[str, ...]] = ("psnr",)

    def __init__(
        self,
        inception_weights: str | None = None,
        full_validation: bool = False,
        lite0: bool = True,
        lpips_backbones: dict[str, str] | None = None,
        foreground: bool = False,
    ):
        self.full_validation = full_validation
        self.settings: dict[str, Any] = {
            "inception_weights": inception_weights,
            "lite0": lite0,
            "lpips_backbones": lpips_backbones,
            "foreground": foreground,
        }
        self.reports: dict[str, ReconstructionReport] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        spec = pl_module.spec if isinstance(pl_module, Tokenizer) else None
        if spec is None or spec.decodes != "pixels":
            return
        # Built before the first step, so that missing weights are reported now and not after hours of training.
        prefix = "test" if stage == "test" else "val"
        if stage in ("fit", "validate", "test") and prefix not in self.reports:
            full = stage == "test" or self.full_validation
            self.reports[prefix] = ReconstructionReport(spec, full=full, **self.settings)

    def begin(self, stage: Stage, trainer: Trainer, model: Any) -> bool:
        if stage in self.reports:
            self.reports[stage].to(model.device).reset()
        return stage in self.reports

    def take(self, stage: Stage, trainer: Trainer, model: Any, batch: Batch) -> None:
        originals, reconstructions, ids = reconstruct_batch(model, batch)
        self.reports[stage].update(originals, reconstructions, ids)

    def finish(self, stage: Stage, trainer: Trainer, model: Any) -> dict[str, float]:
        return self.reports[stage].compute() if self.reports[stage].num_images > 1 else {}

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the protocol beside the values: a distance without it says nothing."""
        if "test" not in self.reports or self.reports["test"].num_images < 2 or trainer.fast_dev_run:
            return
        if trainer.is_global_zero and self.run_folder is not None:
            data: Any = trainer.datamodule
            record = {
                "checkpoint": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
                "ranks": trainer.world_size,
                "split": "test",
                "data": None if data is None else data_facts(data),
                **self.protocol("test"),
                "metrics": {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")},
            }
            # the other values are worth keeping; which ones are no numbers stands beside them
            if bad := find_non_finite(record):
                record["not_finite"] = bad
            text = dump_json(record, "null", default=str) + "\n"
            write_text_whole(self.run_folder / "protocol.json", text)

    def protocol(self, stage: Stage = "test") -> dict[str, Any]:
        """Say what the values of the last ``val`` or ``test`` run depend on."""
        return self.reports[stage].protocol()
