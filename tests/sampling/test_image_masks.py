"""Inpainting, editing and outpainting: where pixels end up, with tokenizers that decode to another size too."""

import pytest
import torch

import zoo
from zoo.sampling.image_masks import box_mask, paste, resized

SIZE = 32


@pytest.fixture(scope="module")
def on_beit():
    """MaskGIT over the ids of BEiT, which decodes images of 32x32 through a dVAE to 16x16."""
    torch.manual_seed(0)
    return zoo.create_model("maskgit_tiny", tokenizer="beit_tiny:random").eval()


@pytest.fixture
def images():
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))


def test_another_size_of_decoding_is_resized(on_beit, images):
    assert on_beit.decode(on_beit.encode(images)).shape[-1] == SIZE // 2
    hidden = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    hidden[:8, :8] = True
    made = on_beit.inpaint(images, hidden, [0, 1], seed=0)
    assert made.shape == (2, 3, SIZE // 2, SIZE // 2)  # what the tokenizer decodes to, as documented

    seen = []
    decode = on_beit.decode
    on_beit.decode = lambda tokens: seen.append(decode(tokens)) or seen[-1]
    try:
        edited = on_beit.edit(images, [0, 1], mask=hidden, seed=0)
        longer = on_beit.outpaint(images, "right", 8, [0, 1], seed=0)
    finally:
        del on_beit.decode
    new, window = (resized(x, (SIZE, SIZE)) for x in seen)
    assert edited.shape == images.shape
    torch.testing.assert_close(edited[..., :4, :4], new[..., :4, :4], atol=0.02, rtol=0)
    torch.testing.assert_close(edited[..., 24:, 24:], images[..., 24:, 24:], atol=1e-4, rtol=0)
    assert longer.shape == (2, 3, SIZE, SIZE + 8)
    assert torch.equal(longer[..., :SIZE], images)
    assert torch.equal(longer[..., SIZE:], window[..., -8:])


def test_resizing_keeps_places_and_range():
    images = torch.zeros(1, 3, 4, 4)
    images[..., 2:] = 1
    larger = resized(images, (8, 8))
    assert larger.shape == (1, 3, 8, 8)
    assert larger.min() >= 0
    assert larger.max() <= 1
    assert (larger[..., :3] < 0.1).all()
    assert (larger[..., 5:] > 0.9).all()
    assert resized(images, (4, 4)) is images


@pytest.mark.parametrize("name", ["as_tokens", "return_steps"])
@pytest.mark.parametrize("method", ["edit", "outpaint"])
def test_methods_that_make_pixels_return_no_tokens(on_beit, images, method, name):
    with pytest.raises(ValueError, match=f"{method} puts pixels together .* leave {name} out") as caught:
        getattr(on_beit, method)(images, labels=[0, 1], **{name: True})
    assert "\n" not in str(caught.value)


def test_boxes_inside_of_tokens_keep_the_floors_of_the_reference():
    """Pixels 19 to 25 lie in rows 4 to 6 of 4 pixels: row 3 is added, row 6 is left out."""
    spec = zoo.TokenSpec((zoo.Segment("grid", (8, 8), 0, 8),), dim=1)
    hidden = box_mask(spec, (19, 0, 7, 8), (SIZE, SIZE)).view(8, 8)
    assert hidden.any(1).nonzero().flatten().tolist() == [3, 4, 5]
    assert hidden.any(0).nonzero().flatten().tolist() == [0, 1, 2]


def test_the_edge_of_an_edit_is_a_gaussian():
    """Against SciPy: cells enlarged as the released code does, then blurred with sigma = height // 16 - 1."""
    from scipy.ndimage import gaussian_filter

    spec = zoo.TokenSpec((zoo.Segment("grid", (8, 8), 0, 8),), dim=1)
    hidden = box_mask(spec, (24, 16, 16, 24), (64, 64))
    old, new = torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64)
    alpha = paste(new, old, hidden[None], spec)
    cells = hidden.view(1, 1, 8, 8).float()
    sharp = torch.nn.functional.interpolate(cells, (64, 64), mode="bicubic").clamp(0, 1)[0, 0]
    expected = gaussian_filter(sharp.double().numpy(), sigma=3, truncate=3, mode="nearest")
    assert abs(expected - sharp.numpy()).max() > 0.1  # the test can see that it is blurred
    for channel in alpha[0]:
        torch.testing.assert_close(channel.double(), torch.from_numpy(expected), atol=1e-5, rtol=0)
    other = paste(old, new, hidden[None], spec)
    torch.testing.assert_close(other, 1 - alpha)


# ---------------------------------------------------------------- steps


def test_guidance_ramps_up_or_stays(monkeypatch):
    model, seen = zoo.create_model("maskgit_tiny"), []
    logits = type(model)._code_logits
    monkeypatch.setattr(
        type(model), "_code_logits", lambda self, ids, labels, w: seen.append(w) or logits(self, ids, labels, w)
    )
    for schedule, expected in (("linear", [0.0, 0.5, 1.0, 1.5, 2.0]), ("constant", [2.0] * 5)):
        seen.clear()
        model.generate(0, guidance=2.0, guidance_schedule=schedule, steps=5, seed=0)
        assert seen == pytest.approx(expected)
    seen.clear()
    model.generate(0, guidance=2.0, guidance_schedule="linear", steps=1, seed=0)
    assert seen == [0.0]


def test_decoding_steps_show_hidden_tokens_in_grey_and_end_with_the_image():
    model = zoo.create_model("maskgit_tiny", tokenizer="vqgan_tiny:random").eval()  # no cell of it is exactly grey
    rows = model.decoding_steps([0, 5], steps=4, seed=1)
    images, decoding = model.generate([0, 5], steps=4, seed=1, return_steps=True)
    assert list(rows) == ["sample 1", "sample 2"]
    for i, row in enumerate(rows.values()):
        torch.testing.assert_close(row[-1], images[i])  # whole, though decoding hides one token after each step
        for step in range(3):
            grey = (row[step] == 0.5).all(0).view(8, 4, 8, 4).all(3).all(1)
            assert torch.equal(grey.flatten(), decoding.after[i, step] == model.network.mask_id)
            assert 0 < grey.sum() < 64
