"""BEiT against recorded outputs of the published code, transformers and timm; nothing at its zero initialisation."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from zoo.nn.beit_vit import BeitViT

FIXTURES = Path(__file__).parents[1] / "fixtures"
MIM_FILES = sorted(p.name for p in FIXTURES.glob("beit_mim_*.safetensors"))
close = dict(atol=3e-5, rtol=1e-5)  # noqa: C408 - reads as the fixtures' README


def test_there_are_fixtures_of_both_forms():
    assert {"beit_mim_relpos_tiny.safetensors", "beit_mim_abspos_tiny.safetensors"} <= set(MIM_FILES)


@pytest.fixture(scope="module", params=MIM_FILES)
def recorded(request):
    with safe_open(FIXTURES / request.param, "pt") as file:
        sizes = json.loads(file.metadata()["config"])["constructor"]
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    vit = BeitViT(
        image_size=tuple(sizes["img_size"]),
        patch_size=sizes["patch_size"],
        width=sizes["embed_dim"],
        depth=sizes["depth"],
        heads=sizes["num_heads"],
        mlp_ratio=sizes["mlp_ratio"],
        layer_scale=sizes["init_values"],
        absolute_positions=sizes["use_abs_pos_emb"],
        relative_positions="shared" if sizes["use_shared_rel_pos_bias"] else "none",
        vocab_size=sizes["vocab_size"],
    ).eval()
    state = {name[3:]: value for name, value in arrays.items() if name.startswith("sd.")}
    index = state.pop("rel_pos_bias.relative_position_index", None)
    vit.load_state_dict(state)  # strict: unilm's names are ours
    return vit, arrays, index


def test_unilm_stage_by_stage(recorded):
    vit, a, index = recorded
    if index is not None:
        assert torch.equal(vit.rel_pos_bias.relative_position_index, index)
        torch.testing.assert_close(vit.rel_pos_bias()[0], a["out.rel_pos_bias"], **close)
    image, mask = a["in.image"], a["in.mask"]
    with torch.no_grad():
        features = vit.forward_features(image, mask)
        torch.testing.assert_close(features, a["out.features"], **close)
        torch.testing.assert_close(features[:, 1:], a["out.patch_features"], **close)
        torch.testing.assert_close(vit.forward_features(image), a["out.features_unmasked"], **close)
        torch.testing.assert_close(vit.token_logits(image, mask), a["out.logits_all"], **close)
        logits = vit.masked_logits(image, mask)
    torch.testing.assert_close(logits, a["out.logits"], **close)
    torch.testing.assert_close(F.cross_entropy(logits, a["in.labels"]), a["out.loss"], atol=5e-6, rtol=1e-5)


def test_unilm_block_outputs(recorded):
    vit, a, _ = recorded
    x, bias = vit.embed_patches(a["in.image"], a["in.mask"]), vit.shared_bias()
    with torch.no_grad():
        for k, block in enumerate(vit.blocks):
            torch.testing.assert_close(block(x, bias), a[f"out.block_{k}"], **close)
            x = a[f"out.block_{k}"]  # an error shows where it is made


def test_a_class_token_bias_in_the_wrong_order_would_be_seen(recorded):
    """The tolerance means something: exchange two of the class token's rows and the logits move."""
    vit, a, index = recorded
    if index is None:
        pytest.skip("absolute positions")
    table = vit.rel_pos_bias.relative_position_bias_table
    original = table.detach().clone()
    with torch.no_grad():
        table[-3:] = original[[-2, -3, -1]]
        moved = vit.token_logits(a["in.image"], a["in.mask"])
        table.copy_(original)
    assert (moved - a["out.logits_all"]).abs().max() > 1e-3


def randomise(model):
    """No parameter keeps a value that hides a term: zeros of tables and biases, ones of norms and scales."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.2 if parameter.ndim > 1 else 0.5))
            if parameter.ndim == 1:
                parameter.add_(0.7)
    return model.eval()


def to_transformers(state):
    """Names of unilm to those of transformers 5; queries, keys and values are separate there."""
    renamed = {}
    for name, value in state.items():
        if name.endswith("attn.qkv.weight"):
            block = name.split(".")[1]
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                renamed[f"beit.layers.{block}.attention.{letter}_proj.weight"] = part
            continue
        for old, new in (
            ("blocks.", "beit.layers."),
            (".attn.relative_position_bias_table", ".relative_position_bias.relative_position_bias_table"),
            (".attn.q_bias", ".attention.q_proj.bias"),
            (".attn.v_bias", ".attention.v_proj.bias"),
            (".attn.proj.", ".attention.o_proj."),
            (".norm1.", ".layernorm_before."),
            (".norm2.", ".layernorm_after."),
            (".gamma_", ".lambda_"),
            ("fc_norm.", "beit.pooler.layernorm."),
            ("rel_pos_bias.", "beit.shared_position_bias."),
            ("patch_embed.proj.", "beit.embeddings.patch_embeddings.projection."),
        ):
            name = name.replace(old, new)
        for token, new in (
            ("cls_token", "cls_token"),
            ("mask_token", "mask_token"),
            ("pos_embed", "position_embeddings"),
        ):
            name = f"beit.embeddings.{new}" if name == token else name
        name = "layernorm." + name[5:] if name.startswith("norm.") else name
        name = "classifier." + name[5:] if name.startswith("head.") else name
        renamed[name] = value
    return renamed


TINY = {"image_size": 24, "patch_size": 6, "width": 24, "depth": 2, "heads": 3}


def config_of(**options):
    transformers = pytest.importorskip("transformers")
    return transformers.BeitConfig(
        image_size=24, patch_size=6, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96,
        layer_norm_eps=1e-6, attn_implementation="eager", **options,
    )  # fmt: skip


@pytest.mark.parametrize("form", ["relative", "absolute"])
def test_transformers_masked_image_modelling(form):
    transformers = pytest.importorskip("transformers")
    relative = form == "relative"
    theirs = transformers.BeitForMaskedImageModeling(
        config_of(
            vocab_size=50, use_mask_token=True, use_shared_relative_position_bias=relative,
            use_absolute_position_embeddings=not relative, layer_scale_init_value=0.1 if relative else 0.0,
        )
    ).eval()  # fmt: skip
    ours = randomise(
        BeitViT(
            **TINY, vocab_size=50, layer_scale=0.1 if relative else 0.0, absolute_positions=not relative,
            relative_positions="shared" if relative else "none",
        )
    )  # fmt: skip
    missing, unexpected = theirs.load_state_dict(to_transformers(ours.state_dict()), strict=False)
    assert not unexpected
    assert not [name for name in missing if "relative_position_index" not in name]
    x = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(2, 16, generator=torch.Generator().manual_seed(1)) < 0.4
    with torch.no_grad():
        expected = theirs(x, bool_masked_pos=mask).logits
        assert expected.std() > 0.1
        torch.testing.assert_close(ours.token_logits(x, mask), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.masked_logits(x, mask), expected[mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_a_classifier_gives_the_logits_of_other_libraries(library):
    ours = randomise(BeitViT(**TINY, num_classes=7, relative_positions="per_block", init="finetuning"))
    if library == "timm":
        beit = pytest.importorskip("timm.models.beit")
        theirs = beit.Beit(
            img_size=24, patch_size=6, embed_dim=24, depth=2, num_heads=3, num_classes=7, use_rel_pos_bias=True,
            use_abs_pos_emb=False, init_values=0.1,
        ).eval()  # fmt: skip
        theirs.load_state_dict(ours.state_dict())
        logits = theirs
    else:
        transformers = pytest.importorskip("transformers")
        config = config_of(num_labels=7, use_relative_position_bias=True, use_mean_pooling=True)
        theirs = transformers.BeitForImageClassification(config).eval()
        missing, unexpected = theirs.load_state_dict(to_transformers(ours.state_dict()), strict=False)
        assert not unexpected
        assert not [name for name in missing if "relative_position_index" not in name]
        logits = lambda x: theirs(x).logits  # noqa: E731
    x = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = logits(x)
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)


def test_class_token_classifier_equals_timm():
    beit = pytest.importorskip("timm.models.beit")
    theirs = beit.Beit(
        img_size=24, patch_size=6, embed_dim=24, depth=2, num_heads=3, num_classes=7, use_abs_pos_emb=True,
        init_values=None, global_pool="token",
    ).eval()  # fmt: skip
    ours = randomise(
        BeitViT(**TINY, num_classes=7, pool="cls", layer_scale=0.0, absolute_positions=True, relative_positions="none")
    )
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_feature_maps_are_timms_intermediates():
    """Raw block outputs; timm numbers blocks as the reference does, transformers does not."""
    beit = pytest.importorskip("timm.models.beit")
    sizes = TINY | {"depth": 6}
    ours = randomise(BeitViT(**sizes, num_classes=7, relative_positions="per_block"))
    theirs = beit.Beit(
        img_size=24, patch_size=6, embed_dim=24, depth=6, num_heads=3, num_classes=7, use_rel_pos_bias=True,
        use_abs_pos_emb=False, init_values=0.1,
    ).eval()  # fmt: skip
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.forward_intermediates(x, indices=[1, 2, 3, 5], intermediates_only=True)
        for mine, other in zip(ours.forward_intermediates(x), expected, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-5)
