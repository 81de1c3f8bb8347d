"""The benchmark scripts and the files they write."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from tiny_tokenizer import RandomImageData, TinyTokenizer, quiet_trainer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def rfid(script, monkeypatch):
    """``benchmarks/rfid.py`` with a model and a data module that need no files."""
    import datamodules
    import zoo.registry

    module = script("rfid")
    monkeypatch.setattr(zoo.registry, "model_from", lambda reference: TinyTokenizer())
    monkeypatch.setattr(datamodules, "RandomImageData", RandomImageData, raising=False)
    return module


def record(**changes):
    environment = {
        "zoo": "0.1.0", "git": "abc", "python": "3.11", "torch": "2.6", "lightning": "2.6.6", "device": "CPU",
        "threads": 1, "precision": "32", "date": "2026-11-22",
    }  # fmt: skip
    return {
        "benchmark": "rfid", "status": "ok", "model": "dvae", "data": "EmojiData test, 64x64 px",
        "metrics": {"psnr": 20.125, "dead_codes": 12.0}, "n": 1200, "protocol": {}, "environment": environment,
        "seconds": 3.5,
    } | changes  # fmt: skip


def test_benchmark_and_trainer_agree_to_the_last_digit(rfid, tmp_path, capsys):
    from zoo.callbacks.evaluation import Evaluation

    out = tmp_path / "results" / "tiny.json"
    data_arguments = ["--data.num_images", "21", "--data.image_size=16"]
    rfid.main(["--model", "tiny", "--data", "RandomImageData", *data_arguments, "--batch-size", "8", "--out", str(out)])
    written = json.loads(out.read_text())
    data = RandomImageData(num_images=21, image_size=16, batch_size=8)
    logged = quiet_trainer(tmp_path, callbacks=[Evaluation()]).test(TinyTokenizer(), data, verbose=False)[0]
    assert {k: logged[f"test/{k}"] for k in written["metrics"]} == written["metrics"]
    assert {"psnr", "ssim", "lpips_lite0", "fd_lite0", "codebook_usage", "perplexity"} <= set(written["metrics"])
    assert written["n"] == 21
    assert written["data"] == "RandomImageData test, 16x16 px"
    assert written["protocol"]["data"]["num_images"] == 21
    assert written["protocol"]["fd_lite0"]["sha256"]
    shown = capsys.readouterr().out
    assert "n = 21" in shown and "fd_lite0" in shown and "rfid" not in shown


def test_missing_weights_end_with_one_sentence(rfid, capsys):
    with pytest.raises(SystemExit) as stop:
        rfid.main(["--model", "tiny", "--data", "RandomImageData", "--inception-weights", "nowhere.pth"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: rFID needs the Inception weights, and nowhere.pth does not exist: get https://")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data Nothing", "no data module 'Nothing'"),
        ("--data RandomImageData --data.size 3", "size"),
        ("--data RandomImageData --num-images 99", "has 22 images, not 99"),
        ("--data RandomImageData stray", "--data.KEY VALUE"),
        ("--data RandomImageData --num-images 0", "error: num_images must be at least 2, got 0: leave it out"),
        ("--data RandomImageData --num-images 1", "error: num_images must be at least 2, got 1"),
        (
            "--data RandomImageData --data.imagesize 16",
            "takes no 'imagesize': did you mean image_size?",
        ),
        (
            "--data RandomImageData --lpips vgg",
            "error: --lpips takes vgg=PATH or alex=PATH",
        ),
        ("--data RandomImageData --lpips vgg16=x", "--lpips takes vgg=PATH or alex=PATH"),
        ("--data RandomImageData --lpips vgg=nowhere.pth", "error: LPIPS needs the backbone file nowhere.pth"),
    ],
)
def test_bad_arguments(rfid, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        rfid.main(["--model", "tiny", *arguments.split()])
    assert stop.value.code == 2
    assert message in (error := capsys.readouterr().err)
    assert error.count("error:") == 1


def test_published_lpips_with_its_protocol(rfid, tmp_path, monkeypatch):
    from torchvision.models import alexnet

    monkeypatch.setattr("zoo.registry.model_from", lambda reference: TinyTokenizer(image_size=64))
    path = tmp_path / "alex.pth"
    torch.save(alexnet(weights=None).state_dict(), path)
    arguments = ["--data.image_size=64", "--num-images=4", f"--lpips=alex={path}"]
    record = rfid.main(["--model", "tiny", "--data", "RandomImageData", *arguments])
    assert record["metrics"]["lpips_alex"] > 0
    assert record["protocol"]["lpips_alex"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {"psnr": "20"}}, "metric psnr"),
        ({"metrics": {}}, "has metrics"),
        ({"n": 2.5}, "n must be"),
        ({"environment": {}}, "environment lacks"),
        ({"extra": 1}, "extra"),
    ],
)
def test_schema(script, changes, message):
    schema = script("_record")
    schema.check(record())
    with pytest.raises(ValueError, match=message):
        schema.check(record(**changes))


def test_environment_keeps_the_schema(script):
    schema = script("_record")
    schema.check(record(environment=schema.environment("cpu", "bf16")))


def test_page_shows_failures_too(script):
    page = script("_report").render(
        [record(), record(benchmark="throughput", metrics={"ratio": 1.52}), record(status="out of memory", metrics={})]
    )
    assert (
        "| `dvae` | EmojiData test, 64x64 px | 1,200 | 20.12 | 12 | CPU | 32 | 0.1.0 (abc) | 2026-11-22 | ok |" in page
    )
    assert "| out of memory |" in page
    assert page.index("## rfid") < page.index("## throughput")


def test_kept_results_keep_the_schema(script):
    schema = script("_record")
    for stored in schema.read_all():
        schema.check(stored)


def test_results_page_is_up_to_date(script):
    report = script("_report")
    stored = (BENCHMARKS / "RESULTS.md").read_text()
    assert stored == report.render(report.read_all()), "run python benchmarks/_report.py"
