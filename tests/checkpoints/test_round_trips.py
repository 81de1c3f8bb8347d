"""What we write, we read: every kind of file through every door, with equal weights and equal arguments."""

import json
import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader

from zoo import Optim, ZooModule, create_model
from zoo.checkpoints.export import save_weights
from zoo.fingerprints import fingerprint
from zoo.frozen import describe_frozen
from zoo.models.dvae import DVAE
from zoo.registry import from_checkpoint

SMALL = {
    "image_size": 16,
    "width": 8,
    "blocks": 1,
    "groups": 2,
    "vocab_size": 32,
    "code_width": 8,
    "tau": (1.0, 0.5, 20),
    "beta": (0.0, 0.1, 7),
}
OPTIM = Optim(lr=0.01, betas=(0.8, 0.9), total_steps=9, min_lr=1.25e-6, weight_decay=1e-4, decay="all")


class Images(pl.LightningDataModule):
    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        return DataLoader([{"image": torch.rand(3, 16, 16, generator=generator)} for _ in range(4)], batch_size=2)

    def val_dataloader(self):
        return self.train_dataloader()


class Images32(pl.LightningDataModule):
    def train_dataloader(self):
        image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
        return DataLoader([{"image": image, "label": 1, "index": i} for i in range(4)], batch_size=2)

    def val_dataloader(self):
        return self.train_dataloader()


def trainer(folder, **options):
    return pl.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder, **options,
    )  # fmt: skip


def python_checkpoint(folder):
    model = DVAE(**SMALL, optim=OPTIM)
    run = trainer(folder)
    run.fit(model, Images())
    run.save_checkpoint(folder / "python.ckpt")
    return model, folder / "python.ckpt"


def cli_checkpoint(folder):
    args = ["--model=DVAE", "--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    args += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    args += [
        "--trainer.limit_val_batches=0",
        "--trainer.enable_checkpointing=false",
        f"--trainer.default_root_dir={folder}",
    ]
    args += [f"--model.init_args.{name}={json.dumps(value)}" for name, value in SMALL.items()]
    args += ["--model.init_args.optim.lr=0.01", "--model.init_args.optim.betas=[0.8,0.9]"]
    args += ["--model.init_args.optim.total_steps=9"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # between Lightning and jsonargparse
        cli = LightningCLI(
            ZooModule, Images, args=args, run=False, subclass_mode_model=True, save_config_callback=None,
            auto_configure_optimizers=False, seed_everything_default=0,
        )  # fmt: skip
    cli.trainer.fit(cli.model, cli.datamodule)
    cli.trainer.save_checkpoint(folder / "cli.ckpt")
    assert "_class_path" in torch.load(folder / "cli.ckpt", weights_only=True)["hyper_parameters"]
    return cli.model, folder / "cli.ckpt"


def exported(folder):
    model = DVAE(**SMALL, optim=OPTIM)
    return model, save_weights(model, folder / "dvae.safetensors")


def through_load_weights(path):
    model = DVAE(**SMALL, optim=OPTIM)
    model.load_weights(path)
    return model


def through_constructor(path):
    return DVAE(**SMALL, optim=OPTIM, weights=f"ckpt:{path}")


DOORS = {
    "load_weights": through_load_weights,
    "weights=ckpt:": through_constructor,
    "create_model": lambda path: create_model(f"ckpt:{path}"),
    "load_from_checkpoint": lambda path: DVAE.load_from_checkpoint(path, map_location="cpu"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("round trips")
    made = {"python": python_checkpoint, "cli": cli_checkpoint, "safetensors": exported}
    return {name: make(folder) for name, make in made.items()}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", ["python", "cli", "safetensors"])
def test_weights_and_arguments_survive(files, kind, door):
    if (kind, door) == ("safetensors", "load_from_checkpoint"):
        pytest.skip("Lightning reads its own files only")
    model, path = files[kind]
    again = DOORS[door](path)
    assert type(again) is DVAE
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    assert again.init_args() == model.init_args()
    assert (again.tau, again.beta, again.optim_settings) == ((1.0, 0.5, 20), (0.0, 0.1, 7), OPTIM)


def test_a_loaded_checkpoint_can_be_trained_saved_and_loaded_again(files, tmp_path):
    model = create_model(f"ckpt:{files['cli'][1]}")
    run = trainer(tmp_path)
    run.fit(model, Images())
    run.save_checkpoint(tmp_path / "again.ckpt")
    again = create_model(f"ckpt:{tmp_path / 'again.ckpt'}")
    assert torch.equal(again.encoder.blocks.input.w, model.encoder.blocks.input.w)
    assert not torch.equal(again.encoder.blocks.input.w, files["cli"][0].encoder.blocks.input.w)


def test_overrides_change_the_arguments_and_nothing_else(files):
    model, path = files["python"]
    again = from_checkpoint(path, {"tau": (0.9, 0.1, 3), "optim": Optim(lr=0.5)})
    assert again.tau == (0.9, 0.1, 3)
    assert again.optim_settings.lr == 0.5
    assert again.beta == (0.0, 0.1, 7)
    assert torch.equal(again.decoder.blocks.input.w, model.decoder.blocks.input.w)
    with pytest.raises(TypeError, match="did you mean width"):
        from_checkpoint(path, {"widht": 8})


def test_averaged_weights_are_the_ones_that_are_read(tmp_path):
    model = DVAE(**SMALL, optim=OPTIM)
    run = trainer(tmp_path, callbacks=[EMAWeightAveraging(decay=0.5, use_buffers=False)])
    path = tmp_path / "ema.ckpt"

    class Save(pl.Callback):  # at the end of the run the averaged weights replace the others in the model
        def on_train_batch_end(self, trainer, *_):
            trainer.save_checkpoint(path)
            self.trained = {name: value.clone() for name, value in model.state_dict().items()}

    run.callbacks.append(save := Save())
    run.fit(model, Images())
    content = torch.load(path, weights_only=True)
    name = "encoder.blocks.output.conv.w"
    again = create_model(f"ckpt:{path}")
    assert torch.equal(again.state_dict()[name], content["state_dict"][name])
    assert not torch.equal(again.state_dict()[name], save.trained[name])


def test_half_precision_export_is_half_as_large_and_within_rounding(tmp_path):
    model = DVAE(**SMALL, optim=OPTIM)
    full = save_weights(model, tmp_path / "full.safetensors")
    half = save_weights(model, tmp_path / "half.safetensors", dtype=torch.float16)
    tensor_bytes = sum(4 * p.numel() for p in model.parameters())
    saved = full.stat().st_size - half.stat().st_size
    assert abs(saved - tensor_bytes // 2) < 256  # the headers spell other offsets
    again = create_model(f"ckpt:{half}")
    assert again.encoder.blocks.input.w.dtype == torch.float32
    torch.testing.assert_close(again.encoder.blocks.input.w, model.encoder.blocks.input.w, atol=1e-3, rtol=1e-3)
    assert not list(tmp_path.glob("*.partial"))


def test_export_describes_the_model_and_leaves_frozen_towers_out(tmp_path):
    from safetensors import safe_open

    model = DVAE(**SMALL, optim=OPTIM)
    model.add_frozen("teacher", torch.nn.Linear(3, 3))
    with safe_open(save_weights(model, tmp_path / "m.safetensors"), "pt") as file:
        block = json.loads(file.metadata()["zoo"])
        names = set(file.keys())
    assert block["class"] == "zoo.models.dvae.DVAE"
    assert block["init_args"]["tau"] == [1.0, 0.5, 20]
    assert names == set(model.encoder.state_dict(prefix="encoder.")) | set(model.decoder.state_dict(prefix="decoder."))
    with pytest.raises(ValueError, match=r"ends in \.safetensors, not .*m\.ckpt"):
        save_weights(model, tmp_path / "m.ckpt")


def test_export_of_a_part_stays_a_part(tmp_path):
    model = DVAE(**SMALL)
    torch.save(model.encoder.state_dict(), tmp_path / "encoder.pt")
    model.load_weights(str(tmp_path / "encoder.pt"))
    path = save_weights(model, tmp_path / "part.safetensors")
    assert path.stat().st_size < 4 * sum(p.numel() for p in model.encoder.parameters()) + 8192
    again = create_model(f"ckpt:{path}")
    assert again.not_in_file == model.not_in_file
    assert "encoder only" in again.not_in_file["decoder."]
    assert again.spec.decodes is None
    assert again.spec == model.spec
    assert fingerprint(again) == fingerprint(model)  # the decoder of each is random
    assert torch.equal(again.encoder.blocks.input.w, model.encoder.blocks.input.w)


@pytest.fixture
def two_tokenizers(tmp_path):
    """References to two tokenizers of the same shape and other weights."""
    for name in ("a", "b"):
        save_weights(create_model("dvae_tiny"), tmp_path / f"{name}.safetensors")
    return f"ckpt:{tmp_path / 'a.safetensors'}", f"ckpt:{tmp_path / 'b.safetensors'}"


@pytest.mark.parametrize("name", ["beit_tiny", "maskgit_tiny", "ar_transformer_tiny"])
def test_a_second_stage_on_another_tokenizer_is_warned_of(name, two_tokenizers, tmp_path):
    a, b = two_tokenizers
    model = create_model(name, tokenizer=a)
    path = str(save_weights(model, tmp_path / "model.safetensors"))
    trainer(tmp_path, limit_train_batches=1, limit_val_batches=0).fit(model, Images32())
    model.trainer.save_checkpoint(tmp_path / "model.ckpt")
    both = rf"trained on the ids of the tokenizer '{a}' \(fingerprint \w{{12}}\), and this model has '{b}' \(\w{{12}}\)"
    for file in (path, str(tmp_path / "model.ckpt")):
        with pytest.warns(UserWarning, match=both):
            create_model(name, tokenizer=b, weights=file)
        create_model(name, tokenizer=a, weights=file)  # a warning would be an error
        create_model(f"ckpt:{file}")
    other = create_model(name, tokenizer=b)
    with pytest.warns(UserWarning, match=both):
        trainer(tmp_path).validate(other, Images32(), ckpt_path=tmp_path / "model.ckpt", verbose=False)
    trainer(tmp_path).validate(model, Images32(), ckpt_path=tmp_path / "model.ckpt", verbose=False)
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "b.safetensors").read_bytes())  # a later run overwrote it
    with pytest.warns(UserWarning, match="its ids mean other codes"):
        create_model(f"ckpt:{path}")


@pytest.mark.parametrize(
    ("name", "setting", "other"),
    [
        ("beit_tiny", "normalisation", "imagenet"),
        ("beit_classifier_tiny", "normalisation", "imagenet"),
        ("beit_classifier_tiny", "norm_eps", 1e-3),
        ("vqgan_tiny", "norm_groups", 16),
        ("maskgit_tiny", "heads", 2),
    ],
)
def test_a_setting_that_no_tensor_shows_is_warned_of(name, setting, other, tmp_path):
    model = create_model(name)
    path = str(save_weights(model, tmp_path / "model.safetensors"))
    create_model(name, weights=path)  # a warning would be an error
    own = model.init_args()[setting]
    with pytest.warns(UserWarning, match=f"was trained with {setting} {own}, and this model has {other}"):
        create_model(name, **{setting: other}, weights=path)


def described(model):
    return describe_frozen(model).get("tokenizer_fingerprint")


def test_weights_that_do_not_name_their_tokenizer_do_not_warn():
    from zoo.presets import WEIGHTS_DIR

    stored = from_checkpoint(WEIGHTS_DIR / "beit_emoji.safetensors")
    assert described(stored) == fingerprint(stored.tokenizer)
    create_model("beit_emoji", weights=True, tokenizer="dvae_emoji:random")


def test_fingerprint_of_a_tokenizer_follows_its_weights(two_tokenizers):
    model = create_model("beit_tiny", tokenizer=two_tokenizers[0])
    first = described(model)
    assert first == fingerprint(model.tokenizer) == described(model.to("cpu"))
    model.tokenizer.load_state_dict(create_model(two_tokenizers[1]).state_dict())
    assert described(model) == fingerprint(model.tokenizer) != first
    assert described(create_model("beit_tiny")) is None  # untrained: its ids mean nothing
    assert described(create_model("dvae_tiny")) is None
