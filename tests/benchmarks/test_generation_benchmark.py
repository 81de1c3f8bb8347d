"""``benchmarks/generation.py`` on a second stage and data that need no files."""

import json

import pytest
from toys import ToyData

DATA = ["--data", "ToyData", "--data.count", "12", "--data.num_classes=9"]


@pytest.fixture
def generation(script, monkeypatch, tmp_path):
    import datamodules

    monkeypatch.setattr(datamodules, "ToyData", ToyData, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))  # no Inception weights there
    return script("generation")


def test_table_and_record(generation, script, tmp_path, capsys):
    out = tmp_path / "results" / "tiny.json"
    arguments = ["--model", "maskgit_tiny:random", *DATA, "--num-images", "8", "--steps", "2", "--seed", "5"]
    returned = generation.main([*arguments, "--choice-temperature", "1.5", "--device", "cpu", "--out", str(out)])
    written = json.loads(out.read_text())
    assert written == json.loads(json.dumps(returned))
    script("_record").check(written)
    baselines = {"uniform_tokens", "unigram_tokens", "reconstructions", "train_images"}
    metrics = {"fd_lite0", "kd_lite0", "precision_lite0", "recall_lite0"}
    assert set(written["metrics"]) == metrics | {f"fd_lite0_{name}" for name in baselines}
    assert written["n"] == 8
    assert written["data"] == "ToyData test (12 images), 32x32 px"
    protocol = written["protocol"]
    assert protocol["generated"]["sampler"]["steps"] == 2
    assert protocol["generated"]["seed"] == 5
    assert protocol["generated"]["sampler"]["choice_temperature"] == 1.5
    assert protocol["generated"]["sampler"]["guidance"] == 0.0
    assert metrics <= set(protocol["baselines"]["unigram_tokens"])
    assert protocol["baselines"]["unigram_tokens"]["fd_lite0"] == written["metrics"]["fd_lite0_unigram_tokens"]
    assert protocol["extractor"]["sha256"]
    shown = capsys.readouterr().out
    assert "maskgit_tiny:random against ToyData test" in shown
    assert "n = 8" in shown
    assert all(name in shown for name in (*metrics, *baselines, "model"))
    assert " fid" not in shown


def test_without_baselines(generation, capsys):
    arguments = ["--model", "ar_transformer_tiny:random", *DATA, "--no-baselines", "--temperature", "0.5"]
    record = generation.main([*arguments, "--device", "cpu"])
    assert set(record["metrics"]) == {"fd_lite0", "kd_lite0", "precision_lite0", "recall_lite0"}
    assert record["n"] == 12, "as many as the reference"
    assert record["protocol"]["generated"]["sampler"]["temperature"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "dvae_tiny:random", *DATA], "DVAE generates nothing: take a second stage"),
        (["--model", "maskgit_tiny:random", "--data", "Nothing"], "no data module 'Nothing'"),
        (["--model", "maskgit_tiny:random", *DATA, "--top-k", "3"], "MaskGIT.generate takes no top_k: it takes"),
        (["--model", "maskgit_tiny:random", *DATA, "--steps", "0"], "steps"),
        (["--model", "maskgit_tiny:random", *DATA, "--inception-weights", "nowhere.pth"], "nowhere.pth does not exist"),
        (["--model", "maskgit_tiny", *DATA], "'maskgit_tiny:random' to use it untrained"),
    ],
)
def test_bad_arguments_end_with_one_sentence(generation, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        generation.main([*arguments, "--device", "cpu"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
