"""Fine-tuning and probes of BEiT: objective, layers of the learning rate, heads, and where its weights come from."""

import pytest
import torch
import torch.nn.functional as F
from toys import BlurredImageData, beit_with_positions, labelled_batch, quiet_trainer

import zoo
from zoo.losses.mixing import mix_images
from zoo.models.beit import BEiT
from zoo.models.beit_classifier import BEiTClassifier
from zoo.nn.beit_vit import TINY, BeitViT
from zoo.optim import Optim, parameter_groups


@pytest.fixture
def beit():
    return beit_with_positions()


@pytest.fixture
def batch():
    return labelled_batch()


def test_classifier_loss_smooths_in_training_only(batch):
    model = BEiTClassifier(**TINY, num_classes=9, label_smoothing=0.1, drop_path=0.0, init_scale=50.0)
    log_p = model(batch["image"]).double().log_softmax(-1)
    right = log_p[range(4), batch["label"]].mean()
    smoothed = 0.9 * right + 0.1 * log_p.mean()
    assert model.losses(batch)["loss"].item() == pytest.approx(-smoothed.item(), rel=1e-5)
    terms = model.eval().losses(batch)
    assert terms["loss"].item() == pytest.approx(-right.item(), rel=1e-5)
    order = log_p.argsort(descending=True)
    assert terms["accuracy"].item() == (order[:, 0] == batch["label"]).double().mean().item()
    assert terms["accuracy_top5"].item() == (order[:, :5] == batch["label"][:, None]).any(1).double().mean().item()
    assert "accuracy_top5" not in BEiTClassifier(**TINY, num_classes=5).eval().losses(batch)


def test_mixed_targets_are_those_of_the_mixed_images(batch):
    model = BEiTClassifier(**TINY, num_classes=9, mixup=0.8, label_smoothing=0.1)
    x = model.to_network_range(batch["image"])
    before = x.clone()
    mixed, target = mix_images(x, batch["label"], model.mixup, model.cutmix, model.label_smoothing, model.num_classes)
    assert torch.equal(x, before)
    share = ((mixed - x.flip(0)) / (x - x.flip(0)))[x != x.flip(0)].median()
    one_hot = F.one_hot(batch["label"], 9) * 0.9 + 0.1 / 9
    torch.testing.assert_close(target, share * one_hot + (1 - share) * one_hot.flip(0), atol=1e-3, rtol=0)
    assert set(model.losses(batch)) == {"loss"}
    with pytest.raises(ValueError, match="the batch has 3: use an even batch"):
        model.losses({k: v[:3] for k, v in batch.items()})


def test_linear_probe_trains_one_head_per_block_and_nothing_else(batch):
    model = BEiTClassifier(**TINY, num_classes=9, linear_probe=True, relative_positions="shared")
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"probes"}
    assert model.train().training
    assert not model.vit.training
    outputs = model.vit.block_outputs(model.to_network_range(batch["image"]), [0, 1])
    features = [torch.cat([y[:, 0], y[:, 1:].mean(1)], -1) for y in outputs]
    each = [F.cross_entropy(p(f), batch["label"]) for p, f in zip(model.probes, features, strict=True)]
    terms = model.eval().losses(batch)
    torch.testing.assert_close(terms["loss"], each[0] + each[1])
    assert model.probe_block == 2
    assert torch.equal(model(batch["image"]), model.probes[1](features[1]))
    assert {"accuracy_block1", "accuracy_block2"} <= set(terms)


def test_new_head_for_other_labels(batch):
    model = BEiTClassifier(**TINY, num_classes=9)
    trunk = model.vit.blocks[0].attn.qkv.weight.clone()
    model.reset_head(3)
    assert model(batch["image"]).shape == (4, 3)
    assert model.hparams["num_classes"] == 3
    assert torch.equal(model.vit.blocks[0].attn.qkv.weight, trunk)
    assert model.init_args()["num_classes"] == 3


def test_classifier_says_how_to_get_labels(batch):
    model = BEiTClassifier(**TINY, num_classes=9)
    with pytest.raises(
        ValueError, match=r"has no 'label', but image, and BEiTClassifier has 9 classes.*one sub-folder per class$"
    ):
        model.losses({"image": batch["image"]})


def test_classifier_has_no_tokens(batch):
    model = BEiTClassifier(**TINY, num_classes=9)
    assert model.spec is None
    with pytest.raises(NotImplementedError, match="BEiTClassifier has no tokens"):
        model.encode(batch["image"])
    torch.testing.assert_close(model.predict_step(batch, 0).sum(-1), torch.ones(4))


@pytest.mark.parametrize("cls", [BEiT, BEiTClassifier])
def test_feature_maps(cls, batch):
    model = zoo.create_model("beit_tiny" if cls is BEiT else "beit_classifier_tiny", depth=12).eval()
    maps = model.forward_intermediates(batch["image"])
    assert [tuple(m.shape) for m in maps] == [(4, 32, 4, 4)] * 4
    x = model.to_network_range(batch["image"])
    for block, found in zip([3, 5, 7, 11], maps, strict=True):
        expected = model.vit.block_outputs(x, [block])[0][:, 1:]
        assert torch.equal(found[:, :, 2, 1], expected[:, 2 * 4 + 1])
    assert torch.equal(model.forward_intermediates(batch["image"], [11])[0], maps[3])
    with pytest.raises(ValueError, match=r"0\.\.11, got \[12\]"):
        model.forward_intermediates(batch["image"], [12])
    with torch.device("meta"):
        large = BeitViT(32, 8, 32, 24, 4)
        assert len(large.forward_intermediates(torch.empty(1, 3, 32, 32))) == 4


def test_a_masked_image_model_starts_a_classifier(beit, batch, tmp_path):
    from zoo.checkpoints.export import save_weights

    path = save_weights(beit, tmp_path / "beit.safetensors")
    model = BEiTClassifier(**TINY, num_classes=5, drop_path=0.0, weights=str(path))
    images = batch["image"]
    for own, other in zip(model.forward_intermediates(images), beit.forward_intermediates(images), strict=True):
        torch.testing.assert_close(own, other)
    probe = BEiTClassifier(**TINY, num_classes=5, linear_probe=True, relative_positions="shared", weights=str(path))
    torch.testing.assert_close(probe.forward_intermediates(images)[3], beit.forward_intermediates(images)[3])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"mixup": -1.0}, "mixup and cutmix not negative"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"depth": 0}, "depth and heads must be at least 1"),
    ],
)
def test_settings_that_make_no_classifier_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        BEiTClassifier(**TINY | arguments)


@pytest.mark.parametrize("label", [-1, 9])
def test_labels_that_the_classifier_does_not_have_are_named(label):
    model = BEiTClassifier(**TINY, num_classes=9)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.8"):
        model.losses({"image": torch.rand(2, 3, 32, 32), "label": torch.tensor([0, label])})


def test_layer_decay_changes_the_learning_rates():
    """Group i of depth + 2 learns at decay^(depth + 1 - i) (spec: run_class_finetuning.py)."""
    optim = Optim(lr=2.0, layer_decay=0.65)
    model = BEiTClassifier(**TINY | {"depth": 3}, absolute_positions=True, optim=optim, num_classes=4)
    groups = parameter_groups(model.named_parameters(), optim, model.no_decay, model.layer_of, model.num_layers)
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    expected = {"cls_token": 4, "pos_embed": 4, "patch_embed": 4, "blocks.0": 3, "blocks.2": 1, "fc_norm": 0, "head": 0}
    seen = set()
    for name, p in model.named_parameters():
        for part, power in expected.items():
            if name.startswith(f"vit.{part}"):
                seen.add(part)
                assert rate[id(p)] == pytest.approx(2.0 * 0.65**power), name
    assert seen == set(expected)
    shared = BEiTClassifier(**TINY, relative_positions="shared", num_classes=4)
    assert shared.layer_of("vit.rel_pos_bias.relative_position_bias_table") == shared.num_layers == 3


def test_the_initial_head_is_small_and_nothing_is_cut():
    classifier = BEiTClassifier(**TINY, num_classes=300)
    assert classifier.vit.head.weight.std().item() == pytest.approx(0.02 * 0.001, rel=0.1)
    assert (classifier.vit.head.bias == 0).all()
    assert classifier.vit.blocks[0].mlp.fc1.weight.abs().max() > 0.04  # fine-tuning does not cut


def test_a_probe_of_a_block_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"probe_block must lie in 1\.\.2, got 0"):
        zoo.create_model("beit_classifier_tiny", probe_block=0)


# ---------------------------------------------------------------------- where configurations and checkpoints name it


def test_the_place_that_older_checkpoints_and_configurations_name_is_this_class(tmp_path):
    from zoo.models import beit
    from zoo.presets import find_class

    assert beit.BEiTClassifier is BEiTClassifier
    assert zoo.BEiTClassifier is BEiTClassifier
    for place in ("zoo.models.beit.BEiTClassifier", "zoo.models.beit_classifier.BEiTClassifier"):
        assert find_class(place) is BEiTClassifier
    for place in ("zoo.models.beit.Optim", "zoo.models.beit.torch", "os.system", "BEiTClassifier", ""):
        with pytest.raises(ValueError, match="is not a registered model class"):
            find_class(place)


@pytest.mark.parametrize("place", ["zoo.models.beit.BEiTClassifier", "zoo.models.beit_classifier.BEiTClassifier"])
def test_a_checkpoint_that_names_either_place_loads_in_all_ways(place, tmp_path, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of Lightning's own call
    model = zoo.create_model("beit_classifier_tiny")
    quiet_trainer(tmp_path, max_steps=1).fit(model, BlurredImageData(image_size=32))
    trainer = model.trainer
    trainer.save_checkpoint(path := tmp_path / "model.ckpt")
    content = torch.load(path, weights_only=True)
    assert content["zoo"]["class"] == "zoo.models.beit_classifier.BEiTClassifier"
    content["zoo"]["class"] = place
    # as the command line writes it
    written = {"_class_path": place, "_instantiator": "lightning.pytorch.cli.instantiate_module"}
    content["hyper_parameters"] = model.init_args() | written
    torch.save(content, path)
    by_name = zoo.create_model(f"ckpt:{path}")
    by_class = BEiTClassifier.load_from_checkpoint(path)
    by_base = zoo.ZooModule.load_from_checkpoint(path)
    as_weights = zoo.create_model("beit_classifier_tiny", weights=path)
    for other in (by_name, by_class, by_base, as_weights):
        assert type(other) is BEiTClassifier
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="does not fit BEiTClassifier") as caught:
        zoo.create_model("beit_classifier_tiny", weights=path, width=16)
    assert "a checkpoint of" not in str(caught.value)


@pytest.mark.parametrize("place", ["zoo.models.beit.BEiTClassifier", "zoo.models.beit_classifier.BEiTClassifier"])
def test_a_configuration_that_names_either_place_is_read(place, tmp_path, run_cli):
    config = tmp_path / "config.yaml"
    settings = "image_size: 32, patch_size: 8, width: 16, depth: 1, heads: 2, num_classes: 9"
    config.write_text(f"model:\n  class_path: {place}\n  init_args: {{{settings}}}\ndata: EmojiData\n")
    code, out, err = run_cli("fit", "--config", str(config), "--print_config")
    assert code == 0, err
    assert "BEiTClassifier" in out
    assert "width: 16" in out
