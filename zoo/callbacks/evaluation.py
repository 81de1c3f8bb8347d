"""The evaluation callback: reconstruction metrics of any model that decodes to pixels."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from zoo.files.atomic import write_text_whole
from zoo.files.strict_json import dump_json, find_non_finite
from zoo.metrics.reconstruction import ReconstructionReport, reconstruct_batch
from zoo.runs.folder import log_folder


class Evaluation(Callback):
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
        spec = getattr(pl_module, "spec", None)
        if spec is None or spec.decodes != "pixels":
            return
        # Built before the first step, so that missing weights are reported now and not after hours of training.
        prefix = "test" if stage == "test" else "val"
        if stage in ("fit", "validate", "test") and prefix not in self.reports:
            full = stage == "test" or self.full_validation
            self.reports[prefix] = ReconstructionReport(spec, full=full, **self.settings)

    def _start(self, prefix: str, pl_module: LightningModule) -> None:
        if prefix in self.reports:
            self.reports[prefix].to(pl_module.device).reset()

    def _add(self, prefix: str, trainer: Trainer, model: Any, batch: Any, dataloader_idx: int) -> None:
        if prefix in self.reports and dataloader_idx == 0:
            with trainer.precision_plugin.forward_context():  # callbacks run outside of autocast otherwise
                originals, reconstructions, ids = reconstruct_batch(model, batch)
            self.reports[prefix].update(originals, reconstructions, ids)

    def _log(self, prefix: str, pl_module: LightningModule) -> None:
        if prefix in self.reports and self.reports[prefix].num_images > 1:
            for name, value in self.reports[prefix].compute().items():
                pl_module.log(f"{prefix}/{name}", value, prog_bar=name == "psnr", batch_size=1, sync_dist=True)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start("val", pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # Here and not at the end of the epoch: there the EMA callback may have put the raw weights back already.
        self._add("val", trainer, pl_module, batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log("val", pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start("test", pl_module)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._add("test", trainer, pl_module, batch, dataloader_idx)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log("test", pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the protocol beside the values: a distance without it says nothing."""
        folder = log_folder(trainer)
        if "test" not in self.reports or self.reports["test"].num_images < 2 or trainer.fast_dev_run:
            return
        if trainer.is_global_zero:
            data = getattr(trainer, "datamodule", None)
            settings = {k: v for k, v in getattr(data, "hparams", {}).items() if not k.startswith("_")}
            record = {
                "checkpoint": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
                "ranks": trainer.world_size,
                "split": "test",
                "data": None if data is None else {"class": type(data).__name__, **settings},
                **self.protocol("test"),
                "metrics": {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")},
            }
            # the other values are worth keeping; which ones are no numbers stands beside them
            if bad := find_non_finite(record):
                record["not_finite"] = bad
            text = dump_json(record, "null", default=str) + "\n"
            write_text_whole(folder / "protocol.json", text)

    def protocol(self, stage: str = "test") -> dict[str, Any]:
        """What the values of the last ``val`` or ``test`` run depend on."""
        return self.reports[stage].protocol()
