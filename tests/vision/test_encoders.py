"""Frozen image encoders: features that are kept are exact, and an EVA has the size of its file."""

import json

import pytest
import torch

import zoo
from zoo.checkpoints.published.clip import CLIP_MEAN, CLIP_STD
from zoo.checkpoints.published.eva import to_hf_names
from zoo.nn.eva_vit import EvaViT
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


# ---------------------------------------------------------------------- EVA of any size


SIZES = {"patch_size": 8, "width": 48, "depth": 4, "heads": 16, "mlp_width": 40}


def stirred_eva(**sizes):
    torch.manual_seed(2)
    network = EvaViT(32, **SIZES | sizes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.eval()


def normalised(images):
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (CLIP_MEAN, CLIP_STD))
    return (images - mean) / std


@pytest.mark.parametrize("sizes", [{}, {"width": 32, "depth": 2}, {"patch_size": 16, "mlp_width": 24}, {"depth": 1}])
def test_an_eva_has_the_size_of_its_file(sizes, tmp_path):
    """LAVIS writes its image encoder without what is behind the blocks: all of them are taken."""
    network, images = stirred_eva(**sizes), torch.rand(2, 3, 32, 32)
    state = {f"visual_encoder.{name}": value for name, value in network.state_dict().items()}
    torch.save(state | {"Qformer.x": torch.zeros(1)}, path := tmp_path / "eva.pth")
    tower = vision_tower(f"eva:{path}", 32).eval()
    assert (tower.width, tower.num_tokens) == (network.width, network.num_tokens)
    with torch.no_grad():
        torch.testing.assert_close(tower(images), network(normalised(images)))
    with torch.device("meta"):
        assert vision_tower(f"eva:{path}", 64).num_tokens == (64 // (SIZES | sizes)["patch_size"]) ** 2 + 1


def test_the_last_block_of_a_whole_eva_is_left_out(tmp_path):
    network, images = stirred_eva(), torch.rand(2, 3, 32, 32)
    more = {"norm.weight": torch.ones(48), "norm.bias": torch.zeros(48), "head.weight": torch.zeros(9, 48)}
    torch.save(network.state_dict() | more, path := tmp_path / "eva.pth")
    tower = vision_tower(f"eva:{path}", 32).eval()
    network.blocks = network.blocks[:-1]
    assert len(tower.network.blocks) == 3
    with torch.no_grad():
        torch.testing.assert_close(tower(images), network(normalised(images)))


def test_the_heads_of_an_eva_are_those_of_its_configuration(tmp_path):
    network, images = stirred_eva(heads=3), torch.rand(2, 3, 32, 32)
    torch.save(to_hf_names(network.state_dict()), tmp_path / "pytorch_model.bin")
    for config in ({"vision_config": {"num_attention_heads": 3}}, {"vision_config": {"num_attention_heads": 7}}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        if config["vision_config"]["num_attention_heads"] == 7:
            with pytest.raises(ValueError, match=r"are 48 wide, of which .* the configuration .* says 7"):
                vision_tower(f"eva:{tmp_path}", 32)
            continue
        with torch.no_grad():
            torch.testing.assert_close(vision_tower(f"eva:{tmp_path}", 32)(images), network(normalised(images)))


def test_what_is_no_eva_or_has_no_size_is_refused(tmp_path):
    torch.save(stirred_eva(width=40, heads=5).state_dict(), path := tmp_path / "eva.pth")
    with pytest.raises(ValueError, match="nothing says them, and the 16 of eva_vit_g do not fit"):
        vision_tower(f"eva:{path}", 32)
    torch.save({"blocks.0.mlp.w1.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ValueError, match=r"is no EVA of the architecture .*: it lacks patch_embed\.proj\.weight"):
        vision_tower(f"eva:{path}", 32)
    with pytest.raises(ValueError, match="the size of 'eva' is that of its file"):
        vision_tower("eva:random", 32)
    with pytest.raises(ValueError, match=r"there is no image encoder 'eva': it is one of .*eva:PATH"):
        vision_tower("eva", 32)
    with pytest.raises(FileNotFoundError):
        vision_tower("eva:nowhere.pth", 32)


def test_a_model_is_built_on_an_eva_of_another_size(tmp_path):
    torch.save(stirred_eva().state_dict(), path := tmp_path / "eva.pth")
    model = zoo.create_model("blip2_stage1_tiny", vision=f"eva:{path}").eval()
    assert model.encode(torch.rand(1, 3, 32, 32)).embeddings.isfinite().all()
    assert model.frozen["vision"].width == 48
