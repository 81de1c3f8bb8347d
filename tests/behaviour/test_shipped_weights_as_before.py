"""The weights in the package make the same tokens and pixels as before the redesign: ids exactly, floats to 1e-6."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import observed
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import zoo

FACTS = observed.read("shipped.json") if (observed.FOLDER / "shipped.json").exists() else {}


def described(path: Path) -> dict[str, Any]:
    """What the head of a safetensors file says about its model."""
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        return json.loads(json.loads(file.read(size))["__metadata__"]["zoo"])


def outputs(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts about the file of a model, and what the model makes of two pictures."""
    weights = next(w for w in zoo.model_info(name).weights.values() if w.file)
    model = zoo.create_model(name, weights=True).eval()
    size = model.hparams.get("image_size") or model.frozen["tokenizer"].hparams["image_size"]
    images = observed.pictures(2, size)
    with torch.no_grad():
        tokens = model.encode(images)
        made = {"ids": tokens.ids} if tokens.ids is not None else {"embeddings": tokens.embeddings[..., ::8]}
        decoded = model.decode(tokens)
        made["decoded"] = decoded[..., 3::8, 5::8] if decoded.ndim == 4 else decoded[..., ::8]
        if tokens.ids is not None:
            made["embed"] = model.embed(tokens.ids)[:, ::8, ::4]
        if type(model).__name__ == "MaskGIT":
            made["generated"] = model.generate([0, 3], as_tokens=True, seed=0).ids
        if type(model).__name__ == "BEiT":
            mask = torch.arange(2 * model.grid[0] * model.grid[1]).reshape(2, *model.grid) % 3 == 0
            made["completed"] = model.complete(images, mask).ids
    said = described(weights.path)
    facts = {
        "file": weights.file,
        "sha256": hashlib.sha256(weights.path.read_bytes()).hexdigest(),
        "class": said["class"],
        "init_args": said["init_args"],
        "model_init_args": model.init_args(),
        "absent": model.not_in_file,
    }
    return facts, made


@pytest.fixture(scope="module", params=sorted(FACTS))
def shipped(request):
    return request.param, *outputs(request.param)


def test_every_shipped_file_has_its_fixture():
    assert sorted(FACTS) == sorted(zoo.list_models(weights=True))


def test_the_file_is_the_same_and_its_description_is_read_as_before(shipped):
    name, found, _ = shipped
    before, cls = FACTS[name], zoo.model_info(name).cls
    assert observed.differences(found["absent"], before["absent"], more=False) == []
    for key in ("file", "sha256", "class", "init_args"):
        assert found[key] == before[key], f"{name}: {key} in the shipped file changed"
    lines = observed.argument_differences(cls, found["model_init_args"], before["model_init_args"])
    assert not lines, observed.said(f"init_args of {name}", lines)


def test_the_outputs_are_the_same(shipped):
    name, _, made = shipped
    before = load_file(observed.FOLDER / "shipped.safetensors")
    assert {f"{name}.{key}" for key in made} == {key for key in before if key.partition(".")[0] == name}
    for key, value in made.items():
        expected = before[f"{name}.{key}"]
        assert value.shape == expected.shape, f"{name}: shape or type of {key}"
        assert value.dtype == expected.dtype, f"{name}: shape or type of {key}"
        if value.is_floating_point():
            far = (value - expected).abs().max()
            assert far <= 1e-6 * max(1, expected.abs().max()), f"{name}: {key} is {far:.2g} away from what it was"
        else:
            other = int((value != expected).sum())
            assert other == 0, f"{name}: {other} of {value.numel()} of {key} are others than before"
