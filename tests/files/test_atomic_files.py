"""A file is the old one or the new one, whatever happens while it is written."""

import os
import re
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_disk import small_disk  # noqa: F401 - a fixture

from zoo.checkpoints.export import write_safetensors
from zoo.files import atomic as atomic_files
from zoo.files.atomic import write_picture_whole, write_text_whole, write_whole

ROOT = Path(__file__).parents[2]


def leftovers(folder):
    return [path.name for path in folder.rglob("*") if path.suffix == ".part"]


def forget_sweeps():
    atomic_files._cleaned.clear()


def test_text_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "a.json"
    assert write_text_whole(path, "one") == path
    write_text_whole(path, "zwö")
    assert path.read_text(encoding="utf-8") == "zwö"
    assert os.listdir(path.parent) == ["a.json"]


def test_an_error_in_the_middle_leaves_the_old_file(tmp_path):
    path = write_text_whole(tmp_path / "a.txt", "old")

    def write(error):
        with write_whole(path) as part:
            part.write_text("half")
            raise error

    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            write(error)
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["a.txt"]


def test_new_files_have_the_permissions_that_the_user_wants(tmp_path):
    before = os.umask(0o027)
    try:
        text = write_text_whole(tmp_path / "a.txt", "a")
        tensors = write_safetensors({"a": torch.ones(2)}, tmp_path / "a.safetensors", {})
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (text, tensors)] == [0o640, 0o640]


def test_a_picture_takes_its_format_from_the_name(tmp_path):
    from PIL import Image

    path = write_picture_whole(tmp_path / "a.png", Image.new("RGB", (2, 3)))
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.size == (2, 3)


def test_leftovers_of_a_kill_are_removed_by_the_next_write_and_those_of_the_living_are_not(tmp_path):
    path = tmp_path / "a.txt"
    pid = os.fork()
    if pid == 0:
        with write_whole(path) as part:
            part.write_text("half")
            os._exit(9)  # as a kill does, nothing is tidied up
    os.waitpid(pid, 0)
    assert len(leftovers(tmp_path)) == 1
    assert not path.exists()
    forget_sweeps()
    with write_whole(path) as part:
        assert leftovers(tmp_path) == [part.parent.name]
        forget_sweeps()
        write_text_whole(path, "of another process")
        assert leftovers(tmp_path) == [part.parent.name]
        part.write_text("of this one")
    assert path.read_text() == "of this one"
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_folder_is_replaced_as_a_whole(tmp_path, monkeypatch, at_once):
    if not at_once:
        monkeypatch.setattr(atomic_files, "_swap_names", lambda one, other: False)
    path = tmp_path / "last.ckpt"
    for names in (["a", "b"], ["b"]):
        with write_whole(path) as part:
            part.mkdir()
            for name in names:
                (part / name).write_text(name)
        assert sorted(os.listdir(path)) == names
        assert os.listdir(tmp_path) == ["last.ckpt"]
    write_text_whole(path, "a file in its place")
    assert path.read_text() == "a file in its place"
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_folder_that_was_moved_away_when_the_process_was_killed_comes_back(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    path.mkdir()
    (path / "a").write_text("old")
    pid = os.fork()
    if pid == 0:
        rename = os.rename
        monkeypatch.setattr(atomic_files, "_swap_names", lambda one, other: False)
        monkeypatch.setattr(os, "rename", lambda one, other: os._exit(9) if one != path else rename(one, other))
        with write_whole(path) as part:
            part.mkdir()
    os.waitpid(pid, 0)
    assert not path.exists()
    forget_sweeps()
    with pytest.raises(ValueError), write_whole(path) as part:
        raise ValueError
    assert (path / "a").read_text() == "old"
    assert not leftovers(tmp_path)


def test_a_full_disk_is_one_sentence_and_the_old_file_stays(small_disk):  # noqa: F811
    small = {"a": torch.arange(10)}
    large = {"a": torch.zeros(2**20)}
    writers = {
        "a.ckpt": torch.save,
        "a.safetensors": save_file,
        "a.txt": lambda value, path: path.write_text(str(value["a"].tolist())),
    }
    for name, write in writers.items():
        path = small_disk / name
        with write_whole(path) as part:
            write(small, part)
        old = path.read_bytes()
        with pytest.raises(OSError) as caught, write_whole(path) as part:
            write(large, part)
        said = str(caught.value)
        assert said == f"{path} was not written: No space left on device; what was there before is unchanged"
        assert path.read_bytes() == old
        assert not leftovers(small_disk)


def test_a_place_that_cannot_be_written_to_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught:
        write_text_whole(tmp_path / "file" / "a.txt", "a")
    assert str(caught.value) == f"{tmp_path / 'file' / 'a.txt'} was not written: File exists; nothing is left of it"


ELSEWHERE = {
    ("zoo/files/atomic.py", "part.write_text"),  # the place itself
    ("zoo/runs/loggers.py", 'self.path.open("a"'),  # rows are appended
    ("zoo/files/lock.py", 'self.path.open("a+"'),  # a lock
    ("zoo/checkpoints/published/gguf_llama.py", '"config.json").write_text'),  # in a folder that is written as a whole
    ("zoo/checkpoints/sharded.py", "part.write_bytes"),  # in a temporary folder
    ("zoo/checkpoints/lightning_io.py", "path.write_bytes"),  # likewise
    ("datamodules/image_folder.py", "self._list.write_text"),  # likewise
    ("benchmarks/vq_lookup.py", 'Path("/proc/self/clear_refs").write_text'),  # no file
}


def test_nothing_is_written_past_this_place():
    writes = re.compile(r"""^.*?(\S*\.write_(?:text|bytes)|\S*open\([^)]*["'][wax]\+?b?["'])""")
    found = set()
    for folder in ("zoo", "datamodules", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for line in path.read_text().splitlines():
                if (match := writes.match(line)) and "part.open" not in line:
                    found.add((str(path.relative_to(ROOT)), match[1]))
    assert {(path, next((text for p, text in ELSEWHERE if p == path and text in got), got)) for path, got in found} == (
        ELSEWHERE
    )
