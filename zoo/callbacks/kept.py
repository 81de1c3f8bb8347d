"""Keep the checkpoint of an earlier run that a new one would overwrite."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from zoo.run_folder import keep_old_checkpoint


class KeepOldCheckpoint(Callback):
    """Move ``last.ckpt`` of an earlier run aside when training starts.

    Not before: until then other processes may read it, as the weights that the model starts from or as its tokenizer,
    and a run that ends before its first step has nothing to put in its place.

    Args:
        run_dir: folder of the checkpoint.
    """

    def __init__(self, run_dir: str | Path):
        self.run_dir = Path(run_dir)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        keep_old_checkpoint(self.run_dir)
