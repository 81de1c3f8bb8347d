"""A Q-Former's text side from BERT: it then is that BERT, and its queries start as a copy."""

import pytest
import torch
from published_folders import edited

import zoo
from zoo.nn.qformer_masks import itc_mask


@pytest.fixture
def folder(tmp_path):
    from transformers import BertConfig, BertModel

    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=190, hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=30,
    )  # fmt: skip
    model = BertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    return tmp_path, model


def tiny(folder, **settings):
    return zoo.create_model("blip2_stage1_tiny", **({"text_init": str(folder), "qformer": {"depth": 3}} | settings))


@torch.no_grad()
def test_the_text_branch_is_bert(folder):
    path, bert = folder
    model = tiny(path).eval()
    ids, mask = model.tokenise(["a cat", "dogs"])
    ours = model.Qformer(text=ids, mask=itc_mask(mask, 4)[:, :, 4:, 4:]).text
    theirs = bert(input_ids=ids, attention_mask=mask).last_hidden_state
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], rtol=1e-4, atol=1e-5)
    for layer in model.Qformer.bert.encoder.layer:
        torch.testing.assert_close(layer.intermediate_query.dense.weight, layer.intermediate.dense.weight)
    rows = model.Qformer.bert.embeddings.word_embeddings.weight
    torch.testing.assert_close(rows[:190], bert.embeddings.word_embeddings.weight)
    assert len(rows) == model.text_codec.vocab_size > 190
    assert rows[190:].std() > 0


def test_the_first_layers_are_enough(folder):
    path, bert = folder
    model = tiny(path, qformer={"depth": 2})
    weight = model.Qformer.bert.encoder.layer[1].attention.self.query.weight
    torch.testing.assert_close(weight, bert.encoder.layer[1].attention.self.query.weight)


def test_a_checkpoint_does_not_ask_for_it_again(folder, tmp_path):
    model = tiny(folder[0])
    assert model.init_args()["text_init"] is None
    zoo.checkpoints.export.save_weights(model, tmp_path / "model.safetensors")
    for file in folder[0].glob("*.safetensors"):
        if file.name != "model.safetensors":
            file.unlink()
    again = zoo.create_model(f"ckpt:{tmp_path / 'model.safetensors'}")
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"qformer": {"depth": 4}}, "has 3 layers, the Q-Former 4: set qformer.depth to 3 or less"),
        ({"qformer": {"heads": 4}}, "has 2 attention heads and the Q-Former 4: set qformer.heads to 2"),
        ({"qformer": {"width": 48}}, "does not fit the Q-Former"),
    ],
)
def test_other_sizes_are_refused(folder, settings, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        tiny(folder[0], **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_act", "relu"), ("layer_norm_eps", 1e-5), ("position_embedding_type", "relative_key")],
)
def test_what_no_tensor_shows_is_compared(folder, tmp_path_factory, field, value):
    other = edited(folder[0], tmp_path_factory.mktemp("edited") / "bert", **{field: value})
    with pytest.raises(ValueError, match=f"says {field} {value!r}, and this model has"):
        tiny(other)


def test_missing_folder():
    with pytest.raises(FileNotFoundError, match="neither 'minilm' nor a folder of BERT"):
        zoo.create_model("blip2_stage1_tiny", text_init="nowhere")
