"""VQGAN files as their projects write them: real names, real containers, equal tokens and pixels."""

import argparse
import json
import sys
import types

import msgpack
import pytest
import torch
from einops import rearrange
from published_folders import stirred, tokenizer_state

import zoo
from zoo.checkpoints.export import save_weights
from zoo.checkpoints.published import diffusers_vq, llamagen, maskgit_tokenizer

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def assert_same_tokenizer(found, expected):
    found.eval()
    for name, value in tokenizer_state(expected).items():
        assert torch.equal(found.state_dict()[name], value), name
    with torch.no_grad():
        tokens = found.encode(IMAGES)
        assert torch.equal(tokens.ids, expected.encode(IMAGES).ids)
        assert torch.equal(found.decode(tokens), expected.decode(tokens))


@pytest.fixture
def old_lightning(monkeypatch):
    """The class under which Lightning 1.0 stored a callback, in a module that exists only while a file is written."""
    names = ["pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint"]
    callback = type("ModelCheckpoint", (), {"__module__": names[-1]})
    with monkeypatch.context() as patch:
        for name in names:
            module = types.ModuleType(name)
            patch.setitem(sys.modules, name, module)
        sys.modules[names[-1]].ModelCheckpoint = callback
        yield callback


def taming_state(model, discriminator=True):
    state = tokenizer_state(model)
    if discriminator:
        state |= {f"loss.discriminator.{k}": v for k, v in model.discriminator.state_dict().items()}
    return state | {
        "loss.perceptual_loss.scaling_layer.shift": torch.zeros(1, 3, 1, 1),
        "loss.perceptual_loss.net.slice1.0.weight": torch.zeros(64, 3, 3, 3),
        "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1, 64, 1, 1),
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["vqgan_tiny", "vqgan_gumbel_tiny"])
def test_taming_checkpoint_of_old_lightning(tmp_path, old_lightning, name, zipped):
    model = stirred(name)
    content = {
        "epoch": 3,
        "global_step": 700,
        "pytorch-lightning_version": "1.0.8",
        "callbacks": {old_lightning: {"monitor": "val/rec_loss", "best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"step": 1, "exp_avg": torch.zeros(2)}}, "param_groups": []}],
        "lr_schedulers": [],
        "state_dict": taming_state(model),
    }
    torch.save(content, tmp_path / "last.ckpt", _use_new_zipfile_serialization=zipped)
    sys.modules.pop("pytorch_lightning.callbacks.model_checkpoint")
    found = zoo.create_model(name, weights=tmp_path / "last.ckpt")
    assert_same_tokenizer(found, model)
    for key, value in model.discriminator.state_dict().items():
        assert torch.equal(found.discriminator.state_dict()[key], value)


def test_without_a_discriminator_that_fits_a_new_one_starts(tmp_path):
    model = stirred("vqgan_tiny")
    torch.save({"state_dict": taming_state(model)}, tmp_path / "f.ckpt")
    wider = zoo.create_model("vqgan_tiny", discriminator={"width": 16})
    fresh = {name: v.clone() for name, v in wider.discriminator.state_dict().items()}
    wider.load_weights(str(tmp_path / "f.ckpt"))
    assert_same_tokenizer(wider, model)
    assert all(torch.equal(v, fresh[name]) for name, v in wider.discriminator.state_dict().items())
    torch.save({"state_dict": taming_state(model, discriminator=False)}, tmp_path / "f.ckpt")
    assert_same_tokenizer(zoo.create_model("vqgan_tiny", weights=tmp_path / "f.ckpt"), model)


def test_published_codes_stay_where_the_run_has_kmeans_restarts_and_lecam(tmp_path):
    """None of the three is in a published file; k-means on the first batch would throw its codes away."""
    source = stirred("vqgan_tiny")
    torch.save({"state_dict": taming_state(source)}, tmp_path / "f.ckpt")
    settings = {"codebook": {"init": "kmeans", "restart_threshold": 0.1}, "discriminator": {"lecam": 0.1}}
    model = zoo.create_model("vqgan_tiny", weights=tmp_path / "f.ckpt", **settings).train()
    model.losses({"image": torch.rand(2, 3, 32, 32)})
    assert torch.equal(model.quantize.codebook, source.quantize.codebook)
    found = model.discriminator.state_dict()["main.0.weight"]
    assert torch.equal(found, source.discriminator.state_dict()["main.0.weight"])


def test_first_stage_of_a_transformer(tmp_path):
    model = stirred("vqgan_tiny")
    state = {f"first_stage_model.{name}": v for name, v in taming_state(model).items()}
    torch.save({"state_dict": state | {"transformer.tok_emb.weight": torch.zeros(4, 4)}}, tmp_path / "f.ckpt")
    assert_same_tokenizer(zoo.create_model("vqgan_tiny", weights=tmp_path / "f.ckpt"), model)


def test_wrong_sizes_and_remapping_are_refused(tmp_path):
    model = stirred("vqgan_tiny")
    torch.save({"state_dict": taming_state(model)}, tmp_path / "f.ckpt")
    with pytest.raises(ValueError, match=r"quantize\.embedding\.weight is 64x16 in the file and 32x16 in the model"):
        zoo.create_model("vqgan_tiny", codebook={"vocab_size": 32}, weights=tmp_path / "f.ckpt")
    torch.save({"state_dict": taming_state(model) | {"quantize.used": torch.arange(7)}}, tmp_path / "f.ckpt")
    with pytest.raises(ValueError, match="subset of 7"):
        zoo.create_model("vqgan_tiny", weights=tmp_path / "f.ckpt")


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_a_checkpoint_that_asks_for_more_is_refused(tmp_path, capsys):
    torch.save({"state_dict": taming_state(stirred("vqgan_tiny")), "callbacks": Evil()}, tmp_path / "f.ckpt")
    with pytest.raises(ValueError, match="could run code"):
        zoo.create_model("vqgan_tiny", weights=tmp_path / "f.ckpt")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("old_names", [False, True])
def test_diffusers_folder_round_trip(tmp_path, old_names):
    model = stirred("vqgan_tiny")
    diffusers_vq.save_diffusers(model, tmp_path / "vq")
    if old_names:
        from safetensors.torch import load_file, save_file

        state = load_file(tmp_path / "vq" / diffusers_vq.FILE)
        modern = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        renamed = {}
        for name, value in state.items():
            for new, old in modern.items():
                name = name.replace(f".{new}.", f".{old}.")
            renamed[name] = value
        assert renamed.keys() != state.keys()
        save_file(renamed, tmp_path / "vq" / diffusers_vq.FILE)
    found = zoo.models.vqgan.VQGAN.from_diffusers_config(
        tmp_path / "vq", weights=str(tmp_path / "vq"), perceptual="none", discriminator=None
    )
    assert_same_tokenizer(found, model)


def test_diffusers_settings_that_we_do_not_have_are_named(tmp_path):
    diffusers_vq.save_diffusers(stirred("vqgan_tiny"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, sentence in (
        ({"norm_type": "spatial"}, "norm_type spatial"),
        ({"_class_name": "VQDiffusion"}, "class"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=sentence):
            diffusers_vq.read_constructor_arguments(tmp_path)
    with pytest.raises(ValueError, match="not maskgit with vq"):
        diffusers_vq.save_diffusers(stirred("vqgan_maskgit_tiny"), tmp_path)


MINIMAL = {"_class_name": "VQModel", "_diffusers_version": "0.42.1"}


def written(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_fields_that_a_diffusers_configuration_leaves_out_have_the_values_of_its_code(tmp_path, caplog):
    """Against diffusers itself: the same folder, once without any field, once without each of them alone."""
    from diffusers import VQModel

    full = {
        "block_out_channels": [32, 64], "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"], "layers_per_block": 2, "latent_channels": 4,
        "num_vq_embeddings": 16, "norm_num_groups": 16, "vq_embed_dim": 5, "sample_size": 16,
    }  # fmt: skip
    changed = [{}, *({k: v for k, v in full.items() if k != left_out} for left_out in full)]
    for config in changed:
        levels = {len(config.get(n, [1])) for n in ("block_out_channels", "down_block_types", "up_block_types")}
        if len(levels) > 1:
            with pytest.raises(ValueError, match=r"one entry per level|up_block_types .* is not supported"):
                diffusers_vq.read_constructor_arguments(written(tmp_path, MINIMAL | config))
            continue
        theirs = VQModel.from_config(MINIMAL | config).state_dict()
        written(tmp_path, MINIMAL | config)
        model = zoo.models.vqgan.VQGAN.from_diffusers_config(
            tmp_path, perceptual="none", discriminator=None, image_size=16
        )
        torch.save(theirs, tmp_path / "diffusion_pytorch_model.bin")
        model.load_weights(tmp_path)
        assert model.hparams["norm_groups"] == config.get("norm_num_groups", 32)
    caplog.set_level("INFO")
    for size, expected in ((None, 32), ([24, 24], 24)):
        config = MINIMAL | full | {"sample_size": size}
        assert diffusers_vq.read_constructor_arguments(written(tmp_path, config))["image_size"] == expected
    assert "has no sample_size: image_size is 32" in caplog.text
    assert diffusers_vq.read_constructor_arguments(tmp_path, 48) | {
        "attention": (24,)
    } == diffusers_vq.read_constructor_arguments(tmp_path, 48)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sample_size": [256, 128]}, r"sample_size is a whole number from 1, not \[256, 128\]"),
        ({"layers_per_block": "2"}, "layers_per_block is a whole number"),
        ({"norm_num_groups": 0}, "norm_num_groups is a whole number"),
        ({"block_out_channels": 64}, "one entry per level"),
        ({"block_out_channels": [64, 128]}, "one entry per level"),
        ({"down_block_types": ["DownBlock2D"]}, "up_block_types .* is not supported"),
        ({"act_fn": "gelu"}, "act_fn gelu is not supported"),
        ({"attention_head_dim": 8}, "the field attention_head_dim is unknown"),
        ({"mid_block_add_attention": "yes"}, "mid_block_add_attention is true or false"),
    ],
)
def test_odd_fields_of_a_diffusers_configuration_are_named(tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        diffusers_vq.read_constructor_arguments(written(tmp_path, MINIMAL | change))
    assert "\n" not in str(caught.value)


def test_groups_of_a_diffusers_configuration_are_compared_when_weights_are_read(tmp_path):
    diffusers_vq.save_diffusers(stirred("vqgan_tiny", norm_groups=16), tmp_path)
    with pytest.raises(ValueError, match="says norm_num_groups 16, and this model has 32: set norm_groups to 16"):
        zoo.create_model("vqgan_tiny", weights=tmp_path)
    zoo.create_model("vqgan_tiny", norm_groups=16, weights=tmp_path)


def flax_leaves(model):
    """The state under Flax's names, from the table of the released layout, written independently of the reader."""
    levels, blocks = len(model.encoder.down), len(model.encoder.down[0].block)
    layers = {"norm1": "GroupNorm_0", "norm2": "GroupNorm_1", "conv1": "Conv_0", "conv2": "Conv_1",
              "nin_shortcut": "Conv_2"}  # fmt: skip
    order = {"encoder": [], "decoder": []}
    order["encoder"] = [f"down.{i}.block.{j}" for i in range(levels) for j in range(blocks)]
    order["encoder"] += [f"mid.{j}" for j in range(blocks)]
    order["decoder"] = [f"mid.{j}" for j in range(blocks)]
    order["decoder"] += [f"up.{i}.block.{j}" for i in reversed(range(levels)) for j in range(blocks)]
    convs = {"encoder": ["conv_in", "conv_out"], "decoder": ["conv_in"]}
    convs["decoder"] += [f"up.{i}.upsample_conv" for i in reversed(range(1, levels))] + ["conv_out"]
    leaves = {"quantizer/codebook": model.quantize.embedding.weight}
    for name, value in tokenizer_state(model).items():
        part, _, rest = name.partition(".")
        if part not in order:
            continue
        place, _, leaf = rest.rpartition(".")
        block, _, layer = place.rpartition(".")
        if place == "norm_out":
            path = "GroupNorm_0"
        elif place in convs[part]:
            path = f"Conv_{convs[part].index(place)}"
        else:
            path = f"ResBlock_{order[part].index(block)}/{layers[layer]}"
        last = "bias" if leaf == "bias" else "kernel" if value.ndim == 4 else "scale"
        leaves[f"{part}/{path}/{last}"] = rearrange(value, "o i h w -> h w i o") if value.ndim == 4 else value
    return leaves


def as_flax(leaves):
    tree = {}
    for path, value in leaves.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        array = value.detach().contiguous().numpy()
        packed = msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True)
        node[leaf] = msgpack.ExtType(1, packed)
    return msgpack.packb({"params": tree}, use_bin_type=True)


@pytest.mark.parametrize("blocks", [1, 2])
def test_maskgit_flax_bytes(tmp_path, blocks):
    model = stirred("vqgan_maskgit_tiny", blocks=blocks)
    (tmp_path / "tokenizer_imagenet256_checkpoint").write_bytes(as_flax(flax_leaves(model)))
    found = zoo.create_model("vqgan_maskgit_tiny", blocks=blocks)
    found.load_weights(tmp_path / "tokenizer_imagenet256_checkpoint")
    assert_same_tokenizer(found, model)


def test_released_flax_names_of_the_published_size():
    """Where the released tree has its shortcuts: encoder blocks 4 and 8, decoder blocks 4 and 8, out x out."""
    with torch.device("meta"):
        model = zoo.create_model("vqgan_maskgit_256")
    own = model.state_dict()
    for leaf, width in (
        ("encoder/ResBlock_4/Conv_2/kernel", 256), ("encoder/ResBlock_8/Conv_2/kernel", 512),
        ("decoder/ResBlock_4/Conv_2/kernel", 256), ("decoder/ResBlock_8/Conv_2/kernel", 128),
    ):  # fmt: skip
        assert own[maskgit_tokenizer.to_port_name(leaf, 5, 2)].shape == (width, width, 1, 1)
    assert sum(name.endswith("nin_shortcut.weight") for name in own) == 4
    assert maskgit_tokenizer.to_port_name("decoder/Conv_5/kernel", 5, 2) == "decoder.conv_out.weight"
    assert maskgit_tokenizer.to_port_name("decoder/Conv_1/bias", 5, 2) == "decoder.up.4.upsample_conv.bias"
    assert (
        maskgit_tokenizer.to_port_name("decoder/ResBlock_2/Conv_0/kernel", 5, 2) == "decoder.up.4.block.0.conv1.weight"
    )


def test_port_of_maskgit(tmp_path):
    model = stirred("vqgan_maskgit_tiny")
    torch.save(tokenizer_state(model), tmp_path / "maskgit-vqgan-imagenet-f16-256.bin")
    assert_same_tokenizer(
        zoo.create_model("vqgan_maskgit_tiny", weights=tmp_path / "maskgit-vqgan-imagenet-f16-256.bin"), model
    )


def llamagen_name(name, levels):
    for ours, theirs in (("block_1", "0"), ("attn_1", "1"), ("block_2", "2")):
        name = name.replace(f".mid.{ours}.", f".mid.{theirs}.")
    parts = name.split(".")
    if parts[1] in ("down", "up"):
        level = int(parts[2]) if parts[1] == "down" else levels - 1 - int(parts[2])
        kind = {"block": "res"}.get(parts[3], parts[3])
        return ".".join([parts[0], "conv_blocks", str(level), kind, *parts[4:]])
    return name


def test_llamagen_checkpoint(tmp_path):
    model = stirred("vqgan_tiny", codebook={"quantizer": "l2", "legacy": False})
    state = {llamagen_name(name, 3): v for name, v in tokenizer_state(model).items()}
    assert "decoder.conv_blocks.0.res.1.conv1.weight" in state
    assert "encoder.mid.1.proj_out.bias" in state
    state["quantize.codebook_used"] = torch.zeros(65536)
    content = {"model": state, "steps": 5, "args": argparse.Namespace(vq_model="VQ-16")}
    torch.save(content, tmp_path / "vq_ds16_c2i.pt")
    found = zoo.create_model(
        "vqgan_tiny", codebook={"quantizer": "l2", "legacy": False}, weights=tmp_path / "vq_ds16_c2i.pt"
    )
    assert_same_tokenizer(found, model)
    assert llamagen.to_taming_name("decoder.conv_blocks.0.attn.2.q.weight", 5) == "decoder.up.4.attn.2.q.weight"


def test_our_file_without_the_discriminator(tmp_path):
    model = stirred("vqgan_tiny")
    model.drop_discriminator()
    save_weights(model, tmp_path / "small.safetensors")
    found = zoo.create_model(f"ckpt:{tmp_path / 'small.safetensors'}")
    assert_same_tokenizer(found, model)
    assert "training starts a new discriminator" in found.not_in_file["discriminator."]
    assert_same_tokenizer(zoo.create_model("vqgan_tiny", weights=tmp_path / "small.safetensors"), model)


CONFIG = """
model:
  base_learning_rate: 4.5e-06
  target: taming.models.vqgan.VQModel
  params:
    embed_dim: 256
    n_embed: 16384
    ddconfig: {double_z: false, z_channels: 256, resolution: 256, in_channels: 3, out_ch: 3, ch: 128,
      ch_mult: [1, 1, 2, 2, 4], num_res_blocks: 2, attn_resolutions: [16], dropout: 0.0}
    lossconfig:
      target: taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator
      params: {disc_conditional: false, disc_in_channels: 3, disc_start: 0, disc_weight: 0.75, disc_num_layers: 2,
        codebook_weight: 1.0}
"""


def read_config(tmp_path, text, **overrides):
    (tmp_path / "config.yaml").write_text(text)
    with torch.device("meta"):
        return zoo.models.vqgan.VQGAN.from_taming_config(tmp_path / "config.yaml", **overrides)


def test_taming_configuration_is_the_preset(tmp_path):
    found = read_config(tmp_path, CONFIG).init_args()
    expected = zoo.create_model("vqgan_imagenet_f16_16384").init_args()
    found.pop("optim"), expected.pop("optim")
    assert found == expected


def test_gumbel_and_ldm_configurations(tmp_path):
    gumbel = CONFIG.replace("VQModel", "GumbelVQ").replace(
        "    embed_dim: 256\n",
        "    embed_dim: 256\n    kl_weight: 1.0e-08\n    temperature_scheduler_config:\n"
        "      target: taming.lr_scheduler.LambdaWarmUpCosineScheduler\n      params: {warm_up_steps: 0,"
        " lr_min: 1.0e-06, lr_max: 0.9, lr_start: 0.9, max_decay_steps: 1000001, verbosity_interval: 0}\n",
    )
    model = read_config(tmp_path, gumbel)
    assert model.hparams["codebook"].quantizer == "gumbel"
    assert model.hparams["codebook"].tau == (0.9, 1e-6, 1_000_001)
    noattn = CONFIG.replace("dropout: 0.0", "dropout: 0.0, attn_type: none").replace(
        "taming.models.vqgan.VQModel", "ldm.models.autoencoder.VQModelInterface"
    )
    assert not any(".attn" in name for name in read_config(tmp_path, noattn).state_dict())


def test_the_rate_of_a_taming_configuration_is_taken(tmp_path):
    found = read_config(tmp_path, CONFIG.replace("4.5e-06", "2.0e-06"))
    assert found.optim_settings == zoo.Optim(lr=2e-6, betas=(0.5, 0.9), weight_decay=0.0, schedule="constant")


def test_depth_configuration_and_weights(tmp_path):
    depth = CONFIG.replace("in_channels: 3, out_ch: 3", "in_channels: 1, out_ch: 1").replace("16384", "1024")
    depth = depth.replace("disc_in_channels: 3", "disc_in_channels: 1")
    found = read_config(tmp_path, depth)
    with torch.device("meta"):
        expected = zoo.create_model("vqgan_imagenet_f16_1024", channels=1).state_dict()
    for name, value in tokenizer_state(found).items():
        assert value.shape == expected[name].shape
    assert found.init_args()["channels"] == zoo.model_info("vqgan_imagenet_depth").init_args["channels"] == 1
    model = stirred("vqgan_tiny", channels=1)
    torch.save({"state_dict": taming_state(model)}, tmp_path / "f.ckpt")
    assert_same_tokenizer(zoo.create_model("vqgan_tiny", channels=1, weights=tmp_path / "f.ckpt"), model)
    with pytest.raises(ValueError, match=r"encoder.conv_in.weight is 32x1x3x3 in the file and 32x3x3x3 in the model"):
        zoo.create_model("vqgan_tiny", weights=tmp_path / "f.ckpt")
    with pytest.raises(ValueError, match="only VQGANs of RGB images are written for diffusers"):
        diffusers_vq.save_diffusers(model, tmp_path / "vq")


def test_resolutions_of_no_level_are_overlooked_as_in_taming(tmp_path):
    found = read_config(tmp_path, CONFIG.replace("attn_resolutions: [16]", "attn_resolutions: [16, 5]"))
    assert tuple(found.init_args()["attention"]) == (16,)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("n_embed: 16384", "n_embed: 16384\n    remap: data/used.npy", "remap data/used.npy is not supported"),
        ("n_embed: 16384", "n_embed: 16384\n    lr_g_factor: 2.0", "lr_g_factor 2.0 is not supported"),
        ("n_embed: 16384", "n_embed: 16384\n    norm: layer", "the setting norm of params"),
        ("    n_embed: 16384\n", "", "config.yaml has no n_embed, so it does not say what the network is"),
        ("ch: 128,", "", "config.yaml has no ch, so it does not say"),
        ("ddconfig: {", "other: {", "the setting other of params"),
        ("disc_start: 0", "disc_begin: 0", "the setting disc_begin of lossconfig"),
        ("disc_in_channels: 3", "disc_in_channels: 1", "a discriminator of 1 channels beside images of 3"),
        ("vqperceptual.VQLPIPSWithDiscriminator", "segmentation.BCELossWithQuant", "the loss taming.*BCELossWithQuant"),
        ("double_z: false", "double_z: true", "KL autoencoder"),
        ("vqgan.VQModel", "vqgan.EMAVQ", "the model EMAVQ is not supported"),
        ("disc_conditional: false", "disc_conditional: true", "disc_conditional is not supported"),
        ("disc_conditional: false", "use_actnorm: true", "use_actnorm is not supported"),
        ("in_channels: 3", "in_channels: 1", r"number of channels \(1, 3\)"),
        ("in_channels: 3, out_ch: 3", "in_channels: 4, out_ch: 4", r"number of channels \(4, 4\)"),
        ("dropout: 0.0", "droput: 0.0", "droput"),
    ],
)
def test_settings_that_we_do_not_have_are_named(tmp_path, old, new, sentence):
    assert old in CONFIG
    with pytest.raises(ValueError, match=sentence):
        read_config(tmp_path, CONFIG.replace(old, new, 1))
