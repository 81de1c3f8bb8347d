"""SEED's tokenizer: causal ids, both de-tokenizers, what is trained, pixels through decoders, weights told apart."""

from dataclasses import replace

import jaxtyping
import pytest
import torch

import zoo
from zoo.models.seed_stage2 import SEEDTokenizer
from zoo.tokens import Tokens
from zoo.vision.unclip import pixels_of_embedding, unclip_pipeline


def stirred(name="seed_stage2_tiny", **settings):
    torch.manual_seed(1)
    model = zoo.create_model(name, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def images(count=4):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def save(model, path):
    return zoo.checkpoints.export.save_weights(model, path)


@pytest.mark.parametrize("count", [8, 16, 32])
@torch.no_grad()
def test_ids_are_causal(count):
    model = stirred(qformer={"queries": count}, codebook={"vocab_size": 256}).eval()
    before = model.encode(images()).ids
    k = count // 2
    model.query_tokens[:, k] += 3 * torch.randn(24)
    after = model.encode(images()).ids
    assert torch.equal(after[:, :k], before[:, :k])
    assert not torch.equal(after[:, k:], before[:, k:])


def test_what_is_trained():
    model = stirred().train()
    frozen = {n.partition(".")[0] for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"Qformer", "query_tokens", "ln_vision"}
    assert not model.Qformer.training
    assert model.blocks.training
    assert frozen <= {n.partition(".")[0] for n in model.state_dict()}, "a tokenizer is nothing without them"
    published = zoo.create_model("seed_stage2_tiny", frozen_eval=False, qformer={"dropout": 0.5}).train()
    assert published.Qformer.training
    one, two = (published.causal_embeddings(images()) for _ in range(2))
    assert (one - two).abs().max() > 1e-3, "as published, the targets vary"
    torch.testing.assert_close(model.causal_embeddings(images()), model.causal_embeddings(images()))


def test_losses_are_the_weighted_sum():
    model = stirred().eval()
    terms = model.losses({"image": images()})
    torch.testing.assert_close(terms["loss"], 5 * terms["vq"] + 2 * terms["reconstruction"] + 0.5 * terms["generation"])
    with torch.no_grad():
        tokens = model.encode(images())
        causal = model.causal_embeddings(images())
        again = model.reconstruct_causal(tokens)
        cosine = torch.nn.functional.cosine_similarity(again, causal, dim=-1).mean()
        target = model.frozen["teacher"].embed(images())
        error = (model.decode(tokens) - target).square().mean()
    torch.testing.assert_close(terms["reconstruction"], 1 - cosine, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["generation"], error, rtol=1e-4, atol=1e-5)


def test_prefixes_decode():
    model = stirred().eval()
    tokens = model.encode(images())
    whole = model.decode(tokens)
    torch.testing.assert_close(model.decode(tokens.first(4)), whole)
    other = tokens.ids.clone()
    other[:, 2:] = (other[:, 2:] + 7) % 32
    part = model.decode(tokens.first(2))
    torch.testing.assert_close(model.decode(Tokens(other, None, model.spec).first(2)), part)
    assert (part - whole).abs().max() > 1e-4
    with torch.no_grad():
        codes = model.embed(tokens.ids)
        codes[:, 2:] = model.quantize.codebook.mean(0)
        torch.testing.assert_close(model._generation(model.decode_task_layer(codes)), part)


def test_prefixes_of_other_sequences_are_refused():
    model = stirred().eval()
    tokens = model.encode(images())
    with pytest.raises(ValueError, match=r"causal sequence ends with a whole token: take 1 to 4 tokens, not 0"):
        tokens.first(0)
    other = Tokens(tokens.ids[:, :2], None, replace(model.spec.first(2), dim=5))
    with pytest.raises(ValueError, match=r"an image has 4 ids, these are 2: decode all of them, or tokens\.first\(m\)"):
        model.decode(other)
    with pytest.raises(ValueError, match="causal embeddings need all 4 ids of an image, these are 2"):
        model.reconstruct_causal(tokens.first(2))


@pytest.mark.parametrize(("queries", "shape"), [(1, (4, 16)), (5, (4, 5, 16))])
def test_reverse_q_former(queries, shape):
    model = stirred(detokenizer="reverse_qformer", reverse_queries=queries).eval()
    tokens = model.encode(images())
    found = model.decode(tokens)
    assert found.shape == shape
    assert model.spec.decodes == "embedding"
    other = Tokens(tokens.ids.roll(1, 0), None, model.spec)
    torch.testing.assert_close(model.decode(other), found.roll(1, 0))


# ---------------------------------------------------------------- pixels


def test_pixels_through_our_own_decoder(tmp_path):
    model = stirred().eval()
    decoder = zoo.create_model("seed_pixels_tiny").eval()
    tokens = model.encode(images())
    found = model.decode_pixels(tokens, decoder)
    assert found.shape == (4, 3, 32, 32)
    assert 0 <= found.min() <= found.max() <= 1
    torch.testing.assert_close(found, decoder.images_of(model.decode(tokens)))
    torch.testing.assert_close(model.decode_pixels(tokens, f"ckpt:{save(decoder, tmp_path / 'd.safetensors')}"), found)


def test_without_a_decoder_one_sentence_says_what_to_give():
    model = stirred().eval()
    with pytest.raises(ValueError, match="not to pixels: give a decoder") as caught:
        model.decode_pixels(model.encode(images()))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="a Linear cannot draw generation embeddings"):
        model.decode_pixels(model.encode(images()), torch.nn.Linear(2, 2))

    class OfAnotherKind:  # as Kandinsky's decoders, which have no image_normalizer
        def __call__(self, image_embeds=None): ...

    with pytest.raises(ValueError, match="a OfAnotherKind cannot draw generation embeddings"):
        model.decode_pixels(model.encode(images()), OfAnotherKind())
    with pytest.raises(zoo.NotInvertible):
        zoo.reconstruct(model, images())
    with pytest.raises(ValueError, match="draws vectors of width 16, these are"):
        zoo.create_model("seed_pixels_tiny").images_of(torch.zeros(1, 5))
    with pytest.raises(FileNotFoundError, match="is no folder of a diffusers pipeline"):
        unclip_pipeline("nowhere")


@pytest.mark.slow
@torch.no_grad()
def test_pixels_through_unclip(tmp_path):
    """diffusers' pipeline with tiny random networks, saved and read as a local folder."""
    folder = tiny_unclip(tmp_path / "unclip", width=16)
    pipeline = unclip_pipeline(folder)
    pipeline.set_progress_bar_config(disable=True)
    model = stirred().eval()
    tokens = model.encode(images(2))
    settings = {"num_inference_steps": 2, "height": 32, "width": 32}
    torch.manual_seed(0)
    found = model.decode_pixels(tokens, pipeline, **settings)
    assert found.shape == (2, 3, 32, 32)
    assert found.isfinite().all()
    assert 0 <= found.min() <= found.max() <= 1
    torch.manual_seed(0)
    other = pixels_of_embedding(model.decode(tokens) + 3, pipeline, **settings)
    assert (found - other).abs().max() > 1e-3, "the embedding matters"
    with pytest.raises(ValueError, match="the pipeline wants vectors of width 16, these are"):
        pixels_of_embedding(torch.zeros(2, 5), pipeline)


def tiny_unclip(folder, width):
    from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
    from transformers import (
        CLIPImageProcessor,
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTokenizer,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    torch.manual_seed(0)
    words = folder.parent / "words"
    words.mkdir()
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "a": 3}
    (words / "vocab.json").write_text(__import__("json").dumps(vocabulary))
    (words / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(words / "vocab.json"), str(words / "merges.txt"), model_max_length=16)
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=8, hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    ))  # fmt: skip
    vision = CLIPVisionModelWithProjection(CLIPVisionConfig(
        hidden_size=width, projection_dim=width, num_hidden_layers=1, num_attention_heads=2, image_size=32,
        intermediate_size=24, patch_size=8,
    ))  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), block_out_channels=(32, 64), attention_head_dim=(2, 4),
        class_embed_type="projection", projection_class_embeddings_input_dim=2 * width, cross_attention_dim=32,
        layers_per_block=1, use_linear_projection=True,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=[32, 64], in_channels=3, out_channels=3, latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
    )  # fmt: skip
    pipeline = StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor(crop_size=32, size=32), image_encoder=vision.eval(),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=width),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"), tokenizer=tokenizer,
        text_encoder=text.eval(), unet=unet.eval(), vae=vae.eval(),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction", set_alpha_to_one=False),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- weights


def published(model):
    """The state by the published names, with the buffers that count positions."""
    state = {name.removeprefix("detokenizer."): value for name, value in model.state_dict().items()}
    for former in {name.split(".")[0] for name in state if "Qformer." in name}:
        state[f"{former}.bert.embeddings.position_ids"] = torch.arange(4)[None]
    return state


def test_from_the_first_stage(tmp_path):
    first = stirred("seed_stage1_tiny").eval()
    second = zoo.create_model("seed_stage2_tiny", weights=save(first, tmp_path / "first.safetensors")).eval()
    torch.testing.assert_close(
        second.causal_embeddings(images()), first.causal_embeddings(images()), rtol=1e-4, atol=1e-5
    )
    blip = stirred("blip2_stage1_tiny")
    again = zoo.create_model("seed_stage2_tiny", weights=save(blip, tmp_path / "blip2.safetensors"))
    torch.testing.assert_close(again.query_tokens, blip.query_tokens)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s | {"distill_text_proj.weight": torch.zeros(2, 2)}, "are of SEED-1"),
        (
            lambda s: {n: v for n, v in s.items() if "image_down" not in n},
            "the reverse_qformer de-tokenizer, this model mlp",
        ),
        (
            lambda s: {n: v for n, v in s.items() if not n.startswith(("query", "Qformer", "ln_vision"))},
            "holds what was trained and not the frozen",
        ),
        (lambda s: {n: v for n, v in s.items() if n != "pos_embed_image"}, "lacks pos_embed_image"),
    ],
)
def test_other_files_of_that_name_are_told_apart(tmp_path, change, sentence):
    state = published(stirred())
    torch.save(change(state), tmp_path / "seed.pt")
    with pytest.raises(ValueError, match=sentence) as caught:
        zoo.create_model("seed_stage2_tiny", weights=tmp_path / "seed.pt")
    assert "\n" not in str(caught.value)


def test_published_layout_with_what_inference_does_not_need(tmp_path):
    model = stirred()
    state = published(model) | {"vision_proj.weight": torch.zeros(2, 2)}
    torch.save(state, tmp_path / "seed_quantizer.pt")
    again = zoo.create_model("seed_stage2_tiny", weights=tmp_path / "seed_quantizer.pt")
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mlp", "reverse_qformer"])
def test_every_entry_of_a_file_is_demanded(kind, tmp_path):
    """One after the other is taken out of a small file in the published layout."""
    model = zoo.create_model("seed_stage2_tiny", detokenizer=kind)
    state, path = published(model), tmp_path / "seed_quantizer.pt"
    torch.save(state, path)
    model.load_weights(str(path))
    for name in state:
        torch.save({other: value for other, value in state.items() if other != name}, path)
        with pytest.raises(ValueError) as caught:
            model.load_weights(str(path))
        assert "\n" not in str(caught.value)
        assert name in str(caught.value).replace("detokenizer.", "")


def test_our_own_files_are_not_taken_for_a_first_stage(tmp_path):
    from zoo.checkpoints.export import save_weights

    path = save_weights(zoo.create_model("seed_stage2_tiny"), tmp_path / "own.safetensors")
    for other, sentence in (
        ({"detokenizer": "reverse_qformer"}, "read as ours, does not fit .* it lacks detokenizer.reverse_tokens"),
        (
            {"codebook": {"vocab_size": 64}},
            "read as ours, .* quantize.embedding.weight is 32x8 in the file and 64x8",
        ),
        ({"qformer": {"queries": 3}}, "read as ours, .* query_tokens is 1x4x24 in the file and 1x3x24"),
    ):
        with pytest.raises(ValueError, match=sentence):
            zoo.create_model("seed_stage2_tiny", weights=str(path), **other)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"codec_depth": 2}, "blocks"),
        ({"detokenizer": "reverse_qformer", "reverse_depth": 5}, "Reverse_Qformer"),
    ],
)
def test_published_files_of_another_depth_are_refused(tmp_path, settings, name):
    state = published(stirred(**settings))
    torch.save(state, tmp_path / "seed.pt")
    zoo.create_model("seed_stage2_tiny", weights=tmp_path / "seed.pt", **settings)
    fewer = {key: value - 1 if isinstance(value, int) else value for key, value in settings.items()}
    with pytest.raises(ValueError, match=name):
        zoo.create_model("seed_stage2_tiny", weights=tmp_path / "seed.pt", **fewer)


def test_the_tokenizers_file_is_no_first_stage(tmp_path):
    state = published(stirred())
    torch.save(stirred("seed_stage1_tiny").state_dict() | state, tmp_path / "seed_quantizer.pt")
    for other in ("seed_stage1_tiny", "blip2_stage2_tiny"):
        with pytest.raises(ValueError, match="SEED's tokenizer of AILab-CVC/SEED") as caught:
            zoo.create_model(other, weights=tmp_path / "seed_quantizer.pt")
        assert "\n" not in str(caught.value)


def test_ids_do_not_depend_on_the_precision():
    model = stirred().eval()
    many = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = model.encode(many).ids
    assert torch.equal(inside, model.encode(many).ids)


def test_layers_of_the_first_stage_are_not_dropped(tmp_path):
    from zoo.checkpoints.export import save_weights

    path = save_weights(zoo.create_model("seed_stage1_tiny"), tmp_path / "first.safetensors")
    depth = zoo.create_model("seed_stage1_tiny").hparams["qformer"].depth
    zoo.create_model("seed_stage2_tiny", qformer={"depth": depth}, weights=str(path))
    with pytest.raises(ValueError, match="Qformer"):
        zoo.create_model("seed_stage2_tiny", qformer={"depth": depth - 1}, weights=str(path))


def test_settings_that_make_no_model(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside of the tests
    for settings, sentence in (
        ({"codebook": {"init": "kmean"}}, "codebook.init cannot be 'kmean'"),
        ({"qformer": {"queries": 0}}, r"qformer\.queries must be a whole number of at least 1"),
        ({"codec_heads": 5}, "multiple of codec_heads"),
        ({"reverse_queries": 77}, "77 reverse queries need a reverse Q-Former"),
    ):
        with pytest.raises(ValueError, match=sentence) as caught:
            zoo.create_model("seed_stage2_tiny", **settings)
        assert "\n" not in str(caught.value)
    several = zoo.create_model("seed_stage2_tiny", detokenizer="reverse_qformer", reverse_queries=3)
    with pytest.raises(ValueError, match="training with several reverse queries needs a teacher"):
        several.losses({"image": torch.rand(2, 3, 32, 32)})
    with pytest.raises(ValueError, match="has no 'image'"):
        several.losses({"caption": ["a"]})


def test_ids_of_other_images_and_settings_that_cannot_be_are_refused():
    model = stirred()
    with pytest.raises(ValueError, match=r"ids must lie in 0..31, got 0..99: take the image"):
        model.decode(Tokens(torch.tensor([[0, 1, 2, 99]]), None, model.spec))
    with pytest.raises(ValueError, match=r"ids must lie in 0..31, got -1..3"):
        model.embed(torch.tensor([-1, 3]))
    one = zoo.create_model("seed_stage2_tiny", qformer={"queries": 1})
    other = Tokens(torch.zeros(2, 1, dtype=torch.int64), None, one.spec)
    for decode in (model.decode, model.reconstruct_causal):
        with pytest.raises(ValueError, match="an image has 4 ids, these are 1"):
            decode(other)
    with pytest.raises(ValueError, match="learns from a teacher: set teacher"):
        zoo.create_model("seed_stage2_tiny", teacher=None).losses({"image": images()})
    with pytest.raises(ValueError, match="have width 16: set embedding_width to that"):
        zoo.create_model("seed_stage2_tiny", embedding_width=8)
    with pytest.raises(ValueError, match="there is no teacher 'clip'"):
        zoo.create_model("seed_stage2_tiny", teacher="clip")
    with pytest.raises(ValueError, match="ids have 3 tokens per image, but the spec says 4"):
        Tokens(torch.zeros(1, 3, dtype=torch.int64), None, model.spec)
    assert zoo.SEEDTokenizer is SEEDTokenizer


@pytest.mark.parametrize("quantizer", ["vq", "l2", "ema"])
def test_codes_of_every_kind_that_has_a_table_train_and_decode(quantizer):
    model = stirred(codebook={"quantizer": quantizer}).train()
    loss = model.losses({"image": images()})["loss"]
    loss.backward()
    assert loss.isfinite()
    tokens = model.eval().encode(images())
    assert model.decode(tokens).isfinite().all()


def test_a_codebook_without_a_table_is_refused():
    with pytest.raises(ValueError, match=r"codebook\.quantizer of SEED cannot be 'gumbel'"):
        zoo.create_model("seed_stage2_tiny", codebook={"quantizer": "gumbel"})
