"""Checkpoints by address: refused by every way, downloaded where that is asked for, and then read as any file."""

import contextlib
import functools
import http.server
import os
import threading

import lightning.pytorch as pl
import pytest
import torch
from payloads import ASKS, SIZES, Payload, run_content
from toys import Toy, ToyData

import zoo
from zoo.checkpoints import addresses
from zoo.checkpoints.lightning_io import SafeCheckpointIO


def trainer(folder):
    return pl.Trainer(accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, default_root_dir=folder)


ADDRESSES = ("http://localhost:9/x.ckpt", "https://e.org/x", "s3://b/x", "gs://b/x", "hf://o/x", "memory://x",
             "simplecache::http://localhost:9/x", "registry:model", "registry", "REGISTRY:m:version:1")  # fmt: skip


@pytest.fixture
def nothing_opens(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"something was opened: {args}")

    for module, name in ((torch.hub, "load_state_dict_from_url"), (torch.hub, "download_url_to_file")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("fsspec.implementations.http.HTTPFileSystem.open", refuse)


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_refused_by_every_way_of_python(tmp_path, nothing_opens, address):
    ways = [
        lambda: zoo.create_model("dvae_tiny", weights=address),
        lambda: zoo.create_model(f"ckpt:{address}"),
        lambda: Toy.load_from_checkpoint(address),
        lambda: ToyData.load_from_checkpoint(address),
        lambda: SafeCheckpointIO().load_checkpoint(address),
        lambda: trainer(tmp_path).fit(Toy(**SIZES), ToyData(image_size=16), ckpt_path=address),
        lambda: trainer(tmp_path).test(Toy(**SIZES), ToyData(image_size=16), ckpt_path=address, weights_only=False),
    ]
    for way in ways:
        with pytest.raises(ValueError, match="is an address, and files are read from this machine only"):
            way()


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_command_takes_no_address_unless_asked(run_cli, recipe, nothing_opens, address):
    code, _, err = run_cli("test", "--config", recipe, f"--ckpt_path={address}")
    last = err.strip().splitlines()[-1]
    assert code == 1
    assert last.startswith(f"error: {address} is an address")
    assert "--fetch_checkpoint" in last


def test_a_weights_setting_takes_no_address_either(run_cli, nothing_opens):
    data = ("--data=EmojiData", "--data.image_size=16")
    for address in ("https://e.org/x.pt", "s3://b/x"):
        code, _, err = run_cli("fit", "--model=DVAE", f"--model.weights={address}", *data)
        last = err.strip().splitlines()[-1]
        assert code != 0
        assert last.startswith("error: ")
        assert f"{address} is an address" in last


def test_names_with_paths_of_their_own_and_file_addresses_are_paths(tmp_path):
    path = tmp_path / "w.pt"
    source = zoo.create_model("dvae_tiny")
    name = next(iter(source.state_dict()))
    torch.save(source.state_dict(), path)
    for form in (f"dvae_tiny:{path}", f"file://{path}", f"file://localhost{path}", f"ckpt:{path}", str(path)):
        assert not addresses.is_address(form.removeprefix("dvae_tiny:").removeprefix("ckpt:"))
        found = zoo.create_model("dvae_tiny", weights=form)
        assert torch.equal(found.state_dict()[name], source.state_dict()[name])


@pytest.fixture
def served(in_tmp, monkeypatch):
    """A folder that a server on this machine hands out, and its address."""
    monkeypatch.setenv("TOKENZOO_CACHE", str(in_tmp / "cache"))
    folder = in_tmp / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            if self.path != "/short":
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Length", "1005")
            self.end_headers()
            self.wfile.write(bytes(1000))

        def do_HEAD(self):
            return self.do_GET() if self.path == "/short" else super().do_HEAD()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_address_that_is_asked_for_is_downloaded_and_read_as_any_file(run_cli, recipe, served, in_tmp):
    folder, address = served
    code, _, err = run_cli("fit", "--config", recipe, "--trainer.enable_progress_bar=false")
    assert code == 0, err
    os.replace("runs/toy/last.ckpt", folder / "last.ckpt")
    size = (folder / "last.ckpt").stat().st_size
    code, out, err = run_cli(
        "test", "--config", recipe, f"--ckpt_path={address}/last.ckpt", "--fetch_checkpoint",
        "--trainer.enable_progress_bar=false",
    )  # fmt: skip
    assert code == 0, err
    found = list((in_tmp / "cache" / "checkpoints").iterdir())
    assert [file.stat().st_size for file in found] == [size]
    assert found[0].name.endswith("-last.ckpt")


def test_what_was_downloaded_is_not_executed_either(run_cli, recipe, served, marker):
    folder, address = served
    torch.save(run_content(Payload(marker)), folder / "x.ckpt")
    code, _, err = run_cli("fit", "--config", recipe, f"--ckpt_path={address}/x.ckpt", "--fetch_checkpoint")
    assert code == 1
    assert ASKS in err.strip().splitlines()[-1]


def test_a_download_that_fails_leaves_a_sentence_and_no_file(run_cli, recipe, served, in_tmp):
    _, address = served
    for place in (f"{address}/none.ckpt", "http://127.0.0.1:9/x.ckpt", "nosuch://x/y"):
        code, _, err = run_cli("fit", "--config", recipe, f"--ckpt_path={place}", "--fetch_checkpoint")
        last = err.strip().splitlines()[-1]
        assert code == 1
        assert last.startswith(f"error: {place} was not downloaded: ")
        assert "Traceback" not in err
    with contextlib.suppress(FileNotFoundError):
        assert not list((in_tmp / "cache" / "checkpoints").iterdir())


def test_a_download_that_ends_early_is_no_file(served, tmp_path):
    _, address = served
    with pytest.raises(OSError, match="short was not downloaded: "):
        addresses.fetch_file(f"{address}/short", tmp_path / "to")
    assert not list((tmp_path / "to").glob("*"))
