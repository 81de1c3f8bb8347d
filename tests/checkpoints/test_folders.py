"""Folders of weights as transformers and diffusers write them: whole, in shards, in variants, and damaged ones."""

import json
import logging

import pytest
import torch
from published_folders import stirred
from safetensors.torch import save_file

import zoo
from zoo.checkpoints.files import read_checkpoint
from zoo.checkpoints.published import diffusers_vq

FORMS = [
    (sharded, safe, variant)
    for sharded in (False, True)
    for safe in (True, False)
    for variant in (None, "fp16", "non_ema")
]


@pytest.fixture(scope="module")
def model():
    return stirred("vqgan_tiny")


@pytest.fixture(scope="module")
def theirs(model, tmp_path_factory):
    diffusers = pytest.importorskip("diffusers")
    return diffusers.VQModel.from_pretrained(
        diffusers_vq.save_diffusers(model, tmp_path_factory.mktemp("whole") / "vq")
    )


def assert_equal(found, model):
    expected = {n: v for n, v in model.state_dict().items() if not n.startswith("discriminator.")}
    assert all(torch.equal(found.state_dict()[name], value) for name, value in expected.items())


@pytest.mark.parametrize(("sharded", "safe", "variant"), FORMS)
def test_every_form_that_diffusers_writes_is_found(model, theirs, tmp_path, caplog, sharded, safe, variant):
    size = "20KB" if sharded else "5GB"
    theirs.save_pretrained(tmp_path, safe_serialization=safe, max_shard_size=size, variant=variant)
    written = {file.name for file in tmp_path.iterdir()}
    assert any(name.endswith(".json") and ".index" in name for name in written) == sharded
    with caplog.at_level(logging.INFO):
        assert_equal(zoo.create_model("vqgan_tiny", weights=tmp_path), model)
    assert (f"the variant {variant} alone" in caplog.text) == (variant is not None)
    if variant is not None:
        assert_equal(zoo.create_model("vqgan_tiny", weights=f"{tmp_path}#{variant}"), model)


def test_the_usual_variant_is_read_where_there_are_several_and_another_by_its_name(tmp_path):
    for number, variant in enumerate(("", ".fp16", ".non_ema")):
        save_file({"w": torch.full((2,), float(number))}, tmp_path / f"diffusion_pytorch_model{variant}.safetensors")
    assert read_checkpoint(tmp_path).state["w"].tolist() == [0, 0]
    assert read_checkpoint(f"{tmp_path}#fp16").state["w"].tolist() == [1, 1]
    assert read_checkpoint(f"{tmp_path}#non_ema").state["w"].tolist() == [2, 2]
    with pytest.raises(FileNotFoundError, match="no weights called 'bf16': there are fp16, non_ema"):
        read_checkpoint(f"{tmp_path}#bf16")
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"several variants of its weights: choose one of .*#fp16, .*#non_ema"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model"])
@pytest.mark.parametrize("name", ["{}.safetensors.index.fp16.json", "{}.fp16.safetensors.index.json"])
def test_both_spellings_of_the_index_of_a_variant_are_known(tmp_path, stem, name):
    save_file({"w": torch.ones(2)}, tmp_path / f"{stem}.fp16-00001-of-00001.safetensors")
    index = {"weight_map": {"w": f"{stem}.fp16-00001-of-00001.safetensors"}}
    (tmp_path / name.format(stem)).write_text(json.dumps(index))
    assert read_checkpoint(tmp_path).state["w"].tolist() == [1, 1]
    assert read_checkpoint(tmp_path / name.format(stem)).state["w"].tolist() == [1, 1]  # the index itself is a path too


def test_safetensors_are_read_before_pickles_and_whole_files_before_shards(tmp_path):
    torch.save({"w": torch.full((1,), 3.0)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text("{}")
    assert read_checkpoint(tmp_path).state["w"].item() == 3
    save_file({"w": torch.full((1,), 2.0)}, tmp_path / "a.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "a.safetensors"}}))
    assert read_checkpoint(tmp_path).state["w"].item() == 2
    save_file({"w": torch.full((1,), 1.0)}, tmp_path / "model.safetensors")
    assert read_checkpoint(tmp_path).state["w"].item() == 1


OUTSIDE = "outside of it is read"
INDICES = {
    "without its map": ({"metadata": {"total_size": 8}}, "has no weight_map"),
    "an empty map": ({"weight_map": {}}, "has no weight_map"),
    "a map that is a list": ({"weight_map": ["a.safetensors"]}, "has no weight_map"),
    "a list": (["a.safetensors"], "holds a list and not settings by name"),
    "no JSON": ("{", "is damaged or is no checkpoint"),
    "a file above": ({"weight_map": {"w": "../secret.safetensors"}}, OUTSIDE),
    "a file above, further down": ({"weight_map": {"w": "sub/../../secret.safetensors"}}, OUTSIDE),
    "an absolute path": ({"weight_map": {"w": "/{root}/secret.safetensors"}}, OUTSIDE),
    "a number": ({"weight_map": {"w": 3}}, OUTSIDE),
    "a file that is missing": ({"weight_map": {"w": "b.safetensors"}}, "b.safetensors, which is not in"),
    "a tensor that is elsewhere": ({"weight_map": {"v": "a.safetensors"}}, "a.safetensors lacks v, which"),
}


@pytest.mark.parametrize("case", INDICES)
@pytest.mark.parametrize("name", ["model.safetensors.index.json", "diffusion_pytorch_model.bin.index.json"])
def test_an_index_that_is_not_whole_or_leads_out_of_its_folder_is_refused(tmp_path, case, name):
    content, words = INDICES[case]
    folder = tmp_path / "in"
    folder.mkdir()
    save_file({"w": torch.ones(2)}, tmp_path / "secret.safetensors")
    save_file({"w": torch.ones(2)}, folder / "a.safetensors")
    text = content if isinstance(content, str) else json.dumps(content).replace("{root}", str(tmp_path).lstrip("/"))
    (folder / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=words) as raised:
        read_checkpoint(folder)
    assert "\n" not in str(raised.value)
    assert str(folder) in str(raised.value)


def test_a_folder_without_weights_names_those_further_down(tmp_path):
    (tmp_path / "vqvae").mkdir()
    save_file({"w": torch.ones(2)}, tmp_path / "vqvae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(FileNotFoundError, match=f"there are weights in {tmp_path / 'vqvae'}"):
        read_checkpoint(tmp_path)
    assert read_checkpoint(f"{tmp_path}#vqvae").state["w"].tolist() == [1, 1]


@pytest.mark.parametrize("name", ["model.safetensors", "last.ckpt"])
def test_a_pointer_of_git_lfs_is_called_so(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1000\n")
    with pytest.raises(ValueError, match="is a pointer of git-lfs and no weights: run git lfs pull"):
        read_checkpoint(tmp_path / name)
