"""LLaVA against transformers, and the labels of its conversations against the published search for answers."""

import importlib.util
from pathlib import Path

import pytest
import torch

import zoo
from zoo.checkpoints.published.llava import save_llava
from zoo.language.conversations import render, to_pieces
from zoo.language.splice import IGNORED, splice
from zoo.language.text_codec import PretrainedCodec

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))
CAPTIONS = ["a red cat", "dogs", "a tree in snow"]


def drawn_anew(**settings):
    torch.manual_seed(1)
    model = zoo.create_model("llava_tiny", **settings).eval()
    with torch.no_grad():
        for module in [model, *model.frozen.values()]:
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("select", ["patch", "cls_patch"])
@torch.no_grad()
def test_against_transformers(tmp_path, select):
    from transformers import LlavaForConditionalGeneration

    model = drawn_anew(select=select)
    folder = save_llava(model, tmp_path / "hf")
    reference, report = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    reference = reference.eval()
    tower, codec = model.frozen["vision"], model.language.text
    tokens = model.language_inputs(IMAGES)
    batch = model._read(tokens, [model._about(c) for c in CAPTIONS])
    ids = torch.full(batch.labels.shape, codec.pad, dtype=torch.int64)
    image = reference.config.image_token_id
    for i, caption in enumerate(CAPTIONS):
        row = [*codec.start, *[image] * model.spec.num_tokens, *codec.ids(caption + "\n")]
        ids[i, : len(row)] = torch.tensor(row)
    theirs = reference(
        pixel_values=(IMAGES - tower.mean) / tower.std, input_ids=ids, attention_mask=batch.mask.long(),
    )  # fmt: skip
    features = torch.stack(list(theirs.image_hidden_states)).reshape(tokens.shape)
    torch.testing.assert_close(tokens, features, rtol=0, atol=3e-5)
    ours = model.language(batch.embeds, batch.mask, batch.positions)
    assert ours.std() > 0.1
    torch.testing.assert_close(ours[batch.mask], theirs.logits[batch.mask][:, :-1], rtol=0, atol=5e-5)

    again = zoo.create_model("llava_tiny", select=select, weights=folder)
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()))
    tuned = zoo.create_model("llava_tiny", language_model=str(folder), tuning="full", weights=folder)
    words = model.language.network.state_dict()
    for name, value in tuned.language.network.state_dict().items():
        torch.testing.assert_close(value[: len(words[name])], words[name], msg=name)


def test_what_transformers_has_no_class_for(tmp_path):
    for settings, sentence in (
        ({"projector_depth": 1}, "a LLaVA-1.0 with one"),
        ({"tuning": "lora"}, "merge the LoRA"),
        ({"vision": "tiny_random"}, "needs CLIP"),
    ):
        model = zoo.create_model("llava_tiny", **settings)
        with pytest.raises(ValueError, match=sentence) as caught:
            save_llava(model, tmp_path)
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- labels


@pytest.fixture(scope="module")
def llama():
    """The vocabulary of LLaMA-2, which comes with a package."""
    from transformers import PreTrainedTokenizerFast

    folder = Path(next(iter(importlib.util.find_spec("wordllama").submodule_search_locations)))
    file = folder / "tokenizers" / "l2_supercat_tokenizer_config.json"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    assert len(tokenizer) == 32000
    return PretrainedCodec(tokenizer)


TURNS = [
    {"from": "human", "value": "What animal is this, and where?"},
    {"from": "gpt", "value": "A cat; it sits on a mat."},
    {"from": "human", "value": "Why?"},
    {"from": "gpt", "value": "Because it is warm there."},
]


def searched(tokenizer, text, answer_sign, end):
    """Labels as LLaVA's training script finds them: rounds are split off, counted, and their prompts masked."""
    ids = tokenizer(text)["input_ids"]
    labels, at = list(ids), 1
    labels[0] = IGNORED
    for turn in text.split(end):
        if not turn:
            break
        parts = turn.split(answer_sign)
        prompt = parts[0] + answer_sign
        length, known = len(tokenizer(turn)["input_ids"]), len(tokenizer(prompt)["input_ids"]) - 2
        labels[at : at + known] = [IGNORED] * known
        at += length
    assert at == len(ids), "the published code would drop this sample"
    return ids, labels


@pytest.mark.parametrize("rounds", [1, 2])
def test_vicunas_labels_are_those_of_the_published_search(llama, rounds):
    parts = render(TURNS[: 2 * rounds], "v1", "</s>")
    text = "".join(part.text for part in parts)
    assert text.startswith("A chat between a curious user")
    assert text.endswith("</s>")
    assert " USER: What animal is this, and where? ASSISTANT: A cat; it sits on a mat.</s>" in text
    ids, labels = searched(llama.tokenizer, text, " ASSISTANT: ", "</s>")
    batch = splice([to_pieces(parts, llama, None)], None, lambda x: torch.zeros(*x.shape, 2))
    found = [*batch.labels[0].tolist()]
    assert [*llama.start, *llama.ids(text)] == ids
    assert found == labels
    assert sum(i != IGNORED for i in found) > 5 * rounds


def test_llama_2_layout(llama):
    parts = render(TURNS, "llama_2", "</s>", system="Be kind.")
    assert "".join(part.text for part in parts) == (
        "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nWhat animal is this, and where? [/INST] A cat; it sits on a mat. </s>"
        "<s>[INST] Why? [/INST] Because it is warm there. </s>"
    )
    batch = splice([to_pieces(parts, llama, None)], None, lambda x: torch.zeros(*x.shape, 2))
    learned = [i for i in batch.labels[0].tolist() if i != IGNORED]
    assert llama.tokenizer.decode(learned) == "A cat; it sits on a mat. </s> Because it is warm there. </s>"
