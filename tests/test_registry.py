"""The registry: names, suggestions, overrides, references, and what is known without allocating anything."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toys import Toy

import zoo
from zoo import presets, registry
from zoo.presets import Weights


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A registry with one more model, whose weights lie in a file."""
    monkeypatch.setattr(presets, "_PRESETS", dict(presets.presets()))
    monkeypatch.setattr(presets, "WEIGHTS_DIR", tmp_path)
    weights = {"local": Weights(file="toy.safetensors"), "far": Weights(origin="https://example.org/toy")}
    zoo.register("toy", Toy, paper="none", weights=weights, image_size=4, optim=zoo.Optim(lr=0.5))
    return "toy"


def test_names_of_the_zoo_follow_the_grammar():
    papers = {p.cls.__module__.rpartition(".")[2] for p in registry.presets().values()}
    for paper in papers:
        assert f"{paper}_tiny" in zoo.list_models(), f"zoo/models/{paper}.py registers no {paper}_tiny"
    for name, preset in registry.presets().items():
        assert preset.paper.startswith("arXiv:"), name


def test_list_models_is_sorted_naturally(toy, monkeypatch):
    for size in (9, 10):
        zoo.register(f"toy_{size}", Toy, paper="none", image_size=size)
    assert zoo.list_models("toy*") == ["toy", "toy_9", "toy_10"]
    assert zoo.list_models("nothing*") == []
    assert "toy" in zoo.list_models(weights=True)
    assert "toy_9" not in zoo.list_models(weights=True)
    assert "dvae_tiny" in zoo.list_models(decodes="pixels")
    assert "toy" not in zoo.list_models(decodes="pixels")


def test_preset_and_overrides(toy):
    model = zoo.create_model(toy, width=6)
    assert model.init_args()["image_size"] == 4
    assert model.init_args()["width"] == 6
    assert model.init_args()["optim"]["lr"] == 0.5
    assert zoo.create_model(toy, optim={"lr": 0.1, "betas": [0.5, 0.6]}).optim_settings == zoo.Optim(0.1, (0.5, 0.6))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("dvae_tinny", "did you mean dvae_tiny"),
        ("qwxz", "python -m zoo list"),
        ("runs/x/last.ckpt", "'ckpt:runs/x/last.ckpt'"),
    ],
)
def test_unknown_name(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        zoo.create_model(name)


def test_unknown_override(toy):
    with pytest.raises(TypeError, match=r"did you mean width.*image_size, width, tokenizer, optim"):
        zoo.create_model(toy, widht=3)


def test_registering_mistakes(toy):
    with pytest.raises(ValueError, match="twice"):
        zoo.register("toy", Toy, paper="none")
    with pytest.raises(ValueError, match="lower snake case"):
        zoo.register("Toy-2", Toy, paper="none")
    with pytest.raises(ValueError, match="takes no widht"):
        zoo.register("toy_2", Toy, paper="none", widht=3)


def test_weights_are_resolved_or_explained(toy, tmp_path):
    preset = registry.find_preset(toy)
    with pytest.raises(FileNotFoundError, match="reinstall"):
        registry.resolve_weights(preset, True)
    (tmp_path / "toy.safetensors").touch()
    assert (
        registry.resolve_weights(preset, True)
        == registry.resolve_weights(preset, "local")
        == tmp_path / "toy.safetensors"
    )
    assert registry.resolve_weights(preset, tmp_path) == tmp_path
    with pytest.raises(FileNotFoundError, match=r"https://example\.org/toy"):
        registry.resolve_weights(preset, "far")
    with pytest.raises(FileNotFoundError, match="its tags: local, far"):
        registry.resolve_weights(preset, "nowhere")
    with pytest.raises(ValueError, match="dvae_tiny has no default weights"):
        zoo.create_model("dvae_tiny", weights=True)


@pytest.mark.parametrize("reference", ["dvae_openai", "dvae_openai:openai"])
def test_a_tokenizer_whose_weights_are_not_shipped_says_how_to_name_them(reference):
    with pytest.raises(FileNotFoundError, match=r'cdn\.openai\.com.* tokenizer="dvae_openai:PATH"') as caught:
        zoo.create_model("beit_base_patch16_224", tokenizer=reference)
    assert "\n" not in str(caught.value)


def test_references_say_where_the_weights_are_from():
    assert isinstance(registry.model_from("dvae_tiny:random"), zoo.DVAE)
    with pytest.raises(ValueError, match="'dvae_tiny:random' to use it untrained"):
        registry.model_from("dvae_tiny")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        registry.model_from("dvae_tiny:nowhere")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt"):
        registry.model_from("ckpt:nowhere.ckpt")
    with pytest.raises(ValueError, match="leave weights out"):
        zoo.create_model("ckpt:nowhere.ckpt", weights=True)


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.fixture
def file(tmp_path):
    """Weights of another random vqvae_tiny in a file, and in a checkpoint of ours."""
    import lightning.pytorch as pl

    model = zoo.create_model("vqvae_tiny", width=24)
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, barebones=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    return model, tmp_path / "a.ckpt"


def test_the_names_of_the_conventions_work_everywhere(file):
    """NAME, NAME:TAG, NAME:PATH, NAME:random and ckpt:PATH, for create_model, settings and model_info alike."""
    trained, path = file
    for make in (zoo.create_model, registry.model_from):
        assert same(make(f"vqvae_tiny:{path}", width=24), trained)
        assert same(make(f"ckpt:{path}"), trained)
        torch.manual_seed(0)
        one = make("vqvae_tiny:random")
        torch.manual_seed(0)
        assert same(one, zoo.create_model("vqvae_tiny"))
    tag = next(iter(registry.find_preset("dvae_emoji").weights))
    assert same(zoo.create_model(f"dvae_emoji:{tag}"), zoo.create_model("dvae_emoji", weights=True))
    for reference in ("vqvae_tiny", "vqvae_tiny:random", f"vqvae_tiny:{path}", "vqvae_tiny:nowhere"):
        assert zoo.model_info(reference) == zoo.model_info("vqvae_tiny")
        assert registry.class_of(reference) is zoo.VQVAE
    info = zoo.model_info(f"ckpt:{path}")
    assert (info.name, info.cls, info.init_args["width"]) == (f"ckpt:{path}", zoo.VQVAE, 24)
    assert info.num_parameters == sum(p.numel() for p in trained.parameters())
    assert info.spec == trained.spec


@pytest.mark.parametrize(
    ("reference", "options", "sentence"),
    [
        ("vqvae_tiny:nowhere", {}, "nowhere is neither a file or folder, nor a model, nor a tag of vqvae_tiny"),
        ("vqvae_tiny:", {}, "'vqvae_tiny:' names no weights: write 'vqvae_tiny:PATH'"),
        ("dvae_openai:openai", {}, "get them from https://cdn.openai.com"),
        ("vqvae_tiny:random", {"weights": True}, "named twice"),
        ("dvae_emoji:emoji", {"weights": "x"}, "named twice"),
        ("vqvae_tiny", {"weights": "random"}, "leave weights out"),
        ("vqvae_tinny:random", {}, "did you mean vqvae_tiny"),
        ("nothing:of/that.ckpt", {}, "there is no model"),
        ("DVAE", {}, "did you mean dvae_tiny or dvae_openai or dvae_emoji?"),
        ("ckpt:", {}, "'ckpt:' names no file: write 'ckpt:PATH'"),
        ("dvae_tiny", {"optim": {"lrr": 1}}, "optim takes no 'lrr': did you mean lr?"),
        ("dvae_tiny", {"optim": 3}, "optim is an Optim or a dictionary of its fields, got int"),
    ],
)
def test_other_names_end_with_the_right_sentence(reference, options, sentence):
    with pytest.raises((TypeError, ValueError, FileNotFoundError)) as caught:
        zoo.create_model(reference, **options)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "write 'ckpt:vqvae" not in str(caught.value)


@pytest.mark.parametrize(("name", "kind"), [(Path("dvae_tiny"), "PosixPath"), (None, "NoneType")])
def test_names_are_text(name, kind):
    plain = getattr(zoo.create_model, "__wrapped__", zoo.create_model)  # without the annotations of the tests
    with pytest.raises(TypeError, match=f"a model is named by a string, not by a {kind}|Type-check"):
        plain(name)


def test_the_folder_of_a_run_names_the_checkpoints_in_it(tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.ckpt").touch()
    with pytest.raises(FileNotFoundError, match=r"there are weights in \S+/a.ckpt, \S+/b.ckpt, \S+/c.ckpt, \.\.\.$"):
        zoo.create_model(f"ckpt:{tmp_path}")


def test_classes_that_are_not_registered_are_never_imported():
    with pytest.raises(ValueError, match=r"os\.system is not a registered model class"):
        registry.find_class("os.system")


def test_info_allocates_nothing():
    info = zoo.model_info("dvae_openai")
    assert (info.spec.num_tokens, info.spec.vocab_size, info.spec.decodes) == (1024, 8192, "pixels")
    assert info.num_parameters == 97_616_006  # 53,786,240 + 43,829,766 of encoder.pkl and decoder.pkl
    assert info.description.startswith("DALL-E's discrete VAE")
    assert info.paper == "arXiv:2102.12092"


def test_info_agrees_with_the_built_model():
    for name in zoo.list_models("*_tiny"):
        model, info = zoo.create_model(name), zoo.model_info(name)
        assert info.num_parameters == sum(p.numel() for p in model.parameters()), name
        assert info.spec == model.spec, name


def test_paper_classes_by_their_bare_name():
    from zoo.models.dvae import DVAE

    assert zoo.DVAE is DVAE
    with pytest.raises(AttributeError, match="Nonexistent"):
        _ = zoo.Nonexistent


@pytest.mark.slow
def test_importing_the_zoo_stays_light():
    """Heavy libraries are imported where they are used; compared with what Lightning itself imports."""
    heavy = (
        "timm",
        "transformers",
        "torchvision",
        "skimage",
        "sklearn",
        "scipy",
        "matplotlib",
        "torch_fidelity",
        "PIL",
    )
    code = "import sys, {0}; {1}print(*[m for m in {2!r} if m in sys.modules])"
    base, ours = (
        subprocess.check_output([sys.executable, "-c", code.format(module, more, heavy)], text=True)
        for module, more in (
            ("lightning", ""),
            ("zoo, datamodules, zoo.cli", "zoo.list_models(); datamodules.ZooDataModule; "),
        )
    )
    assert set(ours.split()) <= set(base.split())


def test_a_model_can_be_made_on_the_meta_device():
    with torch.device("meta"):
        assert next(zoo.create_model("dvae_tiny").parameters()).device.type == "meta"


def test_a_source_of_weights_without_a_file_or_tag_says_what_to_write():
    from zoo.presets import find_weights

    with pytest.raises(ValueError, match="'ckpt:' names no file: write 'ckpt:PATH'"):
        find_weights("ckpt:")
    with pytest.raises(ValueError, match="'dvae_emoji:' names no weights: write 'dvae_emoji:PATH'"):
        find_weights("dvae_emoji:")
