"""A batch of no images has no tokens, and no tokens have no images: shapes stay, and nothing fails inside a library."""

import pytest
import torch

import zoo

TINY = zoo.list_models("*_tiny")
INFO = {name: zoo.model_info(name) for name in TINY}
TOKENIZING = [name for name in TINY if INFO[name].spec is not None]
DECODING = [name for name in TOKENIZING if INFO[name].spec.decodes is not None]


def model_and_images(name, count, dtype=torch.float32):
    model = zoo.create_model(name).eval()
    size = model.hparams.get("image_size") or 32
    return model, torch.zeros(count, 3, size, size, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
@pytest.mark.parametrize("name", TOKENIZING)
def test_no_images_have_no_tokens(name, dtype):
    model, images = model_and_images(name, 0, dtype)
    with torch.no_grad():
        tokens = model.encode(images)
    assert len(tokens) == 0
    assert tokens.spec == model.spec
    if model.spec.vocab_size:
        assert tokens.ids.shape == (0, model.spec.num_tokens)
        assert tokens.ids.dtype == torch.int64
    else:
        assert tokens.embeddings.shape == (0, model.spec.num_tokens, model.spec.dim)


@pytest.mark.parametrize("name", [n for n in TOKENIZING if INFO[n].spec.vocab_size])
def test_no_ids_have_no_vectors(name):
    model, _ = model_and_images(name, 0)
    for shape in ((0,), (0, model.spec.num_tokens), (3, 0)):
        assert model.embed(torch.zeros(shape, dtype=torch.int64)).shape == (*shape, model.spec.dim)


@pytest.mark.parametrize("name", DECODING)
def test_no_tokens_are_decoded_to_nothing_of_the_right_shape(name):
    model, images = model_and_images(name, 2)
    with torch.no_grad():
        tokens = model.encode(images)
        whole = model.decode(tokens)
        parts = (None if part is None else part[:0] for part in (tokens.ids, tokens.embeddings))
        nothing = model.decode(zoo.Tokens(*parts, tokens.spec))
    assert nothing.shape == (0, *whole.shape[1:])
    assert nothing.dtype == whole.dtype
    if model.spec.decodes == "pixels":
        assert zoo.reconstruct(model, images[:0]).shape == nothing.shape


@pytest.mark.parametrize("name", [n for n in TINY if hasattr(INFO[n].cls, "caption")])
def test_nothing_is_said_of_no_images(name):
    model, images = model_and_images(name, 0)
    with pytest.raises(ValueError, match="give at least one"):
        model.caption(images)


@pytest.mark.parametrize("name", [n for n in TINY if hasattr(INFO[n].cls, "answer")])
def test_no_questions_about_no_images_are_answered(name):
    model, images = model_and_images(name, 0)
    with pytest.raises(ValueError, match="give at least one"):
        model.answer(images, [])


@pytest.mark.parametrize(
    "name", [n for n in TINY if hasattr(INFO[n].cls, "generate") and not hasattr(INFO[n].cls, "generate_images")]
)
@pytest.mark.parametrize("count", [0, -1])
def test_a_number_of_images_below_one_is_refused(name, count):
    with pytest.raises(ValueError, match="num_images must be at least 1"):
        model_and_images(name, 0)[0].generate(num_images=count)


@pytest.mark.parametrize("name", [n for n in TINY if INFO[n].spec is None])
def test_no_images_have_no_classes(name):
    model, images = model_and_images(name, 0)
    assert model(images).shape == (0, model.num_classes)


def test_reconstruct_says_what_it_takes():
    with pytest.raises(zoo.NotInvertible, match="BEiTClassifier does not decode to pixels"):
        zoo.reconstruct(zoo.create_model("beit_classifier_tiny"), torch.rand(1, 3, 32, 32))
