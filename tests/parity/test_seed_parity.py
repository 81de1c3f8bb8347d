"""SEED's tokenizer against recorded outputs of the published code: both de-tokenizers, losses, the first stage."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

import zoo
from zoo.losses.contrastive import contrastive_loss, find_same_image
from zoo.models.seed_stage2 import CODEBOOK, SEEDTokenizer
from zoo.nn.eva_vit import EvaViT
from zoo.nn.qformer import QFormer
from zoo.nn.qformer_masks import causal_mask, itc_mask
from zoo.nn.qformer_sizes import QFormerSizes
from zoo.tokens import Tokens
from zoo.vision.encoders import VisionTower

FIXTURES = Path(__file__).parents[1] / "fixtures"
CLOSE = {"rtol": 1e-5, "atol": 3e-5}


def load(name):
    with safe_open(FIXTURES / f"{name}.safetensors", "pt") as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return arrays, json.loads(file.metadata()["config"])


def published_file(arrays, path):
    """As the published file: a bare state dict without the image encoder, with entries that inference does not use."""
    state = {name[3:]: value for name, value in arrays.items() if name.startswith("sd.")}
    vision = {name[15:]: state.pop(name) for name in list(state) if name.startswith("visual_encoder.")}
    state |= {
        "text_proj.weight": torch.zeros(2, 2),
        "Qformer.bert.embeddings.word_embeddings.weight": torch.zeros(3, 48),
    }
    torch.save(state, path)
    return vision


@pytest.fixture(params=["seed2_tiny_mlp", "seed2_tiny_reverse"])
def recorded(request, tmp_path):
    arrays, config = load(request.param)
    c = config["constructor"]
    vision = published_file(arrays, tmp_path / "seed_quantizer.pt")
    q, v = c["qformer"], c["vit"]
    model = SEEDTokenizer(
        image_size=c["img_size"] // 7 * 8, vision=f"tiny_random:{v['embed_dim']}",
        qformer=QFormerSizes(
            c["num_query_token"], q["hidden_size"], q["num_hidden_layers"], q["num_attention_heads"],
            q["intermediate_size"], cross_every=c["cross_attention_freq"],
        ),
        codebook=replace(CODEBOOK, vocab_size=c["n_embed"], width=c["codebook_embed_dim"]),
        codec_depth=c["decode_depth"], codec_heads=c["blocks_num_heads"],
        detokenizer="reverse_qformer" if c["use_qformer_image"] else "mlp", reverse_depth=c["reverse_layers"],
        embedding_width=c["image_features_dim"], weights=str(tmp_path / "seed_quantizer.pt"),
    ).eval()  # fmt: skip
    tower = EvaViT(
        c["img_size"], v["patch_size"], v["embed_dim"], v["depth"], v["num_heads"], int(v["embed_dim"] * v["mlp_ratio"])
    )
    tower.load_state_dict(vision, strict=True)
    model.add_frozen("vision", VisionTower(tower, tower.width, tower.num_tokens, (0.0,), (1.0,)))  # normalised already
    return model, arrays


def test_stage_by_stage(recorded):
    model, arrays = recorded
    with torch.no_grad():
        vit = model.ln_vision(model.frozen["vision"](arrays["in.image"]))
        torch.testing.assert_close(vit, arrays["out.vit"], **CLOSE)
        causal = model.causal_embeddings(arrays["in.image"])
        torch.testing.assert_close(causal, arrays["out.causal"], **CLOSE)
        z = model.encode_task_layer(arrays["out.causal"])
        torch.testing.assert_close(z, arrays["out.z"], **CLOSE)
        ids = model.quantize.encode(model.encode_task_layer(causal))
        assert torch.equal(ids, arrays["out.ids"])
        assert len(ids.unique()) > 20
        tokens = Tokens(ids, None, model.spec)
        torch.testing.assert_close(model.embed(ids), arrays["out.zq"], **CLOSE)
        torch.testing.assert_close(model._up(tokens), arrays["out.up"], **CLOSE)
        torch.testing.assert_close(model.decode(tokens), arrays["out.gen"], **CLOSE)
        torch.testing.assert_close(model.reconstruct_causal(tokens), arrays["out.recon_s"], **CLOSE)
    assert arrays["out.gen"].std() > 0.05


def test_losses_and_gradients_of_the_codes(recorded):
    model, arrays = recorded
    terms = model.objectives(arrays["out.causal"], arrays["in.clip_target"])
    for ours, theirs in (("vq", "vq"), ("reconstruction", "cos"), ("generation", "mse"), ("loss", "total")):
        torch.testing.assert_close(terms[ours], arrays[f"out.loss_{theirs}"], **CLOSE)
    z = arrays["out.z"].clone().requires_grad_()
    found = model.quantize(z)
    found.loss.backward()
    torch.testing.assert_close(z.grad, arrays["out.grad_vq_z"], rtol=0, atol=1e-6)
    torch.testing.assert_close(model.quantize.embedding.weight.grad, arrays["out.grad_vq_codebook"], rtol=0, atol=1e-6)


@torch.no_grad()
def test_first_stage():
    arrays, config = load("seed_stage1_tiny")
    c = config["constructor"]
    q, num = c["qformer"], c["num_query_token"]
    model = QFormer(
        q["hidden_size"], q["num_hidden_layers"], q["num_attention_heads"], q["intermediate_size"], c["encoder_width"],
        q["vocab_size"], len(arrays["sd.bert.embeddings.position_embeddings.weight"]), c["cross_attention_freq"],
    )  # fmt: skip
    state = {n[3:]: v for n, v in arrays.items() if n.startswith("sd.") and not n.endswith("position_ids")}
    model.load_state_dict(state, strict=True)
    model.eval()
    image, ids, mask = arrays["in.image_embeds"], arrays["in.input_ids"], arrays["in.attention_mask"]
    queries = arrays["in.query_tokens"].expand(len(image), -1, -1)
    seen = model(queries, image, mask=causal_mask(num)).queries
    torch.testing.assert_close(seen, arrays["out.query"], **CLOSE)
    text = model(text=ids, mask=itc_mask(mask, num)[:, :, num:, num:]).text
    torch.testing.assert_close(text, arrays["out.text"], **CLOSE)
    both = model(queries, image, ids, causal_mask(num, mask))
    torch.testing.assert_close(torch.cat([both.queries, both.text], 1), arrays["out.joint"], **CLOSE)
    shown = F.normalize(seen[:, -1] @ arrays["in.vision_proj"].t(), dim=-1)
    written = F.normalize(text[:, 0] @ arrays["in.text_proj"].t(), dim=-1)
    same = find_same_image(len(ids), None, ids.device)
    loss, sim, _ = contrastive_loss(shown[:, None], written, arrays["in.temp"], same)
    torch.testing.assert_close(sim, arrays["out.sim"], **CLOSE)
    torch.testing.assert_close(loss, arrays["out.itc"], **CLOSE)
    bidirectional = model(queries, image).queries
    assert (bidirectional - arrays["out.query"]).abs().max() > 1e-2, "causality matters"


def test_published_names_and_shapes():
    """881 entries of the inference model: 511 of the image encoder, 370 of the file."""
    with torch.device("meta"):
        model = zoo.create_model("seed2")
        reverse = zoo.create_model("seed2_reverse")
    names = {n.removeprefix("detokenizer.") for n in model.state_dict()} | {"Qformer.bert.embeddings.position_ids"}
    assert len(names) == 370
    assert len(model.frozen["vision"].network.state_dict()) == 511
    assert {"image_down.4.weight", "distill_image_proj.bias", "blocks_image.3.mlp.fc2.weight"} <= names
    shapes = {n: tuple(v.shape) for n, v in model.state_dict().items()}
    assert shapes["quantize.embedding.weight"] == (8192, 32)
    assert shapes["pos_embed"] == (1, 32, 768)
    assert shapes["detokenizer.image_down.0.weight"] == (256, 768)
    assert shapes["detokenizer.distill_image_proj.weight"] == (1024, 1024)
    assert shapes["encode_task_layer.2.weight"] == (32, 768)
    assert shapes["decode_task_layer.0.weight"] == (32, 32)
    assert round(sum(p.numel() for p in model.parameters()) / 1e5) == 1641
    layers = {n.split(".")[5] for n in reverse.state_dict() if n.startswith("detokenizer.Reverse_Qformer.bert.enc")}
    assert layers == {"0", "1", "2", "3"}
    assert tuple(reverse.state_dict()["detokenizer.distill_image_proj.weight"].shape) == (1024, 768)
