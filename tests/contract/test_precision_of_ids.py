"""The ids of an image are the same whoever asks for them, in whatever precision the rest runs."""

import lightning.pytorch as pl
import pytest
import torch
from toys import ToyData, quiet_trainer

import zoo
from datamodules.tokens import TokenData
from zoo.callbacks.token_dump import TokenDump
from zoo.metrics.reconstruction import reconstruct_batch
from zoo.tokens.batch import ids_of
from zoo.tokens.shards import read_shards

DISCRETE = [name for name in zoo.list_models("*_tiny") if (spec := zoo.model_info(name).spec) and spec.vocab_size]
COUNT = 24


def wide(name):
    """The model in eval mode, with parameters that leave many cells close to two codes."""
    torch.manual_seed(0)
    model = zoo.create_model(name).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key in model.state_dict():
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def data_for(model):
    data = ToyData(model.hparams.get("image_size", 32), batch_size=COUNT, count=COUNT, num_classes=9)
    data.setup("fit")
    return data


def images_for(model):
    return next(iter(data_for(model).val_dataloader()))["image"]


def ids(model, images):
    with torch.no_grad():
        return model.encode(images).ids


@pytest.mark.parametrize("name", DISCRETE)
def test_ids_do_not_depend_on_autocast_or_on_the_layout_in_memory(name):
    model = wide(name)
    images = images_for(model)
    expected = ids(model, images)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(ids(model, images), expected), dtype
            if model.spec.decodes == "pixels":
                assert torch.equal(reconstruct_batch(model, {"image": images})[2], expected), dtype
            assert torch.is_autocast_enabled("cpu"), "autocast is on again behind encode"
    with torch.autocast("cuda", dtype=torch.float16, enabled=torch.cuda.is_available()):
        assert torch.equal(ids(model, images), expected)
    assert torch.equal(ids(model, images.contiguous(memory_format=torch.channels_last)), expected)
    assert torch.equal(ids(model, images.transpose(2, 3).contiguous().transpose(2, 3)), expected)


@pytest.mark.parametrize("name", DISCRETE)
def test_shards_hold_the_ids_of_encode_when_predict_runs_in_mixed_precision(name, tmp_path):
    model = wide(name)
    data, expected = data_for(model), ids(model, images_for(model))
    quiet_trainer(tmp_path, precision="bf16-mixed", callbacks=[TokenDump(str(tmp_path))]).predict(model, data)
    (shard,) = read_shards(tmp_path / "train")
    assert torch.equal(shard["ids"].long(), expected)


@pytest.mark.parametrize("name", ["dvae_tiny", "vqgan_tiny", "vqvae2_tiny", "seed_stage2_tiny"])
def test_training_on_the_fly_sees_the_ids_of_encode(name):
    model = wide(name)
    images = images_for(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ids_of({"image": images}, model), ids(model, images))


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
@pytest.mark.parametrize("name", ["dvae_tiny", "vqgan_tiny", "seed_stage2_tiny", "maskgit_tiny", "beit_tiny"])
def test_weights_of_another_type_are_refused_by_encode(name, cast):
    model = getattr(wide(name), cast)()
    with pytest.raises(ValueError, match=r"has weights of torch\.\w+, and ids are those of float32 weights.*float\(\)"):
        ids(model, torch.rand(1, 3, 32, 32))


def test_a_vision_tower_of_another_type_is_refused_by_encode():
    model = wide("seed_stage2_tiny")
    model.frozen["vision"].half()
    with pytest.raises(ValueError, match=r"vision.*torch\.float16"):
        ids(model, torch.rand(1, 3, 32, 32))


def test_a_language_model_in_half_precision_does_not_disturb_the_ids():
    model = zoo.create_model("seed_llm_tiny", language_dtype="bfloat16")
    assert ids(model, torch.rand(1, 3, 32, 32)).shape == (1, model.spec.num_tokens)


@pytest.mark.parametrize("setting", ["medium", "high"])
def test_encode_computes_float32_products_with_all_digits(setting, monkeypatch):
    model, seen = wide("vqgan_tiny"), []

    def watch(module, inputs):
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))

    model.encoder.register_forward_pre_hook(watch)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision(setting)
        torch.backends.cudnn.allow_tf32 = True
        ids(model, torch.rand(1, 3, 32, 32))
        assert seen == [("highest", False)]
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (setting, True)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_continuous_tokens_follow_the_precision_of_the_run():
    model = wide("blip2_stage1_tiny")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.encode(torch.rand(2, 3, 32, 32)).embeddings
    assert rough.shape == (2, 4, 24), "they are features, not ids, and train in the precision of the run"


def test_a_dump_says_its_precision_and_another_one_is_refused(tmp_path):
    import json

    model = zoo.create_model("dvae_tiny")
    data = data_for(model)
    for split in ("train", "val"):
        quiet_trainer(tmp_path, callbacks=[TokenDump(str(tmp_path), split)]).predict(model, data)
    path = tmp_path / "val" / "header.json"
    header = json.loads(path.read_text())
    assert header["precision"] == "float32"
    TokenData(str(tmp_path)).setup("fit")
    path.write_text(json.dumps(header | {"precision": "bfloat16"}))
    with pytest.raises(ValueError, match=r"val.*ids of bfloat16.*float32.*write"):
        TokenData(str(tmp_path)).setup("fit")
    del header["precision"]
    path.write_text(json.dumps(header))
    with pytest.warns(UserWarning, match=r"val does not say in which precision.*write"):
        TokenData(str(tmp_path)).setup("fit")


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "64-true"])
def test_precisions_that_change_the_weights_are_refused_before_any_work(precision, tmp_path):
    trainer = pl.Trainer(precision=precision, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    with pytest.raises(ValueError, match=f"precision={precision}"):
        trainer.predict(zoo.create_model("dvae_tiny"), ToyData(32))
