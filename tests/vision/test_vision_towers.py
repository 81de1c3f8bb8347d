"""Features of frozen image encoders that are kept: exact ones, whoever asks first."""

import pytest
import torch

import zoo
from zoo.tokens import Tokens
from zoo.vision.encoders import vision_tower
from zoo.vision.teachers import image_embedder

BF16 = {"device_type": "cpu", "dtype": torch.bfloat16}


@pytest.mark.parametrize("first", ["exact", "rounded"])
@pytest.mark.parametrize("make", ["tiny_random", "tiny_clip", "tiny_eva", "teacher"])
def test_kept_features_are_float32_whoever_asks_first(make, first):
    images = torch.rand(6, 3, 32, 32)
    tower = image_embedder("tiny_random", 32, 4) if make == "teacher" else vision_tower(make, 32, 4)
    expected = (image_embedder("tiny_random", 32) if make == "teacher" else vision_tower(make, 32))(images)
    for order in (("rounded", "exact") if first == "rounded" else ("exact", "rounded")) * 2:
        with torch.autocast(**BF16, enabled=order == "rounded"):
            some = tower(images[:2])
            every = tower(images)  # two are kept, two are new and then kept, two are computed each time
        assert some.dtype == every.dtype == torch.float32, order
        torch.testing.assert_close(some, expected[:2], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(every, expected, rtol=1e-4, atol=1e-5)


def test_without_a_cache_features_follow_the_precision_of_the_run():
    with torch.autocast(**BF16):
        assert vision_tower("tiny_random", 32)(torch.rand(2, 3, 32, 32)).dtype == torch.bfloat16


@pytest.mark.parametrize("first", ["exact", "rounded"])
@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("blip2_stage1_tiny", {}),
        ("blip2_stage2_tiny", {}),
        ("seed_stage1_tiny", {}),
        ("seed_stage2_tiny", {}),
        ("seed_pixels_tiny", {}),
        ("llava_tiny", {}),
        ("minigpt4_tiny", {}),
        ("minigpt4_tiny", {"tokenizer": None, "vision": "tiny_eva"}),
    ],
)
def test_models_with_a_cache_encode_alike_before_and_behind_a_rounded_pass(name, extra, first):
    torch.manual_seed(0)
    model = zoo.create_model(name, **extra, vision_cache=8).eval()
    torch.manual_seed(0)
    plain = zoo.create_model(name, **extra).eval()
    plain.load_state_dict(model.state_dict())
    images = torch.rand(4, 3, 32, 32)

    def encode(which) -> Tokens:
        with torch.no_grad():
            return which.encode(images)

    expected = encode(plain)
    if first == "exact":
        encode(model)
    with torch.autocast(**BF16):
        encode(model)
    found = encode(model)
    if expected.ids is not None:
        assert torch.equal(found.ids, expected.ids)
    else:
        torch.testing.assert_close(found.embeddings, expected.embeddings, rtol=1e-4, atol=1e-5)


def test_features_kept_in_validation_serve_training():
    model = zoo.create_model("seed_stage2_tiny", vision_cache=8)
    images = torch.rand(4, 3, 32, 32)
    with torch.inference_mode(), torch.autocast(**BF16):
        model.eval().losses({"image": images})
    with torch.autocast(**BF16):
        model.train().losses({"image": images})["loss"].backward()
    assert model.encode_task_layer[0].weight.grad.isfinite().all()
