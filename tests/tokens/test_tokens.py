"""The token types: layouts, spans, grids, and the check that every image passes."""

import pytest
import torch
from torch import nn

import zoo
from zoo.tokens import NotInvertible, Segment, Tokenizer, Tokens, TokenSpec, as_pixels, reconstruct

GRID = TokenSpec((Segment("grid", (2, 3), offset=0, size=16),), dim=4)
PYRAMID = TokenSpec(
    (Segment("coarse", (1, 1), 0, 5), Segment("fine", (2, 2), 5, 7)), dim=3, order="pyramid", vocabulary="words",
    decodes=None, word_list=tuple("abcdefghijkl"),
)  # fmt: skip


def test_spec_counts():
    assert (GRID.vocab_size, GRID.num_tokens, GRID.grid_shape) == (16, 6, (2, 3))
    assert (PYRAMID.vocab_size, PYRAMID.num_tokens, PYRAMID.grid_shape) == (12, 5, None)
    assert PYRAMID.span("fine") == slice(1, 5)
    assert PYRAMID.segment("coarse").num_tokens == 1
    assert GRID.with_grid((4, 4)).num_tokens == 16
    assert GRID.with_grid((2, 3)) is GRID


def test_unknown_segment_names_those_that_exist():
    with pytest.raises(KeyError, match="coarse, fine"):
        PYRAMID.span("middle")
    with pytest.raises(ValueError, match="exactly one grid"):
        PYRAMID.with_grid((2, 2))


def test_grid_is_raster_order():
    tokens = Tokens(torch.arange(12).reshape(2, 6), None, GRID)
    assert len(tokens) == 2
    assert tokens.grid().tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]


def test_grid_of_a_pyramid_needs_a_name():
    tokens = Tokens(torch.tensor([[0, 5, 6, 7, 8]]), None, PYRAMID)
    assert tokens.grid("fine").tolist() == [[[5, 6], [7, 8]]]
    with pytest.raises(KeyError, match="coarse, fine"):
        tokens.grid()


def test_embeddings_have_a_grid_too_and_move():
    tokens = Tokens(None, torch.zeros(2, 6, 4), GRID)
    assert tokens.grid("grid").shape == (2, 2, 3, 4)
    assert tokens.to("meta").embeddings.device.type == "meta"
    with pytest.raises(ValueError, match="neither"):
        Tokens(None, None, GRID).grid()


def test_words_are_looked_up_in_the_segment_of_their_position():
    assert Tokens(torch.tensor([[0, 5, 6, 7, 11]]), None, PYRAMID).words() == [list("afghl")]
    with pytest.raises(ValueError, match="learned"):
        Tokens(torch.zeros(1, 6, dtype=torch.int64), None, GRID).words()


def test_pixels_from_uint8_and_float():
    assert as_pixels(torch.full((1, 3, 2, 2), 51, dtype=torch.uint8)).unique().tolist() == [pytest.approx(0.2)]
    images = torch.rand(2, 3, 4, 6)
    assert as_pixels(images) is images
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        pixels = as_pixels(images.to(dtype))
        assert pixels.dtype == torch.float32
        assert torch.equal(pixels, images.to(dtype).float())
    check = getattr(as_pixels, "__wrapped__", as_pixels)  # the shape annotations of the tests do not compile
    compiled = torch.compile(check, backend="eager", fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for given in (images, images.double()):
            assert torch.equal(compiled(given), given.float())
            assert as_pixels(given).dtype == torch.float32
        assert as_pixels(images) is images


@pytest.mark.parametrize(
    ("images", "options", "sentence"),
    [
        (torch.rand(3, 8, 8), {}, r"got \(3, 8, 8\)"),
        (torch.rand(2, 1, 8, 8), {}, r"got \(2, 1, 8, 8\)"),
        (torch.rand(2, 3, 8, 8) * 255, {}, "divide by 255"),
        (torch.rand(2, 3, 8, 8) * 2 - 1, {}, "undo any mean/std normalisation"),
        (torch.full((2, 3, 8, 8), float("nan")), {}, "nan"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), {}, "torch.int64"),
        (torch.zeros(2, 3, 8, 8).numpy(), {}, r"must be a tensor, got ndarray: torch\.from_numpy"),
        ([[1.0]], {}, "must be a tensor, got list"),
        (torch.full((2, 3, 8, 8), 300.0, dtype=torch.float16), {}, "divide by 255"),
        (torch.rand(2, 3, 8, 12), {"multiple_of": 8}, "8x12 is not divisible by 8"),
        (torch.rand(2, 3, 8, 8), {"size": 16}, "8x8, this model needs 16x16"),
    ],
)
def test_bad_images_end_with_one_sentence(images, options, sentence):
    # a wrong number of axes is stopped by the shape annotations during tests, hence the call without them
    check = getattr(as_pixels, "__wrapped__", as_pixels)
    with pytest.raises(ValueError, match=sentence) as caught:
        check(images, **options)
    assert "\n" not in str(caught.value)


class Inverter(nn.Module):
    """Tokenizer of nothing: one token whose embedding is the image; drops out in training mode."""

    spec = TokenSpec((Segment("all", (1,), 0, 0),), dim=12, vocabulary=None)

    def encode(self, images):
        assert not self.training
        assert not torch.is_grad_enabled()
        return Tokens(None, images.flatten(1)[:, None], self.spec)

    def decode(self, tokens):
        return tokens.embeddings[:, 0].unflatten(1, (3, 2, 2))

    def embed(self, ids):
        raise NotImplementedError


def test_reconstruct_runs_in_eval_mode_and_restores_training_mode():
    model = Inverter().train()
    images = torch.rand(2, 3, 2, 2, requires_grad=True)
    assert torch.equal(reconstruct(model, images), images)
    assert model.training
    assert isinstance(model, Tokenizer)


def test_reconstruct_refuses_what_does_not_decode_to_pixels():
    model = Inverter()
    model.spec = PYRAMID
    with pytest.raises(NotInvertible, match="Inverter"):
        zoo.reconstruct(model, torch.rand(1, 3, 2, 2))


def test_normalised_images_are_not_told_to_divide_by_255():
    with pytest.raises(ValueError, match="undo any mean/std"):
        as_pixels(torch.linspace(-3, 3, 3 * 16).view(1, 3, 4, 4))


def test_a_token_count_that_the_spec_does_not_say_is_refused():
    spec = TokenSpec((Segment("grid", (2, 2), 0, 4),), dim=1)
    with pytest.raises(ValueError, match=r"ids have 5 tokens per image, but the spec says 4"):
        Tokens(torch.zeros(1, 5, dtype=torch.long), None, spec)


@pytest.mark.parametrize("model", ["dvae_emoji", None, 3, torch.nn.Linear(2, 2)])
def test_reconstruct_of_what_is_no_model(model):
    plain = getattr(zoo.reconstruct, "__wrapped__", zoo.reconstruct)  # without the annotations of the tests
    with pytest.raises(TypeError, match=r"reconstruct takes a model, got|Type-check"):
        plain(model, torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("shape", [(2, 3, 0, 8), (2, 3, 8, 0), (0, 3, 0, 0)])
def test_images_without_pixels_are_refused(shape):
    with pytest.raises(ValueError, match="have no pixels"):
        as_pixels(torch.zeros(shape))
