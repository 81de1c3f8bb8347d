"""BLIP-2's second stage: sizes as published, what is read and learned, captions, answers, weights of every source."""

import pytest
import torch

import zoo
from zoo.language.splice import IGNORED
from zoo.models.blip2_stage2 import BLIP2Stage2, _split
from zoo.optim import parameter_groups

CAPTIONS = ["a red cat", "two dogs", "the sun, at night"]


def stirred(name="blip2_stage2_tiny", **settings):
    torch.manual_seed(1)
    model = zoo.create_model(name, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def images(count=3):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("name", "vision", "count"),
    [
        ("blip2_opt2_7b", "eva_vit_g", 107_133_696),
        ("blip2_opt6_7b", "eva_vit_g", 108_314_880),
        ("blip2_flant5_xl", "eva_vit_g", 106_739_968),
        ("blip2_flant5_xxl", "eva_vit_g", 108_314_880),
        ("blip2_opt2_7b", "clip_vit_l14", 103_593_984),
        ("blip2_flant5_xl", "clip_vit_l14", 103_200_256),
    ],
)
def test_published_numbers_of_trainable_parameters(name, vision, count):
    with torch.device("meta"):
        model = zoo.create_model(name, vision=vision)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count
    assert model.spec.num_tokens == 32
    assert model.spec.dim == 768


def test_without_a_language_model_it_is_a_tokenizer():
    model = zoo.create_model("blip2_stage2_tiny", language_model=None)
    assert model.encode(images()).embeddings.shape == (3, 4, 24)
    with pytest.raises(ValueError, match="has no language model"):
        model.caption(images())


# ---------------------------------------------------------------- what is read and learned


def test_labels_of_a_decoder_only_model():
    """As published: without a prompt the start id is learned too, with one neither it nor the prompt is."""
    for prompt in ("", "a photo of"):
        model = stirred(prompt=prompt, max_text_tokens=64)
        codec = model.language.text
        batch, targets = model._read(model.language_inputs(images()), model._texts({"caption": CAPTIONS}))
        assert targets is None
        for i, caption in enumerate(("a red cat", "two dogs", "the sun, at night")):
            text = f"{prompt} {caption}\n" if prompt else f"{caption}\n"
            row = [*codec.start, *codec.ids(text)]
            kept = batch.labels[i][batch.mask[i]].tolist()
            assert len(kept) == 4 + len(row)
            assert kept[:4] == [IGNORED] * 4
            learned = [t for t in kept if t != IGNORED]
            assert learned == (row if not prompt else list(codec.ids(f" {caption}\n")))


def test_long_texts_are_cut():
    model = stirred(max_text_tokens=5, prompt="")
    batch, _ = model._read(model.language_inputs(images()), model._texts({"caption": CAPTIONS}))
    assert batch.labels.shape[1] == 4 + 5


def test_cut_off_captions_are_counted_and_not_scored():
    model = stirred(max_text_tokens=12, prompt="a photo of").eval()
    long = stirred(max_text_tokens=12, prompt="").eval()
    found = long.losses({"image": images()[:2], "text_input": ["w" * 40, "w"], "text_output": ["x", "x"]})
    assert found["answers_cut_off"] == 0.5
    with pytest.raises(ValueError, match="cuts 2 captions off"):
        stirred(max_text_tokens=5, prompt="a photo of").log_likelihood(model.encode(images()[:2]), ["a", "b"])


def test_questions_are_cleaned():
    model = stirred()
    pairs = model._texts({"question": ['What (really) is "this"?'], "answer": ["a cat"]})
    assert pairs == [("Question: what really is this? Short answer:", "a cat")]


def test_prefix_of_an_encoder_decoder_model():
    model = stirred(language_model="tiny_t5", prompt="").train()
    torch.manual_seed(0)
    pairs = [model._texts({"caption": CAPTIONS}) for _ in range(20)]
    assert all(f"{given} {learned}".strip() == "the sun, at night" for _, _, (given, learned) in pairs)
    assert len({given for _, _, (given, _) in pairs}) > 2
    assert all(learned for batch in pairs for _, learned in batch)
    assert model.eval()._texts({"caption": CAPTIONS})[0] == ("", "a red cat")
    codec = model.language.text
    batch, targets = model._read(model.language_inputs(images()), [("ab", "cd"), ("", "e"), ("x", "yz")])
    assert targets.tolist()[1] == [*codec.ids("e"), codec.end, IGNORED]
    assert batch.mask.sum(1).tolist() == [4 + 3, 4 + 1, 4 + 2]
    assert _split("one") == ("", "one")


def test_questions_and_answers_are_learned_too():
    model = stirred(max_text_tokens=64)
    batch = {"question": ["what?", "who?"], "answer": ["a cat", "me"]}
    assert model._texts(batch) == [("Question: what? Short answer:", "a cat"), ("Question: who? Short answer:", "me")]
    terms = model.losses({"image": images(2)} | batch)
    assert terms["loss"].isfinite()
    given = model.losses({"image": images(2), "text_input": ["x", "y"], "text_output": ["a", "b"]})
    assert given["loss"].isfinite()


def test_the_image_matters_and_the_language_model_does_not_learn():
    model = stirred().train()
    before = {n: p.clone() for n, p in model.language.network.named_parameters()}
    loss = model.losses({"image": images(), "caption": CAPTIONS})["loss"]
    loss.backward()
    assert model.bridge.query_tokens.grad.abs().sum() > 0
    assert model.ln_vision.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.language.network.parameters())
    for n, p in model.language.network.named_parameters():
        assert torch.equal(p, before[n])
    other = model.eval().losses({"image": images().flip(0), "caption": CAPTIONS})["loss"]
    assert (other - model.losses({"image": images(), "caption": CAPTIONS})["loss"]).abs() > 1e-4


def test_the_q_former_has_a_learning_rate_of_its_own():
    model = stirred(bridge_lr=0.2, optim=zoo.Optim(lr=1e-3))
    groups = parameter_groups(model.named_parameters(), model.optim_settings, scale_of=model.lr_scale)
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == pytest.approx(1e-3 if name.startswith("language_projection") else 2e-4)


def test_likelihood_of_a_text_is_the_sum_of_its_terms():
    for language in ("tiny_opt", "tiny_t5"):
        model = stirred(language_model=language).eval()
        found = model.log_likelihood(model.encode(images()), CAPTIONS)
        alone = model.log_likelihood(model.encode(images()[1:2]), CAPTIONS[1:2])
        torch.testing.assert_close(found[1:2], alone, rtol=1e-4, atol=1e-4)
        read = model._read(model.language_inputs(images()), model._texts({"caption": CAPTIONS}, split=False))
        count = ((read[0].labels[:, 1:] if read[1] is None else read[1]) != IGNORED).sum()
        torch.testing.assert_close(-found.sum() / count, model.language.loss(*read))


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("language", ["tiny_opt", "tiny_llama", "tiny_t5"])
def test_captions_and_answers(language):
    model = stirred(language_model=language).train()
    said = model.caption(images(), max_new_tokens=6)
    assert len(said) == 3
    assert model.training, "the mode is restored"
    together = model.caption(images(), max_new_tokens=6, num_beams=1)
    alone = [model.caption(images()[i : i + 1], max_new_tokens=6, num_beams=1)[0] for i in range(3)]
    assert together == alone
    questions = ["what?", "how many are there?", "x"]  # of different length: padded in front
    together = model.answer(images(), questions, num_beams=1, max_new_tokens=5)
    alone = [
        model.answer(images()[i : i + 1], questions[i : i + 1], num_beams=1, max_new_tokens=5)[0] for i in range(3)
    ]
    assert together == alone
    with pytest.raises(ValueError, match="2 questions for 3 images"):
        model.answer(images(), questions[:2])


# ---------------------------------------------------------------- weights


def test_lavis_second_stage(tmp_path):
    model = stirred()
    state = {}
    for name, value in model.state_dict().items():
        name = name.replace("language_projection.", "opt_proj.").removeprefix("bridge.")
        state[name] = value
    state["Qformer.bert.embeddings.position_ids"] = torch.arange(4)[None]
    state["opt_model.x"] = torch.zeros(2)
    torch.save({"model": state, "epoch": 1}, tmp_path / "blip2.pth")
    again = zoo.create_model("blip2_stage2_tiny", weights=tmp_path / "blip2.pth")
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()))
    blind = zoo.create_model("blip2_stage2_tiny", language_model=None, weights=tmp_path / "blip2.pth")
    torch.testing.assert_close(blind.bridge.state_dict(), model.bridge.state_dict())


def test_from_the_first_stage(tmp_path):
    first = stirred("blip2_stage1_tiny")
    zoo.checkpoints.export.save_weights(first, tmp_path / "first.safetensors")
    second = zoo.create_model("blip2_stage2_tiny", weights=tmp_path / "first.safetensors").eval()
    torch.testing.assert_close(second.bridge.query_tokens, first.query_tokens)
    tokens = first.eval().encode(images()).embeddings
    torch.testing.assert_close(second.encode(images()).embeddings, tokens, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="shapes differ"):
        zoo.create_model("blip2_stage2_tiny", qformer={"width": 48}, weights=tmp_path / "first.safetensors")


def test_our_own_second_stage_without_its_language_model(tmp_path):
    model = stirred()
    zoo.checkpoints.export.save_weights(model, tmp_path / "second.safetensors")
    eyes = zoo.create_model(f"ckpt:{tmp_path / 'second.safetensors'}", language_model=None).eval()
    torch.testing.assert_close(eyes.encode(images()), model.eval().encode(images()), rtol=0, atol=0)


def test_a_projection_into_another_language_model_is_refused(tmp_path):
    model = stirred()
    state = {n.removeprefix("bridge."): v for n, v in model.state_dict().items()}
    state = {n.replace("language_projection.", "t5_proj."): v for n, v in state.items()}
    state["t5_proj.weight"] = torch.zeros(48, 24)
    torch.save({"model": state}, tmp_path / "wide.pth")
    with pytest.raises(ValueError, match="48x24 in the file and 32x24 in the model"):
        zoo.create_model("blip2_stage2_tiny", weights=tmp_path / "wide.pth")


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        ({}, "has no 'caption'"),
        ({"caption": ["a", "...", "b"]}, "text 1 of the batch has no words"),
    ],
)
def test_bad_batches(batch, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        stirred().losses({"image": images()} | batch)
    assert "\n" not in str(caught.value)


def test_bad_settings():
    with pytest.raises(ValueError, match="max_text_tokens must be at least 2"):
        zoo.create_model("blip2_stage2_tiny", max_text_tokens=1)
    with pytest.raises(ValueError, match="bridge_lr must be above 0"):
        zoo.create_model("blip2_stage2_tiny", bridge_lr=0.0)
    with pytest.raises(ValueError, match="no language model 'opt'"):
        zoo.create_model("blip2_stage2_tiny", language_model="opt")
    assert zoo.BLIP2Stage2 is BLIP2Stage2
