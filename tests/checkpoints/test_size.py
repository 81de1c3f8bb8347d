"""Small files that ask for much: refused in a sentence, within bounds of time and memory."""

import functools
import json
import pickle
import re
import resource
import struct
import time
import zipfile

import msgpack
import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import Toy

import zoo
from zoo.checkpoints import pickles
from zoo.checkpoints.export import save_weights
from zoo.checkpoints.files import read_checkpoint
from zoo.checkpoints.size import check_size

SECONDS, BYTES = 20, 400e6  # processor time and memory of a refusal, on a busy machine


@pytest.fixture
def bounded():
    """Fails a test that takes much time of this process, or much memory beyond what it has."""
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.process_time()
    yield
    assert time.process_time() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - memory < BYTES


def deflated(path):
    """A gigabyte of zeros in a megabyte: torch reads it as a whole."""
    torch.save({"w": torch.zeros(8)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            with archive.open(name, "w", force_zip64=True) as entry:
                if name.endswith("/data/0"):
                    for _ in range(64):
                        entry.write(bytes(2**24))
                else:
                    entry.write(data.replace(b"K\x08", b"J\x00\x00\x00\x10"))  # 2^28 numbers


def repeated(path):
    torch.save({"w": torch.zeros(1).expand(10**6, 10**6)}, path)


def many_views(path):
    torch.save({f"w{i}": torch.zeros(1).expand(4000, 4000) for i in range(40)}, path)


def lying_storage(path):
    torch.save({"w": torch.zeros(8)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data.replace(b"K\x08", b"J\xff\xff\xff\x7f"))


def lying_old_storage(path):
    torch.save({"w": torch.zeros(8)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"K\x08", b"J\xff\xff\xff\x7f"))


def lying_old_module(path):
    torch.save(torch.nn.Sequential(), path, _use_new_zipfile_serialization=False)
    module = torch.nn.Sequential()
    module.register_buffer("w", torch.zeros(8))
    torch.save(module, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"K\x08", b"J\xff\xff\xff\x7f"))


def with_pickle(body, path):
    """A zip file of torch around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", body)
        archive.writestr("a/version", "3\n")


def with_old_pickle(body, path):
    """A file of torch before 1.6 around a pickle, with a whole module in it."""
    module = b"(X\x06\x00\x00\x00modulectorch.nn.modules.activation\nReLU\nX\x01\x00\x00\x00fX\x01\x00\x00\x00stQ"
    head = b"".join(pickle.dumps(part, 2) for part in (pickles.MAGIC, 1001, {}))
    path.write_bytes(head + b"\x80\x02" + module + body + pickle.dumps([], 2))


ZEROS = b"cbuiltins\nbytearray\nJ\x00\x00\x00\x3f\x85R"  # a gigabyte of them


def zeros(path):
    with_pickle(b"\x80\x02" + ZEROS + b".", path)


def old_zeros(path):
    with_old_pickle(ZEROS + b".", path)


def long_memo(path):
    with_old_pickle(b"r" + struct.pack("<I", 2**27) + b".", path)


def named_memo(path):
    with_old_pickle(b"p134217728\n.", path)


def endless(path):
    """Ten lists of ten lists of ten lists."""
    value = [0] * 10
    for _ in range(14):
        value = [value] * 10
    torch.save({"state_dict": {"w": torch.zeros(1)}, "args": value}, path)


def holding_itself(path):
    value = []
    value.append(value)
    torch.save({"state_dict": {"w": torch.zeros(1)}, "args": value}, path)


def meta(path):
    torch.save({"w": torch.empty(4, 4, device="meta")}, path)


def sparse(path):
    torch.save({"w": torch.sparse_coo_tensor([[0], [0]], [1.0], (1000, 1000), check_invariants=True)}, path)


def flax_shape(path):
    array = msgpack.ExtType(1, msgpack.packb(([10**9, 10**9], "float32", b"0000")))
    path.write_bytes(msgpack.packb({"params": {"w": array}}))


def flax_lists(path):
    path.write_bytes(b"\x81\xa6params" + b"\xdd\x00\x0f\xff\xff" * 4000)


FILES = (
    deflated, repeated, many_views, lying_storage, lying_old_storage, lying_old_module, meta, sparse, flax_shape,
    flax_lists, zeros, old_zeros, long_memo, named_memo, endless, holding_itself,
)  # fmt: skip


@pytest.mark.parametrize("write", FILES)
def test_a_file_that_grows_when_it_is_read_is_refused(tmp_path, bounded, write):
    path = tmp_path / "file.pt"
    write(path)
    with pytest.raises(ValueError, match=re.escape(str(path))) as raised:
        read_checkpoint(path)
    assert "\n" not in str(raised.value)
    assert "weights_only" not in str(raised.value)


def header(entries, length=None, tail=b""):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + tail


def tensor(shape, start, end, kind="F32"):
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


HEADERS = {
    "longer than the file": header({"w": tensor([2], 0, 8)}, length=2**40, tail=bytes(8)),
    "of negative length": header({"w": tensor([2], 0, 8)}, length=2**64 - 1, tail=bytes(8)),
    "a huge shape": header({"w": tensor([10**9, 10**9], 0, 8)}, tail=bytes(8)),
    "an overflowing shape": header({"w": tensor([2**32, 2**32], 0, 0)}),
    "offsets beyond the end": header({"w": tensor([2**20], 0, 2**22)}, tail=bytes(8)),
    "overlapping tensors": header({"w": tensor([2], 0, 8), "v": tensor([2], 4, 12)}, tail=bytes(12)),
    "a hole": header({"w": tensor([2], 8, 16)}, tail=bytes(16)),
    "an unknown type": header({"w": tensor([2], 0, 8, "F99")}, tail=bytes(8)),
    "bytes behind the end": header({"w": tensor([2], 0, 8)}, tail=bytes(80)),
    "no mapping": header([1, 2]),
    "deep metadata": header({"__metadata__": {"zoo": "[" * 10**5}, "w": tensor([2], 0, 8)}, tail=bytes(8)),
    "metadata of a list": header({"__metadata__": {"zoo": "[1]"}, "w": tensor([2], 0, 8)}, tail=bytes(8)),
}


@pytest.mark.parametrize("case", HEADERS)
@pytest.mark.parametrize("name", ["f.safetensors", "f.bin"])
def test_a_header_of_safetensors_that_lies_is_refused(tmp_path, bounded, case, name):
    path = tmp_path / name
    path.write_bytes(HEADERS[case])
    with pytest.raises(ValueError, match="is damaged") as raised:
        read_checkpoint(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


#: preset, setting, and a value that makes it large in a way of its own
LARGE = [
    ("dvae_tiny", "width", 10**9),
    ("dvae_tiny", "width", 60_000),
    ("dvae_tiny", "blocks", 10**6),
    ("dvae_tiny", "groups", 10**6),
    ("dvae_tiny", "vocab_size", 2**62),
    ("vqgan_tiny", "multipliers", [1] * 10**5),
    ("vqgan_tiny", "multipliers", [1, 10**9]),
    ("vqgan_tiny", "discriminator.layers", 10**9),
    ("vqgan_tiny", "codebook.vocab_size", 10**9),
    ("beit_tiny", "depth", 10**9),
    ("beit_tiny", "width", 2**20),
    ("beit_tiny", "mlp_ratio", 1e12),
    ("beit_tiny", "image_size", 10**9),
    ("maskgit_tiny", "depth", 10**6),
    ("ar_transformer_tiny", "width", 2**20),
    ("llava_tiny", "projector_depth", 10**6),
    ("blip2_stage1_tiny", "qformer.queries", 10**9),
    ("llava_tiny", "image_size", 30_000),
    ("llava_tiny", "vision", "tiny_random:10000000000"),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return {name: save_weights(zoo.create_model(name), folder / f"{name}.safetensors") for name, *_ in LARGE}


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "setting", "value"), LARGE)
def test_a_description_far_larger_than_its_weights_is_refused(exported, tmp_path, bounded, preset, setting, value):
    from safetensors import safe_open

    with safe_open(exported[preset], "pt") as file:
        said = json.loads(file.metadata()["zoo"])
    *groups, name = setting.split(".")
    functools.reduce(dict.get, groups, said["init_args"])[name] = value
    path = tmp_path / "f.safetensors"
    save_file(load_file(exported[preset]), path, {"zoo": json.dumps(said)})
    with pytest.raises((ValueError, TypeError)) as raised:
        zoo.create_model(f"ckpt:{path}")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600
    with pytest.raises((ValueError, TypeError)):
        zoo.create_model("maskgit_tiny", tokenizer=f"ckpt:{path}")


def test_it_is_where_facts_about_the_model_are_all_that_is_wanted(tmp_path, bounded):
    said = {"class": "zoo.models.dvae.DVAE", "init_args": {"blocks": 10**9}, "version": "0"}
    save_file({"x": torch.zeros(1)}, tmp_path / "f.safetensors", {"zoo": json.dumps(said)})
    with pytest.raises(ValueError, match="asks for a model with blocks 1,000,000,000"):
        zoo.model_info(f"ckpt:{tmp_path / 'f.safetensors'}")


def test_so_it_is_by_lightnings_way(tmp_path, bounded):
    content = {"state_dict": Toy(image_size=16).state_dict(), "pytorch-lightning_version": "2.6.0"}
    for settings in ({"image_size": 16, "width": 10**9}, {"image_size": 16, "width": 500_000}):
        torch.save(content | {"hyper_parameters": settings}, tmp_path / "f.ckpt")
        with pytest.raises(ValueError, match="asks for a model"):
            Toy.load_from_checkpoint(tmp_path / "f.ckpt")


@pytest.mark.parametrize("preset", ["dvae_emoji", "vqgan_tiny", "beit_tiny", "llava_tiny", "seed_llm_tiny"])
def test_an_honest_description_is_built_and_draws_no_random_number_more(tmp_path, preset):
    path = save_weights(zoo.create_model(preset), tmp_path / "f.safetensors")
    found = zoo.create_model(f"ckpt:{path}")
    before = torch.get_rng_state()
    check_size(type(found), dict(found.hparams), load_file(path), path)
    assert torch.equal(torch.get_rng_state(), before)
