"""Every model, stopped in the middle of an epoch and resumed, ends as the uninterrupted run: bit for bit."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from resumed_runs import Rows, equal
from test_models import TINY
from toys import ToyData

import zoo
from zoo.callbacks.ema import EMA

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Checkpoint directory")]
#: what trains two steps more, of which the optimizer takes one
OPTIONS = {"max_epochs": 1, "accumulate_grad_batches": 2, "val_check_interval": 4}


def fit(name, folder, path=None, seed=0):
    import lightning.pytorch as pl

    pl.seed_everything(0, verbose=False)
    model = zoo.create_model(name)  # frozen networks that are random by name are in no checkpoint
    pl.seed_everything(seed, verbose=False)
    classes = getattr(model, "num_classes", 9) or 9
    data = ToyData(model.hparams.get("image_size", 32), 2, 12, classes)
    saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=Rows(), log_every_n_steps=1, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=1, default_root_dir=folder,
        callbacks=[EMA(decay=0.5), saver], **OPTIONS,
    )  # fmt: skip
    trainer.fit(model, data, ckpt_path=path)
    return trainer


@pytest.mark.parametrize("name", TINY)
def test_a_resumed_run_of_every_model_is_the_uninterrupted_one(name, tmp_path):
    whole = fit(name, tmp_path)
    first, end = (torch.load(tmp_path / f"step={step}.ckpt", weights_only=True) for step in (2, 3))
    assert first["zoo_run"]["batches"] == 4
    assert first["zoo_run"]["validation_due"]
    (tmp_path / "step=3.ckpt").unlink()
    again = fit(name, tmp_path, tmp_path / "step=2.ckpt", seed=5)
    kept = [row for row in whole.logger.rows if row[0] >= 1]
    equal(again.logger.rows, kept)
    found = torch.load(tmp_path / "step=3.ckpt", weights_only=True)
    for key in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step", "ToyData"):
        equal(end[key], found[key], key)
