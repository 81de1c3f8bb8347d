"""DVAE against PyPI's ``dall_e`` 0.1, through pickles that it writes, and against transformers' FLAVA codebook."""

import zipfile

import pytest
import torch

from zoo import NotInvertible, Tokens, reconstruct
from zoo.losses.logit_laplace import map_pixels
from zoo.models.dvae import DVAE

WIDTH, VOCAB = 64, 512  # the smallest that dall_e's validators accept
SIZE = 48


@pytest.fixture(scope="module")
def reference():
    from dall_e.decoder import Decoder
    from dall_e.encoder import Encoder

    torch.manual_seed(0)
    encoder, decoder = Encoder(n_hid=WIDTH, vocab_size=VOCAB), Decoder(n_hid=WIDTH, vocab_size=VOCAB)
    for parameter in (*encoder.parameters(), *decoder.parameters()):
        if parameter.ndim == 1:  # biases start at zero and would hide a missing or exchanged one
            parameter.data.normal_(std=0.3)
    for module in decoder.modules():  # pickles of old torch versions lack this attribute, and new ones need it
        if isinstance(module, torch.nn.Upsample):
            del module.recompute_scale_factor
    return encoder.eval(), decoder.eval()


@pytest.fixture(scope="module")
def restored(reference):
    """The decoder with the attribute back, so that the reference itself can run."""
    import copy

    decoder = copy.deepcopy(reference[1])
    for module in decoder.modules():
        if isinstance(module, torch.nn.Upsample):
            module.recompute_scale_factor = None
    return reference[0], decoder


@pytest.fixture
def images():
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def dvae(**overrides):
    return DVAE(image_size=SIZE, width=WIDTH, vocab_size=VOCAB, **overrides).eval()


def write(reference, folder, zipped=True):
    for name, module in zip(("encoder", "decoder"), reference, strict=True):
        torch.save(module, folder / f"{name}.pkl", _use_new_zipfile_serialization=zipped)
    assert zipfile.is_zipfile(folder / "encoder.pkl") == zipped
    return folder


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_pickled_modules_give_equal_logits_ids_and_pixel_distributions(reference, restored, images, tmp_path, zipped):
    model = dvae(weights=str(write(reference, tmp_path, zipped)))
    encoder, decoder = restored
    with torch.no_grad():
        expected = encoder(map_pixels(images))
        logits = model.logits(images)
        ids = model.encode(images).grid()
        assert logits.std() > 0.1
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        assert torch.equal(ids, expected.argmax(1))

        one_hot = torch.nn.functional.one_hot(ids, VOCAB).permute(0, 3, 1, 2).float()
        stats = decoder(one_hot)
        _, mu, log_scale = model.pixels(model.embed(ids).permute(0, 3, 1, 2))
        assert stats.std() > 0.1
        torch.testing.assert_close(torch.cat([mu, log_scale], 1), stats, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            reconstruct(model, images), ((stats[:, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1), atol=1e-5, rtol=0
        )
    assert model.not_in_file == {}


def test_encoder_alone_encodes_and_says_why_it_cannot_decode(reference, images, tmp_path):
    torch.save(reference[0], tmp_path / "encoder.pkl")
    model = dvae(weights=str(tmp_path / "encoder.pkl"))
    with torch.no_grad():
        tokens = model.encode(images)
        assert torch.equal(tokens.grid(), reference[0](map_pixels(images)).argmax(1))
    assert model.spec.decodes is None
    assert tokens.spec.decodes is None
    with pytest.raises(NotInvertible, match=r"encoder only.*decoder\.pkl"):
        model.decode(tokens)
    model.load_weights(str(write(reference, tmp_path)))  # both files: the reason is gone
    assert model.spec.decodes == "pixels"
    assert model.decode(tokens).shape == images.shape


def test_decoder_alone_is_told_from_an_encoder_by_its_shapes(reference, restored, tmp_path):
    torch.save(reference[1].state_dict(), tmp_path / "decoder.pt")
    model = dvae(weights=str(tmp_path / "decoder.pt"))
    assert list(model.not_in_file) == ["encoder."]
    assert model.spec.decodes == "pixels"
    ids = torch.arange(36)[None] * 7 % VOCAB
    with torch.no_grad():
        stats = restored[1](torch.nn.functional.one_hot(ids.view(1, 6, 6), VOCAB).permute(0, 3, 1, 2).float())
        pixels = model.decode(Tokens(ids, None, model.spec))
    torch.testing.assert_close(pixels, ((stats[:, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1), atol=1e-5, rtol=0)


def flava():
    from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

    codebook = FlavaImageCodebook(FlavaImageCodebookConfig(hidden_size=WIDTH, vocab_size=VOCAB)).eval()
    generator = torch.Generator().manual_seed(2)
    for parameter in codebook.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
        parameter.data = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
    return codebook


@pytest.mark.parametrize("prefix", ["", "image_codebook."], ids=["codebook", "whole FLAVA"])
def test_flava_codebook_gives_equal_logits(images, tmp_path, prefix):
    codebook = flava()
    state = {prefix + name: value for name, value in codebook.state_dict().items()}
    if prefix:
        state["image_model.embeddings.cls_token"] = torch.zeros(1)
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{}")
    model = dvae(weights=str(tmp_path))
    with torch.no_grad():
        expected = codebook.blocks(map_pixels(images))
        logits = model.logits(images)
        assert logits.std() > 0.1
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        with pytest.raises(NotInvertible, match="encoder only"):
            model.decode(model.encode(images))
    assert model.spec.decodes is None


@pytest.mark.parametrize("prefix", ["", "target_generator."], ids=["dalle_encoder.pth", "training checkpoint"])
def test_openmmlab_encoder_gives_equal_logits(reference, images, tmp_path, prefix):
    state = {prefix + name: value for name, value in reference[0].state_dict().items()}
    if prefix:
        state["backbone.cls_token"] = torch.zeros(1, 1, 4)
    torch.save({"meta": {"epoch": 1}, "state_dict": state}, tmp_path / "dalle_encoder.pth")
    model = dvae(weights=str(tmp_path / "dalle_encoder.pth"))
    with torch.no_grad():
        torch.testing.assert_close(model.logits(images), reference[0](map_pixels(images)), atol=1e-5, rtol=0)
    assert list(model.not_in_file) == ["decoder."]
    assert model.spec.decodes is None
