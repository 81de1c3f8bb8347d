"""Captions and retrieval during a run: what is logged, written and drawn, and with which images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from toys import Toy, ToyData, quiet_trainer

import zoo
from zoo.callbacks import EMA, Captions, Retrieval
from zoo.callbacks.pictures import caption_sheet
from zoo.metrics.captions import CIDErD


def run(folder, model, callbacks, **options):
    from lightning.pytorch.loggers import CSVLogger

    trainer = quiet_trainer(
        folder, max_epochs=1, logger=CSVLogger(folder, name="", version=""), callbacks=callbacks, **options
    )
    trainer.fit(model, ToyData(32, num_classes=9))
    return trainer


def test_captions_are_scored_drawn_and_kept(tmp_path, monkeypatch):
    model = zoo.create_model("blip2_stage2_tiny")
    said = iter([["image 0", "image 9", "image 2", "x"], ["image 4", "image 5", "", "image 7"]])
    monkeypatch.setattr(type(model), "caption", lambda self, images, **writing: next(said))
    trainer = run(tmp_path, model, [Captions(num_pictures=5)])
    records = [json.loads(line) for line in (tmp_path / "captions" / "step_000002.jsonl").read_text().splitlines()]
    assert [r["caption"] for r in records] == [
        "image 0",
        "image 9",
        "image 2",
        "x",
        "image 4",
        "image 5",
        "",
        "image 7",
    ]
    assert [r["references"] for r in records] == [[f"image {i}"] for i in range(8)]
    metric = CIDErD()
    metric.update([r["caption"] for r in records], [r["references"] for r in records])
    assert float(trainer.callback_metrics["val/cider_d"]) == pytest.approx(float(metric.compute()), rel=1e-5)
    assert 0 < float(trainer.callback_metrics["val/bleu_4"]) < 1
    assert "val/rouge_l" in trainer.callback_metrics
    with Image.open(tmp_path / "captions" / "step_000002.png") as picture:
        assert picture.width == 4 * 200
        assert np.asarray(picture).std() > 0


def test_fewer_images_in_validation_than_in_a_test(tmp_path, monkeypatch):
    model, counts = zoo.create_model("blip2_stage2_tiny"), []
    monkeypatch.setattr(
        type(model), "caption", lambda self, images, **w: counts.append((len(images), w)) or ["image 1"] * len(images)
    )
    trainer = run(tmp_path, model, [Captions(max_images=6, num_beams=2, max_new_tokens=7, prompt="p")])
    assert [c for c, _ in counts] == [4, 2]
    assert counts[0][1] == {"num_beams": 2, "max_new_tokens": 7, "prompt": "p"}
    counts.clear()
    trainer.test(model, ToyData(32, num_classes=9), verbose=False)
    assert [c for c, _ in counts] == [4, 4]
    assert "test/cider_d" in trainer.callback_metrics


def test_sheet_of_captions():
    images = torch.zeros(3, 3, 20, 20)
    images[1] = 1
    sheet = np.asarray(caption_sheet(images, [["a", "b"], ["c" * 60], ["d"]], columns=2, width=120))
    assert sheet.shape[1] == 240
    assert (sheet[4:24, 4:24] == 0).all()
    assert (sheet[4:24, 124:144] == 255).all()
    below = sheet[24:60]
    assert (below[:, :120] < 128).any(), "black text"


def test_retrieval_over_the_whole_set(tmp_path, monkeypatch):
    model = zoo.create_model("blip2_stage1_tiny")
    seen = []
    original = type(model).retrieve
    monkeypatch.setattr(
        type(model),
        "retrieve",
        lambda self, i, t, rerank=0, **_: seen.append((len(i), t, rerank)) or original(self, i, t, rerank),
    )
    trainer = run(tmp_path, model, [Retrieval(rerank=3)])
    assert seen == [(8, [f"image {i}" for i in range(8)], 0)]
    assert 0 <= float(trainer.callback_metrics["val/i2t_r@1"]) <= 1
    assert float(trainer.callback_metrics["val/t2i_r@10"]) == 1
    trainer.test(model, ToyData(32, num_classes=9), verbose=False)
    assert seen[-1][2] == 3
    assert "test/rerank_i2t_r@1" in trainer.callback_metrics


def test_retrieval_is_scored_where_the_last_batch_is_broken(tmp_path, monkeypatch):
    """Fewer batches come than were announced; the weights are those of validation all the same."""
    from datamodules.base import GoodBatches, collate_found

    class Data(ToyData):
        def val_dataloader(self):
            samples = [*map(self.val.__getitem__, range(4)), None, None]
            return GoodBatches(samples, batch_size=2, collate_fn=collate_found)

        test_dataloader = val_dataloader

    seen = []
    weights = lambda model: model.text_proj.weight.detach().clone()  # noqa: E731
    monkeypatch.setattr(zoo.BLIP2Stage1, "validation_step", lambda self, *_: seen.append(weights(self)))
    original = zoo.BLIP2Stage1.retrieve
    monkeypatch.setattr(
        zoo.BLIP2Stage1,
        "retrieve",
        lambda self, i, t, rerank=0, **_: seen.append((len(i), t, weights(self))) or original(self, i, t, rerank),
    )
    monkeypatch.setattr(zoo.BLIP2Stage1, "on_validation_end", lambda self: seen.append(weights(self)))
    for callbacks in ([EMA(0.9), Retrieval()], [Retrieval(), EMA(0.9)]):
        seen.clear()
        torch.manual_seed(0)
        model = zoo.create_model("blip2_stage1_tiny")
        trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=callbacks)
        trainer.fit(model, Data(32, num_classes=9))
        first, _, (count, texts, used), raw = seen
        assert count == 4
        assert texts == [f"image {i}" for i in range(4)]
        assert torch.equal(first, used), "averaged as in the steps before"
        assert not torch.equal(raw, used), "and put back"
        assert 0 <= float(trainer.callback_metrics["val/i2t_r@1"]) <= 1
        trainer.test(model, Data(32, num_classes=9), verbose=False)
        assert "test/i2t_r@1" in trainer.callback_metrics


def test_retrieval_under_autocast_is_that_without(tmp_path):
    """In bfloat16 texts would tie, and re-ranking would mix two types."""
    model = zoo.create_model("blip2_stage1_tiny").eval()
    images = torch.rand(6, 3, 32, 32)
    texts = [f"image {i}" for i in range(12)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model.retrieve(images, texts, rerank=4)
    assert scores.contrast.dtype == torch.float32
    assert all(len(row.unique()) == 12 for row in scores.contrast)
    trainer = run(tmp_path, model, [Retrieval(rerank=4, rerank_in_validation=True)], precision="bf16-mixed")
    assert "val/rerank_i2t_r@1" in trainer.callback_metrics


def test_answers_to_conversations_are_scored(tmp_path):
    model = zoo.create_model("llava_tiny")
    callback = Captions(max_new_tokens=2)
    data = ToyData(32, num_classes=9)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    said = batch.pop("caption")
    turns = [[{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": text}] for text in said]
    trainer = quiet_trainer(tmp_path)
    callback.begin("test", trainer, model)
    callback.take("test", trainer, model, batch | {"conversation": turns})
    assert [r["references"] for r in callback.report.records()] == [[text] for text in said]
    callback = Captions(max_new_tokens=2, max_images=2)  # an answer in front of the first question answers nothing
    callback.take(
        "val", trainer, model, batch | {"conversation": [[{"from": "gpt", "value": "hi"}, *t] for t in turns]}
    )
    assert [r["references"] for r in callback.report.records()] == [[text] for text in said[:2]]
    with pytest.raises(ValueError, match=r"has no 'caption', but .*, and the callback Captions compares with captions"):
        callback.take("test", trainer, model, batch)


def test_models_and_settings_that_cannot_be_scored_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Toy writes no captions"):
        run(tmp_path, Toy(), [Captions()])
    with pytest.raises(ValueError, match="Toy retrieves nothing"):
        run(tmp_path, Toy(), [Retrieval()])
    with pytest.raises(ValueError, match="max_images at least 2"):
        Captions(max_images=1)
    with pytest.raises(ValueError, match="rerank must not be negative"):
        Retrieval(rerank=-1)
