"""What second stages refuse: tokens at other places, ids of nothing, labels that are none."""

import pytest
import torch

import zoo


@pytest.fixture(scope="module", params=["maskgit_tiny", "ar_transformer_tiny"])
def model(request):
    return zoo.create_model(request.param).eval()


def one_sentence(error):
    return "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tokenizer", "size", "layouts"),
    [("dvae_tiny", (16, 64), "8x8, not 4x16"), ("vqvae2_tiny", (16, 64), "4x4 and 8x8, not 2x8 and 4x16")],
)
def test_as_many_tokens_in_another_layout_are_refused(tokenizer, size, layouts):
    model = zoo.create_model("ar_transformer_tiny", tokenizer=f"{tokenizer}:random")
    batch = {"image": torch.rand(2, 3, *size), "label": torch.tensor([0, 1])}
    assert model.tokenizer.encode(batch["image"]).ids.shape[1] == model.spec.num_tokens
    with pytest.raises(
        ValueError, match=rf"images of 16x64 give (\d+) tokens, .* for \1 in another .*\({layouts}\)"
    ) as e:
        model.losses(batch)
    assert one_sentence(e)


def test_parts_of_images_in_another_layout_are_refused():
    maskgit, images = zoo.create_model("maskgit_tiny").eval(), torch.rand(1, 3, 16, 64)
    with pytest.raises(ValueError, match="images of 16x64 give 64 tokens"):
        maskgit.inpaint(images, torch.ones(16, 64, dtype=torch.bool), 0)
    with pytest.raises(ValueError, match="images of 16x64 give 64 tokens"):
        maskgit.edit(images, 0, box=(0, 0, 8, 8))


@pytest.mark.parametrize("strange", [-1, 64])
def test_ids_outside_of_the_vocabulary_are_refused(model, strange):
    ids = torch.randint(64, (2, 64))
    ids[1, 5] = strange
    low, high = min(strange, int(ids.min())), max(strange, int(ids.max()))
    with pytest.raises(ValueError, match=rf"ids in {low}\.\.{high}; this model needs 64 ids in 0\.\.63") as e:
        model.losses({"ids": ids, "label": torch.tensor([0, 1])})
    assert one_sentence(e)
