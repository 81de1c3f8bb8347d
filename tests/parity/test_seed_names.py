"""Every name and shape of SEED's tokenizer at full size, written out from the published sizes: 881 = 511 + 370."""

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import zoo

FIXTURES = Path(__file__).parents[1] / "fixtures"


def linear(name, out, into, bias=True):
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def bert(name, layers, cross_width):
    """Query half of a Q-Former of BERT-base's width; every second layer reads what it is given."""
    found = {f"{name}.embeddings.position_ids": (1, 512)} | norm(f"{name}.embeddings.LayerNorm", 768)
    for i in range(layers):
        layer = f"{name}.encoder.layer.{i}"
        attentions = {"attention": 768} | ({"crossattention": cross_width} if i % 2 == 0 else {})
        for attention, width in attentions.items():
            found |= linear(f"{layer}.{attention}.self.query", 768, 768)
            found |= linear(f"{layer}.{attention}.self.key", 768, width)
            found |= linear(f"{layer}.{attention}.self.value", 768, width)
            found |= linear(f"{layer}.{attention}.output.dense", 768, 768)
            found |= norm(f"{layer}.{attention}.output.LayerNorm", 768)
        found |= linear(f"{layer}.intermediate_query.dense", 3072, 768)
        found |= linear(f"{layer}.output_query.dense", 768, 3072) | norm(f"{layer}.output_query.LayerNorm", 768)
    return found


def blocks(name):
    found = {}
    for i in range(4):
        block = f"{name}.{i}"
        found |= norm(f"{block}.norm1", 768) | linear(f"{block}.attn.qkv", 2304, 768)
        found |= linear(f"{block}.attn.proj", 768, 768) | norm(f"{block}.norm2", 768)
        found |= linear(f"{block}.mlp.fc1", 3072, 768) | linear(f"{block}.mlp.fc2", 768, 3072)
    return found


def codec():
    """What both de-tokenizers have before them."""
    found = {"query_tokens": (1, 32, 768), "pos_embed": (1, 32, 768), "pos_embed_image": (1, 32, 768)}
    found |= norm("ln_vision", 1408) | bert("Qformer.bert", 12, 1408) | {"quantize.embedding.weight": (8192, 32)}
    found |= linear("encode_task_layer.0", 768, 768) | linear("encode_task_layer.2", 32, 768)
    found |= linear("decode_task_layer.0", 32, 32) | linear("decode_task_layer.2", 768, 32)
    return found | blocks("blocks") | blocks("blocks_image")


def quantizer_file():
    down = {0: (256, 768), 2: (128, 256), 4: (32, 128)}
    found = codec() | {f"image_down.{i}.weight": shape for i, shape in down.items()}
    return found | linear("distill_image_proj", 1024, 1024)


def reverse_file():
    found = codec() | {"reverse_tokens": (1, 1, 768)} | bert("Reverse_Qformer.bert", 4, 768)
    return found | linear("distill_image_proj", 1024, 768)


def image_encoder():
    found = {"cls_token": (1, 1, 1408), "pos_embed": (1, 257, 1408)}
    found |= {"patch_embed.proj.weight": (1408, 3, 14, 14), "patch_embed.proj.bias": (1408,)}
    for i in range(39):
        block = f"blocks.{i}"
        found |= norm(f"{block}.norm1", 1408) | norm(f"{block}.norm2", 1408)
        found |= linear(f"{block}.attn.qkv", 4224, 1408, bias=False) | linear(f"{block}.attn.proj", 1408, 1408)
        found |= {f"{block}.attn.q_bias": (1408,), f"{block}.attn.v_bias": (1408,)}
        found |= linear(f"{block}.mlp.fc1", 6144, 1408) | linear(f"{block}.mlp.fc2", 1408, 6144)
    return found


def shapes(state):
    """By the published names; the buffers that count positions follow from nothing and are not kept."""
    return {name.removeprefix("detokenizer."): tuple(value.shape) for name, value in state.items()}


def positions(entries):
    return {name for name in entries if name.endswith("position_ids")}


@pytest.mark.parametrize(("preset", "published"), [("seed2", quantizer_file()), ("seed2_reverse", reverse_file())])
def test_every_name_and_shape(preset, published):
    with torch.device("meta"):
        model = zoo.create_model(preset)
    found = shapes(model.state_dict())
    assert found == {name: shape for name, shape in published.items() if name not in positions(published)}
    vision = shapes(model.frozen["vision"].network.state_dict())
    assert vision == image_encoder()
    assert len(vision) == 511
    if preset == "seed2":
        assert len(published) == 370
        assert len(published) + len(vision) == 881


@pytest.mark.parametrize(
    ("fixture", "published"), [("seed2_tiny_mlp", quantizer_file()), ("seed2_tiny_reverse", reverse_file())]
)
def test_the_list_has_the_names_of_the_reference(fixture, published):
    with safe_open(FIXTURES / f"{fixture}.safetensors", "pt") as file:
        recorded = {name[3:] for name in file.keys() if name.startswith("sd.")}  # noqa: SIM118
    recorded = {name for name in recorded if not name.startswith("visual_encoder.")}

    def without_numbers(names):
        return {re.sub(r"layer\.\d+|blocks(_image)?\.\d+", "N", name) for name in names}

    assert without_numbers(published) == without_numbers(recorded)
