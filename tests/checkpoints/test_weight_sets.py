"""Files with averaged weights beside raw ones: which set is read, what is said about it, and how to get the other."""

import argparse
import json
import logging

import lightning.pytorch as pl
import msgpack
import pytest
import torch
from einops import rearrange
from published_folders import stirred, tokenizer_state
from safetensors.torch import save_file
from toys import Toy, ToyData

import zoo
from zoo.callbacks.ema import EMA
from zoo.callbacks.last_checkpoint import LastCheckpoint
from zoo.checkpoints.files import read_checkpoint
from zoo.checkpoints.published import maskgit_tokenizer
from zoo.checkpoints.weight_sets import split_set_name


def llamagen_state(model):
    levels = {"block_1": "0", "attn_1": "1", "block_2": "2"}
    found = {}
    for name, value in tokenizer_state(model).items():
        for ours, theirs in levels.items():
            name = name.replace(f".mid.{ours}.", f".mid.{theirs}.")
        parts = name.split(".")
        if parts[1] in ("down", "up"):
            level = int(parts[2]) if parts[1] == "down" else 2 - int(parts[2])
            kind = {"block": "res"}.get(parts[3], parts[3])
            name = ".".join([parts[0], "conv_blocks", str(level), kind, *parts[4:]])
        found[name] = value
    return found


def llamagen(path, averaged, raw):
    content = {
        "model": llamagen_state(raw),
        "ema": llamagen_state(averaged),
        "discriminator": {n: v.clone() for n, v in averaged.discriminator.state_dict().items()},
        "optimizer": {"state": {}, "param_groups": []},
        "optimizer_disc": {"state": {}, "param_groups": []},
        "steps": 7,
        "args": argparse.Namespace(ema=True, disc_type="patchgan"),
    }
    torch.save(content, path)


def bare_vit(model):
    return {name.removeprefix("vit."): v.clone() for name, v in model.state_dict().items()}


def timm(path, averaged, raw):
    torch.save({"epoch": 3, "arch": "beit", "state_dict": bare_vit(raw), "state_dict_ema": bare_vit(averaged)}, path)


def unilm(path, averaged, raw):
    content = {"model": bare_vit(raw), "model_ema": bare_vit(averaged), "epoch": 3, "args": argparse.Namespace()}
    torch.save(content, path)


def latent_diffusion(path, averaged, raw):
    state = tokenizer_state(raw)
    shadows = {f"model_ema.{n.replace('.', '')}": v for n, v in averaged.named_parameters() if n in state}
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(3)}
    torch.save({"state_dict": state | {n: v.detach() for n, v in shadows.items()} | counters}, path)


def lightning(path, averaged, raw):
    content = {"pytorch-lightning_version": "2.6.6", "averaging_state": {"n_averaged": torch.tensor(4)}}
    content |= {"state_dict": averaged.state_dict(), "current_model_state": raw.state_dict()}
    torch.save(content, path)


def openmmlab(path, averaged, raw):
    torch.save({"state_dict": averaged.state_dict(), "ema_state_dict": raw.state_dict(), "meta": {"epoch": 1}}, path)


def flax(path, averaged, raw):
    def packed(tensor):
        body = msgpack.packb((list(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.numpy().tobytes()))
        return msgpack.ExtType(1, body)

    def tree(model):
        found = {}
        names = tokenizer_state(model)
        for kernel, target in FLAX.items():
            value = names[target]
            value = rearrange(value, "o i h w -> h w i o") if value.ndim == 4 else value
            inner = found
            for part in kernel.split("/")[:-1]:
                inner = inner.setdefault(part, {})
            inner[kernel.rpartition("/")[2]] = packed(value.contiguous())
        return found

    content = {"step": 5, "params": tree(raw), "ema_params": tree(averaged), "opt_state": {"0": {"count": 3}}}
    path.write_bytes(msgpack.packb(content))


def flax_names():
    """Name of each leaf of Google's tree -> ours, found by the reader's own renaming of every possible leaf."""
    model = zoo.create_model("vqgan_maskgit_tiny")
    own, levels, blocks = tokenizer_state(model), len(model.encoder.down), len(model.encoder.down[0].block)
    kinds = [f"{k}_{i}" for k in ("ResBlock", "Conv", "GroupNorm") for i in range(2 * levels * blocks + 4)]
    leaves = ["quantizer/codebook"]
    for part in ("encoder", "decoder"):
        for kind in kinds:
            inner = maskgit_tokenizer.LAYERS if kind.startswith("ResBlock") else [None]
            for layer in inner:
                for leaf in maskgit_tokenizer.LEAVES:
                    leaves.append("/".join(filter(None, [part, kind, layer, leaf])))
    found = {}
    for leaf in leaves:
        name = maskgit_tokenizer.to_port_name(leaf, levels, blocks)
        if name not in own or name in found.values():
            continue
        wanted = "scale" if own[name].ndim == 1 and name.endswith("weight") else "kernel"
        if not name.endswith("weight") or leaf.endswith((wanted, "codebook")):
            found[leaf] = name
    assert set(found.values()) == set(own)
    return found


FLAX = {}

#: writer, preset, what is read without asking, names of the averaged and of the raw set, words of the line about it
CASES = {
    "LlamaGen": (llamagen, "vqgan_tiny", "averaged", "ema", "model"),
    "timm": (timm, "beit_classifier_tiny", "averaged", "state_dict_ema", "state_dict"),
    "unilm": (unilm, "beit_classifier_tiny", "raw", "model_ema", "model"),
    "Latent Diffusion": (latent_diffusion, "vqgan_tiny", "raw", "model_ema", None),
    "Lightning": (lightning, "vqgan_tiny", "averaged", "state_dict", "current_model_state"),
    "OpenMMLab": (openmmlab, "vqgan_tiny", "averaged", "state_dict", "ema_state_dict"),
    "Flax": (flax, "vqgan_maskgit_tiny", "averaged", "ema_params", "params"),
}
OPTIONS = {"LlamaGen": {"codebook": {"quantizer": "l2", "legacy": False}}}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    write, preset, *rest = CASES[request.param]
    options = OPTIONS.get(request.param, {})
    if request.param == "Flax":
        FLAX.update(flax_names())
    averaged, raw = stirred(preset, 1, **options), stirred(preset, 2, **options)
    path = tmp_path_factory.mktemp("sets") / "file.bin"
    write(path, averaged, raw)
    return request.param, path, preset, options, averaged, raw, *rest


def assert_equal(found, expected, named_parameters_only=False):
    names = dict(expected.named_parameters()) if named_parameters_only else tokenizer_state(expected)
    state = found.state_dict()
    wrong = [n for n in names if not n.startswith("discriminator.") and not torch.equal(state[n], names[n])]
    assert not wrong, wrong[:5]


def test_without_asking_the_set_is_read_that_its_project_takes_and_a_line_says_so(case, caplog):
    kind, path, preset, options, averaged, raw, first, of_averaged, of_raw = case
    with caplog.at_level(logging.INFO):
        found = zoo.create_model(preset, weights=path, **options)
    assert_equal(found, averaged if first == "averaged" else raw)
    other = of_raw if first == "averaged" else of_averaged
    lines = [r.getMessage() for r in caplog.records if f"{path}#{other}" in r.getMessage()]
    assert len(lines) == 1
    assert f"the {first} weights" in lines[0]


def test_each_set_is_read_by_its_name(case):
    _, path, preset, options, averaged, raw, _, of_averaged, of_raw = case
    found = zoo.create_model(preset, weights=f"{path}#{of_averaged}", **options)
    assert_equal(found, averaged, named_parameters_only=True)
    if of_raw is not None:
        assert_equal(zoo.create_model(preset, weights=f"{path}#{of_raw}", **options), raw)
        by_reference = zoo.registry.model_from(f"{preset}:{path}#{of_raw}", **options)
        assert_equal(by_reference, raw)


def test_a_set_that_is_not_there_is_answered_with_those_that_are(case):
    kind, path, preset, options, *_, of_averaged, _ = case
    with pytest.raises(ValueError, match="holds no weights called 'emma'") as raised:
        zoo.create_model(preset, weights=f"{path}#emma", **options)
    assert of_averaged in str(raised.value) or kind == "Latent Diffusion"


def test_the_discriminator_of_a_llamagen_file_is_read_where_it_fits(tmp_path, caplog):
    options = OPTIONS["LlamaGen"]
    averaged, raw = stirred("vqgan_tiny", 1, **options), stirred("vqgan_tiny", 2, **options)
    llamagen(tmp_path / "f.pt", averaged, raw)
    for which in ("", "#model", "#ema"):
        found = zoo.create_model("vqgan_tiny", weights=f"{tmp_path / 'f.pt'}{which}", **options)
        expected = averaged.discriminator.state_dict()
        assert all(torch.equal(v, expected[n]) for n, v in found.discriminator.state_dict().items())
        assert "discriminator." not in found.newly_initialised
    wider = zoo.create_model("vqgan_tiny", discriminator={"width": 16}, weights=str(tmp_path / "f.pt"), **options)
    assert wider.newly_initialised["discriminator."] == "the file's has other sizes"


def test_our_own_checkpoint_is_built_from_either_set(tmp_path):
    averaged, raw = stirred("vqgan_tiny", 1), stirred("vqgan_tiny", 2)
    content = {"state_dict": averaged.state_dict(), "current_model_state": raw.state_dict()}
    averaged.on_save_checkpoint(content)
    torch.save(content, tmp_path / "last.ckpt")
    assert_equal(zoo.create_model(f"ckpt:{tmp_path / 'last.ckpt'}"), averaged)
    assert_equal(zoo.create_model(f"ckpt:{tmp_path / 'last.ckpt'}#current_model_state"), raw)


@pytest.mark.parametrize("pair", [("vqmodel_ema", "vqmodel"), ("ema_model", "unwrapped_model")])
def test_a_training_folder_gives_its_averaged_weights_and_the_raw_ones_by_name(tmp_path, pair, caplog):
    models = [stirred("vqgan_maskgit_tiny", seed) for seed in (1, 2)]
    for name, model in zip(pair, models, strict=True):
        (tmp_path / name).mkdir()
        torch.save(tokenizer_state(model), tmp_path / name / "pytorch_model.bin")
    with caplog.at_level(logging.INFO):
        assert_equal(zoo.create_model("vqgan_maskgit_tiny", weights=tmp_path), models[0])
    assert f"{tmp_path}#{pair[1]}" in caplog.text
    assert "averaged" in caplog.text
    assert_equal(zoo.create_model("vqgan_maskgit_tiny", weights=f"{tmp_path}#{pair[1]}"), models[1])


def test_a_file_of_one_set_says_nothing_and_has_no_other(tmp_path, caplog):
    model = stirred("vqgan_tiny", 1)
    torch.save({"state_dict": tokenizer_state(model), "ema": 0.999}, tmp_path / "f.pt")
    with caplog.at_level(logging.INFO):
        assert_equal(zoo.create_model("vqgan_tiny", weights=tmp_path / "f.pt"), model)
    assert "#" not in caplog.text
    assert "averaged" not in caplog.text
    with pytest.raises(ValueError, match="holds no weights called 'ema'"):
        zoo.create_model("vqgan_tiny", weights=f"{tmp_path / 'f.pt'}#ema")
    save_file({name: v.contiguous() for name, v in model.state_dict().items()}, tmp_path / "f.safetensors")
    with pytest.raises(ValueError, match="one set without a name"):
        zoo.create_model("vqgan_tiny", weights=f"{tmp_path / 'f.safetensors'}#ema")


def test_a_name_with_a_hash_is_itself_where_it_exists(tmp_path):
    path = tmp_path / "run#3.pt"
    torch.save({"w": torch.ones(2)}, path)
    assert split_set_name(path) == (path, None)
    assert torch.equal(read_checkpoint(path).state["w"], torch.ones(2))
    assert split_set_name(f"{path}#ema") == (path, "ema")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize(
    "form",
    ["_orig_mod.{}", "module._orig_mod.{}", "_orig_mod.module.{}", "module.module.{}", "_forward_module.module.{}",
     "_fsdp_wrapped_module._checkpoint_wrapped_module.{}", "parts"],
)  # fmt: skip
def test_names_of_compiled_models_are_read(tmp_path, suffix, form):
    model = stirred("vqgan_tiny", 1)
    state = {}
    for name, value in model.state_dict().items():
        first, _, rest = name.partition(".")
        state[f"{first}._orig_mod.{rest}" if form == "parts" else form.format(name)] = value.clone(
            memory_format=torch.contiguous_format
        )
    path = tmp_path / f"f.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    assert_equal(zoo.create_model("vqgan_tiny", weights=path), model)


@pytest.mark.parametrize("word", ["module.", "_orig_mod.", "module._orig_mod."])
def test_an_index_of_shards_with_the_names_of_wrapped_models_is_read(tmp_path, word):
    model = stirred("vqvae_tiny", 1)
    state = {f"{word}{name}": value.contiguous() for name, value in model.state_dict().items()}
    names = list(state)
    shards = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, part in shards.items():
        save_file({name: state[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_equal(zoo.create_model("vqvae_tiny", weights=tmp_path), model)


def test_of_plain_and_compiled_names_side_by_side_none_gets_lost(tmp_path):
    model = stirred("vqvae_tiny", 1)
    name = next(iter(model.state_dict()))
    torch.save(model.state_dict() | {f"_orig_mod.{name}": torch.zeros(2)}, tmp_path / "both.pt")
    with pytest.raises(ValueError, match=f"unexpected _orig_mod.{name}"):
        zoo.create_model("vqvae_tiny", weights=tmp_path / "both.pt")


def test_plain_and_compiled_names_are_read_into_a_model_with_a_compiled_network(tmp_path):
    source = stirred("vqgan_tiny", 1)
    torch.save(source.state_dict(), tmp_path / "plain.pt")
    model = zoo.create_model("vqgan_tiny")
    model.encoder = torch.compile(model.encoder)  # compiles nothing before its first call
    assert "encoder._orig_mod.conv_in.weight" in model.state_dict()
    model.load_weights(str(tmp_path / "plain.pt"))
    assert torch.equal(model.encoder.conv_in.weight, source.encoder.conv_in.weight)
    torch.save(model.state_dict(), tmp_path / "compiled.pt")
    again = zoo.create_model("vqgan_tiny")
    again.encoder = torch.compile(again.encoder)
    again.load_weights(str(tmp_path / "compiled.pt"))
    assert torch.equal(again.encoder.conv_in.weight, source.encoder.conv_in.weight)


def test_nothing_is_said_of_what_only_a_run_needs(tmp_path):
    callbacks = [EMA(decay=0.5), LastCheckpoint(tmp_path, first_steps=1)]
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, callbacks=callbacks,
    )  # fmt: skip
    trainer.fit(Toy(image_size=16), ToyData(image_size=16, batch_size=4, count=8))
    path = tmp_path / "last.ckpt"
    assert {"averaging_state", "zoo_run"} <= torch.load(path, weights_only=True).keys()
    (note,) = read_checkpoint(path).notes
    assert note.startswith("read the averaged weights 'state_dict'")


def test_weights_without_an_average_are_named_where_averages_are_asked_for(tmp_path):
    averaged, raw = zoo.create_model("vqgan_tiny"), zoo.create_model("vqgan_tiny")
    latent_diffusion(tmp_path / "last.ckpt", averaged, raw)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del content["state_dict"]["model_ema.encoderconv_inweight"]
    torch.save(content, tmp_path / "last.ckpt")
    found = read_checkpoint(tmp_path / "last.ckpt#model_ema")
    assert found.notes == (f"{tmp_path / 'last.ckpt'} holds no averages of encoder.conv_in.weight: these are raw",)
    assert found.state["encoder.conv_in.weight"].equal(raw.encoder.conv_in.weight)
    assert found.state["encoder.conv_in.bias"].equal(averaged.encoder.conv_in.bias)
