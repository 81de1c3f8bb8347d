"""Masks and boxes of pixels, and steps of decoding in grey."""

import pytest
import torch

import zoo
from zoo.sampling.image_masks import box_mask

SIZE = 32


def test_boxes_inside_of_tokens_keep_the_floors_of_the_reference():
    """Pixels 19 to 25 lie in rows 4 to 6 of 4 pixels: row 3 is added, row 6 is left out."""
    spec = zoo.TokenSpec((zoo.Segment("grid", (8, 8), 0, 8),), dim=1)
    hidden = box_mask(spec, (19, 0, 7, 8), (SIZE, SIZE)).view(8, 8)
    assert hidden.any(1).nonzero().flatten().tolist() == [3, 4, 5]
    assert hidden.any(0).nonzero().flatten().tolist() == [0, 1, 2]


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
