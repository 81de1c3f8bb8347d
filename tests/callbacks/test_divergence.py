"""DivergenceGuard: no checkpoint with weights that are no numbers, and the last good one stays."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from toys import Toy, ToyData, quiet_trainer

import zoo
from zoo.callbacks import DivergenceGuard
from zoo.callbacks.divergence import not_finite


class BadGradient(Toy):
    """The gradient of the fourth step is NaN behind a loss of the usual size."""

    def losses(self, batch):
        terms = super().losses(batch)
        zero = sum(0 * p.sum() for p in self.parameters())
        return {"loss": terms["loss"] + zero.sqrt()} if self.global_step == 3 else terms


class BadBuffer(Toy):
    """A running statistic overflows in the fourth step."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("mask", torch.full((2,), -torch.inf), persistent=False)

    def losses(self, batch):
        self.mean += torch.inf if self.global_step == 3 else 1.0
        return super().losses(batch)


@pytest.mark.parametrize(
    ("cls", "names"), [(BadGradient, r"net.0.weight, net.0.bias, net.1.weight, ... \(4 in all\)"), (BadBuffer, "mean")]
)
def test_the_last_good_checkpoint_stays(tmp_path, cls, names):
    checkpoints = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    trainer = quiet_trainer(
        tmp_path, max_epochs=3, enable_checkpointing=True, callbacks=[DivergenceGuard(), checkpoints]
    )
    with pytest.raises(ValueError, match=rf"weights are no longer finite at step 4 \({names}\)") as caught:
        trainer.fit(cls(), ToyData())  # two steps per epoch
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert all(v.isfinite().all() for v in saved["state_dict"].values())


def test_without_the_guard_it_would_be_overwritten(tmp_path):
    checkpoints = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    quiet_trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[checkpoints]).fit(
        BadGradient(), ToyData()
    )
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert not saved["state_dict"]["net.0.weight"].isfinite().all()


def test_an_emergency_checkpoint_does_not_raise_again(tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "f.ckpt")

        def on_exception(self, trainer, *args):
            trainer.save_checkpoint(tmp_path / "emergency.ckpt")

    with pytest.raises(ValueError, match="no longer finite"):
        quiet_trainer(tmp_path, max_epochs=3, callbacks=[DivergenceGuard(), Save()]).fit(BadGradient(), ToyData())
    assert (tmp_path / "emergency.ckpt").exists()
    assert not (tmp_path / "f.ckpt").exists()


def test_all_that_models_hold_is_finite_at_the_start():
    """A mask of minus infinity must not look like a divergence."""
    for name in zoo.list_models("*_tiny"):
        assert not_finite(zoo.create_model(name)) == [], name
