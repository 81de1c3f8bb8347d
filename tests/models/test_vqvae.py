"""VQ-VAE and VQ-VAE-2: objective, two segments of one id space, updates once per step, published names, collapse."""

import inspect
import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from toys import ToyData

import zoo
from zoo.callbacks import CollapseGuard, DivergenceGuard
from zoo.quantizers.codebook import Codebook


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32)


@pytest.fixture
def two():
    return zoo.create_model("vqvae2_tiny").eval()


def fit(model, *callbacks, **settings):
    trainer = pl.Trainer(
        **{"accelerator": "cpu", "max_steps": 4, "log_every_n_steps": 1} | settings, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(model, ToyData(32, count=16))
    return trainer


# ---------------------------------------------------------------- mathematics


@pytest.mark.parametrize("name", ["vqvae_tiny", "vqvae2_tiny"])
def test_objective_is_equation_3(name, images):
    model = zoo.create_model(name)
    terms = model.losses({"image": images})
    found = model.quantize(images)
    output = model.pixels([q.vectors.permute(0, 3, 1, 2) for q in found])
    expected = F.mse_loss(output, 2 * images - 1)
    for level, quantized in zip(model.spec.segments, found, strict=True):
        commitment = terms[f"commitment_{level.name}"]  # mean squared distance to the code
        expected = expected + (0.25 if name == "vqvae_tiny" else 1.25) * commitment
        assert 1 <= terms[f"perplexity_{level.name}"] <= len(quantized.ids.unique()) + 1e-4
    torch.testing.assert_close(terms["loss"], expected)
    in_unit_range = F.mse_loss((output + 1) / 2, images)
    torch.testing.assert_close(terms["mse"], in_unit_range)


def test_the_bottom_sees_what_the_top_has_kept(two, images):
    """VQ-VAE-2, Algorithm 1: the fine codes depend on the coarse ones."""
    before = two.quantize(images)
    with torch.no_grad():
        two.quantize_t.embedding.weight.add_(5.0)
    after = two.quantize(images)
    assert not torch.equal(before[1].vectors, after[1].vectors) or not torch.equal(before[1].ids, after[1].ids)


def test_gradients_reach_the_encoder_through_the_codes(two, images):
    output = two.train().pixels([q.vectors.permute(0, 3, 1, 2) for q in two.quantize(images)])
    output.square().mean().backward()
    assert two.enc_b.blocks[0].weight.grad.abs().sum() > 0
    assert two.enc_t.blocks[0].weight.grad.abs().sum() > 0
    assert two.quantize_t.embedding.weight.grad is None  # codes learn from their own loss only


# ---------------------------------------------------------------- tokens


def test_two_levels_are_two_segments_of_one_id_space(two, images):
    tokens = two.encode(images)
    top, bottom = tokens.spec.segments
    assert (top.shape, top.offset, top.size) == ((4, 4), 0, 32)
    assert (bottom.shape, bottom.offset) == ((8, 8), 32)
    assert tokens.spec.vocab_size == 64
    assert tokens.spec.order == "pyramid"
    assert tokens.ids.shape == (3, 80)
    assert tokens.grid("top").max() < 32 <= tokens.grid("bottom").min()
    found = two.quantize(images)
    assert torch.equal(tokens.grid("top"), found[0].ids)
    assert torch.equal(tokens.grid("bottom"), found[1].ids + 32)
    vectors = two.embed(tokens.ids)
    torch.testing.assert_close(vectors[:, :16].reshape(3, 4, 4, -1), found[0].vectors, atol=1e-6, rtol=0)
    torch.testing.assert_close(vectors[:, 16:].reshape(3, 8, 8, -1), found[1].vectors, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["vqvae_tiny", "vqvae2_tiny"])
def test_decoding_ids_equals_decoding_vectors(name, images):
    model = zoo.create_model(name).eval()
    direct = model.pixels([q.vectors.permute(0, 3, 1, 2) for q in model.quantize(images)])
    torch.testing.assert_close(model.decode(model.encode(images)), ((direct + 1) / 2).clamp(0, 1), atol=1e-6, rtol=0)


def test_other_image_sizes_give_their_own_grids(two):
    tokens = two.encode(torch.rand(1, 3, 48, 16))
    assert tokens.grid("top").shape == (1, 6, 2)
    assert tokens.grid("bottom").shape == (1, 12, 4)
    assert two.decode(tokens).shape == (1, 3, 48, 16)
    assert zoo.create_model("vqvae_tiny").encode(torch.rand(1, 3, 8, 12)).grid().shape == (1, 2, 3)


def test_ids_of_the_wrong_level_are_named(two, images):
    tokens = two.encode(images)
    tokens.ids[0, 20] = 5  # a top code in a bottom cell
    with pytest.raises(ValueError, match=r"ids of bottom must lie in 32\.\.63, got 5\.\.\d+"):
        two.decode(tokens)


def test_the_top_level_alone_is_refused(two, images):
    tokens = two.encode(images)
    with pytest.raises(ValueError, match="decodes its levels together, and these are the first 16 of 80 tokens: give"):
        two.decode(tokens.first(16))


def test_tokens_of_another_vocabulary_are_refused(two, images):
    with pytest.raises(ValueError, match=r"another vocabulary \(1 levels, 32 ids\).*\(2 levels, 64 ids\)"):
        two.decode(zoo.create_model("vqvae_tiny").eval().encode(images))


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"levels": 3}, r"levels must be 1 \(VQ-VAE\) or 2 \(VQ-VAE-2\), got 3"),
        ({"image_size": 36, "levels": 2}, "image_size 36 is not divisible by 8"),
        ({"width": 7}, "width even"),
        ({"codebook": Codebook(quantizer="gumbel")}, "codebook.quantizer of a VQ-VAE cannot be 'gumbel'"),
    ],
)
def test_settings_that_make_no_model(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        inspect.unwrap(zoo.VQVAE.__init__)(zoo.VQVAE.__new__(zoo.VQVAE), **settings)  # beartype checks before it does


# ---------------------------------------------------------------- published sizes and names


def test_published_names_and_shapes():
    with torch.device("meta"):
        state = zoo.create_model("vqvae2_rosinality").state_dict()
    published = json.loads((Path(__file__).parents[1] / "fixtures" / "vqvae2_rosinality_names.json").read_text())
    assert {name: list(value.shape) for name, value in state.items()} == published
    info = zoo.model_info("vqvae2_rosinality")
    assert [s.shape for s in info.spec.segments] == [(32, 32), (64, 64)]
    assert info.spec.vocab_size == 1024
    one = zoo.model_info("vqvae_imagenet").spec
    assert one.grid_shape == (32, 32)
    assert one.vocab_size == 512


@pytest.mark.parametrize(
    "settings", [{}, {"codebook": {"init": "kmeans", "restart_threshold": 0.5}}, {"codebook": {"quantizer": "vq"}}]
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_files_are_read(settings, prefix, tmp_path, images):
    small = {"width": 16, "block_width": 8, "image_size": 32}
    source = zoo.create_model("vqvae2_rosinality", **small).eval()
    with torch.no_grad():
        for value in [*source.parameters(), *source.buffers()]:
            value.copy_(torch.randn_like(value) * 0.2)
    torch.save({prefix + name: value for name, value in source.state_dict().items()}, tmp_path / "vqvae_560.pt")
    model = zoo.create_model("vqvae2_rosinality", weights=tmp_path / "vqvae_560.pt", **small, **settings).eval()
    assert torch.equal(model.encode(images).ids, source.encode(images).ids)
    torch.testing.assert_close(model.decode(model.encode(images)), source.decode(source.encode(images)))
    if "init" in settings.get("codebook", {}):
        assert model.quantize_t.initialised
        assert model.quantize_t.updates > 0


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("accumulate", [1, 2])
def test_codebooks_move_once_per_optimizer_step(accumulate):
    model = zoo.create_model("vqvae_tiny", codebook={"restart_threshold": 1e-6})
    trainer = fit(model, accumulate_grad_batches=accumulate, max_steps=3)
    assert trainer.global_step == 3
    assert model.quantize_b.updates == 3
    tokens = 4 * 64 * accumulate
    # ones at the start; every step adds (1 - decay) of the step's tokens
    expected = 32 * 0.9**3 + tokens * (1 - 0.9**3)
    assert model.quantize_b.cluster_size.sum().item() == pytest.approx(expected, rel=1e-4)


def test_resuming_continues_the_running_means(tmp_path):
    """K-means does not start again, and N and m go on from where they were."""
    settings = {"codebook": {"init": "kmeans", "restart_threshold": 0.01}}
    first = zoo.create_model("vqvae_tiny", **settings)
    fit(first).save_checkpoint(tmp_path / "run.ckpt")
    again = zoo.create_model(f"ckpt:{tmp_path / 'run.ckpt'}").train()
    torch.testing.assert_close(dict(again.state_dict()), dict(first.state_dict()), rtol=0, atol=0)
    before = again.quantize_b.codebook.clone()
    again.losses({"image": torch.rand(4, 3, 32, 32)})
    assert torch.equal(again.quantize_b.codebook, before)
    assert again.quantize_b.updates == 4


def test_a_loss_that_is_no_number_stops_the_run():
    model = zoo.create_model("vqvae_tiny")
    with torch.no_grad():
        model.dec.blocks[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="no longer finite at step"):
        fit(model, DivergenceGuard())


def collapsed():
    model = zoo.create_model("vqvae_tiny", codebook={"decay": 0.0})
    model.quantize_b.codebook.fill_(1e3)  # one code is as near as the next, so the first takes all
    model.quantize_b.codebook[0] = 0.0
    return model


def test_collapse_is_named_once_with_the_remedy():
    with pytest.warns(
        UserWarning, match=r"codebook quantize_b has collapsed: 1 of its 32 codes.*codebook\.init=kmeans"
    ) as w:
        fit(collapsed(), CollapseGuard(threshold=0.1, steps=2))
    assert len([x for x in w if "collapsed" in str(x.message)]) == 1


def test_collapse_stops_the_run_if_asked():
    with pytest.raises(ValueError, match="has collapsed"):
        fit(collapsed(), CollapseGuard(threshold=0.1, steps=2, stop=True))


def test_a_codebook_in_use_is_left_alone():
    model = zoo.create_model("vqvae_tiny", codebook={"init": "kmeans"})
    fit(model, CollapseGuard(threshold=0.1, steps=2, stop=True))
    assert not model.quantize_b._forward_hooks


@pytest.mark.parametrize("settings", [{"threshold": 0.0}, {"threshold": 1.5}, {"steps": 0}])
def test_settings_of_the_guard(settings):
    with pytest.raises(ValueError, match="must"):
        CollapseGuard(**settings)
