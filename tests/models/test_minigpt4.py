"""MiniGPT-4: sizes as published, both versions, prompts, labels, answers, projections, refusals."""

import pytest
import torch

import zoo
from zoo.language.splice import IGNORED
from zoo.models.minigpt4 import PROMPTS, MiniGPT4

CAPTIONS = ["a red cat", "two dogs", "sun"]


def images(count=3):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def tiny(**settings):
    torch.manual_seed(1)
    return zoo.create_model("minigpt4_tiny", **settings)


@pytest.mark.parametrize(
    ("name", "count", "tokens"),
    [
        ("minigpt4_vicuna_7b", 3_149_824, 32),
        ("minigpt4_vicuna_13b", 3_937_280, 32),
        ("minigpt4_llama2_7b", 23_072_768, 64),
    ],
)
def test_published_numbers_of_trainable_parameters(name, count, tokens):
    info = zoo.model_info(name)
    assert info.num_parameters == count
    assert info.spec.num_tokens == tokens


def test_only_the_projection_is_trained():
    model = tiny()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"llama_proj.weight", "llama_proj.bias"}
    assert set(model.state_dict()) == {"llama_proj.weight", "llama_proj.bias"}
    model.train()
    model.losses({"image": images(), "caption": CAPTIONS})["loss"].backward()
    assert model.llama_proj.weight.grad.abs().sum() > 0
    assert not any(tower.training for tower in model.frozen.values())


def test_any_model_with_continuous_tokens_serves(tmp_path):
    second = zoo.create_model("blip2_stage2_tiny")
    zoo.checkpoints.export.save_weights(second, tmp_path / "second.safetensors")
    model = tiny(tokenizer=f"ckpt:{tmp_path / 'second.safetensors'}").eval()
    assert "language_model" not in model.frozen["tokenizer"].frozen, "the tokenizer's own is not needed"
    tokens = second.eval().encode(images()).embeddings
    torch.testing.assert_close(model.encode(images()).embeddings, model.llama_proj(tokens))
    with pytest.raises(ValueError, match="'dvae_tiny:random' has no continuous tokens"):
        tiny(tokenizer="dvae_tiny:random")
    with pytest.raises(ValueError, match="takes images of 32 pixels: set image_size to that"):
        tiny(image_size=64)


def test_without_a_q_former_neighbours_are_merged():
    model = tiny(tokenizer=None, vision="tiny_eva", merge=4).eval()
    assert model.spec.num_tokens == 4
    assert model.llama_proj.in_features == 4 * 32
    patches = model.frozen["vision"](images())[:, 1:]  # no class token
    normed = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    joined = normed.reshape(3, 4, 128)
    torch.testing.assert_close(model.encode(images()).embeddings, model.llama_proj(joined), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="cannot be merged by 5"):
        tiny(tokenizer=None, vision="tiny_eva", merge=5).encode(images())
    with pytest.raises(ValueError, match="needs eyes"):
        tiny(tokenizer=None)


def test_first_stage_has_no_prompt():
    model = tiny()
    codec = model.language.text
    batch = model._read(model.language_inputs(images()), CAPTIONS)
    for i, caption in enumerate(CAPTIONS):
        row = batch.labels[i][batch.mask[i]].tolist()
        assert row == [IGNORED] * 5 + list(codec.ids(caption + "\n"))
        start = model.language.embed(torch.tensor(codec.start))
        torch.testing.assert_close(batch.embeds[i, :1], start)  # then four image tokens


def test_second_stage_draws_a_prompt_and_learns_the_answer():
    model = tiny(prompts=("<Img><ImageHere></Img> one?", "<Img><ImageHere></Img> two?"), end="###", max_text_tokens=40)
    codec = model.language.text
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        batch = model.train()._read(model.language_inputs(images()), CAPTIONS)
        learned = [[t for t in row if t != IGNORED] for row in batch.labels.tolist()]
        assert learned == [list(codec.ids(f"{c}###")) for c in CAPTIONS]
        table = model.language.embed(torch.arange(100))
        ids = [int((table - e).abs().sum(1).argmin()) for e in batch.embeds[0][batch.mask[0]]]
        text = codec.text(ids)
        assert text.startswith("###Human: <Img>")
        assert "###Assistant: a red cat###" in text
        seen.add("one?" in text)
    assert seen == {True, False}
    model.eval()
    torch.testing.assert_close(model._read(model.language_inputs(images()), CAPTIONS).mask, batch.mask)


def test_prompts_hold_the_image_once():
    assert len(PROMPTS) == 4
    assert all(p.count("<ImageHere>") == 1 for p in PROMPTS)
    with pytest.raises(ValueError, match="does not say once where the image stands"):
        tiny(prompts=("what?",))
    with pytest.raises(ValueError, match="does not say once where the instruction stands"):
        tiny(template="###Human:")


def test_answers_to_several_images_are_those_to_each_alone():
    model = tiny().train()
    questions = ["what?", "how many are there?", "x"]
    together = model.answer(images(), questions, max_new_tokens=5)
    alone = [model.answer(images()[i : i + 1], questions[i : i + 1], max_new_tokens=5)[0] for i in range(3)]
    assert together == alone
    assert model.training
    assert len(model.caption(images(), max_new_tokens=3)) == 3
    with pytest.raises(ValueError, match="1 questions for 3 images"):
        model.answer(images(), questions[:1])


def test_published_projection_among_other_entries(tmp_path):
    model = tiny()
    state = {n: torch.randn_like(v) for n, v in model.state_dict().items()}
    extra = {"Qformer.bert.embeddings.position_ids": torch.arange(3)[None], "llama_model.inv_freq": torch.ones(2)}
    torch.save({"model": state | extra, "optimizer": {"lr": 1.0}}, tmp_path / "minigpt4.pth")
    again = zoo.create_model("minigpt4_tiny", weights=tmp_path / "minigpt4.pth")
    torch.testing.assert_close(dict(again.state_dict()), state)
    torch.save(
        {"model": {"llama_proj.weight": torch.zeros(48, 24), "llama_proj.bias": torch.zeros(48)}}, tmp_path / "x.pth"
    )
    with pytest.raises(ValueError, match="48x24 in the file and 32x24 in the model"):
        zoo.create_model("minigpt4_tiny", weights=tmp_path / "x.pth")


def test_braces_and_signs_in_words():
    model = zoo.create_model("minigpt4_tiny", system="Use {x}. ").eval()
    seen = torch.rand(1, 3, 32, 32)
    assert len(model.answer(seen, ["what is {this}?"], max_new_tokens=2)) == 1
    with pytest.raises(ValueError, match="a question holds <ImageHere>"):
        model.answer(seen, ["where is <ImageHere>?"])


def test_captions_of_the_first_stage_are_cleaned():
    for prompts, said in ((None, "a cat"), (("<Img><ImageHere></Img> Say.",), "A cat!")):
        model = zoo.create_model("minigpt4_tiny", prompts=prompts).eval()
        batch = model._read(model.language_inputs(torch.rand(1, 3, 32, 32)), ["A cat!"])
        learned = [i for i in batch.labels[0].tolist() if i != -100]
        assert learned == list(model.language.text.ids(f"{said}{model.end}"))


def test_bad_batches():
    model = tiny()
    for batch, sentence in (
        ({}, "has no 'caption'"),
        ({"caption": ["a", " ", "b"]}, "caption 1 of the batch is empty"),
    ):
        with pytest.raises(ValueError, match=sentence) as caught:
            model.losses({"image": images()} | batch)
        assert "\n" not in str(caught.value)
    with pytest.raises(zoo.NotInvertible, match="no way back to pixels"):
        model.decode(model.encode(images()))
    assert zoo.MiniGPT4 is MiniGPT4
