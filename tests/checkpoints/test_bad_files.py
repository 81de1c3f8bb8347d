"""Files that must not be loaded: each ends with one sentence, runs nothing, and leaves the model as it was."""

import argparse
import os
import pickle
import zipfile

import pytest
import torch
from payloads import Payload

from zoo import create_model
from zoo.checkpoints.export import save_weights
from zoo.checkpoints.files import read_checkpoint
from zoo.checkpoints.pickles import UnsafePickleError
from zoo.models.dvae import DVAE
from zoo.registry import from_checkpoint

SMALL = {"image_size": 16, "width": 8, "blocks": 1, "groups": 2, "vocab_size": 32, "code_width": 8}


@pytest.fixture
def model():
    return DVAE(**SMALL)


def untouched(model, source, error=ValueError):
    """The message of a load that fails; the model must not have changed."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error) as raised:
        model.load_weights(source)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    message = str(raised.value)
    assert "\n" not in message
    return message


def payload_files(folder, marker):
    from dall_e.encoder import Encoder

    module = Encoder(n_hid=64, vocab_size=512)
    module.blocks.input.extra = Payload(marker)
    for name, content in {"dict": {"state_dict": {}, "more": Payload(marker)}, "module": module}.items():
        for zipped in (True, False):
            path = folder / f"{name}-{'zip' if zipped else 'old'}.pkl"
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            yield path


def test_a_payload_is_refused_by_name_and_does_not_run(model, tmp_path):
    marker = tmp_path / "ran"
    paths = list(payload_files(tmp_path, marker))
    assert len(paths) == 4
    for path in paths:
        message = untouched(model, path, UnsafePickleError)
        assert f"{os.mkdir.__module__}.mkdir" in message
        assert "could run code" in message
        assert str(path) in message
        assert not marker.exists()
    with pytest.raises(UnsafePickleError):
        from_checkpoint(paths[0])
    assert not marker.exists()
    torch.load(paths[0], weights_only=False)  # the payload is live: an ordinary load runs it
    assert marker.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_a_class_that_no_layout_knows_is_refused_by_name(model, tmp_path, zipped):
    torch.save(torch.nn.Bilinear(2, 2, 2), tmp_path / "m.pkl", _use_new_zipfile_serialization=zipped)
    assert "torch.nn.modules.linear.Bilinear" in untouched(model, tmp_path / "m.pkl", UnsafePickleError)


def test_a_plain_pickle_is_refused_without_running(model, tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(Payload(marker)))
    assert str(tmp_path / "m.pkl") in untouched(model, tmp_path / "m.pkl")
    assert not marker.exists()


def test_old_format_modules_keep_shared_storages_strides_and_buffers(tmp_path):
    """The reader of old files against torch's own writer."""
    from dall_e.utils import Conv2d

    module = torch.nn.Sequential(Conv2d(2, 3, 3), Conv2d(3, 2, 1))
    base = torch.arange(24.0)
    module[0].w = torch.nn.Parameter(base[2:20].view(3, 6).t())  # a view, not contiguous
    module[1].w = torch.nn.Parameter(base[20:])  # of the same storage
    module.register_buffer("count", torch.tensor([5, -7]))
    module.register_buffer("halves", torch.tensor([0.5, 2.0], dtype=torch.float16))
    module.register_buffer("scratch", torch.zeros(1), persistent=False)
    torch.save(module, tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    state = read_checkpoint(tmp_path / "old.pkl", ["dall_e.utils.Conv2d"]).state
    expected = module.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
        assert state[name].dtype == value.dtype, name


@pytest.mark.parametrize("kind", ["ckpt", "old", "old module", "safetensors"])
def test_a_truncated_file_is_called_damaged(model, tmp_path, kind):
    path = tmp_path / "model.pt"
    if kind == "safetensors":
        path = save_weights(model, tmp_path / "model.safetensors")
    elif kind == "old module":
        from dall_e.utils import Conv2d

        torch.save(torch.nn.Sequential(Conv2d(8, 8, 3)), path, _use_new_zipfile_serialization=False)
    else:
        torch.save({"state_dict": model.state_dict()}, path, _use_new_zipfile_serialization=kind == "ckpt")
    whole = path.read_bytes()
    for keep in (len(whole) - 40, len(whole) // 2, 20, 0):
        path.write_bytes(whole[:keep])
        message = untouched(model, path)
        assert "damaged" in message
        assert str(path) in message
        assert len(message) < 400
        with pytest.raises(ValueError, match="damaged"):
            from_checkpoint(path)


def test_another_models_checkpoint_is_called_by_its_name(model, tmp_path):
    save_weights(model, tmp_path / "dvae.safetensors")

    class Other(DVAE):
        formats = ()

        def __init__(self):
            super().__init__(**SMALL)
            del self.encoder, self.decoder
            self.net = torch.nn.Linear(2, 2)

    other = Other()
    message = untouched(other, tmp_path / "dvae.safetensors")
    assert "not for Other" in message
    assert "zoo.models.dvae.DVAE" in message
    assert "decoder.blocks." in message
    torch.save(model.encoder.state_dict(), tmp_path / "encoder.pt")  # no description: known by its names
    message = untouched(other, tmp_path / "encoder.pt")
    assert "OpenAI dVAE" in message
    assert "DVAE reads" in message


def test_unknown_names_are_answered_with_what_can_be_read(model, tmp_path):
    torch.save({f"backbone.layer{i}.weight": torch.zeros(1) for i in range(20)}, tmp_path / "resnet.pt")
    message = untouched(model, tmp_path / "resnet.pt")
    assert "backbone.layer7.weight" in message
    assert "backbone.layer8.weight" not in message
    assert "20 in all" in message
    assert all(layout.name in message for layout in DVAE.formats)


def test_missing_and_unexpected_names_are_listed(model, tmp_path):
    state = model.state_dict()
    del state["decoder.blocks.input.b"]
    state["decoder.blocks.extra.w"] = torch.zeros(1)
    torch.save(state, tmp_path / "m.pt")
    message = untouched(model, tmp_path / "m.pt")
    assert "lacks decoder.blocks.input.b" in message
    assert "unexpected decoder.blocks.extra.w" in message


def test_another_vocabulary_is_named_with_both_shapes(model, tmp_path):
    save_weights(DVAE(**SMALL | {"vocab_size": 48}), tmp_path / "m.safetensors")
    message = untouched(model, tmp_path / "m.safetensors")
    assert "encoder.blocks.output.conv.w is 48x16x1x1 in the file and 32x16x1x1 in the model" in message
    assert "decoder.blocks.input.w is 8x48x1x1 in the file and 8x32x1x1 in the model" in message
    assert "nothing was loaded" in message


def test_a_file_without_description_cannot_be_built_from(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"m\.pt does not say which model it is of.*create_model\(NAME, weights="):
        create_model(f"ckpt:{tmp_path / 'm.pt'}")


def test_a_class_that_is_not_registered_is_not_imported(tmp_path):
    path = tmp_path / "m.ckpt"
    torch.save({"state_dict": {"w": torch.zeros(1)}, "zoo": {"class": "os.system", "init_args": {}}}, path)
    with pytest.raises(ValueError, match=r"os\.system is not a registered model class"):
        from_checkpoint(path)


@pytest.mark.parametrize(
    ("source", "words"),
    [("nowhere.ckpt", "neither a file"), ("ckpt:nowhere.ckpt", "no checkpoint"), ("dvae_tiny:nowhere", "nor a tag")],
)
def test_a_source_that_is_not_there(model, source, words):
    message = untouched(model, source, FileNotFoundError)
    assert words in message
    assert "nowhere" in message


def test_weights_that_nobody_downloads_say_where_they_are(model):
    assert "cdn.openai.com" in untouched(model, "dvae_openai", FileNotFoundError)
    assert "dvae_tiny has no default weights" in untouched(model, "dvae_tiny")


def test_an_empty_folder_and_an_empty_file_of_weights(model, tmp_path):
    message = untouched(model, tmp_path, FileNotFoundError)
    assert "encoder.pkl" in message
    assert "model.safetensors" in message
    torch.save({}, tmp_path / "m.pt")
    assert "holds no state dict" in untouched(model, tmp_path / "m.pt")
    torch.save([1], tmp_path / "m.pt")
    assert "holds a list" in untouched(model, tmp_path / "m.pt")


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module"])
def test_usual_wrappers_and_training_records_are_seen_through(model, tmp_path, wrapper):
    other = DVAE(**SMALL)
    state = {f"module.{name}": value for name, value in other.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, tmp_path / "m.pth")
    assert zipfile.is_zipfile(tmp_path / "m.pth")
    model.load_weights(tmp_path / "m.pth")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_shards_of_a_folder_are_put_together(model, tmp_path):
    import json

    from safetensors.torch import save_file

    other = DVAE(**SMALL)
    state = {name: value.contiguous() for name, value in other.state_dict().items()}
    names = sorted(state)
    weight_map = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: state[name] for name in names if weight_map[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    model.load_weights(tmp_path)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
