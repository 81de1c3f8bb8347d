"""Flax bytes: every array as it was written, and nothing but arrays."""

import msgpack
import numpy as np
import pytest
import torch

from zoo.checkpoints import files, flax_msgpack


def packed(array):
    """An array as flax.serialization writes it."""
    return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True))


def write(path, tree):
    path.write_bytes(msgpack.packb(tree, use_bin_type=True))
    return path


def test_arrays_keep_names_shapes_types_and_values(tmp_path):
    kernel = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    tree = {"params": {"encoder": {"Conv_0": {"kernel": packed(kernel)}}, "step": packed(np.array(7, np.int32))}}
    state = files.read_checkpoint(write(tmp_path / "checkpoint", tree)).state
    assert set(state) == {"encoder/Conv_0/kernel", "step"}
    assert torch.equal(state["encoder/Conv_0/kernel"], torch.from_numpy(kernel))
    assert state["step"].dtype == torch.int32
    assert state["step"].shape == ()
    assert state["step"] == 7


def test_a_chunked_array_is_joined(tmp_path):
    array = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float16)
    flat = array.reshape(-1)
    chunks = {str(i): packed(part) for i, part in enumerate(np.split(flat, [3, 14]))}
    tree = {"w": {"__msgpack_chunked_array__": True, "shape": {"0": 4, "1": 5}, "chunks": chunks}}
    assert torch.equal(flax_msgpack.read_flax(write(tmp_path / "f", tree))["w"], torch.from_numpy(array))
    del chunks["2"]
    with pytest.raises(ValueError, match="chunks of w do not make up its shape"):
        flax_msgpack.read_flax(write(tmp_path / "f", tree))


def test_bfloat16_is_read(tmp_path):
    values = torch.tensor([1.5, -2.0, 3.25], dtype=torch.bfloat16)
    data = (values.shape, "bfloat16", values.view(torch.int16).numpy().tobytes())
    tree = {"params": {"w": msgpack.ExtType(1, msgpack.packb(data, use_bin_type=True))}}
    assert torch.equal(flax_msgpack.read_flax(write(tmp_path / "f", tree))["w"], values)


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"params": {"w": msgpack.ExtType(3, b"x")}}, "extension type 3"),
        ({"params": {"w": [1, 2]}}, "w is a list and no array"),
        ({"params": {"a": {"b": "text"}}}, "a/b is a str and no array"),
        ({"w": msgpack.ExtType(1, msgpack.packb(((2,), "object", b"xx")))}, "array of type object"),
        ({"w": msgpack.ExtType(1, msgpack.packb(((2,), "float32", b"xx")))}, "2 bytes instead of 8"),
    ],
)
def test_everything_else_is_refused(tmp_path, tree, sentence):
    with pytest.raises(ValueError, match=sentence):
        files.read_checkpoint(write(tmp_path / "f", tree))


def test_damaged_bytes_end_with_one_sentence(tmp_path):
    path = write(tmp_path / "f", {"params": {"w": packed(np.ones((8, 8), np.float32))}})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="damaged or is no checkpoint"):
        files.read_checkpoint(path)


def test_pickles_and_zips_are_not_taken_for_msgpack(tmp_path):
    for zipped in (True, False):
        torch.save({"w": torch.ones(2)}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
        assert not flax_msgpack.begins_flax_file((tmp_path / "w.pt").read_bytes()[:9])
        assert torch.equal(files.read_checkpoint(tmp_path / "w.pt").state["w"], torch.ones(2))
