import dataclasses
import json

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from toys import BlurredImageData, TinyTokenizer, quiet_trainer

from zoo.callbacks.ema import EMA
from zoo.callbacks.evaluation import Evaluation
from zoo.metrics.evaluate import evaluate
from zoo.tokens import NotInvertible

CHEAP = {"psnr", "codebook_usage", "perplexity", "dead_codes"}


def test_test_run_and_benchmark_agree_to_the_last_digit(tmp_path):
    model, data = TinyTokenizer(), BlurredImageData(num_images=21, batch_size=8)
    callback = Evaluation(foreground=True)
    logged = quiet_trainer(tmp_path, callbacks=[callback]).test(model, data, verbose=False)[0]
    measured = evaluate(model, data, "test", foreground=True)
    assert measured["metrics"].keys() >= CHEAP | {"ssim", "lpips_lite0", "fd_lite0", "psnr_foreground"}
    assert {k: logged[f"test/{k}"] for k in measured["metrics"]} == measured["metrics"]
    protocol = callback.protocol()
    assert protocol["num_images"] == 21
    assert protocol.items() <= measured["protocol"].items()


def test_validation_has_the_cheap_metrics(tmp_path):
    model, data = TinyTokenizer(), BlurredImageData()
    trainer = quiet_trainer(tmp_path, callbacks=[Evaluation(lite0=False)])
    first = trainer.validate(model, data, verbose=False)[0]
    assert {k.removeprefix("val/") for k in first} == CHEAP | {"loss"}
    assert trainer.validate(model, data, verbose=False)[0] == first  # nothing is left over from the first time
    measured = evaluate(model, data, "val", full=False)["metrics"]
    assert {f"val/{k}": v for k, v in measured.items()}.items() <= first.items()
    full = quiet_trainer(tmp_path, callbacks=[Evaluation(full_validation=True)]).validate(model, data, verbose=False)
    assert {"val/ssim", "val/fd_lite0"} <= set(full[0])


@pytest.mark.parametrize("ema_first", [True, False])
def test_averaged_weights_are_measured_in_either_order(tmp_path, ema_first):
    model, data = TinyTokenizer(), BlurredImageData(num_images=16)
    callbacks = [EMA(0.9, warmup=False), Evaluation()]
    trainer = quiet_trainer(tmp_path, max_steps=4, callbacks=callbacks if ema_first else callbacks[::-1])
    trainer.fit(model, data)
    reached = trainer.callback_metrics["val/psnr"].item()
    assert evaluate(model, data, "val", full=False)["metrics"]["psnr"] == reached  # fit ends on the averaged weights
    raw = TinyTokenizer()
    trainer = quiet_trainer(tmp_path, max_steps=4, callbacks=[Evaluation()])
    trainer.fit(raw, data)
    assert trainer.callback_metrics["val/psnr"].item() != reached


def test_metrics_can_be_monitored_and_stay_out_of_checkpoints(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    model = TinyTokenizer()
    checkpoint = ModelCheckpoint(tmp_path, monitor="val/psnr", mode="max", filename="best")
    callbacks = [checkpoint, Evaluation(full_validation=True)]
    trainer = quiet_trainer(tmp_path, max_steps=4, callbacks=callbacks, enable_checkpointing=True)
    trainer.fit(model, BlurredImageData(num_images=16))
    assert set(model.state_dict()) == {"codes", "calls"}
    assert set(torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"]) == {"codes", "calls"}
    assert checkpoint.best_model_score == trainer.callback_metrics["val/psnr"]


def test_models_that_do_not_decode_are_left_alone(tmp_path):
    class Blind(TinyTokenizer):
        def __init__(self):
            super().__init__()
            self.spec = None

        def losses(self, batch):
            return {"loss": self.codes.sum()}

    logged = quiet_trainer(tmp_path, callbacks=[Evaluation()]).test(Blind(), BlurredImageData(), verbose=False)[0]
    assert set(logged) == {"test/loss"}
    with pytest.raises(NotInvertible):
        evaluate(Blind(), BlurredImageData())


def test_missing_weights_are_reported_before_training(tmp_path):
    callback = Evaluation(inception_weights=str(tmp_path / "nowhere.pth"), full_validation=True)
    trainer = quiet_trainer(tmp_path, max_steps=1, callbacks=[callback])
    with pytest.raises(FileNotFoundError, match="--inception-weights PATH"):
        trainer.fit(TinyTokenizer(), BlurredImageData())
    assert trainer.global_step == 0


def test_two_views_are_compared_with_the_one_of_the_right_size(tmp_path):
    class Halved(TinyTokenizer):
        """Like BEiT: sees large images and predicts the tokens of small ones."""

        def encode(self, images):
            return super().encode(torch.nn.functional.avg_pool2d(images / 255, 2))

        def losses(self, batch):
            return {"loss": self.codes.sum()}

    class TwoViews(BlurredImageData):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch | {"token_image": batch["image"][..., ::2, ::2]}

    trainer = quiet_trainer(tmp_path, callbacks=[Evaluation()])
    logged = trainer.validate(Halved(image_size=16), TwoViews(image_size=32), verbose=False)[0]
    assert logged["val/psnr"] > 5


def test_bf16_applies_to_the_decoder_and_not_to_ids_and_metrics(tmp_path):
    seen = {"encode": [], "decode": []}

    class Watched(TinyTokenizer):
        def encode(self, images):
            seen["encode"].append(torch.is_autocast_enabled("cpu"))
            return super().encode(images)

        def decode(self, tokens):
            seen["decode"].append(torch.is_autocast_enabled("cpu"))
            return super().decode(tokens)

    trainer = quiet_trainer(tmp_path, callbacks=[Evaluation(lite0=False)], precision="bf16-mixed")
    logged = trainer.validate(Watched(), BlurredImageData(), verbose=False)[0]
    # once in the validation step and once in the callback, for three batches
    assert seen == {"encode": [False] * 6, "decode": [True] * 6}
    assert logged["val/psnr"] == evaluate(TinyTokenizer(), BlurredImageData(), "val", precision="bf16", full=False)[
        "metrics"
    ]["psnr"]  # fmt: skip


def test_number_of_images():
    model, data = TinyTokenizer(), BlurredImageData(num_images=20, batch_size=8)
    ten = evaluate(model, data, num_images=10, full=False)
    assert ten["protocol"]["num_images"] == 10
    assert ten["metrics"] != evaluate(model, data, full=False)["metrics"]
    with pytest.raises(ValueError, match="the test split has 20 images, not 30"):
        evaluate(model, data, num_images=30, full=False)


def test_test_leaves_its_protocol_in_the_log_folder(tmp_path):
    data = BlurredImageData(num_images=11)
    trainer = quiet_trainer(
        tmp_path, callbacks=[Evaluation()], logger=CSVLogger(tmp_path / "logs", name="", version="")
    )
    logged = trainer.test(TinyTokenizer(), data, verbose=False)[0]
    written = json.loads((tmp_path / "logs" / "protocol.json").read_text())
    assert written["num_images"] == 11
    assert written["split"] == "test"
    assert written["ranks"] == 1
    assert written["data"] == {"class": "BlurredImageData", "num_images": 11, "image_size": 16, "batch_size": 8}
    assert written["fd_lite0"]["sha256"]
    assert written["packages"]["torch"]
    assert "ssim" in written
    assert written["metrics"] == {k: v for k, v in logged.items() if k.startswith("test/")}
    assert written["metrics"]["test/fd_lite0"] > 0
    assert len(written["images_sha256"]) == 64


def test_no_protocol_without_values_to_explain(tmp_path):
    model = TinyTokenizer()
    quiet_trainer(tmp_path, callbacks=[Evaluation()]).validate(model, BlurredImageData(), verbose=False)
    model.spec = dataclasses.replace(model.spec, decodes=None)
    quiet_trainer(tmp_path, callbacks=[Evaluation()]).test(model, BlurredImageData(), verbose=False)
    assert not list(tmp_path.rglob("protocol.json"))
