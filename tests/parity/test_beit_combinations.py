"""Every combination of positions, bias, gains, pooling and mask token of BEiT's other homes: equal, or refused."""

import itertools
import logging

import pytest
import torch
from published_folders import randomised

from zoo.checkpoints.export import save_weights
from zoo.models.beit import BEiT
from zoo.models.beit_classifier import BEiTClassifier
from zoo.models.dvae import DVAE
from zoo.nn.relative_position import relative_position_index

VOCAB, CLASSES, DEPTH, HEADS, WIDTH, SIDE = 32, 5, 2, 4, 16, 24
NETWORK = {"image_size": SIDE, "patch_size": 8, "width": WIDTH, "depth": DEPTH, "heads": HEADS, "drop_path": 0.0}
#: transformers' two flags -> our setting; where both are set, both biases are added to the scores
BIAS = {(False, False): "none", (True, False): "per_block", (False, True): "shared", (True, True): "per_block"}
GAINS = (0.0, 0.1)
BOTH = (False, True)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    model = DVAE(image_size=16, width=8, blocks=1, groups=3, vocab_size=VOCAB, code_width=8)
    return f"ckpt:{save_weights(model, tmp_path_factory.mktemp('tokenizer') / 'dvae.safetensors')}"


@pytest.fixture
def images():
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mask():
    return torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(2)) < 0.4


def ours(absolute, bias, gain, **others):
    settings = {"absolute_positions": absolute, "relative_positions": BIAS[bias], "layer_scale": gain}
    return NETWORK | settings | others


def written_by_transformers(cls, folder, absolute, bias, gain, pooling=True, mask_token=True, **others):
    """A folder that transformers' own code saved, and the model."""
    from transformers import BeitConfig

    config = BeitConfig(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=4 * WIDTH,
        image_size=SIDE, patch_size=8, vocab_size=VOCAB, num_labels=CLASSES, use_mask_token=mask_token,
        use_absolute_position_embeddings=absolute, use_relative_position_bias=bias[0],
        use_shared_relative_position_bias=bias[1], layer_scale_init_value=gain, use_mean_pooling=pooling,
        attn_implementation="eager", **{"layer_norm_eps": 1e-6} | others,
    )  # fmt: skip
    model = randomised(cls(config), size=0.3)
    model.save_pretrained(folder)
    return model


def close(found, expected):
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", BIAS)
def test_masked_image_models_of_transformers(tokenizer, images, mask, tmp_path, bias):
    from transformers import BeitForMaskedImageModeling

    for absolute, gain, pooling, mask_token in itertools.product(BOTH, GAINS, BOTH, BOTH):
        theirs = written_by_transformers(
            BeitForMaskedImageModeling, tmp_path, absolute, bias, gain, pooling, mask_token
        )
        model = BEiT(**ours(absolute, bias, gain), tokenizer=tokenizer).eval()
        if not pooling or not mask_token:
            fact = "two norms behind the last block" if not pooling else "lacks vit.mask_token"
            with pytest.raises(ValueError, match=fact):
                model.load_weights(str(tmp_path))
            continue
        model.load_weights(str(tmp_path))
        x = model.to_network_range(images)
        with torch.no_grad():
            expected = theirs(x, bool_masked_pos=model.flat(mask, images)).logits
            close(model.vit.token_logits(x, model.flat(mask, images)), expected)


@pytest.mark.parametrize("bias", BIAS)
def test_classifiers_of_transformers(images, tmp_path, bias):
    from transformers import BeitForImageClassification

    for absolute, gain, pooling in itertools.product(BOTH, GAINS, BOTH):
        theirs = written_by_transformers(BeitForImageClassification, tmp_path, absolute, bias, gain, pooling)
        settings = ours(absolute, bias, gain, num_classes=CLASSES)
        pool, other = ("mean", "cls") if pooling else ("cls", "mean")
        model = BEiTClassifier(**settings, pool=pool, weights=str(tmp_path)).eval()
        with torch.no_grad():
            close(model(images), theirs(model.to_network_range(images)).logits)
        with pytest.raises(ValueError, match=f"build the model with pool='{pool}'"):
            BEiTClassifier(**settings, pool=other, weights=str(tmp_path))


@pytest.mark.parametrize("bias", BIAS)
def test_bare_models_of_transformers_give_their_features(images, tmp_path, bias):
    from transformers import BeitModel

    for absolute, gain, pooling, mask_token in itertools.product(BOTH, GAINS, BOTH, BOTH):
        theirs = written_by_transformers(BeitModel, tmp_path, absolute, bias, gain, pooling, mask_token)
        pool = "mean" if pooling else "cls"
        model = BEiTClassifier(**ours(absolute, bias, gain), pool=pool, weights=str(tmp_path)).eval()
        assert set(model.newly_initialised) == {"vit.head."}
        with torch.no_grad():
            found = theirs(model.to_network_range(images))
            features = model.vit.forward_features(model.to_network_range(images))
            close(features, found.last_hidden_state)
            close(model.vit.pooled(features), found.pooler_output)


def test_the_epsilon_of_a_configuration_is_said_or_refused_and_can_be_set(tokenizer, images, mask, tmp_path, caplog):
    from transformers import BeitForMaskedImageModeling

    caplog.set_level(logging.INFO)
    settings = ours(True, (False, True), 0.1)
    for eps in (1e-12, 0.1):
        theirs = written_by_transformers(
            BeitForMaskedImageModeling, tmp_path, True, (False, True), 0.1, layer_norm_eps=eps
        )
        if eps == 1e-12:  # of the hub's copies
            BEiT(**settings, tokenizer=tokenizer, weights=str(tmp_path))
            assert "layer_norm_eps 1e-12 and this model has 1e-06" in caplog.text
            assert "set norm_eps to 1e-12" in caplog.text
        else:
            with pytest.raises(ValueError, match=r"layer_norm_eps 0\.1, .* set norm_eps to 0\.1"):
                BEiT(**settings, tokenizer=tokenizer, weights=str(tmp_path))
        same = BEiT(**settings, norm_eps=eps, tokenizer=tokenizer, weights=str(tmp_path)).eval()
        x = same.to_network_range(images)
        with torch.no_grad():
            expected = theirs(x, bool_masked_pos=same.flat(mask, images)).logits
            close(same.vit.token_logits(x, same.flat(mask, images)), expected)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [({"gate_layers": 3}, "says gate_layers 3, which is not implemented"), ({"use_rope": True}, "says use_rope True"),
     ({"model_type": "vit"}, "says model_type 'vit'.*other transformers are not read")],
)  # fmt: skip
def test_a_field_of_the_configuration_that_nobody_knows_is_refused(tmp_path, fields, sentence):
    import json

    from transformers import BeitForImageClassification

    written_by_transformers(BeitForImageClassification, tmp_path, True, (False, False), 0.0)
    config = json.loads((tmp_path / "config.json").read_text()) | fields
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=sentence):
        BEiTClassifier(**ours(True, (False, False), 0.0, num_classes=CLASSES), weights=str(tmp_path))


def test_a_data2vec_is_the_same_network_and_its_configuration_is_compared(images, tmp_path):
    from transformers import Data2VecVisionConfig, Data2VecVisionModel

    for activation in ("gelu", "relu"):
        config = Data2VecVisionConfig(
            hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=4 * WIDTH,
            image_size=SIDE, patch_size=8, use_absolute_position_embeddings=True, layer_norm_eps=1e-6,
            hidden_act=activation, attn_implementation="eager",
        )  # fmt: skip
        theirs = randomised(Data2VecVisionModel(config), size=0.3)
        theirs.save_pretrained(tmp_path)
        settings = ours(True, (False, False), 0.1, weights=str(tmp_path))
        if activation == "relu":
            with pytest.raises(ValueError, match="says hidden_act 'relu', and this model has 'gelu'"):
                BEiTClassifier(**settings)
            continue
        model = BEiTClassifier(**settings).eval()
        x = model.to_network_range(images)
        with torch.no_grad():
            close(model.vit.forward_features(x), theirs(x).last_hidden_state)


@pytest.mark.parametrize(
    ("field", "value", "own"),
    [("num_attention_heads", 2, 4), ("hidden_act", "gelu_new", "'gelu'"), ("num_channels", 1, 3)],
)
def test_a_field_of_the_configuration_that_no_tensor_shows_is_compared(tmp_path, field, value, own):
    import json

    from transformers import BeitForImageClassification

    written_by_transformers(BeitForImageClassification, tmp_path, True, (False, False), 0.0)
    config = json.loads((tmp_path / "config.json").read_text()) | {field: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for source in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(ValueError, match=rf"config.json .*says {field} {value!r}, and this model has {own}"):
            BEiTClassifier(**ours(True, (False, False), 0.0, num_classes=CLASSES), weights=str(source))


@pytest.mark.parametrize("where", ["preprocessor_config.json", "config.json of timm"])
def test_pixels_that_were_normalised_otherwise_are_said(images, tmp_path, caplog, where):
    import json

    caplog.set_level(logging.INFO)
    mean = [0.485, 0.456, 0.406]
    if where == "preprocessor_config.json":
        from transformers import BeitForImageClassification

        written_by_transformers(BeitForImageClassification, tmp_path, True, (False, False), 0.0)
        (tmp_path / where).write_text(json.dumps({"image_mean": mean, "image_std": [0.2, 0.2, 0.2]}))
    else:
        torch.save(timm_beit(True, (False, False), 0.0, "mean").state_dict(), tmp_path / "pytorch_model.bin")
        settings = {"architecture": "beit_base_patch16_224", "pretrained_cfg": {"mean": mean}}
        (tmp_path / "config.json").write_text(json.dumps(settings))
    settings = ours(True, (False, False), 0.0, num_classes=CLASSES, weights=str(tmp_path))
    BEiTClassifier(**settings, normalisation="imagenet")
    assert "had the mean" not in caplog.text
    BEiTClassifier(**settings)
    assert (
        f"had the mean {mean}, and this model subtracts [0.5, 0.5, 0.5]: set normalisation to imagenet" in caplog.text
    )


def timm_beit(absolute, bias, gain, pool):
    from timm.models.beit import Beit

    return randomised(
        Beit(
            img_size=SIDE, patch_size=8, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, num_classes=CLASSES,
            use_abs_pos_emb=absolute, use_rel_pos_bias=bias[0], use_shared_rel_pos_bias=bias[1],
            init_values=gain or None, global_pool={"mean": "avg", "cls": "token"}[pool],
        ),
        size=0.3,
    )  # fmt: skip


@pytest.mark.parametrize("bias", BIAS)
def test_classifiers_of_timm(images, tmp_path, bias):
    for absolute, gain, (pool, other) in itertools.product(BOTH, GAINS, (("mean", "cls"), ("cls", "mean"))):
        theirs = timm_beit(absolute, bias, gain, pool)
        torch.save(theirs.state_dict(), tmp_path / "timm.pth")
        settings = ours(absolute, bias, gain, num_classes=CLASSES) | {"weights": str(tmp_path / "timm.pth")}
        model = BEiTClassifier(**settings, pool=pool).eval()
        with torch.no_grad():
            close(model(images), theirs(model.to_network_range(images)))
        with pytest.raises(ValueError, match=f"build the model with pool='{pool}'"):
            BEiTClassifier(**settings, pool=other)


def test_a_classifier_of_the_other_pool_starts_one_for_other_labels(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    torch.save(timm_beit(True, (False, False), 0.0, "cls").state_dict(), tmp_path / "timm.pth")
    settings = ours(True, (False, False), 0.0, weights=str(tmp_path / "timm.pth"))
    model = BEiTClassifier(**settings, num_classes=CLASSES + 1, pool="mean")
    assert set(model.newly_initialised) == {"vit.head.", "vit.fc_norm."}
    assert "norm.weight, norm.bias" in caplog.text
    assert "head.weight, head.bias" in caplog.text


@pytest.mark.parametrize("bias", BIAS)
def test_masked_image_models_with_the_names_of_unilm(tokenizer, images, mask, tmp_path, bias):
    """timm's blocks are unilm's; its stem with a mask token, its final norm and a token head are added here."""
    for absolute, gain, prefix in itertools.product(BOTH, GAINS, ("", "module.")):
        theirs = timm_beit(absolute, bias, gain, "cls")
        head, token = torch.nn.Linear(WIDTH, VOCAB), torch.randn(1, 1, WIDTH)
        state = {n: v for n, v in theirs.state_dict().items() if not n.startswith("head.")}
        state |= {"mask_token": token, "lm_head.weight": head.weight, "lm_head.bias": head.bias}
        for name in [n for n in state if n.endswith("bias_table")]:
            state[name.replace("bias_table", "index")] = relative_position_index((3, 3))
        torch.save({"model": {prefix + n: v.detach() for n, v in state.items()}}, tmp_path / "beit.pth")
        model = BEiT(**ours(absolute, bias, gain), tokenizer=tokenizer, weights=str(tmp_path / "beit.pth")).eval()
        with torch.no_grad():
            x = model.to_network_range(images)
            patches = theirs.patch_embed(x)
            flat = model.flat(mask, images)[..., None].float()
            patches = patches * (1 - flat) + token * flat
            y = torch.cat([theirs.cls_token.expand(2, -1, -1), patches], 1)
            y = y if theirs.pos_embed is None else y + theirs.pos_embed
            shared = None if theirs.rel_pos_bias is None else theirs.rel_pos_bias()
            for block in theirs.blocks:
                y = block(y, shared_rel_pos_bias=shared)
            close(model.vit.token_logits(x, model.flat(mask, images)), head(theirs.norm(y)[:, 1:]))


def test_an_index_of_other_offsets_is_refused(tokenizer, tmp_path):
    model = BEiT(**ours(False, (False, True), 0.1), tokenizer=tokenizer)
    state = dict(model.vit.state_dict())
    state["rel_pos_bias.relative_position_index"] = relative_position_index((3, 3)).T
    torch.save(state, tmp_path / "beit.pth")
    with pytest.raises(ValueError, match="relative_position_index holds other values than the offsets of a 3x3 grid"):
        model.load_weights(str(tmp_path / "beit.pth"))
