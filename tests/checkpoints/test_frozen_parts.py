"""Weights of frozen parts that are read outside of a model's layouts: what is not used is named, facts are compared."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import zoo
from zoo.checkpoints.published import eva
from zoo.nn.eva_vit import EvaViT
from zoo.vision import encoders as vision_towers
from zoo.vision import teachers as image_embedders


def eva_network():
    return EvaViT(32, **vision_towers.TINY_EVA)


def clip_folder(folder, prefix="", positions=None, **others):
    """A vision tower of CLIP with all of its blocks, as transformers saves it."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(**vision_towers.TINY_CLIP | others, image_size=32)
    state = {prefix + name: value for name, value in CLIPVisionModel(config).state_dict().items()}
    state[f"{prefix}stray.weight"] = torch.ones(2)
    if positions is not None:
        state[f"{prefix}vision_model.embeddings.position_ids"] = positions
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return folder


def read_clip(folder):
    vision_towers._Clip(32, vision_towers.TINY_CLIP, False).load(str(folder))


def test_an_image_encoder_of_blip2_names_what_it_leaves_out(tmp_path, said):
    state = eva_network().state_dict()
    more = {"blocks.2.norm1.weight": torch.zeros(2), "head.weight": torch.zeros(2), "blocks.0.attn.rope": torch.ones(2)}
    torch.save(state | more, tmp_path / "eva.pth")
    vision_towers._eva_weights(str(tmp_path / "eva.pth"), eva_network())
    assert all(name in said() for name in ("blocks.2.norm1.weight", "head.weight", "blocks.0.attn.rope"))


def test_facts_of_an_image_encoder_of_transformers_are_compared(tmp_path, said):
    network = eva_network()
    torch.save(eva.to_hf_names(network.state_dict()), tmp_path / "pytorch_model.bin")

    def config(**vision):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip-2", "vision_config": vision}))

    config(num_attention_heads=4)
    found = vision_towers._eva_weights(str(tmp_path), network)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in found.items())
    assert "not used" not in said()
    for field, value in (("num_attention_heads", 8), ("hidden_act", "quick_gelu"), ("layer_norm_eps", 1e-5)):
        config(**{"num_attention_heads": 4, field: value})
        with pytest.raises(ValueError, match=f"says {field} {value!r}, and this model has"):
            vision_towers._eva_weights(str(tmp_path), network)


@pytest.mark.parametrize("prefix", ["", "model.vision_tower."])
def test_clip_names_what_it_leaves_out_and_compares_positions(tmp_path, said, prefix):
    folder = clip_folder(tmp_path / "clip", prefix, torch.arange(17)[None])
    read_clip(folder)
    message = said()
    assert "not used from" in message
    assert "position_ids" not in message
    assert f"{prefix}stray.weight" in message
    with pytest.raises(ValueError, match="position_ids holds other values than the positions"):
        read_clip(clip_folder(tmp_path / "clip", prefix, torch.zeros(1, 17)))


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_act", "gelu"), ("num_attention_heads", 2), ("layer_norm_eps", 1e-6)]
)
def test_facts_of_clip_are_compared(tmp_path, field, value):
    with pytest.raises(ValueError, match=f"says {field} {value!r}, and this model has"):
        read_clip(clip_folder(tmp_path / "clip", **{field: value}))


def test_a_teacher_names_what_it_leaves_out_and_compares_its_activation(tmp_path, said, monkeypatch):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = vision_towers.TINY_CLIP | {"projection_dim": 8}
    monkeypatch.setattr(image_embedders, "CLIP_H", sizes)
    for act in ("gelu", "quick_gelu"):
        config = CLIPVisionConfig(**sizes, image_size=32, hidden_act=act)
        state = CLIPVisionModelWithProjection(config).state_dict()
        torch.save(state | {"logit_scale": torch.ones(())}, tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
        if act == "gelu":
            image_embedders.image_embedder(f"clip_vit_h14:{tmp_path}", 32)
            assert "not used" in said()
            assert "logit_scale" in said()
        else:
            with pytest.raises(ValueError, match="says hidden_act 'quick_gelu', and this model has 'gelu'"):
                image_embedders.image_embedder(f"clip_vit_h14:{tmp_path}", 32)


def bert_folder(folder, extra=None, **others):
    from transformers import BertConfig, BertForPreTraining

    config = BertConfig(
        vocab_size=30, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=30, **others,
    )  # fmt: skip
    torch.save(BertForPreTraining(config).state_dict() | (extra or {}), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return zoo.create_model("blip2_stage1_tiny", text_init=str(folder))


def test_bert_names_what_it_leaves_out(tmp_path, said):
    positions = {"bert.embeddings.position_ids": torch.arange(30)[None]}
    model = bert_folder(tmp_path, positions | {"bert.stray": torch.ones(2)})
    message = said()
    assert all(name in message for name in ("bert.pooler.dense.weight", "cls.seq_relationship.weight", "bert.stray"))
    assert "position_ids" not in message
    assert "word_embeddings" not in message
    assert "token_type" not in message
    rows = model.Qformer.bert.embeddings.word_embeddings.weight
    stored = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(rows[:30], stored)
    assert type(rows.data) is torch.Tensor
    with pytest.raises(ValueError, match="position_ids holds other values"):
        bert_folder(tmp_path, {"bert.embeddings.position_ids": torch.ones(1, 30)})


@pytest.mark.parametrize(("field", "value"), [("hidden_act", "relu"), ("layer_norm_eps", 1e-5)])
def test_facts_of_bert_are_compared(tmp_path, field, value):
    with pytest.raises(ValueError, match=f"says {field} {value!r}, and this model has"):
        bert_folder(tmp_path, **{field: value})


def test_the_language_model_inside_a_llava_is_taken_and_the_rest_named(tmp_path, said):
    from zoo.checkpoints.published.language_folder import read_language_folder
    from zoo.language.tiny import build_tiny_network, character_tokenizer

    network = build_tiny_network("tiny_llama", len(character_tokenizer()))
    rotary = dict(network.named_buffers())["model.rotary_emb.inv_freq"]
    old = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": rotary.clone() for i in range(2)}
    others = {"model.mm_projector.0.weight": torch.ones(2, 2), "model.vision_tower.quux": torch.ones(2)}
    config = network.config.to_dict() | {"model_type": "llava", "mm_vision_tower": "x", "mm_hidden_size": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    character_tokenizer().save_pretrained(tmp_path)
    torch.save(network.state_dict() | old | others, tmp_path / "pytorch_model.bin")
    found, _, _ = read_language_folder(tmp_path, torch.float32)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in found.state_dict().items())
    assert "model.mm_projector.0.weight" in said()
    assert "model.vision_tower.quux" in said()
    assert "inv_freq" not in said()
    assert "up_proj" not in said()
    wrong = {name: value * 2 for name, value in old.items()}
    torch.save(network.state_dict() | wrong | others, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="inv_freq holds other frequencies than this language model"):
        read_language_folder(tmp_path, torch.float32)


def gguf_reader(*names, **fields):
    tensors = [
        SimpleNamespace(name=name, data=np.ones((4, 4), np.float32), tensor_type=SimpleNamespace(value=0))
        for name in names
    ]
    known = {
        "general.architecture": "llama", "llama.embedding_length": 8, "llama.attention.head_count": 2,
        "llama.feed_forward_length": 16, "llama.block_count": 1, "llama.context_length": 32,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    } | fields  # fmt: skip
    found = {key: SimpleNamespace(contents=lambda value=value: value) for key, value in known.items()}
    found["tokenizer.ggml.tokens"] = SimpleNamespace(data=[0] * 9)
    return SimpleNamespace(tensors=tensors, fields=found)


@pytest.mark.parametrize(
    "name", ["rope_freqs.weight", "blk.0.attn_q.bias", "blk.0.ffn_gate_exps.weight", "stray.weight"]
)
def test_a_tensor_of_gguf_without_a_place_is_refused_by_name(name):
    pytest.importorskip("gguf")
    from zoo.checkpoints.published.gguf_llama import read_llama_state

    with pytest.raises(ValueError, match=rf"holds {name}, for which a plain Llama has no place"):
        read_llama_state(gguf_reader(name), {"num_attention_heads": 2, "num_key_value_heads": 2})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("llama.expert_count", 8),
        ("llama.rope.scaling.type", "yarn"),
        ("llama.rope.dimension_count", 2),
        ("llama.attention.sliding_window", 64),
        ("llama.rope.scaling.factor", 4.0),
        ("llama.logit_scale", 0.5),
    ],
)
def test_a_field_of_gguf_that_a_plain_llama_has_not_is_refused_by_name(tmp_path, field, value):
    from zoo.checkpoints.published.gguf_llama import read_llama_config

    assert read_llama_config(gguf_reader(), tmp_path)["num_attention_heads"] == 2
    with pytest.raises(ValueError, match=rf"says {field} {value!r}, and only Llama-like models"):
        read_llama_config(gguf_reader(**{field: value}), tmp_path)


def test_fields_of_gguf_that_say_nothing_are_no_hindrance(tmp_path):
    from zoo.checkpoints.published.gguf_llama import read_llama_config

    plain = {
        "llama.vocab_size": 9,
        "llama.expert_count": 0,
        "llama.attention.sliding_window": 0,
        "general.type": "model",
    }
    assert read_llama_config(gguf_reader(**plain), tmp_path) == read_llama_config(gguf_reader(), tmp_path)
    with pytest.raises(ValueError, match="holds the adapter of a model"):
        read_llama_config(gguf_reader(**{"general.type": "adapter"}), tmp_path)
