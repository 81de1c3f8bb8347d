"""Every way in by every kind of file that asks to be executed: nothing runs, and one sentence names the function."""

import ast
import functools
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from lightning.pytorch.strategies import SingleDeviceStrategy
from payloads import ASKS, SIZES, Payload, Shell, run_content
from toys import Toy, ToyData

import zoo
from zoo.registry import class_of, model_from

ROOT = Path(__file__).parents[2]


def tar(content, path):
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(content, 2)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def script(content, path):
    """A TorchScript archive, which is a program, with a pickle beside."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(content, 2))
        archive.writestr("a/constants.pkl", pickle.dumps((), 2))
        archive.writestr("a/code/__torch__.py", "")


#: how the file is written, and what the sentence says
KINDS = {
    "torch.save": (torch.save, ASKS),
    "torch.save of another protocol": (functools.partial(torch.save, pickle_protocol=4), ASKS),
    "torch.save before 1.6": (functools.partial(torch.save, _use_new_zipfile_serialization=False), ASKS),
    "pickle 0": (lambda content, path: path.write_bytes(pickle.dumps(content, 0)), ASKS),
    "pickle 2": (lambda content, path: path.write_bytes(pickle.dumps(content, 2)), ASKS),
    "pickle 5": (lambda content, path: path.write_bytes(pickle.dumps(content, 5)), ASKS),
    "tar": (tar, "is in torch's tar format of 2016, which is not read"),
    "TorchScript": (script, "is a TorchScript archive, which is a program"),
    "NumPy": (lambda c, path: path.write_bytes(npz(c)), "is damaged or is no checkpoint"),
}


def npz(content):
    buffer = io.BytesIO()
    np.savez(buffer, state_dict=np.array([content], dtype=object))
    return buffer.getvalue()


def trainer(folder, **options):
    return pl.Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip


def by_trainer(stage, path, model=Toy, wrap=str, given=None, options=lambda: {}):
    data = ToyData(image_size=16, batch_size=4, count=8)
    getattr(trainer(path.parent, **options()), stage)(
        model(**SIZES) if model is Toy else model(), datamodule=data, ckpt_path=wrap(path), weights_only=given
    )


class Foreign(pl.LightningModule):
    """Not ours: only the data module is."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(2, 2)

    def training_step(self, batch):
        return self.net(torch.zeros(1, 2)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def validation_step(self, batch):
        return None


class ReadsItself(SingleDeviceStrategy):
    """As the strategies of sharded models, which unpickle what they find in their own way."""

    def load_checkpoint(self, checkpoint_path, weights_only=None):
        path = Path(checkpoint_path)
        return torch.load(path / "meta.pt" if path.is_dir() else path, weights_only=False)


class PluginReadsItself(TorchCheckpointIO):
    def load_checkpoint(self, path, map_location=None, weights_only=None):
        return torch.load(path, weights_only=False)


def opened(path):
    with open(path, "rb") as file:
        Toy.load_from_checkpoint(file, weights_only=False)


def in_folder(path, name, beside=()):
    folder = path.with_name(f"{path.name}-{name}")
    folder.mkdir(exist_ok=True)
    os.replace(path, folder / name) if path.is_file() else None
    for other, text in beside:
        (folder / other).write_text(text)
    return folder


def in_shards(path):
    folder = in_folder(path, "part.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"w": "part.bin"}}))
    return folder


def language_model(path):
    config = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config |= {"intermediate_size": 8, "vocab_size": 8}
    zoo.create_model(
        "llava_tiny", language_model=str(in_folder(path, "pytorch_model.bin", [("config.json", json.dumps(config))]))
    )


def pipeline(path):
    from zoo.vision.unclip import unclip_pipeline

    folder = path.parent / "pipeline"
    (folder / "unet").mkdir(parents=True)
    os.replace(path, folder / "unet" / "diffusion_pytorch_model.bin")
    (folder / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}))
    unclip_pipeline(folder)


def lpips(path):
    from zoo.losses.perceptual import LPIPS

    LPIPS("alex", path)


def features(path):
    from zoo.metrics.extractors import Lite0Features

    Lite0Features(path)


def inception(path):
    pytest.importorskip("torch_fidelity")
    from zoo.metrics.extractors import InceptionFeatures

    InceptionFeatures(path)


WAYS = {
    "weights": lambda p: zoo.create_model("dvae_tiny", weights=p),
    "ckpt": lambda p: zoo.create_model(f"ckpt:{p}"),
    "load_weights": lambda p: zoo.create_model("dvae_tiny").load_weights(str(p)),
    "model_from": lambda p: model_from(f"dvae_tiny:{p}"),
    "class_of": lambda p: class_of(f"ckpt:{p}"),
    "a set of weights": lambda p: zoo.create_model("dvae_tiny", weights=f"{p}#ema"),
    "tokenizer by ckpt": lambda p: zoo.create_model("beit_tiny", tokenizer=f"ckpt:{p}"),
    "tokenizer by path": lambda p: zoo.create_model("maskgit_tiny", tokenizer=f"vqgan_tiny:{p}"),
    "encoder.pkl": lambda p: zoo.create_model("dvae_tiny", weights=in_folder(p, "encoder.pkl")),
    "pytorch_model.bin": lambda p: zoo.create_model("beit_tiny", weights=in_folder(p, "pytorch_model.bin")),
    "a variant": lambda p: zoo.create_model("vqgan_tiny", weights=in_folder(p, "diffusion_pytorch_model.fp16.bin")),
    "a shard": lambda p: zoo.create_model("beit_tiny", weights=in_shards(p)),
    "a LoRA": lambda p: zoo.create_model("llava_lora_tiny", weights=in_folder(p, "adapter_model.bin")),
    "a language model": language_model,
    "a pipeline": pipeline,
    "a backbone of LPIPS": lpips,
    "an extractor": features,
    "the Inception network": inception,
    "load_from_checkpoint": lambda p: Toy.load_from_checkpoint(p, weights_only=False),
    "load_from_checkpoint of the base": lambda p: zoo.ZooModule.load_from_checkpoint(str(p)),
    "load_from_checkpoint of an open file": opened,
    "load_from_checkpoint of data": lambda p: ToyData.load_from_checkpoint(p, weights_only=False),
    "fit": functools.partial(by_trainer, "fit"),
    "validate": functools.partial(by_trainer, "validate"),
    "test": functools.partial(by_trainer, "test"),
    "predict": functools.partial(by_trainer, "predict"),
    "fit, a path": functools.partial(by_trainer, "fit", wrap=Path),
    "fit, file://": functools.partial(by_trainer, "fit", wrap=lambda path: f"file://{path}"),
    "fit, asked for everything": functools.partial(by_trainer, "fit", given=False),
    "fit of a foreign module": functools.partial(by_trainer, "fit", model=Foreign),
    "fit with an asynchronous writer": functools.partial(
        by_trainer, "fit", options=lambda: {"plugins": [AsyncCheckpointIO()]}
    ),
    "fit with a plugin that reads itself": functools.partial(
        by_trainer, "fit", options=lambda: {"plugins": [PluginReadsItself()]}
    ),
    "fit with a plugin in an asynchronous writer": functools.partial(
        by_trainer, "fit", options=lambda: {"plugins": [AsyncCheckpointIO(PluginReadsItself())]}
    ),
    "fit with a strategy that reads itself": functools.partial(
        by_trainer, "fit", options=lambda: {"strategy": ReadsItself("cpu")}
    ),
    "a sharded folder": functools.partial(
        by_trainer,
        "fit",
        wrap=lambda path: in_folder(path, "meta.pt"),
        options=lambda: {"strategy": ReadsItself("cpu")},
    ),
}
#: kinds that go by every way; the others are told apart before the ways part
EVERYWHERE = ("torch.save", "torch.save before 1.6", "pickle 5")


TABLE = [
    (way, kind)
    for way in WAYS
    for kind in KINDS
    if kind in EVERYWHERE or way in ("weights", "ckpt", "fit", "load_from_checkpoint")
]


@pytest.mark.parametrize(("way", "kind"), TABLE)
def test_no_way_in_executes_a_file(tmp_path, marker, way, kind):
    write, words = KINDS[kind]
    path = tmp_path / "file.ckpt"
    write(run_content(Payload(marker)), path)
    with pytest.raises(ValueError, match=r"was not read|is not read|is damaged|is a TorchScript") as raised:
        WAYS[way](path)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "weights_only" not in str(raised.value)


def test_the_payload_is_live(tmp_path):
    for number, kind in enumerate((Payload, Shell)):
        torch.save(run_content(kind(tmp_path / f"ran{number}")), tmp_path / "f.ckpt")
        torch.load(tmp_path / "f.ckpt", weights_only=False)
        assert (tmp_path / f"ran{number}").exists()


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("form", ["{path}", "file://{path}", "last", "hpc"])
def test_commands_end_with_the_sentence(run_cli, recipe, in_tmp, marker, command, form):
    run = Path("runs/toy")
    run.mkdir(parents=True)
    name = {"last": "last.ckpt", "hpc": "hpc_ckpt_1.ckpt"}.get(form, "f.ckpt")
    torch.save(run_content(Shell(marker)), run / name)
    path = form.format(path=(run / name).absolute())
    writer = ("--trainer.callbacks+=lightning.pytorch.callbacks.BasePredictionWriter",)
    taken = writer if command == "predict" else ()  # without one it is refused before any file is read
    code, _, err = run_cli(command, "--config", recipe, f"--ckpt_path={path}", *taken)
    last = err.strip().splitlines()[-1]
    assert code == 1
    assert last.startswith("error: ")
    assert f"{os.system.__module__}.system (os.system)" in last
    assert "Traceback" not in err
    assert "weights_only" not in err


@pytest.mark.slow
def test_a_command_in_a_process_of_its_own_ends_with_the_sentence(tmp_path, marker):
    torch.save(run_content(Shell(marker)), tmp_path / "f.ckpt")
    command = [sys.executable, "-m", "zoo", "fit", "--config", "recipes/dvae.yaml", f"--ckpt_path={tmp_path}/f.ckpt"]
    done = subprocess.run(
        [*command, f"--trainer.default_root_dir={tmp_path}/run"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "(os.system), which could run code" in done.stderr
    assert "Traceback" not in done.stderr
    assert "weights_only" not in done.stderr


def test_a_benchmark_ends_with_the_sentence(tmp_path, marker, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import rfid

    torch.save(run_content(Payload(marker)), tmp_path / "f.ckpt")
    with pytest.raises(SystemExit) as stopped:
        rfid.main(["--model", f"ckpt:{tmp_path / 'f.ckpt'}", "--data", "EmojiData"])
    assert stopped.value.code != 0
    assert ASKS in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("script", ["beit_probe --model", "seed --data EmojiData --tokenizer", "ship x --checkpoint"])
def test_other_benchmarks_end_with_the_sentence_too(tmp_path, marker, script):
    torch.save(run_content(Payload(marker)), tmp_path / "f.ckpt")
    name, *options = script.split()
    place = str(tmp_path / "f.ckpt") if name == "ship" else f"ckpt:{tmp_path / 'f.ckpt'}"
    command = [sys.executable, f"benchmarks/{name}.py", *options, place]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert ASKS in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------ folders of shards


def distributed(folder, content):
    import torch.distributed.checkpoint as dcp

    with pytest.warns(UserWarning, match="single process"):
        dcp.save(content, checkpoint_id=folder, no_dist=True)
    torch.save({"pytorch-lightning_version": "2.6.0"}, folder / "meta.pt")


def with_index(folder, marker):
    distributed(folder, {"model": {"w": torch.ones(2)}})
    index = pickle.loads((folder / ".metadata").read_bytes())
    index.planner_data = Payload(marker)
    (folder / ".metadata").write_bytes(pickle.dumps(index))


def with_entry(folder, marker):
    distributed(folder, {"model": {"w": torch.ones(2)}, "more": Payload(marker)})


def deepspeed(folder, marker):
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "latest").write_text("checkpoint")
    torch.save({"module": {}, "more": Payload(marker)}, folder / "checkpoint" / "mp_rank_00_model_states.pt")


@pytest.mark.parametrize("write", [with_index, with_entry, deepspeed])
@pytest.mark.parametrize("way", ["trainer", "command"])
def test_no_part_of_a_sharded_checkpoint_is_executed(run_cli, recipe, in_tmp, marker, write, way):
    folder = in_tmp / "sharded"
    folder.mkdir()
    write(folder, marker)
    if way == "command":
        code, _, err = run_cli("fit", "--config", recipe, f"--ckpt_path={folder}")
        assert code == 1
        assert ASKS in err.strip().splitlines()[-1]
    else:
        with pytest.raises(ValueError, match="which could run code") as raised:
            by_trainer("fit", folder, options=lambda: {"strategy": ReadsItself("cpu")})
        assert ASKS in str(raised.value)


def test_a_sharded_checkpoint_that_leads_out_of_its_folder_is_refused(in_tmp):
    from zoo.checkpoints.sharded import check_sharded_folder

    folder = in_tmp / "sharded"
    folder.mkdir()
    distributed(folder, {"model": {"w": torch.ones(2)}, "number": 3})
    check_sharded_folder(folder)  # as it is, it is fine
    (folder / "latest").write_text("../../elsewhere\n")
    with pytest.raises(ValueError, match="nothing outside of it is read"):
        check_sharded_folder(folder)


# ------------------------------------------------------------------ programs in folders


def test_programs_of_folders_are_never_run(tmp_path, marker):
    folder = tmp_path / "lm"
    folder.mkdir()
    (folder / "modeling_evil.py").write_text(f"import os; os.mkdir({str(marker)!r})\n")
    config = {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "modeling_evil.C", "AutoModelForCausalLM": "modeling_evil.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"a program in it defines \(modeling_evil.py\): programs .* are never run"):
        zoo.create_model("llava_tiny", language_model=str(folder))


@pytest.mark.parametrize("part", [["evil", "Evil"], ["evil_module.sub", "Evil"]])
def test_programs_of_pipelines_are_never_run(tmp_path, marker, monkeypatch, part):
    from zoo.vision.unclip import unclip_pipeline

    monkeypatch.syspath_prepend(tmp_path)
    for place in (tmp_path / "evil.py", tmp_path / "pipe" / "unet" / "evil.py"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"import os; os.mkdir({str(marker)!r})\n")
    (tmp_path / "pipe" / "model_index.json").write_text(json.dumps({"unet": part}))
    with pytest.raises(ValueError, match=f"asks for {part[0]}.Evil as its unet, which is not run"):
        unclip_pipeline(tmp_path / "pipe")


def test_tags_of_yaml_are_never_run(run_cli, in_tmp, marker):
    from zoo.models.vqgan import VQGAN

    path = in_tmp / "evil.yaml"
    path.write_text(f"model: !!python/object/apply:os.system ['mkdir {marker}']\n")
    with pytest.raises(ValueError, match=r"no configuration that can be read: .*os\.system") as raised:
        VQGAN.from_taming_config(str(path))
    assert "\n" not in str(raised.value)
    code, _, err = run_cli("fit", "--config", "evil.yaml")
    assert code != 0
    assert err.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err
    torch.save(run_content(None), in_tmp / "f.ckpt")
    with pytest.raises(Exception, match=r"os\.system"):
        Toy.load_from_checkpoint(in_tmp / "f.ckpt", hparams_file=path)


def test_a_cache_of_drawings_with_a_pickle_is_drawn_anew(tmp_path, marker, monkeypatch):
    pytest.importorskip("resvg_py")
    from datamodules import emoji_drawings

    monkeypatch.setenv("TOKENZOO_CACHE", str(tmp_path))
    files = ("1f600",)
    expected = emoji_drawings._cached_svgs(files, "twemoji", 8)
    cache = next(tmp_path.glob("emoji-*.npz"))
    np.savez(cache, rgba=np.array([Payload(marker)], dtype=object))
    assert np.array_equal(emoji_drawings._cached_svgs(files, "twemoji", 8), expected)


# ------------------------------------------------------------------ no second door

#: calls that can execute a file, and the one place for each
DOORS = {
    "torch.load": {"zoo/checkpoints/pickles.py"},
    "pickle.Unpickler": {"zoo/checkpoints/pickles.py"},
}
NEVER = ("pickle.load", "pickle.loads", "torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.jit.load",
         "joblib.load", "yaml.load", "yaml.unsafe_load", "np.fromfile", "eval", "exec", "urlopen")  # fmt: skip


def calls(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if isinstance(node, ast.ClassDef):
            yield from ((ast.unparse(base), {}) for base in node.bases)


def test_nothing_else_in_the_project_can_execute_a_file():
    for path in [p for folder in ("zoo", "datamodules", "benchmarks") for p in (ROOT / folder).rglob("*.py")]:
        name = path.relative_to(ROOT).as_posix()
        for function, keywords in calls(path):
            assert function not in NEVER, f"{name} calls {function}"
            assert name in DOORS.get(function, {name}), f"{name} calls {function}"
            if function == "torch.load":
                assert keywords["weights_only"] == "True"
            if function == "np.load":
                assert keywords.get("allow_pickle") == "False", name
            if function.endswith(".from_pretrained"):
                assert keywords.get("local_files_only") == "True" or keywords.get(None) == "local", (
                    f"{name}: {function}"
                )
            assert keywords.get("trust_remote_code", "False") == "False", name
