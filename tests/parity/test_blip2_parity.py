"""BLIP-2's Q-Former against recorded outputs of LAVIS and, live, against transformers' modules."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from zoo.losses.contrastive import draw_negatives
from zoo.models.blip2_stage1 import BLIP2Stage1
from zoo.nn.eva_vit import EvaViT
from zoo.nn.qformer import QFormer
from zoo.nn.qformer_masks import itc_mask, itg_mask, itm_mask
from zoo.nn.qformer_sizes import QFormerSizes

FILE = Path(__file__).parents[1] / "fixtures" / "lavis_stage1_tiny.safetensors"


@pytest.fixture(scope="module")
def recorded():
    with safe_open(FILE, "pt") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return arrays, json.loads(file.metadata()["config"])


@pytest.fixture(scope="module")
def qformer(recorded):
    arrays, config = recorded
    c = config["constructor"]
    model = QFormer(
        c["hidden_size"], c["num_hidden_layers"], c["num_attention_heads"], c["intermediate_size"], c["encoder_width"],
        c["vocab_size"], c["max_position_embeddings"], c["cross_attention_freq"],
    )  # fmt: skip
    state = {n[11:]: v for n, v in arrays.items() if n.startswith("sd.Qformer.") and not n.endswith("position_ids")}
    model.load_state_dict(state, strict=True)
    return model.eval()


@torch.no_grad()
def test_all_passes_against_lavis(recorded, qformer):
    arrays, config = recorded
    close = {"rtol": 0, "atol": 5e-5}
    image, ids, mask = arrays["out.image_embeds"], arrays["in.text_ids"], arrays["in.attention_mask"]
    num = config["constructor"]["num_query_token"]
    queries = arrays["sd.query_tokens"].expand(len(image), -1, -1)
    alone = qformer(queries, image)
    torch.testing.assert_close(alone.queries, arrays["out.query_output"], **close)
    text = qformer(text=ids, mask=itc_mask(mask, num)[:, :, num:, num:]).text
    torch.testing.assert_close(text, arrays["out.text_output"], **close)
    i, t = arrays["in.pair_image_idx"], arrays["in.pair_text_idx"]
    joint = qformer(queries[:1].expand(len(i), -1, -1), image[i], ids[t], itm_mask(mask[t], num))
    torch.testing.assert_close(torch.cat([joint.queries, joint.text], 1), arrays["out.pair_joint_output"], **close)
    start = ids.clone()
    start[:, 0] = config["special_ids"]["dec_bos"]
    words = qformer(text=start, mask=itg_mask(mask, num)[:, :, num:], cache=alone.cache).text
    torch.testing.assert_close(qformer.word_logits(words), arrays["out.lm_logits"], **close)


@pytest.fixture
def hf():
    """transformers' Q-Former with text embeddings; all parameters drawn anew, since its own start hides errors."""
    from transformers import Blip2QFormerConfig
    from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel, Blip2TextEmbeddings

    config = Blip2QFormerConfig(
        vocab_size=40, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=36,
        max_position_embeddings=16, encoder_hidden_size=20, cross_attention_frequency=2, use_qformer_text_input=True,
        pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(5)
    model, embeddings = Blip2QFormerModel(config).eval(), Blip2TextEmbeddings(config)
    with torch.no_grad():
        for parameter in [*model.parameters(), *embeddings.parameters()]:
            parameter.copy_(torch.randn_like(parameter) * 0.25)
    return model, embeddings


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("mode", ["queries", "itm", "itg"])
def test_hidden_states_against_transformers(hf, mode, dtype, atol):
    reference, embeddings = (m.to(dtype) for m in hf)
    ours = QFormer(24, 3, 4, 36, 20, vocab_size=40, max_positions=16).to(dtype).eval()
    state = {
        f"bert.{n}".replace(".attention.attention.", ".attention.self."): v for n, v in reference.state_dict().items()
    }
    state = {n.replace(".crossattention.attention.", ".crossattention.self."): v for n, v in state.items()}
    state = {n.replace("bert.layernorm.", "bert.embeddings.LayerNorm."): v for n, v in state.items()}
    state |= {f"bert.embeddings.{n}": v for n, v in embeddings.state_dict().items() if n != "position_ids"}
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith("cls.") for name in missing)
    torch.manual_seed(6)
    queries, image = torch.randn(3, 5, 24, dtype=dtype), torch.randn(3, 7, 20, dtype=dtype)
    text, mask = torch.randint(1, 40, (3, 6)), torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] + [0] * 5])
    if mode == "queries":
        expected = reference(query_embeds=queries, encoder_hidden_states=image).last_hidden_state
        found = ours(queries, image).queries
    else:
        added = {"itm": itm_mask, "itg": itg_mask}[mode](mask, 5).to(dtype)
        both = embeddings(input_ids=text, query_embeds=queries)
        expected = reference(
            query_embeds=both, query_length=5, attention_mask=added, encoder_hidden_states=image
        ).last_hidden_state
        out = ours(queries, image, text, added)
        found = torch.cat([out.queries, out.text], 1)
    assert expected.std() > 0.1, "a vacuous comparison"
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def folder(recorded, tmp_path_factory):
    """A file as LAVIS writes it, and a vocabulary of as many words."""
    arrays, config = recorded
    path = tmp_path_factory.mktemp("blip2")
    state = {name[3:]: value.clone() for name, value in arrays.items() if name.startswith("sd.")}
    torch.save({"model": state | {"visual_encoder.cls_token": torch.zeros(1, 1, 4)}, "epoch": 3}, path / "lavis.pth")
    size = config["constructor"]["vocab_size"] - 1
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"word{i}" for i in range(size - 4))]
    (path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    return path


@pytest.fixture
def stage1(recorded, folder):
    def make(**settings):
        c = recorded[1]["constructor"]
        settings = {"min_temperature": 0.0} | settings
        model = BLIP2Stage1(
            image_size=32, vision=f"tiny_random:{c['encoder_width']}", vocabulary=str(folder / "vocab.txt"),
            max_text_tokens=c["max_txt_len"], 
            qformer=QFormerSizes(
                c["num_query_token"], c["hidden_size"], c["num_hidden_layers"], c["num_attention_heads"],
                c["intermediate_size"], cross_every=c["cross_attention_freq"],
            ),
            max_positions=c["max_position_embeddings"],
            projection_width=c["embed_dim"], weights=str(folder / "lavis.pth"), **settings,
        )  # fmt: skip
        return model.eval()

    return make


def replay(model, arrays, **settings):
    return model.objectives(
        arrays["in.image_features"], arrays["in.text_ids"], arrays["in.attention_mask"],
        negatives=(arrays["out.neg_image_idx"], arrays["out.neg_text_idx"]), **settings,
    )  # fmt: skip


def test_losses_and_gradients_against_lavis(recorded, stage1):
    arrays, _ = recorded
    model = stage1()
    terms = replay(model, arrays)
    for ours, theirs in (("itc", "loss_itc"), ("itm", "loss_itm"), ("itg", "loss_lm"), ("loss", "loss")):
        torch.testing.assert_close(terms[ours], arrays[f"out.{theirs}"], rtol=0, atol=5e-5)
    with torch.no_grad():
        given = replay(model, arrays, image_ids=arrays["in.image_id"])
    torch.testing.assert_close(given["itc"], arrays["out.loss_itc_with_image_id"], rtol=0, atol=5e-5)
    terms["loss"].backward()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    wanted = {name[9:]: value for name, value in arrays.items() if name.startswith("out.grad.")}
    assert len(wanted) > 5
    for name, gradient in wanted.items():
        torch.testing.assert_close(
            parameters[name].grad, gradient, rtol=0, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
    full = stage1(gather_grad="full")
    other = replay(full, arrays)
    torch.testing.assert_close(other["loss"], terms["loss"])
    other["loss"].backward()
    difference = (full.vision_proj.weight.grad - wanted["vision_proj.weight"]).abs().max()
    assert difference > 10 * 2e-4, "the gathered side carries a gradient"


@torch.no_grad()
def test_matching_logits_and_drawn_negatives_against_lavis(recorded, stage1):
    arrays, config = recorded
    model = stage1()
    embeds = model.ln_vision(arrays["in.image_features"])
    torch.testing.assert_close(embeds, arrays["out.image_embeds"], rtol=0, atol=5e-5)
    ids, mask = arrays["in.text_ids"], arrays["in.attention_mask"]
    drawn = (arrays["out.neg_image_idx"], arrays["out.neg_text_idx"])
    logits = model._match_batch(embeds, model.Qformer.read_image(embeds), ids, mask, drawn)
    torch.testing.assert_close(logits, arrays["out.itm_logits"], rtol=0, atol=5e-5)
    i, t = arrays["in.pair_image_idx"], arrays["in.pair_text_idx"]
    pairs = model.match(model.Qformer.read_image(embeds[i]), ids[t], mask[t])
    torch.testing.assert_close(pairs, arrays["out.pair_itm_logits"], rtol=0, atol=5e-5)
    generator = torch.Generator().manual_seed(int(arrays["in.multinomial_seed"]))
    again = draw_negatives(arrays["out.sim_i2t"], arrays["out.sim_t2i"], torch.eye(len(ids)).bool(), generator)
    assert torch.equal(again[0], drawn[0])
    assert torch.equal(again[1], drawn[1])
    c = config["constructor"]
    assert model.Qformer.vocab_size == c["vocab_size"]
    assert model.text_codec.start_id == config["special_ids"]["dec_bos"]


@torch.no_grad()
def test_eva_vit_against_transformers():
    from transformers import Blip2VisionConfig
    from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel

    config = Blip2VisionConfig(
        hidden_size=24, intermediate_size=30, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=14,
        layer_norm_eps=1e-6,
    )  # fmt: skip
    torch.manual_seed(7)
    reference = Blip2VisionModel(config).eval()
    for parameter in reference.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.2)
    ours = EvaViT(28, 14, 24, 3, 4, 30)
    theirs = reference.state_dict()
    names = {"cls_token": "embeddings.class_embedding", "pos_embed": "embeddings.position_embedding"}
    state = {}
    for name in ours.state_dict():
        there = name.replace("patch_embed.proj", "embeddings.patch_embedding").replace("blocks.", "encoder.layers.")
        there = (
            there.replace("norm1", "layer_norm1")
            .replace("norm2", "layer_norm2")
            .replace("attn.proj", "attn.projection")
        )
        there = names.get(name, there.replace("attn.", "self_attn."))
        if name.endswith("_bias"):
            query, key, value = theirs[there.rpartition(".")[0] + ".qkv.bias"].chunk(3)
            key.zero_()  # the published network has none; a view, so the reference's is zero too
            state[name] = query if name.endswith("q_bias") else value
        else:
            state[name] = theirs[there]
    ours.load_state_dict(state)
    images = torch.randn(2, 3, 28, 28)
    expected = reference.post_layernorm(ours(images))
    found = reference(pixel_values=images).last_hidden_state
    assert found.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
