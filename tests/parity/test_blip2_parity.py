"""BLIP-2's Q-Former against recorded outputs of LAVIS and, live, against transformers' modules."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from zoo.nn.qformer import QFormer
from zoo.nn.qformer_masks import itc_mask, itg_mask, itm_mask

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
    assert not unexpected and all(name.startswith("cls.") for name in missing)
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
