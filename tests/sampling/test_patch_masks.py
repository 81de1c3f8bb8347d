"""Masks of BEiT: the published generator draw for draw, and what the paper says about them."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from zoo.sampling.patch_masks import BlockwiseMask, random_mask

FIXTURE = Path(__file__).parents[1] / "fixtures" / "beit_mask_generator.safetensors"


@pytest.fixture(scope="module")
def reference():
    with safe_open(FIXTURE, "pt") as file:
        settings = json.loads(file.metadata()["config"])["constructor"]
        return settings, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_equal_draw_for_draw_to_the_reference(reference):
    settings, arrays = reference
    assert settings
    for name, s in settings.items():
        random.seed(s["seed"])
        generator = BlockwiseMask(tuple(s["grid"]), s["num"], s["min"], s["max"])
        masks = torch.stack([generator() for _ in range(s["count"])])
        assert torch.equal(masks, arrays[f"out.masks.{name}"].bool()), name
        assert torch.tensor(random.random()) == arrays[f"out.next_random.{name}"], name


def test_own_generator_gives_the_same_masks_and_leaves_the_global_one_alone():
    random.seed(3)
    state = random.getstate()
    own = BlockwiseMask((14, 14), 75, rng=random.Random(7))()
    assert random.getstate() == state
    random.seed(7)
    assert torch.equal(BlockwiseMask((14, 14), 75)(), own)
    assert torch.equal(BlockwiseMask((14, 14), 75)(random.Random(7)), own)


def test_agrees_with_transformers():
    flava = pytest.importorskip("transformers.models.flava.image_processing_flava")
    theirs = flava.FlavaMaskingGenerator(input_size=14, total_mask_patches=75, mask_group_min_patches=16)
    random.seed(11)
    expected = torch.stack([torch.as_tensor(theirs()).bool() for _ in range(20)])
    ours = BlockwiseMask((14, 14), 75, rng=random.Random(11))
    assert torch.equal(torch.stack([ours() for _ in range(20)]), expected)


def test_statistics_of_the_published_setting():
    generator = BlockwiseMask((14, 14), 75, rng=random.Random(0))
    masks = torch.stack([generator() for _ in range(1000)])
    hidden = masks.sum((1, 2))
    assert hidden.max() == 75
    assert hidden.float().mean().item() == pytest.approx(74.49, abs=0.2)
    assert (hidden == 75).float().mean().item() == pytest.approx(0.677, abs=0.05)
    frequency = masks.float().mean(0)
    assert frequency[7, 7] > 0.6
    assert frequency[0, 0] < 0.1


def test_random_mask_hides_exactly_that_many_everywhere_alike():
    rng = random.Random(0)
    masks = torch.stack([random_mask((4, 6), 9, rng) for _ in range(2000)])
    assert (masks.sum((1, 2)) == 9).all()
    torch.testing.assert_close(masks.float().mean(0), torch.full((4, 6), 9 / 24), atol=0.05, rtol=0)


@pytest.mark.parametrize("count", [0, 17])
def test_impossible_counts_are_refused(count):
    with pytest.raises(ValueError, match=rf"1\.\.16 on a 4x4 grid, got {count}"):
        BlockwiseMask((4, 4), count)
    with pytest.raises(ValueError, match=f"got {count}"):
        random_mask((4, 4), count)
