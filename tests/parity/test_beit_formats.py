"""BEiT through the layouts of unilm, timm and transformers: same weights, same numbers, nothing left over."""

import json
from pathlib import Path

import pytest
import torch
from published_folders import randomised

from zoo.checkpoints.export import save_weights
from zoo.checkpoints.published.hf_beit import save_hf, to_hf_names, to_unilm_names
from zoo.models.beit import BEiT
from zoo.models.beit_classifier import BEiTClassifier
from zoo.models.dvae import DVAE
from zoo.nn.relative_position import relative_position_index, resize_table, table_rows

VOCAB, CLASSES, DEPTH, HEADS, WIDTH = 96, 7, 3, 5, 40
NETWORK = {"image_size": 32, "patch_size": 8, "width": WIDTH, "depth": DEPTH, "heads": HEADS, "drop_path": 0.0}
ABSOLUTE = {"layer_scale": 0.0, "absolute_positions": True, "relative_positions": "none"}
FORMS = {"relative": {}, "absolute": ABSOLUTE}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    model = DVAE(image_size=16, width=8, blocks=1, groups=3, vocab_size=VOCAB, code_width=8)
    return f"ckpt:{save_weights(model, tmp_path_factory.mktemp('tokenizer') / 'dvae.safetensors')}"


@pytest.fixture
def mim(tokenizer):
    return lambda **options: randomised(BEiT(**NETWORK | {"tokenizer": tokenizer} | options))


def classifier(**options):
    return randomised(BEiTClassifier(**NETWORK | {"num_classes": CLASSES} | options))


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mask():
    return torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(2)) < 0.4


def mim_logits(model, images, mask):
    with torch.no_grad():
        return model.vit.token_logits(model.to_network_range(images), model.flat(mask, images))


def class_logits(model, images):
    with torch.no_grad():
        return model(images)


def equal(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(value, right[name]) for name, value in left.items())


def from_pretrained(cls, folder):
    model, info = cls.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    wrong = {kind: found for kind, found in info.items() if found}
    assert not wrong, wrong
    assert model.config.layer_norm_eps == 1e-6
    return model.eval()


@pytest.mark.parametrize("names", ["v5", "v4"])
@pytest.mark.parametrize("form", FORMS)
def test_transformers_loads_what_we_write_for_masked_images(mim, images, mask, tmp_path, form, names):
    from transformers import BeitForMaskedImageModeling

    model = mim(**FORMS[form])
    hf = from_pretrained(BeitForMaskedImageModeling, save_hf(model, tmp_path, names))
    with torch.no_grad():
        theirs = hf(model.to_network_range(images), bool_masked_pos=model.flat(mask, images)).logits
    ours = mim_logits(model, images, mask)
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)

    again = mim(**FORMS[form], optim=model.optim_settings)
    randomised(again, seed=9).load_weights(str(tmp_path))
    equal(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("names", ["v5", "v4"])
@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("form", [*FORMS, "shared"])
def test_transformers_loads_what_we_write_for_classification(images, tmp_path, form, pool, names):
    from transformers import BeitForImageClassification

    options = FORMS.get(form, {"relative_positions": "shared"}) | {"pool": pool}
    model = classifier(**options)
    hf = from_pretrained(BeitForImageClassification, save_hf(model, tmp_path, names))
    assert hf.config.num_labels == CLASSES
    with torch.no_grad():
        theirs = hf(model.to_network_range(images)).logits
    ours = class_logits(model, images)
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)

    again = randomised(classifier(**options), seed=9)
    again.load_weights(str(tmp_path))
    equal(again.state_dict(), model.state_dict())


def test_weights_made_by_transformers_are_read(mim, images, mask, tmp_path):
    """The other direction, from a model that transformers made and saved itself; also as a bare BeitModel."""
    from transformers import BeitConfig, BeitForMaskedImageModeling

    config = BeitConfig(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=4 * WIDTH,
        image_size=32, patch_size=8, vocab_size=VOCAB, use_mask_token=True, use_shared_relative_position_bias=True,
        layer_norm_eps=1e-6, attn_implementation="eager",
    )  # fmt: skip
    hf = randomised(BeitForMaskedImageModeling(config))
    hf.save_pretrained(tmp_path)
    model = mim(weights=str(tmp_path))
    model.load_weights(tmp_path)
    with torch.no_grad():
        theirs = hf(model.to_network_range(images), bool_masked_pos=model.flat(mask, images)).logits
    torch.testing.assert_close(mim_logits(model, images, mask), theirs, atol=1e-5, rtol=1e-5)

    bare = to_unilm_names(hf.beit.state_dict())
    full = to_unilm_names(hf.state_dict())
    assert all(torch.equal(value, full[name]) for name, value in bare.items())
    assert set(full) - set(bare) == {"norm.weight", "norm.bias", "lm_head.weight", "lm_head.bias"}


def test_old_names_are_those_of_the_hub(mim):
    names = set(to_hf_names(mim().vit.state_dict(), "v4"))
    layer = "beit.encoder.layer.2."
    assert {
        "beit.embeddings.cls_token", "beit.embeddings.mask_token", "layernorm.bias", "lm_head.weight",
        "beit.encoder.relative_position_bias.relative_position_bias_table",
        f"{layer}attention.attention.key.weight", f"{layer}attention.attention.query.bias", f"{layer}lambda_1",
        f"{layer}attention.output.dense.bias", f"{layer}intermediate.dense.weight", f"{layer}output.dense.bias",
        f"{layer}layernorm_before.weight",
    } <= names  # fmt: skip
    assert f"{layer}attention.attention.key.bias" not in names


def test_unilm_checkpoint_of_the_reference(tokenizer, tmp_path):
    """A state dict as unilm stores it, with logits that unilm's own code computed from it."""
    from safetensors import safe_open

    path = Path(__file__).parents[1] / "fixtures" / "beit_mim_abspos_tiny.safetensors"
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])["constructor"]
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert config["vocab_size"] == VOCAB
    state = {name[3:]: value for name, value in arrays.items() if name.startswith("sd.")}
    state["blocks.0.attn.relative_position_index"] = torch.zeros(2, 2, dtype=torch.int64)
    torch.save({"model": state, "epoch": 799}, tmp_path / "beit.pth")
    model = BEiT(
        config["img_size"][0], config["patch_size"], config["embed_dim"], config["depth"], config["num_heads"],
        config["mlp_ratio"], config["init_values"], absolute_positions=True, relative_positions="none",
        tokenizer=tokenizer, weights=str(tmp_path / "beit.pth"),
    ).eval()  # fmt: skip
    with torch.no_grad():
        logits = model.vit.masked_logits(arrays["in.image"], arrays["in.mask"])
    torch.testing.assert_close(logits, arrays["out.logits"], atol=3e-5, rtol=1e-5)


def test_timm_classifier_gives_equal_logits(images, tmp_path):
    from timm.models.beit import Beit

    reference = randomised(
        Beit(
            img_size=32, patch_size=8, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, num_classes=CLASSES,
            use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1,
        )
    )  # fmt: skip
    torch.save(reference.state_dict(), tmp_path / "timm.pth")
    model = randomised(classifier(), seed=9)
    model.load_weights(tmp_path / "timm.pth")
    with torch.no_grad():
        theirs = reference(model.to_network_range(images))
    assert theirs.std() > 0.1
    torch.testing.assert_close(class_logits(model, images), theirs, atol=1e-5, rtol=1e-5)


def test_a_classifier_does_not_start_masked_image_modelling(mim, tmp_path):
    torch.save(classifier(relative_positions="shared").vit.state_dict(), tmp_path / "timm.pth")
    with pytest.raises(ValueError, match=r"lacks vit\.mask_token, vit\.norm\.weight.*unexpected vit\.fc_norm\.weight"):
        mim().load_weights(tmp_path / "timm.pth")


def test_our_own_file_rebuilds_the_model_with_its_tokenizer_beside_it(mim, images, mask, tokenizer, tmp_path):
    from safetensors import safe_open

    from zoo import create_model

    model = mim(relative_positions="per_block")
    path = save_weights(model, tmp_path / "beit.safetensors")
    with safe_open(path, "pt") as file:
        assert all(name.startswith("vit.") for name in file.keys())  # noqa: SIM118
    again = create_model(f"ckpt:{path}", drop_path=0.2).eval()
    assert type(again) is BEiT
    assert again.init_args() == model.init_args() | {"drop_path": 0.2}
    equal(again.state_dict(), model.state_dict())
    equal(again.tokenizer.state_dict(), model.tokenizer.state_dict())
    assert torch.equal(again.encode(images, mask).ids, model.encode(images, mask).ids)


# ---------------------------------------------------------------------- fine-tuning


WRITERS = {
    "ours": lambda model, folder: save_weights(model, folder / "beit.safetensors"),
    "unilm": lambda model, folder: write_unilm(model, folder / "beit.pth"),
    "transformers": lambda model, folder: save_hf(model, folder / "hf", "v4"),
}


def write_unilm(model, path, prefix=""):
    state = {prefix + name: value for name, value in model.vit.state_dict().items()}
    state[f"{prefix}rel_pos_bias.relative_position_index"] = relative_position_index((4, 4))
    torch.save({"module": state}, path)
    return path


@pytest.mark.parametrize("writer", WRITERS)
def test_fine_tuning_starts_from_masked_image_modelling(mim, images, tmp_path, said, writer):
    pretrained = mim()
    model = randomised(classifier(), seed=9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_weights(WRITERS[writer](pretrained, tmp_path))
    after, source = model.state_dict(), pretrained.state_dict()
    shared = source["vit.rel_pos_bias.relative_position_bias_table"]
    for name, value in after.items():
        if name.startswith(("vit.head.", "vit.fc_norm.")):
            assert torch.equal(value, before[name]), name
        else:
            expected = shared if name.endswith("bias_table") else source[name]
            assert torch.equal(value, expected), name
    tables = [p for n, p in model.named_parameters() if n.endswith("bias_table")]
    assert len({t.data_ptr() for t in tables}) == DEPTH  # copies, which fine-tuning can drive apart
    # the blocks compute what they computed in pre-training
    with torch.no_grad():
        x = model.to_network_range(images)
        ours, theirs = (m.vit.block_outputs(x, [DEPTH - 1])[0] for m in (model, pretrained))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    message = said()
    assert f"copied into each of the {DEPTH} blocks" in message
    assert "vit.head starts anew" in message
    assert "vit.fc_norm starts anew" in message
    assert all(name in message for name in ("mask_token", "norm.weight", "lm_head.bias"))


@pytest.mark.parametrize("method", ["unilm-cubic", "timm-linear", "bilinear"])
def test_tables_of_another_window_are_resized_as_asked(mim, tmp_path, said, method):
    pretrained = mim()
    model = classifier(image_size=48, position_resize=method)
    model.load_weights(write_unilm(pretrained, tmp_path / "beit.pth"))
    table = pretrained.vit.rel_pos_bias.relative_position_bias_table.detach()
    expected = resize_table(table, (4, 4), (6, 6), method)
    assert len(expected) == table_rows((6, 6))
    assert torch.equal(expected[-3:], table[-3:])
    for block in model.vit.blocks:
        assert torch.equal(block.attn.relative_position_bias_table, expected)
    assert f"{DEPTH} relative position tables were resized ({method}) to the window 6x6" in said()


def test_absolute_positions_of_another_size_are_resized_bicubically(mim, tmp_path):
    from timm.layers import resample_abs_pos_embed

    pretrained = mim(**ABSOLUTE)
    save_weights(pretrained, tmp_path / "beit.safetensors")
    model = classifier(image_size=48, **ABSOLUTE, weights=str(tmp_path / "beit.safetensors"))
    model.load_weights(tmp_path / "beit.safetensors")
    expected = resample_abs_pos_embed(pretrained.vit.pos_embed, (6, 6), antialias=False)
    torch.testing.assert_close(model.vit.pos_embed, expected, atol=1e-6, rtol=0)
    assert torch.equal(model.vit.pos_embed[:, 0], pretrained.vit.pos_embed[:, 0])


def test_a_classifier_for_other_labels_starts_anew_and_the_rest_is_kept(tmp_path, said):
    first = classifier()
    save_weights(first, tmp_path / "first.safetensors")
    model = randomised(classifier(num_classes=4), seed=9)
    head = model.vit.head.weight.clone()
    model.load_weights(tmp_path / "first.safetensors")
    assert torch.equal(model.vit.head.weight, head)
    assert torch.equal(model.vit.fc_norm.weight, first.vit.fc_norm.weight)
    assert f"classifier has {CLASSES} classes and the model 4" in said()
    assert "head.bias" in said()


def test_linear_probes_take_the_transformer_and_nothing_else(mim, images, tmp_path, said):
    pretrained = mim()
    save_weights(pretrained, tmp_path / "beit.safetensors")
    model = classifier(relative_positions="shared", linear_probe=True)
    model.load_weights(tmp_path / "beit.safetensors")
    with torch.no_grad():
        x = model.to_network_range(images)
        for i in range(DEPTH):
            assert torch.equal(model.vit.block_outputs(x, [i])[0], pretrained.vit.block_outputs(x, [i])[0])
    assert "probes starts anew" in said()


def test_segmentation_checkpoints_give_their_backbone(tmp_path, said):
    first = classifier()
    state = {f"backbone.{n}": v for n, v in first.vit.state_dict().items() if not n.startswith(("head.", "fc_norm."))}
    state |= {"backbone.fpn1.0.weight": torch.zeros(1), "decode_head.conv_seg.weight": torch.zeros(1)}
    torch.save({"state_dict": state, "meta": {}}, tmp_path / "ade.pth")
    model = randomised(classifier(), seed=9)
    model.load_weights(tmp_path / "ade.pth")
    assert torch.equal(model.vit.blocks[2].attn.qkv.weight, first.vit.blocks[2].attn.qkv.weight)
    assert "decode_head.conv_seg.weight" in said()
    assert "fpn1.0.weight" in said()


# ---------------------------------------------------------------------- bad input


def test_a_head_for_another_vocabulary_is_refused_by_name(mim, tmp_path):
    model = mim()
    state = model.state_dict()
    state["vit.lm_head.weight"], state["vit.lm_head.bias"] = torch.zeros(64, WIDTH), torch.zeros(64)
    torch.save(state, tmp_path / "m.pt")
    before = model.vit.cls_token.clone()
    with pytest.raises(ValueError, match=rf"vit\.lm_head\.weight is 64x{WIDTH} in the file and {VOCAB}x{WIDTH} in"):
        model.load_weights(tmp_path / "m.pt")
    assert torch.equal(model.vit.cls_token, before)


def test_a_tokenizer_is_not_a_beit(mim, tokenizer):
    with pytest.raises(ValueError, match=r"not for BEiT: it is a checkpoint of zoo\.models\.dvae\.DVAE"):
        mim().load_weights(tokenizer)


def test_an_ordinary_vision_transformer_is_not_a_beit(tmp_path):
    from timm.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(ValueError, match="not for BEiTClassifier: it holds cls_token, pos_embed"):
        classifier().load_weights(tmp_path / "vit.pth")


def test_a_table_without_square_window_cannot_be_resized(tmp_path):
    first = classifier()
    state = first.vit.state_dict()
    state |= {name: torch.zeros(7 * 5 + 3, HEADS) for name in state if name.endswith("bias_table")}
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(ValueError, match="35 entries belongs to no square grid"):
        first.load_weights(tmp_path / "m.pth")


def test_probes_have_no_layout_in_transformers(tmp_path):
    with pytest.raises(ValueError, match="no BEiT class for this BEiTClassifier"):
        save_hf(classifier(linear_probe=True), tmp_path)
