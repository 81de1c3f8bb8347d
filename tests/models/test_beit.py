"""Equations of BEiT, its optimizer groups, and what only it does with tokens."""

import math
import pickle
import random

import pytest
import torch
import torch.nn.functional as F
from toys import BlurredImageData, beit_with_positions, labelled_batch, quiet_trainer

import zoo
from zoo.callbacks.evaluation import Evaluation
from zoo.callbacks.grids import ImageGrids
from zoo.nn.beit_vit import BeitViT
from zoo.optim import Optim, parameter_groups
from zoo.sampling.patch_masks import BlockwiseMask

TINY = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 4}


@pytest.fixture
def beit():
    return beit_with_positions()


@pytest.fixture
def batch():
    return labelled_batch()


# ---------------------------------------------------------------------- objective


def test_loss_is_the_cross_entropy_at_hidden_patches_by_a_loop(beit, batch):
    generator = BlockwiseMask(beit.grid, 6, 1, rng=random.Random(0))
    mask = torch.stack([generator() for _ in range(4)])
    mask[0] = False
    mask[0, 1, 2] = True  # images with fewer hidden patches weigh less
    terms = beit.losses(batch | {"mask": mask})
    view = F.interpolate(batch["image"] / 255, (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    ids = beit.tokenizer.encode(view).grid()
    with torch.no_grad():
        logits = beit.vit.token_logits(batch["image"] / 255 * 2 - 1, mask.flatten(1)).unflatten(1, (4, 4))
    total, right, count = 0.0, 0, 0
    for b in range(4):
        for y in range(4):
            for x in range(4):
                if mask[b, y, x]:
                    probabilities = logits[b, y, x].double().softmax(0)
                    total -= math.log(probabilities[ids[b, y, x]])
                    right += int(probabilities.argmax() == ids[b, y, x])
                    count += 1
    assert terms["loss"].detach().item() == pytest.approx(total / count, rel=1e-5)
    assert terms["accuracy"].item() == pytest.approx(right / count)
    assert terms["masked"].item() == pytest.approx(count / 64)


def test_hidden_patches_cannot_be_seen_and_visible_ones_can(beit, batch):
    """The mask token replaces a patch before class token and positions are added."""
    beit.eval()
    mask = torch.zeros(4, 4, 4, dtype=torch.bool)
    mask[:, :2] = True
    other = batch["image"].clone()
    other[:, :, :16] = 255 - other[:, :, :16]
    logits = [beit.vit.token_logits(beit.to_network_range(x), mask.flatten(1)) for x in (batch["image"], other)]
    assert torch.equal(*logits)
    other[:, :, 16:] = 255 - other[:, :, 16:]
    assert not torch.equal(logits[0], beit.vit.token_logits(beit.to_network_range(other), mask.flatten(1)))
    x = beit.vit.embed_patches(beit.to_network_range(other), mask.flatten(1))
    assert torch.equal(x[:, 0], beit.vit.cls_token[:, 0].expand(4, -1))
    assert torch.equal(x[:, 1:9], beit.vit.mask_token.expand(4, 8, -1))


@pytest.mark.parametrize("layer_scale", [0.0, 0.1])
@pytest.mark.parametrize("absolute_positions", [False, True])
def test_residual_stream_is_float32_under_autocast(layer_scale, absolute_positions):
    vit = BeitViT(32, 8, 32, 3, 4, layer_scale=layer_scale, absolute_positions=absolute_positions, vocab_size=64)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, :5] = True
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert vit.embed_patches(torch.rand(2, 3, 32, 32), mask).dtype == torch.float32
        outputs = vit.block_outputs(torch.rand(2, 3, 32, 32), [0, 1, 2])
    assert {x.dtype for x in outputs} == {torch.float32}


def test_positions_are_added_to_mask_tokens_too():
    vit = BeitViT(**TINY, vocab_size=5, absolute_positions=True, relative_positions="none", layer_scale=0)
    x = vit.embed_patches(torch.rand(1, 3, 32, 32), torch.ones(1, 16, dtype=torch.bool))
    assert torch.equal(x[0, 1:], (vit.mask_token + vit.pos_embed[:, 1:])[0])


@pytest.mark.parametrize("relative_positions", ["shared", "per_block", "none"])
def test_only_what_is_needed_is_computed_and_it_is_the_same(relative_positions, batch):
    beit = zoo.create_model("beit_tiny", drop_path=0.0, relative_positions=relative_positions)
    with torch.no_grad():
        for parameter in beit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    mask = torch.rand(4, 16) < torch.tensor([0.0, 0.2, 0.5, 1.0])[:, None]  # another number in every image
    mask[1, 3] = True
    assert mask.sum(1).unique().numel() > 2
    x = beit.to_network_range(batch["image"])
    full = F.cross_entropy(beit.vit.token_logits(x, mask)[mask], target := torch.randint(64, (int(mask.sum()),)))
    short = F.cross_entropy(beit.vit.masked_logits(x, mask), target)
    torch.testing.assert_close(short, full)
    parameters = dict(beit.named_parameters())
    gradients = torch.autograd.grad(full, parameters.values())
    for name, a, b in zip(parameters, gradients, torch.autograd.grad(short, parameters.values()), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_checkpointing_changes_neither_loss_nor_gradients(batch):
    mask = torch.rand(4, 4, 4) < 0.5
    results = []
    for flag in (False, True):
        torch.manual_seed(0)
        model = zoo.create_model("beit_tiny", grad_checkpointing=flag, drop_path=0.5)
        torch.manual_seed(1)
        loss = model.losses(batch | {"mask": mask})["loss"]
        loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in model.named_parameters()}))
    torch.testing.assert_close(*results)


def test_drop_path_keeps_the_expectation_and_drops_whole_images():
    vit = BeitViT(**TINY, vocab_size=5, drop_path=0.5)
    assert [b.drop_path for b in vit.blocks] == [0.0, 0.5]
    block = vit.blocks[1].train()
    x = torch.randn(1, 3, 32).expand(4000, -1, -1)
    with torch.no_grad():
        out = block(x)
        kept = (out != x).flatten(1).any(1)
        assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)  # one of two branches
        attention = block.gamma_1 * block.attn(block.norm1(x[:1]))
        only_attention = x[:1] + 2 * attention
        assert ((out - only_attention).flatten(1).abs().amax(1) < 1e-6).float().mean().item() == pytest.approx(
            0.25, abs=0.03
        )
        rows = torch.rand(4000, 3) < 0.5
        torch.manual_seed(0)
        every = block(x)
        torch.manual_seed(0)
        torch.testing.assert_close(block(x, None, rows), every[rows])


def test_masks_are_new_in_training_and_fixed_in_evaluation(beit, batch):
    assert not torch.equal(beit.masks(batch), beit.masks(batch))
    beit.eval()
    first = beit.masks(batch)
    assert torch.equal(first, beit.masks(batch))
    turned = {"image": batch["image"].flip(0), "index": batch["index"].flip(0)}
    assert torch.equal(beit.masks(turned), first.flip(0))  # they belong to the image, not to the batch
    assert beit.losses(batch)["loss"] == beit.losses(batch)["loss"]
    uniform = zoo.create_model("beit_tiny", masking="random", num_masked=5)
    assert (uniform.masks(batch).sum((1, 2)) == 5).all()


def test_default_mask_counts_are_the_papers():
    with torch.device("meta"):
        base = zoo.create_model("beit_base_patch16_224", tokenizer="dvae_openai:random")
    assert (base.draw_mask.num_masked, base.draw_mask.min_block, base.grid) == (75, 16, (14, 14))
    assert base.view_size == (112, 112)  # for 14x14 tokens


# ---------------------------------------------------------------------- tokens


def test_precomputed_ids_and_token_view_are_used(beit, batch):
    mask = beit.eval().masks(batch)
    plain = beit.losses(batch | {"mask": mask})
    ids = beit.tokenize(batch)
    assert beit.losses(batch | {"mask": mask, "ids": ids})["loss"] == plain["loss"]
    assert beit.losses(batch | {"mask": mask, "ids": (ids + 1) % 64})["loss"] != plain["loss"]
    view = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(beit.tokenize(batch | {"token_image": view}), beit.tokenizer.encode(view).ids)


def test_is_a_quantizer_through_its_tokenizer(beit, batch):
    beit.eval()
    tokens = beit.encode(batch["image"])
    logits = beit.vit.token_logits(beit.to_network_range(batch["image"]))
    assert torch.equal(tokens.ids, logits.argmax(-1))
    assert tokens.spec == beit.spec
    assert (beit.spec.grid_shape, beit.spec.vocab_size, beit.spec.decodes) == ((4, 4), 64, "pixels")
    assert torch.equal(zoo.reconstruct(beit, batch["image"]), beit.tokenizer.decode(tokens))
    mask = torch.zeros(4, 4, 4, dtype=torch.bool)
    mask[:, 1:3, 1:3] = True
    under = beit.encode(batch["image"], mask)
    completed = beit.complete(batch["image"], mask)
    assert torch.equal(completed.grid()[mask], under.grid()[mask])
    assert torch.equal(completed.ids[~mask.flatten(1)], beit.tokenize(batch)[~mask.flatten(1)])
    assert torch.equal(beit.embed(tokens.ids), beit.tokenizer.embed(tokens.ids))


def test_picture_rows_show_what_is_hidden(beit, batch):
    rows = beit.picture_rows(batch["image"][:2] / 255, batch | {"caption": ["a"] * 4})
    assert list(rows) == ["original", "masked_input", "tokenizer", "predicted_under_mask", "predicted_from_all"]
    assert {tuple(r.shape) for r in rows.values()} == {(2, 3, 32, 32)}
    assert beit.training
    hidden = beit.eval().masks(batch)[:2].repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand(-1, 3, -1, -1)
    assert (rows["masked_input"][hidden] == 0.5).all()
    assert torch.equal(rows["masked_input"][~hidden], rows["original"][~hidden])


def test_trains_on_the_ids_of_an_encoder_alone(tmp_path):
    """As FLAVA, OpenMMLab and OpenAI's encoder.pkl are; the callbacks of the recipes ask spec.decodes."""
    torch.save(zoo.create_model("dvae_tiny").encoder.state_dict(), tmp_path / "encoder.pt")
    model = zoo.create_model("beit_tiny", tokenizer=f"dvae_tiny:{tmp_path / 'encoder.pt'}")
    assert model.spec.decodes is None
    trainer = quiet_trainer(tmp_path, max_steps=3, callbacks=[Evaluation(), ImageGrids()])
    trainer.fit(model, BlurredImageData(image_size=32))
    assert model.global_step == 3
    assert "val/accuracy" in trainer.callback_metrics
    assert "val/psnr" not in trainer.callback_metrics
    images = torch.rand(2, 3, 32, 32)
    assert list(model.picture_rows(images, {"index": torch.arange(2)})) == ["original", "masked_input"]
    assert list((tmp_path / "images").glob("step_*.png"))
    with pytest.raises(zoo.NotInvertible, match="encoder only"):
        model.decode(model.encode(images))


def test_tokenizer_is_frozen_and_not_saved(beit, batch):
    assert not any("tokenizer" in name for name in beit.state_dict())
    assert all(name.startswith("vit.") for name in beit.state_dict())
    beit.train().losses(batch)["loss"].backward()
    assert not beit.tokenizer.training
    assert all(p.grad is None for p in beit.tokenizer.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in beit.parameters())


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("ids", torch.zeros(4, 9, dtype=torch.long), "shape \\(4, 9\\).*needs 16 ids in 0\\.\\.63"),
        ("ids", torch.full((4, 16), 64), r"ids in \d+\.\.64"),
        ("mask", torch.zeros(4, 3, 4, dtype=torch.bool), "masks must be bool of shape \\(4, 4, 4\\)"),
        ("token_image", torch.zeros(4, 3, 32, 32), "32x32, this model needs 16x16"),
        ("token_image", torch.zeros(4, 3, 32, 32), r"'token_image'\] is 32x32.*set data\.token_image_size to 16$"),
        ("image", torch.zeros(4, 3, 40, 40), "40x40, this model needs 32x32"),
    ],
)
def test_bad_batches_are_named(beit, batch, entry, value, message):
    with pytest.raises(ValueError, match=message):
        beit.losses(batch | {entry: value})


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="vocab_size is 8192, but the tokenizer 'dvae_tiny:random' has 64 ids"):
        zoo.create_model("beit_tiny", vocab_size=8192)
    with pytest.raises(ValueError, match="30x30 is not divisible by patch_size 8"):
        zoo.create_model("beit_tiny", image_size=30)
    with pytest.raises(ValueError, match="width 32 is not divisible by heads 5"):
        zoo.create_model("beit_tiny", heads=5)
    with pytest.raises(ValueError, match="has no discrete tokens"):
        zoo.create_model("beit_tiny", tokenizer="beit_classifier_tiny:random")
    for value, message in (
        ({"num_masked": 0}, "1..16.*got 0"),
        ({"min_block": 0}, "min_block must be >= 1"),
        ({"min_block": 3, "max_block": 2}, "max_block must not be below min_block, got 2 and 3"),
        ({"max_block": 0}, "max_block must not be below min_block, got 0 and 1"),
        ({"min_aspect": 0.0}, r"min_aspect in \(0, 1\], got 1 and 0.0"),
        ({"min_aspect": 1.5}, r"min_aspect in \(0, 1\], got 1 and 1.5"),
        ({"drop_path": 1.0}, "got 1.0"),
    ):
        with pytest.raises(ValueError, match=message):  # 0 does not mean the default, and 1 would divide by zero
            zoo.create_model("beit_tiny", **value)


def test_blocks_have_the_sizes_and_shapes_that_are_asked_for():
    """As BlockwiseMask of these settings draws them; the defaults are the published ones."""
    asked = {"num_masked": 40, "min_block": 4, "max_block": 6, "min_aspect": 0.9}
    model, plain = (zoo.create_model("beit_tiny", image_size=96, **s) for s in (asked, {"num_masked": 40}))
    own = BlockwiseMask((12, 12), 40, 4, 6, 0.9)
    assert all(torch.equal(model.draw_mask(random.Random(i)), own(random.Random(i))) for i in range(20))
    published = BlockwiseMask((12, 12), 40, round(144 * 16 / 196))
    assert all(torch.equal(plain.draw_mask(random.Random(i)), published(random.Random(i))) for i in range(20))
    assert model.init_args()["max_block"] == 6
    assert model.init_args()["min_aspect"] == 0.9
    single = zoo.create_model("beit_tiny", image_size=96, num_masked=40, min_block=1, max_block=1, min_aspect=1.0)
    assert single.draw_mask(random.Random(0)).sum() == 40


@pytest.mark.parametrize("masking", ["blockwise", "random"])
def test_a_model_can_be_sent_to_another_process(masking):
    model = pickle.loads(pickle.dumps(zoo.create_model("beit_tiny", masking=masking)))
    assert model.draw_mask(random.Random(0)).shape == (4, 4)


# ---------------------------------------------------------------------- sizes and initial values


@pytest.mark.parametrize(
    ("name", "overrides", "parameters"),
    [
        ("beit_base_patch16_224", {}, 91_965_776),
        ("beit_large_patch16_224", {}, 311_534_016),
        ("beit_base_patch16_224_abs", {}, 92_089_856),
        ("beit_base_patch16_224_classifier", {}, 86_530_984),
        ("beit_base_patch16_384_classifier", {}, 86_744_104),
        ("beit_large_patch16_224_classifier", {}, 304_430_568),
        ("beit_large_patch16_384_classifier", {}, 304_998_888),
        ("beit_large_patch16_512_classifier", {}, 305_674_728),
        ("beit_base_patch16_224_classifier", {"num_classes": 21_841}, 102_557_713),
    ],
)
def test_published_parameter_counts(name, overrides, parameters):
    if "classifier" not in name:
        overrides = {"tokenizer": "dvae_openai:random"}
    with torch.device("meta"):
        model = zoo.create_model(name, **overrides)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_initial_values_are_the_published_ones():
    torch.manual_seed(0)
    vit = BeitViT(64, 8, 192, 6, 3, layer_scale=1e-5, vocab_size=512, absolute_positions=True)
    for name, p in vit.named_parameters():
        leaf = name.rpartition(".")[2]
        if "table" in name or leaf in ("bias", "q_bias", "v_bias"):
            assert (p == 0).all(), name
        elif "gamma" in name:
            assert (p == 1e-5).all()
        elif "norm" in name:
            assert (p == 1).all()
        else:
            depth = int(name.split(".")[1]) + 1 if "attn.proj" in name or "mlp.fc2" in name else None
            bound = 0.02 / math.sqrt(2 * depth) if depth else 0.02
            assert p.abs().max() <= bound * 1.0001, name  # cut at one sigma
            if p.numel() > 10_000:  # sigma of a normal distribution cut there: 0.5397 of its own
                assert p.std().item() == pytest.approx(0.5397 * bound, rel=0.02), name


# ---------------------------------------------------------------------- optimizer


@pytest.mark.parametrize("convention", ["unilm", "timm"])
def test_weight_decay_conventions(convention):
    model = zoo.create_model("beit_tiny", absolute_positions=True, decay_convention=convention)
    groups = parameter_groups(model.named_parameters(), Optim(weight_decay=0.05), model.no_decay)
    decays = {id(p): g["weight_decay"] > 0 for g in groups for p in g["params"]}
    for name, p in model.named_parameters():
        leaf = name.rpartition(".")[2]
        expected = leaf == "mask_token" or (leaf == "weight" and "norm" not in name)
        expected |= leaf == "relative_position_bias_table" and convention == "unilm"
        assert decays[id(p)] == expected, name


# ---------------------------------------------------------------------- both parts of the paper


@pytest.mark.parametrize(
    ("name", "networks"), [("beit_tiny", {"BeitViT", "DalleEncoder"}), ("beit_classifier_tiny", {"BeitViT"})]
)
def test_compiling_reaches_what_the_losses_compute(name, networks, batch, monkeypatch):
    """Only calls of a module are compiled; its other methods are not."""
    called = set()

    def compile_in_place(module, **options):
        def compiled(*args):
            called.add(type(module).__name__)
            return module._call_impl(*args)

        module._compiled_call_impl = compiled

    monkeypatch.setattr(torch.nn.Module, "compile", compile_in_place)
    model = zoo.create_model(name)
    model.compile_networks()
    model.losses(batch)["loss"].backward()
    assert called == networks
