"""``lightning test`` and the benchmarks measure the same: equal numbers, equal protocols, one kind of record."""

import json

import pytest
import torch
import yaml
from toys import ToyData, quiet_trainer

import zoo

SIZE, COUNT, CLASSES = 32, 12, 9
ARGUMENTS = [
    "--data", "ToyData", f"--data.image_size={SIZE}", f"--data.count={COUNT}", f"--data.num_classes={CLASSES}",
    "--device", "cpu",
]  # fmt: skip


@pytest.fixture
def toy_data(monkeypatch, tmp_path):
    import datamodules

    monkeypatch.setattr(datamodules, "ToyData", ToyData, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))  # no Inception weights there


def run_test(name, callback, folder, run_cli, **settings):
    """Checkpoint of a preset, what ``lightning test`` logged of it, and the record that it wrote."""
    torch.manual_seed(0)
    model = zoo.create_model(name)
    trainer = quiet_trainer(folder)
    trainer.strategy.connect(model)
    checkpoint = folder / f"{name}.ckpt"
    trainer.save_checkpoint(checkpoint)
    recipe = {
        "seed_everything": 0,
        "model": {"class_path": f"zoo.{type(model).__name__}", "init_args": model.init_args()},
        "data": {
            "class_path": "toys.ToyData",
            "init_args": {"image_size": SIZE, "count": COUNT, "num_classes": CLASSES},
        },
        "trainer": {
            "accelerator": "cpu", "default_root_dir": str(folder / "run"), "enable_progress_bar": False,
            "callbacks": [{"class_path": f"zoo.callbacks.{callback}", "init_args": settings}],
        },
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    code, out, err = run_cli("test", "--config", path, "--ckpt_path", checkpoint)
    assert code == 0, err
    file = {"Samples": "generation.json", "Captions": "captions.json", "Retrieval": "retrieval.json"}[callback]
    found = list((folder / "run").rglob(file))
    assert len(found) == 1
    return f"ckpt:{checkpoint}", out, json.loads(found[0].read_text())


def without(record, *names):
    return {key: value for key, value in record.items() if key not in names}


@pytest.mark.parametrize(
    ("name", "settings", "options"),
    [
        ("maskgit_tiny", {"steps": 3, "guidance": 1.0, "batch_size": 5}, ["--steps", "3", "--guidance", "1.0"]),
        ("ar_transformer_tiny", {"batch_size": 5, "num_images": 7}, ["--num-images", "7"]),
    ],
)
def test_samples_are_at_the_distance_that_the_benchmark_measures(
    name, settings, options, script, toy_data, run_cli, tmp_path
):
    model, out, written = run_test(name, "Samples", tmp_path, run_cli, **settings)
    command = ["--model", model, *ARGUMENTS, "--no-baselines", "--batch-size", "5", *options]
    expected = script("generation").main(command)
    assert written["metrics"] == expected["metrics"]
    assert set(written["metrics"]) == {"fd_lite0", "kd_lite0", "precision_lite0", "recall_lite0"}
    assert "test/fd_lite0" in out
    for key in ("generated", "reference", "extractor"):
        assert written["protocol"][key] == expected["protocol"][key], key
    assert written["n"] == expected["n"]
    assert written["model"] == expected["model"]
    script("_record").check(written)


@pytest.mark.parametrize("name", ["blip2_stage2_tiny", "minigpt4_tiny", "llava_tiny", "seed_llm_tiny"])
def test_captions_have_the_scores_that_the_benchmark_measures(name, script, toy_data, run_cli, tmp_path):
    settings = {"num_beams": 2, "max_new_tokens": 4}
    model, out, written = run_test(name, "Captions", tmp_path, run_cli, **settings)
    command = ["--model", model, *ARGUMENTS, "--num-beams", "2", "--max-new-tokens", "4", "--batch-size", "4"]
    expected = script("vision_language").main(command)
    assert set(written["metrics"]) == {"cider_d", "bleu_4", "rouge_l", "distinct_captions"}
    assert written["metrics"].items() <= expected["metrics"].items()
    assert "test/cider_d" in out
    for key in ("captions", "samples"):
        assert written["protocol"][key] == expected["protocol"][key], key
    assert written["n"] == expected["n"] == COUNT
    script("_record").check(written)


@pytest.mark.parametrize("name", ["blip2_stage2_tiny", "minigpt4_tiny", "llava_tiny", "seed_llm_tiny"])
def test_every_captioner_is_measured_by_its_own_tokens(name, script, toy_data, tmp_path):
    """Ids of SEED's language model, vectors of the bridges: each is found by the likelihood of its captions."""
    record = script("vision_language").main(
        ["--model", f"{name}:random", *ARGUMENTS, "--num-images", "3", "--max-new-tokens", "2"]
    )
    assert {"cider_d", "likelihood_i2t_r@1", "likelihood_t2i_r@1"} <= set(record["metrics"])


def test_retrieval_has_the_recall_that_the_benchmark_measures(script, toy_data, run_cli, tmp_path):
    model, out, written = run_test("blip2_stage1_tiny", "Retrieval", tmp_path, run_cli, rerank=3)
    expected = script("vision_language").main(["--model", model, *ARGUMENTS, "--rerank", "3"])
    assert without(expected["metrics"], "trainable") == written["metrics"]
    assert "test/rerank_i2t_r@1" in out
    assert written["protocol"]["retrieval"] == expected["protocol"]["retrieval"]
    script("_record").check(written)
