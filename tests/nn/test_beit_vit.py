"""Feature maps of BEiT by block, and a classifier for no class."""

import pytest
import torch

import zoo


@pytest.mark.parametrize("count", [0, -1, True])
@pytest.mark.parametrize("probe", [False, True])
def test_a_classifier_without_classes_is_refused(count, probe):
    model = zoo.create_model("beit_classifier_tiny", linear_probe=probe)
    with pytest.raises(ValueError, match=f"at least one class, got num_classes {count}"):
        model.reset_head(count)
    assert model.num_classes == model.hparams["num_classes"] == 9, "nothing was changed"


@pytest.mark.parametrize("name", ["beit_tiny", "beit_classifier_tiny"])
@pytest.mark.parametrize("indices", [1, 2, 3, 4, [0], [-1], [1, -1], (-4, 3), [-2, 0], None])
def test_feature_maps_are_those_that_timm_takes(name, indices):
    """A number takes the last so many, negative ones count from the end."""
    from timm.models._features import feature_take_indices

    model = zoo.create_model(name, depth=4).eval()
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        maps = model.forward_intermediates(images, indices)
        every = model.forward_intermediates(images, [0, 1, 2, 3])
    taken = [0, 1, 1, 3] if indices is None else feature_take_indices(4, indices)[0]
    assert len(maps) == len(taken)
    for found, block in zip(maps, taken, strict=True):
        assert torch.equal(found, every[block])


@pytest.mark.parametrize("indices", [0, 5, -1, [4], [-5], [], [0, 4]])
def test_feature_maps_of_blocks_that_there_are_not_are_refused(indices):
    with pytest.raises(ValueError, match=r"blocks, got|must lie in"):
        zoo.create_model("beit_tiny", depth=4).forward_intermediates(torch.rand(1, 3, 32, 32), indices)
