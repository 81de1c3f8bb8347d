"""The benchmark scripts and the files they write."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from toys import BlurredImageData, TinyTokenizer, quiet_trainer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def rfid(script, monkeypatch):
    """``benchmarks/rfid.py`` with a model and a data module that need no files."""
    import datamodules
    import zoo.registry

    module = script("rfid")
    zoo.presets.presets()  # a module that is imported while the name is replaced would keep the other one for ever
    monkeypatch.setattr(zoo.registry, "model_from", lambda reference: TinyTokenizer())
    monkeypatch.setattr(datamodules, "BlurredImageData", BlurredImageData, raising=False)
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
    data_arguments = ["--data.num_images", "21", "--data.image_size=16", "--batch-size", "8"]
    rfid.main(["--model", "tiny", "--data", "BlurredImageData", *data_arguments, "--out", str(out)])
    written = json.loads(out.read_text())
    data = BlurredImageData(num_images=21, image_size=16, batch_size=8)
    logged = quiet_trainer(tmp_path, callbacks=[Evaluation()]).test(TinyTokenizer(), data, verbose=False)[0]
    assert {k: logged[f"test/{k}"] for k in written["metrics"]} == written["metrics"]
    assert {"psnr", "ssim", "lpips_lite0", "fd_lite0", "codebook_usage", "perplexity"} <= set(written["metrics"])
    assert written["n"] == 21
    assert written["data"] == "BlurredImageData test, 16x16 px"
    assert written["protocol"]["data"]["num_images"] == 21
    assert written["protocol"]["fd_lite0"]["sha256"]
    shown = capsys.readouterr().out
    assert "n = 21" in shown
    assert "fd_lite0" in shown
    assert "rfid" not in shown


def test_missing_weights_end_with_one_sentence(rfid, capsys):
    with pytest.raises(SystemExit) as stop:
        rfid.main(["--model", "tiny", "--data", "BlurredImageData", "--inception-weights", "nowhere.pth"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: rFID needs the Inception weights, and nowhere.pth does not exist: get https://")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data Nothing", "no data module 'Nothing': there are CaptionData, ConversationData, EmojiData, ImageFold"),
        ("--data ImageData", "no data module 'ImageData': did you mean ImageFolderData?"),
        ("--data import_module", "no data module 'import_module': "),
        ("--data BlurredImageData --data.size 3", "size"),
        ("--data BlurredImageData --num-images 99", "has 22 images, not 99"),
        ("--data BlurredImageData stray", "--data.KEY VALUE"),
        ("--data BlurredImageData --num-images 0", "error: num_images must be at least 2, got 0: leave it out"),
        ("--data BlurredImageData --num-images 1", "error: num_images must be at least 2, got 1"),
        (
            "--data BlurredImageData --data.imagesize 16",
            "takes no 'imagesize': did you mean image_size?",
        ),
        (
            "--data BlurredImageData --lpips vgg",
            "error: --lpips takes vgg=PATH or alex=PATH",
        ),
        ("--data BlurredImageData --lpips vgg16=x", "--lpips takes vgg=PATH or alex=PATH"),
        ("--data BlurredImageData --lpips vgg=nowhere.pth", "error: LPIPS needs the backbone file nowhere.pth"),
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
    record = rfid.main(["--model", "tiny", "--data", "BlurredImageData", *arguments])
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
def test_a_record_that_does_not_keep_the_schema_is_refused(script, changes, message):
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


@pytest.fixture
def cheap(monkeypatch):
    """The metrics that need no network."""
    from zoo.metrics import evaluate, reconstruction

    def report(spec, **settings):
        return reconstruction.ReconstructionReport(spec, full=False)

    monkeypatch.setattr(evaluate, "ReconstructionReport", report)


def test_two_seeds_measure_the_same_on_the_training_split(rfid, cheap, monkeypatch):
    """The training loader would shuffle and augment the images, and leave the last ones out."""
    import datamodules
    import zoo.registry

    made, setup = [], datamodules.PhotoData.setup
    monkeypatch.setattr(datamodules.PhotoData, "setup", lambda data, stage: made.append(data) or setup(data, stage))
    monkeypatch.setattr(zoo.registry, "model_from", lambda reference: TinyTokenizer(image_size=128))
    command = ["--model", "tiny", "--data", "PhotoData", "--split", "train", "--data.image_size", "128"]
    one, two = (rfid.main([*command, "--seed", seed]) for seed in ("0", "7"))
    assert one["protocol"]["images_sha256"] == two["protocol"]["images_sha256"]
    assert one["protocol"]["view"].startswith("all images in order")
    assert one["metrics"] == two["metrics"]
    assert one["n"] == len(made[0].view("train")) == two["n"]
    assert one["n"] % 32, "the last batch is not full"
    assert made[0].predict_split == "val"


def test_a_loader_that_shuffles_is_refused():
    from torch.utils.data import DataLoader

    from zoo.metrics.evaluate import evaluate

    class Shuffled(BlurredImageData):
        def train_dataloader(self):
            return DataLoader(super().train_dataloader().dataset, batch_size=8, shuffle=True)

        def val_dataloader(self):
            return DataLoader(super().train_dataloader().dataset, batch_size=8, drop_last=True)

    for split in ("train", "val"):
        with pytest.raises(ValueError, match=f"the {split} loader of Shuffled shuffles its images or drops"):
            evaluate(TinyTokenizer(), Shuffled(), split)
    assert evaluate(TinyTokenizer(), Shuffled(), "test", lite0=False)["protocol"]["num_images"] == 22


def test_the_images_have_the_size_of_the_model_unless_told_otherwise(script, cheap):
    rfid = script("rfid")
    command = ["--data", "PhotoData", "--split", "val"]
    sizes = {}
    for model in ("dvae_tiny:random", "maskgit_tiny:random", "beit_tiny:random"):
        sizes[model] = rfid.main(["--model", model, *command])["protocol"]["image_shape"]
    assert sizes["dvae_tiny:random"] == sizes["maskgit_tiny:random"] == [32, 32]
    asked = rfid.main(["--model", "dvae_tiny:random", *command, "--data.image_size", "64"])
    assert asked["protocol"]["image_shape"] == [64, 64]


def test_settings_of_the_data_are_those_that_were_given(script, cheap):
    rfid = script("rfid")
    command = ["--model", "dvae_tiny:random", "--data", "PhotoData", "--batch-size", "8", "--data.image_size", "64"]
    one, two = (rfid.main([*command, *given]) for given in ([], ["--data.batch_size", "5"]))
    assert [found["protocol"]["data"]["batch_size"] for found in (one, two)] == [8, 5]
    assert one["metrics"] == two["metrics"]


def test_metrics_that_are_no_numbers_are_named_and_the_others_kept(script, tmp_path):
    module = script("_record")
    path = tmp_path / "x.json"
    module.write(record(metrics={"psnr": float("inf"), "ssim": 1.0}, protocol={"scale": float("nan")}), path)
    written = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))
    assert written["metrics"] == {"ssim": 1.0}
    assert written["status"] == "not finite: psnr inf"
    assert written["protocol"] == {"scale": None}
    with pytest.raises(ValueError, match="metric psnr is nan"):
        module.check(record(metrics={"psnr": float("nan")}))
