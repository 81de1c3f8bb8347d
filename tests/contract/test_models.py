"""What every model keeps, checked on the `<paper>_tiny` presets: a new paper is tested by being registered."""

import inspect
import json
import re

import jaxtyping
import lightning.pytorch as pl
import pytest
import torch
import yaml
from toys import RandomImages, ToyData

import zoo
from datamodules.base import collate
from zoo.init_args import to_plain_data

TINY = zoo.list_models("*_tiny")
TOKENIZING = [name for name in TINY if zoo.model_info(name).spec is not None]


@pytest.fixture(params=TINY)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return zoo.create_model(name)


def batch_for(model, count=4):
    """Random uint8 images of the model's size with labels and captions, always the same."""
    size, classes = model.hparams.get("image_size", 32), (getattr(model, "num_classes", 9) or 9)
    images = RandomImages(count, size, classes)
    return collate([images[i] for i in range(count)])


def stir(model):
    """Move parameters away from zero and one, where a wrong layout would not show."""
    stored = model.state_dict()  # without the frozen part of a network that is tuned in part
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in stored:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def tokens(model, batch):
    with torch.no_grad():
        return model.eval().encode(batch["image"])


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize("name", TOKENIZING)
def test_encode_gives_what_the_spec_says(model):
    batch = batch_for(model)
    found = tokens(model, batch)
    assert found.spec == model.spec
    assert len(found) == len(batch["image"])
    if model.spec.vocab_size:
        assert found.ids.shape == (4, model.spec.num_tokens)
        assert found.ids.dtype == torch.int64
        assert found.ids.min() >= 0
        assert found.ids.max() < model.spec.vocab_size
    else:
        assert found.embeddings.shape == (4, model.spec.num_tokens, model.spec.dim)
    for segment in model.spec.segments:
        assert found.grid(segment.name).shape[1 : 1 + len(segment.shape)] == segment.shape


@pytest.mark.parametrize("name", TOKENIZING)
def test_encoding_is_deterministic_and_independent_of_the_batch(model):
    batch = batch_for(stir(model))
    one, two = tokens(model, batch), tokens(model, batch)
    alone = tokens(model, {"image": batch["image"][1:2]})
    if one.ids is not None:
        assert torch.equal(one.ids, two.ids)
        assert (one.ids[1:2] == alone.ids).float().mean() > 0.98  # another batch size may sum in another order
        assert len(one.ids.unique()) > 1
    else:
        assert torch.equal(one.embeddings, two.embeddings)
        torch.testing.assert_close(one.embeddings[1:2], alone.embeddings, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TOKENIZING)
def test_uint8_and_float_images_are_the_same(model):
    batch = batch_for(stir(model))
    one, two = tokens(model, batch), tokens(model, {"image": batch["image"].float() / 255})
    assert torch.equal(one.ids, two.ids) if one.ids is not None else torch.equal(one.embeddings, two.embeddings)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TOKENIZING)
def test_images_of_every_float_type_are_the_same(model, dtype):
    images = (batch_for(stir(model))["image"] / 255).to(dtype)
    one, two = tokens(model, {"image": images}), tokens(model, {"image": images.float()})
    assert torch.equal(one.ids, two.ids) if one.ids is not None else torch.equal(one.embeddings, two.embeddings)


@pytest.mark.parametrize("name", TOKENIZING)
def test_decode_gives_what_the_spec_says(model):
    batch = batch_for(stir(model))
    found = tokens(model, batch)
    if model.spec.decodes is None:
        with pytest.raises(zoo.NotInvertible) as caught:
            model.decode(found)
        assert len(str(caught.value)) > 30, "the reason of the paper"
    elif model.spec.decodes == "pixels":
        images = zoo.reconstruct(model, batch["image"])
        assert images.ndim == 4
        assert images.shape[:2] == (4, 3)
        assert images.dtype == torch.float32
        assert images.min() >= 0
        assert images.max() <= 1
        assert images.std() > 0
    else:
        assert model.decode(found).isfinite().all()


@pytest.mark.parametrize("name", TOKENIZING)
def test_embed_looks_up_ids_of_any_layout(model):
    if not model.spec.vocab_size:
        return
    ids = torch.randint(model.spec.vocab_size, (2, 3, 4))
    vectors = model.embed(ids)
    assert vectors.shape == (2, 3, 4, model.spec.dim)
    torch.testing.assert_close(model.embed(ids[:, 0])[1, 2], vectors[1, 0, 2], rtol=0, atol=0)


@pytest.mark.parametrize("name", TINY)
def test_without_a_token_spec_there_are_no_tokens(model):
    if model.spec is None:
        with pytest.raises(NotImplementedError, match=type(model).__name__):
            model.encode(batch_for(model)["image"])
        with pytest.raises(zoo.NotInvertible):
            zoo.ZooModule.decode(model, zoo.Tokens(None, None, zoo.TokenSpec((zoo.Segment("x", (1,)),), dim=1)))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda x: x.float(), "divide by 255"),
        (lambda x: x.float() / 127.5 - 1, "normalisation"),
        (lambda x: x[:, :1], r"\(batch, 3, height, width\)|b 3 h w"),
        (lambda x: x.long(), "int64"),
        (lambda x: x[..., :-3], r"\d+x\d+"),
    ],
)
def test_bad_images_end_with_one_sentence(model, spoil, sentence):
    batch = batch_for(model)
    batch["image"] = spoil(batch["image"])
    with pytest.raises(Exception, match=sentence) as caught:  # a wrong shape meets the annotations first
        model.encode(batch["image"]) if model.spec is not None else model.losses(batch)
    if isinstance(caught.value, ValueError):
        assert "\n" not in str(caught.value)
    else:
        assert "TypeCheckError" in type(caught.value).__name__ or "violates" in str(caught.value)


def test_arrays_instead_of_tensors_end_with_one_sentence(model, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the annotations would be first during tests
    batch = batch_for(model)
    batch["image"] = batch["image"].numpy()
    with pytest.raises(ValueError, match=r"^images must be a tensor, got ndarray: torch\.from_numpy") as caught:
        model.encode(batch["image"]) if model.spec is not None else model.losses(batch)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- training


def test_losses_are_scalars_with_one_to_minimise(model):
    terms = model.train().losses(batch_for(model))
    assert "loss" in terms
    assert all(t.ndim == 0 and t.isfinite() for t in terms.values())


def test_trainable_parameters_get_gradients_and_frozen_ones_none(model):
    # A released gate or a mask may leave single parameters without influence in one batch, hence several batches.
    stir(model).train()
    for seed in range(3):
        torch.manual_seed(seed)
        model.losses(batch_for(model, 8))["loss"].backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{parameter_name} gets no gradient"
            assert parameter.grad.isfinite().all(), f"{parameter_name} gets an infinite gradient"
            assert parameter.grad.abs().sum() > 0, f"{parameter_name} has no influence on the loss"
        else:
            assert parameter.grad is None, f"{parameter_name} is frozen and has a gradient"
    for tower, module in model.frozen.items():
        assert not module.training, f"{tower} is in training mode"
        assert all(p.grad is None and not p.requires_grad for p in module.parameters()), f"{tower} is trained"


def test_frozen_towers_are_not_in_the_state(model):
    state, storage = model.state_dict(), {p.data_ptr() for p in model.parameters()}
    assert not any(key.startswith("_orig_mod") or "frozen" in key for key in state)
    for module in model.frozen.values():
        assert not any(p.data_ptr() in storage for p in module.parameters())


def test_bfloat16_autocast_stays_close(model):
    batch = batch_for(stir(model))
    model.eval()
    with torch.no_grad():
        exact = model.losses(batch)["loss"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model.losses(batch)["loss"]
    assert rough.dtype == torch.float32
    assert rough.isfinite()
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.05)


def test_optimizer_has_every_trainable_parameter_once(model):
    trainer = pl.Trainer(accelerator="cpu", max_steps=3, logger=False, enable_checkpointing=False)
    model.trainer = trainer
    trainer.fit_loop._max_steps = 3
    model.optim_settings = zoo.Optim(**{**vars(model.optim_settings), "total_steps": 3})
    optimizer = model.configure_optimizers()
    optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)


# ---------------------------------------------------------------- state


def test_state_round_trip(name, model):
    stir(model).eval()
    torch.manual_seed(99)
    other = zoo.create_model(name).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    for tower, module in model.frozen.items():
        other.frozen[tower].load_state_dict(module.state_dict())
    batch = batch_for(model)
    with torch.no_grad():
        torch.testing.assert_close(other.losses(batch), model.losses(batch), rtol=0, atol=0)


def test_hyper_parameters_are_json(name, model):
    args = model.init_args()
    assert json.loads(json.dumps(args)) == args
    assert args.get("weights") is None
    defaults = {n: p.default for n, p in inspect.signature(type(model).__init__).parameters.items() if n != "self"}
    assert args == to_plain_data(defaults | zoo.model_info(name).init_args)


def by_python(name, folder):
    model = zoo.create_model(name)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(model, data_for(model))
    trainer.save_checkpoint(folder / "python.ckpt")
    return folder / "python.ckpt"


def data_for(model):
    return ToyData(model.hparams.get("image_size", 32), num_classes=(getattr(model, "num_classes", 9) or 9))


def recipe_for(name, folder):
    """A recipe that is the preset."""
    model = zoo.create_model(name)
    data = data_for(model)
    recipe = {
        "seed_everything": 0,
        "model": {"class_path": f"zoo.{type(model).__name__}", "init_args": model.init_args()},
        "data": {
            "class_path": "toys.ToyData",
            "init_args": {"image_size": data.image_size, "num_classes": data.num_classes},
        },
        "trainer": {
            "accelerator": "cpu", "max_steps": 1, "limit_train_batches": 1, "default_root_dir": str(folder / "run"),
            "log_every_n_steps": 1, "enable_progress_bar": False, "enable_model_summary": False,
        },
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(params=["python", "cli"])
def checkpoint(request, name, run_cli, tmp_path):
    recipe = recipe_for(name, tmp_path)
    if request.param == "python":
        return by_python(name, tmp_path), recipe
    code, _, err = run_cli("fit", "--config", recipe)
    assert code == 0, err
    return tmp_path / "run" / "last.ckpt", recipe


@pytest.mark.slow
def test_checkpoints_of_both_kinds_reload_in_all_three_ways(name, checkpoint, run_cli):
    path, recipe = checkpoint
    stored = torch.load(path, weights_only=True)  # tensors and plain data only
    assert stored["global_step"] == 1
    cls = type(zoo.create_model(name))
    by_class = cls.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    by_name = zoo.create_model(f"ckpt:{path}")
    for again in (by_class, by_name):
        assert type(again) is cls
        assert again.init_args() == zoo.create_model(name).init_args()
        assert again.state_dict().keys() == stored["state_dict"].keys()
        torch.testing.assert_close(dict(again.state_dict()), dict(stored["state_dict"]), rtol=0, atol=0)
    code, out, err = run_cli("validate", "--config", recipe, "--ckpt_path", path)
    assert code == 0, err
    assert "val/loss" in out
    assert re.search(r"\d\.\d", out)
