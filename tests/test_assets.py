"""A cache that cannot be written to is said before work is done, with its variable; damaged files are made anew."""

import errno
import multiprocessing
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import emoji_drawings
from datamodules.emoji_drawings import load_rgba
from zoo import assets
from zoo.checkpoints.published import gguf_llama

FILES = ("1f427", "1f355")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENZOO_CACHE", str(tmp_path / "cache"))
    load_rgba.cache_clear()
    yield tmp_path / "cache"
    load_rgba.cache_clear()


@pytest.fixture
def drawings(monkeypatch):
    """Drawings without the packages that hold and draw them; counts how many are drawn."""
    drawn = []

    def draw(resvg_py, path, side):
        drawn.append(path)
        return np.full((side, side, 4), len(path.name), dtype=np.uint8)

    monkeypatch.setattr(emoji_drawings, "_svg", draw)
    monkeypatch.setattr(emoji_drawings, "_svg_paths", lambda files, style: [Path(file) for file in files])
    monkeypatch.setattr(emoji_drawings, "version", lambda package: "1")
    monkeypatch.setitem(sys.modules, "resvg_py", types.ModuleType("resvg_py"))
    return drawn


BLOCKED = ["a_file", "a_file/below", "/proc/tokenzoo"]


def block(tmp_path, monkeypatch, where):
    (tmp_path / "a_file").touch()
    monkeypatch.setenv("TOKENZOO_CACHE", str(tmp_path / where))


@pytest.mark.parametrize("where", BLOCKED)
def test_the_problem_names_the_folder_and_the_variable(tmp_path, monkeypatch, where):
    assert assets.find_cache_problem() is None
    assert list((tmp_path / "cache").iterdir()) == []
    block(tmp_path, monkeypatch, where)
    assert str(tmp_path / where) in assets.find_cache_problem()
    assert "set TOKENZOO_CACHE" in assets.find_cache_problem()


@pytest.mark.parametrize("where", BLOCKED)
def test_drawings_go_on_without_a_cache_and_say_so_first(tmp_path, monkeypatch, drawings, where):
    block(tmp_path, monkeypatch, where)
    said = []
    monkeypatch.setattr(emoji_drawings, "rank_zero_warn", lambda text: said.append((text, len(drawings))))
    pixels = load_rgba(FILES, "openmoji", 8)
    assert pixels.shape == (2, 4, 8, 8)
    assert len(drawings) == 2
    ((text, drawn_before),) = said
    assert drawn_before == 0
    assert "TOKENZOO_CACHE" in text
    assert "this run alone" in text


def test_a_disk_that_fills_up_loses_no_drawing(monkeypatch, drawings):
    def full(path, pixels):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(emoji_drawings, "_write", full)
    with pytest.warns(UserWarning, match=r"No space left on device.*TOKENZOO_CACHE"):
        assert load_rgba(FILES, "openmoji", 8).shape == (2, 4, 8, 8)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign", "other array", "pickle"])
def test_a_damaged_file_is_drawn_anew(own_cache, drawings, damage):
    pixels = load_rgba(FILES, "openmoji", 8)
    (file,) = own_cache.glob("*.npz")
    good = file.read_bytes()
    middle = len(good) // 2
    spoiled = {
        "cut": good[:middle], "flipped": good[: middle - 20] + bytes(40) + good[middle + 20 :], "empty": b"",
        "foreign": b"not an archive",
    }.get(damage)  # fmt: skip
    if spoiled is not None:
        file.write_bytes(spoiled)
    else:
        np.savez(file, rgba=np.zeros(3) if damage == "other array" else np.array([{}], dtype=object))
    load_rgba.cache_clear()
    assert torch.equal(load_rgba(FILES, "openmoji", 8), pixels)
    assert len(drawings) == 4
    load_rgba.cache_clear()
    assert torch.equal(load_rgba(FILES, "openmoji", 8), pixels)
    assert len(drawings) == 4


def fill(barrier, queue, value):
    import warnings

    warnings.simplefilter("error")
    emoji_drawings._svg = lambda resvg_py, path, side: np.full((side, side, 4), 7, dtype=np.uint8)
    emoji_drawings._svg_paths = lambda files, style: [Path(file) for file in files]
    emoji_drawings.version = lambda package: "1"
    barrier.wait()
    queue.put(int(load_rgba(FILES, "openmoji", 64).float().mean()))


def test_two_processes_fill_one_cache(own_cache):
    pytest.importorskip("resvg_py")
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.Queue()
    both = [context.Process(target=fill, args=(barrier, queue, i)) for i in range(2)]
    for process in both:
        process.start()
    assert [queue.get(timeout=60) for _ in both] == [7, 7]
    for process in both:
        process.join(60)
    assert [p.exitcode for p in both] == [0, 0]
    assert [f.suffix for f in own_cache.iterdir()] == [".npz"]


# ---------------------------------------------------------------- dequantised weights, which have to be on a disk


@pytest.fixture
def gguf(tmp_path, monkeypatch):
    """A GGUF file whose contents do not matter, and how often it is dequantised."""
    pytest.importorskip("gguf")
    made = []

    def write(folder, reader, path, config):
        from safetensors.torch import save_file

        made.append(path)
        save_file({"x": torch.ones(3)}, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr("gguf.GGUFReader", lambda path: None)
    monkeypatch.setattr(gguf_llama, "read_llama_config", lambda reader, path: {})
    monkeypatch.setattr(gguf_llama, "_write", write)
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return path, made


@pytest.mark.parametrize("where", BLOCKED)
def test_weights_are_not_dequantised_into_nothing(tmp_path, monkeypatch, gguf, where):
    path, made = gguf
    block(tmp_path, monkeypatch, where)
    with pytest.raises(OSError, match=r"model\.gguf have to be written .* set TOKENZOO_CACHE") as caught:
        gguf_llama.dequantise_gguf(path, "model")
    assert made == []
    assert "\n" not in str(caught.value)


def test_a_disk_that_fills_up_names_the_variable(monkeypatch, gguf):
    path, _ = gguf

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf_llama, "_write", full)
    with pytest.raises(OSError, match=r"No space left on device.*TOKENZOO_CACHE"):
        gguf_llama.dequantise_gguf(path, "model")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_damaged_weights_are_dequantised_anew(gguf, file):
    path, made = gguf
    folder = gguf_llama.dequantise_gguf(path, "model")
    assert gguf_llama.dequantise_gguf(path, "model") == folder
    assert len(made) == 1
    content = (folder / file).read_bytes()
    for spoiled in (content[: len(content) // 2], b"", None):
        (folder / file).write_bytes(spoiled) if spoiled is not None else (folder / file).unlink()
        assert gguf_llama.dequantise_gguf(path, "model") == folder
        assert (folder / file).read_bytes() == content
    assert len(made) == 4
