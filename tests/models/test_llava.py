"""LLaVA: sizes as published, projectors, tuning, conversations and their labels, published files, refusals."""

import json

import pytest
import torch

import zoo
from zoo.language.by_name import find_language_model
from zoo.language.conversations import check_turns, put_image_first, render, to_pieces
from zoo.language.splice import IGNORED, Image
from zoo.models.llava import LLaVA
from zoo.optim import parameter_groups

TURNS = [{"from": "human", "value": "what is this? <image>"}, {"from": "gpt", "value": "a cat"}]
MORE = [*TURNS, {"from": "human", "value": "why?"}, {"from": "gpt", "value": "who knows"}]


def images(count=2):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def tiny(**settings):
    torch.manual_seed(1)
    return zoo.create_model("llava_tiny", **settings)


# ---------------------------------------------------------------- sizes and tuning


@pytest.mark.parametrize(
    ("name", "count", "tokens"),
    [
        ("llava_1_0_7b", 4_198_400, 256),
        ("llava_1_0_13b", 5_248_000, 256),
        ("llava_1_5_7b", 20_979_712, 576),
        ("llava_1_5_13b", 31_467_520, 576),
    ],
)
def test_published_numbers_of_trainable_parameters(name, count, tokens):
    info = zoo.model_info(name)
    assert info.num_parameters == count
    assert info.spec.num_tokens == tokens


def test_what_is_trained():
    trained = {}
    for tuning in ("projector", "full", "lora"):
        model = tiny(tuning=tuning, lora={"rank": 2})
        trained[tuning] = {n for n, p in model.named_parameters() if p.requires_grad}
        assert set(model.state_dict()) >= trained[tuning]
        frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
        assert not frozen & set(model.state_dict()), "frozen weights are in no checkpoint"
    assert all(n.startswith("mm_projector.") for n in trained["projector"])
    assert "language_model.network.model.embed_tokens.weight" in trained["full"]
    assert {n.partition(".")[0] for n in trained["lora"]} == {"mm_projector", "language_model"}
    assert all("lora_" in n for n in trained["lora"] if n.startswith("language_model"))


def test_the_projector_has_a_learning_rate_of_its_own():
    model = tiny(tuning="lora", lora={"rank": 2}, projector_lr=0.1, optim=zoo.Optim(lr=2e-4))
    groups = parameter_groups(model.named_parameters(), model.optim_settings, scale_of=model.lr_scale)
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == pytest.approx(2e-5 if name.startswith("mm_projector") else 2e-4)


def test_class_token_and_last_block():
    """Features are what goes into the last block of the image encoder, without the class token."""
    one, two = tiny().eval(), tiny(select="cls_patch").eval()
    tower = one.frozen["vision"]
    hidden = tower(images())
    assert hidden.shape == (2, 17, 32)
    assert one.spec.num_tokens == 16
    assert two.spec.num_tokens == 17
    torch.testing.assert_close(one.language_inputs(images()), one.mm_projector(hidden[:, 1:]))
    torch.testing.assert_close(two.language_inputs(images()), two.mm_projector(hidden))


def test_gradient_checkpointing_changes_nothing():
    pytest.importorskip("peft")
    grads = []
    for checkpointing in (False, True):
        model = tiny(tuning="full", gradient_checkpointing=checkpointing).train()
        model.losses({"image": images(), "caption": ["a cat", "sun"]})["loss"].backward()
        grads.append(model.mm_projector[0].weight.grad)
    torch.testing.assert_close(*grads)
    assert grads[0].abs().sum() > 0


# ---------------------------------------------------------------- conversations


def text_and_learned(turns, template, system=None):
    parts = render(put_image_first(turns), template, "</s>", system)
    return "".join(p.text for p in parts), [p.text for p in parts if p.learn]


def test_layouts_are_written_and_learned_as_published():
    assert text_and_learned(TURNS, "plain") == ("<image>a cat\n", ["a cat\n"])
    text, learned = text_and_learned(MORE, "v1", "S.")
    assert text == "S. USER: <image>\nwhat is this? ASSISTANT: a cat</s>USER: why? ASSISTANT: who knows</s>"
    assert learned == ["a cat</s>", "who knows</s>"]
    text, learned = text_and_learned(MORE, "v0", "S.")
    assert text == (
        "S.\n\n### Human: <image>\nwhat is this?\n### Assistant: a cat\n### Human: why?\n### Assistant: who knows\n### "
    )
    assert learned == ["### ", "### ", "Assistant: a cat\n", "### ", "### ", "Assistant: who knows\n", "### "]
    text, learned = text_and_learned(TURNS, "llama_2", "S.")
    assert text == "[INST] <<SYS>>\nS.\n<</SYS>>\n\n<image>\nwhat is this? [/INST] a cat </s>"
    assert learned == ["a cat </s>"]
    text, learned = text_and_learned(MORE, "chatml")
    assert text.startswith(
        "<|im_start|>user\n<image>\nwhat is this?<|im_end|>\n<|im_start|>assistant\na cat<|im_end|>\n"
    )
    assert learned == ["a cat<|im_end|>", "who knows<|im_end|>"]


@pytest.mark.parametrize("template", ["plain", "v0", "v1", "llama_2", "chatml"])
def test_an_open_question_is_the_beginning_of_its_answer(template):
    whole = "".join(p.text for p in render(put_image_first(MORE), template, "</s>"))
    opened = "".join(p.text for p in render(put_image_first(MORE[:3]), template, "</s>"))
    assert whole.startswith(opened)
    assert template == "plain" or "who" in whole[len(opened) :]


def test_ids_and_labels_of_a_conversation():
    codec = find_language_model("tiny_llama").text
    found = to_pieces(render(put_image_first(MORE), "v1", "</s>", "S."), codec, 1)
    assert found[0].ids == codec.start
    assert found[2] == Image(1)
    assert found[1].ids == codec.ids("S. USER: ")
    assert not any(found[1].flags())
    text = "\nwhat is this? ASSISTANT: a cat</s>USER: why? ASSISTANT: who knows</s>"
    assert found[3].ids == codec.ids(text)
    assert codec.end in found[3].ids
    learned = [i for i, flag in zip(found[3].ids, found[3].flags(), strict=True) if flag]
    assert learned == [*codec.ids("a cat</s>"), *codec.ids("who knows</s>")]
    with pytest.raises(ValueError, match="has <image> and no image"):
        to_pieces(render(TURNS, "v1", "</s>"), codec, None)
    twice = [{"from": "human", "value": "<image> and <image>"}, TURNS[1]]
    with pytest.raises(ValueError, match="shows 2 images; one is supported"):
        to_pieces(render(put_image_first(twice), "v1", "</s>"), codec, 0)


def test_text_alone_keeps_the_projector_in_the_graph():
    model = tiny(conversation="v1", system="").train()
    words = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "you"}]
    terms = model.losses({"image": images(), "conversation": [words, words]})
    terms["loss"].backward()
    assert model.mm_projector[0].weight.grad is not None
    assert model.mm_projector[0].weight.grad.abs().sum() == 0
    both = model.losses({"image": images(), "conversation": [words, TURNS]})
    both["loss"].backward()
    assert model.mm_projector[0].weight.grad.abs().sum() > 0


def test_answers_that_are_cut_off_are_counted():
    model = tiny(conversation="v1", system="", max_length=90)
    long = [{"from": "human", "value": "<image>\n" + "x" * 90}, {"from": "gpt", "value": "y"}]
    terms = model.losses({"image": images(), "conversation": [TURNS, long]})
    assert terms["answers_cut_off"] == 0.5
    assert terms["loss"].isfinite()
    with pytest.raises(ValueError, match="all answers are cut off; raise max_length"):
        model.losses({"image": images(), "conversation": [long, long]})


def test_captions_become_answers():
    model = tiny(conversation="v1", system="", question="what?").eval()
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a cat"}]
    one = model.losses({"image": images(), "caption": ["a cat", "a cat"]})["loss"]
    two = model.losses({"image": images(), "conversation": [turns, turns]})["loss"]
    torch.testing.assert_close(one, two)
    tokens = model.encode(images())
    found = model.log_likelihood(tokens, ["a cat", "a cat"])
    torch.testing.assert_close(-found.sum() / (2 * len("a cat ")), one)


@pytest.mark.parametrize("template", ["plain", "v1", "chatml"])
def test_answers_to_several_images_are_those_to_each_alone(template):
    model = tiny(conversation=template).train()
    questions = ["what?", "how many are there?"]
    together = model.answer(images(), questions, max_new_tokens=5)
    alone = [model.answer(images()[i : i + 1], questions[i : i + 1], max_new_tokens=5)[0] for i in range(2)]
    assert together == alone
    assert model.training
    talk = model.answer(images(), [MORE[:3], MORE[:1]], max_new_tokens=5)
    assert len(talk) == 2
    assert len(model.caption(images(), max_new_tokens=3)) == 2
    with pytest.raises(ValueError, match="1 questions for 2 images"):
        model.answer(images(), questions[:1])


# ---------------------------------------------------------------- published files


def test_projectors_of_both_versions(tmp_path):
    two = tiny()
    state = {f"model.{n}": torch.randn_like(v) for n, v in two.state_dict().items()}
    torch.save(state, tmp_path / "mm_projector.bin")
    again = zoo.create_model("llava_tiny", weights=tmp_path / "mm_projector.bin")
    torch.testing.assert_close({f"model.{n}": v for n, v in again.state_dict().items()}, state)
    weight, bias = torch.randn(32, 32), torch.randn(32)
    torch.save({"model.mm_projector.weight": weight, "model.mm_projector.bias": bias}, tmp_path / "linear.bin")
    one = zoo.create_model("llava_tiny", projector_depth=1, weights=tmp_path / "linear.bin")
    torch.testing.assert_close(one.mm_projector[0].weight, weight)
    with pytest.raises(ValueError, match=r"mm_projector.0.weight|lacks mm_projector.2"):
        zoo.create_model("llava_tiny", weights=tmp_path / "linear.bin")
    torch.save(
        {"model.mm_projector.weight": torch.zeros(48, 32), "model.mm_projector.bias": torch.zeros(48)}, tmp_path / "w"
    )
    with pytest.raises(ValueError, match="48x32 in the file and 32x32 in the model"):
        zoo.create_model("llava_tiny", projector_depth=1, weights=tmp_path / "w")


def test_lora_folder(tmp_path):
    from safetensors.torch import save_file

    model = zoo.create_model("llava_lora_tiny")
    state = {n: torch.randn_like(v) for n, v in model.state_dict().items()}
    lora = {
        n.replace("language_model.network.", "base_model.model.").replace(".default.", "."): v
        for n, v in state.items() if "lora_" in n
    }  # fmt: skip
    others = {f"base_model.model.model.{n}": v for n, v in state.items() if "lora_" not in n}
    save_file(lora, tmp_path / "adapter_model.safetensors")
    torch.save(others, tmp_path / "non_lora_trainables.bin")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "peft_type": "LORA"}))
    again = zoo.create_model("llava_lora_tiny", weights=tmp_path)
    torch.testing.assert_close(dict(again.state_dict()), state)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 256}))
    with pytest.warns(UserWarning, match="trained with lora.alpha 256, and this model has 8"):
        zoo.create_model("llava_lora_tiny", weights=tmp_path)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    for field, value in (("use_rslora", True), ("use_dora", True), ("bias", "all"), ("alpha_pattern", {"q_proj": 4})):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, field: value}))
        with pytest.raises(ValueError, match=rf"says {field} .*and only LoRA with .* is read: merge it first"):
            model.load_weights(str(tmp_path))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_whole_published_model(tmp_path):
    """LLaMA's names with the projector among them, as one folder: language model, then all of it."""
    model = tiny(tuning="full")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    network = model.language.network
    state = dict(network.state_dict()) | {f"model.{n}": v for n, v in model.state_dict().items() if "projector" in n}
    torch.save(state, tmp_path / "pytorch_model.bin")
    config = network.config.to_dict() | {"mm_vision_tower": "openai/clip", "model_type": "llava", "mm_hidden_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config, default=str))
    model.language.text.tokenizer.save_pretrained(tmp_path)
    again = zoo.create_model("llava_tiny", tuning="full", language_model=str(tmp_path), weights=tmp_path)
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()))
    frozen = zoo.create_model("llava_tiny", language_model=str(tmp_path), weights=tmp_path)
    torch.testing.assert_close(frozen.language.network.state_dict(), network.state_dict())


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("turns", "sentence"),
    [
        ([], "has no turns"),
        ([TURNS[1]], "turn 0 of a conversation is from 'gpt', and it is human's turn"),
        ([TURNS[0], TURNS[0]], "turn 1 of a conversation is from 'human', and it is gpt's turn"),
    ],
)
def test_bad_conversations(turns, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        check_turns(turns)
    assert "\n" not in str(caught.value)


def test_weights_of_another_language_model_are_named(tmp_path, recwarn):
    from zoo.checkpoints.export import save_weights

    path = str(save_weights(tiny(vision="tiny_random"), tmp_path / "a.safetensors"))
    tiny(vision="tiny_random", weights=path)
    assert not [w for w in recwarn if "was trained with" in str(w.message)]
    with pytest.warns(UserWarning, match="trained with the language model 'tiny_llama'.*this model has 'tiny_opt'"):
        tiny(vision="tiny_random", language_model="tiny_opt", weights=path)


def test_another_scale_of_lora_is_named(tmp_path):
    from zoo.checkpoints.export import save_weights

    path = str(save_weights(zoo.create_model("llava_lora_tiny"), tmp_path / "a.safetensors"))
    with pytest.warns(UserWarning, match="trained with lora.alpha 8, and this model has 16"):
        zoo.create_model("llava_lora_tiny", lora={"alpha": 16}, weights=path)


def test_bad_settings_and_batches():
    with pytest.raises(ValueError, match="leaves no room behind 16 image tokens"):
        tiny(max_length=16)
    with pytest.raises(ValueError, match="neither 'conversation' nor 'caption'"):
        tiny().losses({"image": images()})
    with pytest.raises(ValueError, match="caption 1 of the batch is empty"):
        tiny().losses({"image": images(), "caption": ["a", ""]})
    with pytest.raises(zoo.NotInvertible, match="no way back to pixels"):
        tiny().decode(tiny().encode(images()))
    assert zoo.LLaVA is LLaVA
    assert IGNORED == -100
