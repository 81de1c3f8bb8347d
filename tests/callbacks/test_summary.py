import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from toys import BlurredImageData, TinyTokenizer, quiet_trainer

from zoo.callbacks.evaluation import Evaluation
from zoo.callbacks.grids import ImageGrids
from zoo.callbacks.summary import RunSummary


def test_last_line_says_what_where_and_what_next(tmp_path, capsys):
    callbacks = [RunSummary(["a tiny.yaml", "b.yaml"]), Evaluation(), ImageGrids(), ModelCheckpoint(tmp_path, "last")]
    trainer = quiet_trainer(tmp_path, max_steps=3, callbacks=callbacks, enable_checkpointing=True)
    trainer.fit(TinyTokenizer(), BlurredImageData())
    line = capsys.readouterr().out.strip().splitlines()[-1]
    psnr = trainer.callback_metrics["val/psnr"].item()
    assert line.startswith(f"3 steps: val/psnr {psnr:.4g}, val/codebook_usage ")
    assert f"pictures {tmp_path / 'images'}" in line
    assert line.endswith(f"lightning test --config 'a tiny.yaml' --config b.yaml --ckpt_path {tmp_path / 'last.ckpt'}")
    assert (tmp_path / "last.ckpt").exists()


def test_without_checkpoint_and_pictures(tmp_path, capsys):
    quiet_trainer(tmp_path, max_steps=1, callbacks=[RunSummary()], limit_val_batches=0).fit(
        TinyTokenizer(), BlurredImageData()
    )
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert line.startswith("1 step: train/loss ")
    assert "checkpoint" not in line
    assert "pictures" not in line


def test_values_of_an_earlier_validation_say_so(tmp_path, capsys):
    callbacks = [RunSummary(), Evaluation()]
    trainer = quiet_trainer(tmp_path, max_steps=3, callbacks=callbacks, val_check_interval=2)
    trainer.fit(TinyTokenizer(), BlurredImageData())
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert line.startswith("3 steps (validated at step 2): val/psnr ")


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
def test_a_run_whose_own_checkpoint_never_came_says_so(tmp_path, capsys):
    monitored = ModelCheckpoint(tmp_path, monitor="val/nope")
    trainer = quiet_trainer(tmp_path, max_steps=1, callbacks=[RunSummary(), monitored], enable_checkpointing=True)
    trainer.limit_val_batches = 0
    trainer.fit(TinyTokenizer(), BlurredImageData())
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert line.endswith("; no checkpoint was saved: the recipe's own waits for 'val/nope'")
