"""The small decoder of generation embeddings: what it learns from, its scale, sizes, refusals."""

import pytest
import torch

import zoo
from zoo.checkpoints.export import save_weights
from zoo.models.seed_pixels import SEEDPixels


def images(count=4):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def tiny(**settings):
    torch.manual_seed(1)
    return zoo.create_model("seed_pixels_tiny", **settings)


def test_it_is_a_tokenizer_with_one_continuous_token():
    model = tiny().eval()
    tokens = model.encode(images())
    assert tokens.ids is None
    assert tokens.embeddings.shape == (4, 1, 16)
    assert model.spec.decodes == "pixels"
    torch.testing.assert_close(tokens.embeddings[:, 0], model.frozen["teacher"].embed(images()))
    assert zoo.reconstruct(model, images()).shape == (4, 3, 32, 32)


def test_the_scale_of_the_embeddings_is_measured_once():
    model = tiny().train()
    first = model.frozen["teacher"].embed(images())
    model.losses({"image": images()})
    torch.testing.assert_close(model.mean, first.mean(0))
    torch.testing.assert_close(model.std, first.std(0, unbiased=False), rtol=1e-4, atol=1e-5)
    for _ in range(25):
        model.losses({"image": images() * 0.1})
    assert model.measured == 20
    fixed = model.mean.clone()
    model.losses({"image": images()})
    assert torch.equal(model.mean, fixed)


def test_it_learns_from_the_tokenizers_embeddings():
    model = tiny(tokenizer="seed_stage2_tiny:random").eval()
    tokenizer = model.frozen["tokenizer"]
    expected = tokenizer.decode(tokenizer.encode(images()))
    torch.testing.assert_close(model.encode(images()).embeddings[:, 0], expected)
    with pytest.raises(ValueError, match="'dvae_tiny:random' does not decode to an embedding"):
        tiny(tokenizer="dvae_tiny:random")


def test_noise_in_training_only():
    model = tiny(noise=1.0)
    one, two = (model.train().losses({"image": images()})["mse"] for _ in range(2))
    assert one != two
    calm = [model.eval().losses({"image": images()})["mse"] for _ in range(2)]
    assert calm[0] == calm[1]


def test_it_overfits_a_batch():
    model = tiny().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    first = model.losses({"image": images()})["loss"].item()
    for _ in range(60):
        loss = model.losses({"image": images()})["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8 * first


def test_sizes_and_tokens_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="4 widths make images of 32 pixels, not 64"):
        tiny(image_size=64)
    model = tiny()
    with pytest.raises(ValueError, match="have no embeddings"):
        model.decode(zoo.Tokens(torch.zeros(1, 1, dtype=torch.int64), None, model.spec))
    assert zoo.SEEDPixels is SEEDPixels


def test_a_tokenizer_that_decodes_to_many_vectors_is_refused(tmp_path):
    many = zoo.create_model("seed_stage2_tiny", detokenizer="reverse_qformer", reverse_queries=77)
    path = save_weights(many, tmp_path / "many.safetensors")
    with pytest.raises(ValueError, match="decodes to 77 vectors per image, and this decoder draws one"):
        tiny(tokenizer=f"ckpt:{path}")


def test_any_tokenizer_that_decodes_to_embeddings_is_drawn(tmp_path):
    path = save_weights(zoo.create_model("beit_tiny", tokenizer="seed_stage2_tiny:random"), tmp_path / "b.safetensors")
    model = tiny(tokenizer=f"ckpt:{path}").eval()
    embedding = model.frozen["tokenizer"].decode(model.frozen["tokenizer"].encode(images()))
    torch.testing.assert_close(model.encode(images()).embeddings[:, 0], embedding)
    llm = zoo.create_model("seed_llm_tiny", tokenizer=f"ckpt:{path}").eval()
    tokens = llm.generate_images(["a cat"], as_tokens=True, seed=0)
    torch.testing.assert_close(
        llm.generate_images(["a cat"], model, seed=0), model.images_of(llm.decode(tokens)), rtol=0, atol=0
    )
