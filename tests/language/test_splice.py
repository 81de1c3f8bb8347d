"""Text and image tokens in one sequence: order, padding, labels, truncation, gradients."""

import pytest
import torch

from zoo.language.splice import IGNORED, Image, Text, splice

TABLE = torch.arange(20.0)[:, None].expand(-1, 3).contiguous()


def embed(ids):
    return TABLE[ids]


def images(count=2, tokens=2):
    return (100 + torch.arange(float(count * tokens))).view(count, tokens, 1).expand(-1, -1, 3).contiguous()


SAMPLES = [
    [Text((1,)), Image(1), Text((5, 6), True)],
    [Image(0), Text((7,)), Text((8, 9), (False, True))],
    [Text((3, 4), True)],
]


@pytest.mark.parametrize("side", ["right", "left"])
def test_pieces_stand_in_their_order(side):
    found = splice(SAMPLES, images(), embed, side)
    rows = [[1, 102, 103, 5, 6], [100, 101, 7, 8, 9], [3, 4]]
    labels = [[IGNORED] * 3 + [5, 6], [IGNORED] * 4 + [9], [3, 4]]
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        fill = 5 - len(row)
        expected = row + [0] * fill if side == "right" else [0] * fill + row
        assert found.embeds[i, :, 0].tolist() == expected
        wanted = label + [IGNORED] * fill if side == "right" else [IGNORED] * fill + label
        assert found.labels[i].tolist() == wanted
        assert found.mask[i].sum() == len(row)
        assert found.mask[i, 0 if side == "right" else -1]
        positions = found.positions[i][found.mask[i]]
        assert positions.tolist() == list(range(len(row))), "positions do not depend on the padding"


def test_truncation_counts_what_loses_all_its_answer():
    found = splice(SAMPLES, images(), embed, max_length=3)
    assert found.embeds.shape == (3, 3, 3)
    assert found.cut == 2
    assert found.labels.tolist() == [[IGNORED] * 3, [IGNORED] * 3, [3, 4, IGNORED]]
    assert splice(SAMPLES, images(), embed, max_length=4).cut == 1


def test_images_that_nobody_shows_stay_in_the_graph():
    seen = images().requires_grad_()
    found = splice([[Text((3, 4), True)]], seen, embed)
    found.embeds.sum().backward()
    assert seen.grad is not None
    assert seen.grad.abs().sum() == 0
    seen.grad = None
    splice([[Image(1)]], seen, embed).embeds.sum().backward()
    assert seen.grad[1].eq(1).all()
    assert seen.grad[0].eq(0).all()


def test_without_images():
    found = splice([[Text((3,)), Text((4,), True)]], None, embed)
    assert found.embeds[0, :, 0].tolist() == [3, 4]
    assert found.labels.tolist() == [[IGNORED, 4]]
    with pytest.raises(ValueError, match="shows image 2, and there are 2"):
        splice([[Image(2)]], images(), embed)
