"""Inpainting, editing and outpainting: where pixels end up, with tokenizers that decode to another size too."""

import pytest
import torch

import zoo
from zoo.sampling.editing import cut_next_window, extend, paste, resize_to, tokens_to_replace
from zoo.sampling.image_masks import box_mask

SIZE = 32


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
    new, window = (resize_to(x, (SIZE, SIZE)) for x in seen)
    assert edited.shape == images.shape
    torch.testing.assert_close(edited[..., :4, :4], new[..., :4, :4], atol=0.02, rtol=0)
    torch.testing.assert_close(edited[..., 24:, 24:], images[..., 24:, 24:], atol=1e-4, rtol=0)
    assert longer.shape == (2, 3, SIZE, SIZE + 8)
    assert torch.equal(longer[..., :SIZE], images)
    assert torch.equal(longer[..., SIZE:], window[..., -8:])


def test_resizing_keeps_places_and_range():
    images = torch.zeros(1, 3, 4, 4)
    images[..., 2:] = 1
    larger = resize_to(images, (8, 8))
    assert larger.shape == (1, 3, 8, 8)
    assert larger.min() >= 0
    assert larger.max() <= 1
    assert (larger[..., :3] < 0.1).all()
    assert (larger[..., 5:] > 0.9).all()
    assert resize_to(images, (4, 4)) is images


@pytest.mark.parametrize("name", ["as_tokens", "return_steps"])
@pytest.mark.parametrize("method", ["edit", "outpaint"])
def test_methods_that_make_pixels_return_no_tokens(on_beit, images, method, name):
    with pytest.raises(ValueError, match=f"{method} puts pixels together .* leave {name} out") as caught:
        getattr(on_beit, method)(images, labels=[0, 1], **{name: True})
    assert "\n" not in str(caught.value)


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


@pytest.mark.parametrize("side", ["left", "right", "up", "down"])
def test_windows_are_cut_at_the_side_and_put_back_there(side, images):
    window, hidden = cut_next_window(images, side, 8, SIZE)
    assert window.shape == images.shape
    assert hidden.sum() == 8 * SIZE
    axis, first = (2 if side in ("up", "down") else 3), side in ("left", "up")
    known = window.narrow(axis, 8 if first else 0, SIZE - 8)
    assert torch.equal(known, images.narrow(axis, 0 if first else 8, SIZE - 8))
    longer = extend(images, torch.zeros_like(window), side, 8)
    assert torch.equal(longer.narrow(axis, 8 if first else 0, SIZE), images)
    assert not longer.narrow(axis, 0 if first else SIZE, 8).any()


def test_what_is_edited_is_said_in_one_way(images):
    spec = zoo.create_model("beit_tiny").spec
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[9, 9] = True
    assert tokens_to_replace(spec, images, None, mask).nonzero().tolist() == [[0, 5], [1, 5]]
    box = tokens_to_replace(spec, images, (8, 8, 8, 8), None)
    assert torch.equal(box, box_mask(spec, (8, 8, 8, 8), (SIZE, SIZE)).expand(2, -1))
    for both in ({"box": None, "mask": None}, {"box": (8, 8, 8, 8), "mask": mask}):
        with pytest.raises(ValueError, match="give either a box or a mask, which says where to edit"):
            tokens_to_replace(spec, images, **both)
    with pytest.raises(ValueError, match=r"middle.*left, right, up, down"):
        cut_next_window(images, "middle", 8, SIZE)
