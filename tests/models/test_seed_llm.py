"""SEED's language model: one vocabulary, both tasks, guaranteed images, both forms, any tokenizer, refusals."""

import dataclasses
import json

import pytest
import torch
from toys import quiet_trainer

import zoo
from zoo.callbacks.captions import Captions
from zoo.language.splice import IGNORED
from zoo.models.seed_llm import SEEDLLM

CAPTIONS = ["a red cat", "two dogs", "sun"]


def tiny(**settings):
    torch.manual_seed(1)
    return zoo.create_model("seed_llm_tiny", **settings)


def images(count=3, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2))


# ---------------------------------------------------------------- words


def test_the_tables_are_widened():
    model = tiny()
    network = model.language_model.network
    table = network.get_input_embeddings().weight
    assert table.shape[0] == model.words.size == model.words.offset + 32 + 2
    assert network.get_output_embeddings().weight.shape[0] == model.words.size
    old = table[: model.words.offset].float()
    new = table[model.words.offset :].float()
    assert (new.mean(0) - old.mean(0)).abs().max() < 0.3 * old.std()
    assert new.std() > 0


@pytest.mark.parametrize("tokenizer", ["seed_stage2_tiny:random", "vqvae2_tiny:random", "dvae_tiny:random"])
def test_new_words_start_from_the_codes(tokenizer):
    """Like those of text in mean and spread, and as near to each other as the codes are, however small these are."""
    model = tiny(image_words="codes", tokenizer=tokenizer)
    table = model.language_model.network.get_input_embeddings().weight.detach().float()
    text, new = table[: model.words.offset], table[model.words.offset : model.words.begin]
    torch.testing.assert_close(new.mean(0), text.mean(0), atol=1e-5, rtol=1e-4)
    assert 0.5 < new.std(0).mean() / text.std(0).mean() < 2
    codes = model.tokenizer.embed(torch.arange(model.spec.vocab_size)).detach()
    codes = (codes - codes.mean(0)) / codes.std(0)
    near = torch.stack([torch.cdist(new, new).flatten(), torch.cdist(codes, codes).flatten()])
    assert torch.corrcoef(near)[0, 1] > 0.8  # 0.0 from the mean; random directions in a narrow model
    both = tiny(image_words="codes", form="embeddings", tokenizer=tokenizer).language_model.network
    torch.testing.assert_close(both.get_input_embeddings()(model.words.offset + torch.arange(len(new))), new)


# ---------------------------------------------------------------- what is learned


def labels_of(model, writes, learn):
    model.learn = learn
    pieces = model._sample([3, 1, 4, 1], "a cat", writes)
    ids = [i for piece in pieces for i in piece.ids]
    return ids, [i for piece in pieces for i, flag in zip(piece.ids, piece.flags(), strict=True) if flag]


def test_samples_of_both_tasks():
    model = tiny(caption_prompt="this is", generation_prompt="draw")
    text, image = model.language_model.text, model.words.span([3, 1, 4, 1])
    ids, learned = labels_of(model, writes=False, learn="answer")
    assert ids == [*text.start, *image, *text.ids(" this is"), *text.ids(" a cat"), *text.ids("\n")]
    assert learned == [*text.ids(" a cat"), *text.ids("\n")]
    ids, learned = labels_of(model, writes=True, learn="answer")
    assert ids == [*text.start, *text.ids("a cat"), *text.ids(" draw"), *image]
    assert learned == list(image)
    for writes in (False, True):
        ids, learned = labels_of(model, writes, "all")
        assert learned == ids[len(text.start) :]


def test_tasks_are_mixed_by_weight():
    batch = {"image": images(), "caption": CAPTIONS}
    for share, silent in ((0.0, "image_loss"), (1.0, "text_loss")):
        model = tiny(generation_share=share, learn="answer").train()
        terms = model.losses(batch)
        assert terms[silent] == 0
        assert terms["loss"] > 0
    both = tiny(learn="answer").eval().losses(batch)
    assert both["image_loss"] > 0, "evaluation sees both directions"
    assert both["text_loss"] > 0, "evaluation sees both directions"


def test_the_image_matters():
    model = tiny(learn="answer").eval()
    with torch.no_grad():
        one = model.log_likelihood(zoo.Tokens(torch.tensor([[1, 2, 3, 4]]), None, model.spec), ["a cat"])
        two = model.log_likelihood(zoo.Tokens(torch.tensor([[9, 8, 7, 6]]), None, model.spec), ["a cat"])
    assert one < 0
    assert (one - two).abs() > 1e-4


@pytest.mark.parametrize("form", ["vocabulary", "embeddings"])
def test_what_is_trained(form):
    pytest.importorskip("peft")
    model = tiny(form=form).train()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert any("lora_A" in n for n in trained)
    assert any(n.endswith("lm_head.weight") for n in trained)
    assert any("input_layernorm" in n for n in trained)
    assert not any("q_proj.base_layer" in n for n in trained)
    for part in ("visual_proj.weight", "visual_proj.bias"):  # as a whole, not by LoRA
        assert any(n.endswith(part) for n in trained) == (form == "embeddings")
    assert set(model.state_dict()) == trained
    model.losses({"image": images(), "caption": CAPTIONS})["loss"].backward()
    table = next(p for n, p in model.named_parameters() if n.endswith(("embed_tokens.weight", "table.weight")))
    assert table.grad[model.words.begin].abs().sum() > 0


def test_codes_go_through_the_linear_layer():
    model = tiny(form="embeddings").eval()
    embed = model.language_model.network.get_input_embeddings()
    ids = torch.tensor([5, model.words.offset + 7, model.words.begin])
    found = embed(ids)
    torch.testing.assert_close(found[1], embed.visual_proj(model.tokenizer.embed(torch.tensor([7])))[0])
    torch.testing.assert_close(found[0], embed.weight[5])
    torch.testing.assert_close(found[2], embed.weight[model.words.begin])


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("settings", [{"seed": 0}, {"num_beams": 2, "top_p": None}, {"top_p": None}])
@pytest.mark.parametrize("tokenizer", ["seed_stage2_tiny", "vqvae2_tiny", "vqgan_tiny"])
def test_images_have_exactly_their_ids(tokenizer, settings):
    model = tiny(tokenizer=f"{tokenizer}:random").train()
    tokens = model.generate_images(["a cat", "three red dogs"], as_tokens=True, **settings)
    assert tokens.ids.shape == (2, model.spec.num_tokens)
    assert model.training
    for segment in model.spec.segments:
        ids = tokens.ids[:, model.spec.span(segment.name)]
        assert ids.min() >= segment.offset
        assert ids.max() < segment.offset + segment.size


def test_greedy_ids_are_the_best_of_those_allowed():
    model = tiny().eval()
    tokens = model.generate_images(["a cat"], as_tokens=True, top_p=None)
    text = model.language_model.text
    sequence = [*text.start, *model._request("a cat"), model.words.begin]
    for expected in tokens.ids[0].tolist():
        embeds = model.language_model.embed(torch.tensor([sequence]))
        mask = torch.ones(1, len(sequence), dtype=torch.bool)
        with torch.no_grad():
            logits = model.language_model(embeds, mask, mask.long().cumsum(1) - 1)[0, -1]
        best = int(logits[model.words.offset : model.words.begin].argmax())
        assert best == expected
        sequence.append(model.words.offset + best)


def test_captions_hold_no_words_of_images():
    model = tiny().train()
    said = model.caption(images(), max_new_tokens=8)
    alone = [model.caption(images()[i : i + 1], max_new_tokens=8)[0] for i in range(3)]
    assert said == alone
    assert model.training
    seen = []
    write = model.language_model.write
    model.language_model.write = lambda *args, **kwargs: seen.append(kwargs["constrain"]) or write(*args, **kwargs)
    model.caption(images(), max_new_tokens=2)
    scores = seen[0](torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, model.words.size))
    assert (scores[:, model.words.offset :] == -torch.inf).all()
    assert (scores[:, : model.words.offset] == 0).all()
    assert len(model.answer(images(), ["what?", "who is it?", "x"], max_new_tokens=3)) == 3
    with pytest.raises(ValueError, match="1 questions for 3 images"):
        model.answer(images(), ["what?"])


def test_pixels_need_a_decoder_only_where_tokens_are_no_pixels():
    model = tiny()
    with pytest.raises(ValueError, match="give a decoder"):
        model.generate_images(["a cat"])
    decoder = zoo.create_model("seed_pixels_tiny").eval()
    assert model.generate_images(["a cat"], decoder, seed=0).shape == (1, 3, 32, 32)
    assert tiny(tokenizer="dvae_tiny:random").generate_images(["a cat"], seed=0).shape[:2] == (1, 3)


@pytest.mark.parametrize(
    ("captions", "settings", "sentence"),
    [
        ("cat", {}, "captions must be a list with one caption per image, got 'cat'"),
        ([], {}, "captions must be a list"),
        (["a cat"], {"num_beam": 4, "decoder": "own"}, "num_beam: only a pipeline of diffusers takes settings"),
        (["a cat"], {}, "give a decoder"),
        (["a cat"], {"decoder": "seed_pixel_tiny"}, "seed_pixel_tiny"),
        (["a cat"], {"decoder": "wide"}, r"draws vectors of width 24, these are \(16,\)"),
        (["a cat"], {"as_tokens": True, "num_beam": 4}, "there is no setting num_beam of writing tokens"),
    ],
)
def test_nothing_is_written_before_a_refusal(captions, settings, sentence):
    model = tiny()
    model.language_model.continue_ids = None  # would end with a TypeError
    if settings.get("decoder") == "own":
        settings = settings | {"decoder": zoo.create_model("seed_pixels_tiny")}
    if settings.get("decoder") == "wide":
        other = zoo.create_model("seed_pixels_tiny")
        other.spec = dataclasses.replace(other.spec, dim=24)
        settings = {"decoder": other}
    with pytest.raises(ValueError, match=sentence) as caught:
        model.generate_images(captions, **settings)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="decodes to pixels by itself: leave out decoder"):
        tiny(tokenizer="dvae_tiny:random").generate_images(["a cat"], "nothing_there")


def test_ids_do_not_depend_on_the_precision():
    model = tiny().eval()
    many = images(64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = model.encode(many).ids
    assert torch.equal(inside, model.encode(many).ids)


def test_the_image_encoder_of_the_tokenizer_can_be_named():
    assert tiny(vision="tiny_random").init_args()["vision"] == "tiny_random"
    with pytest.raises(TypeError, match="DVAE takes no 'vision'"):
        tiny(tokenizer="dvae_tiny:random", vision="tiny_random")


def configs():
    from transformers import BloomConfig, GPT2Config, GPTNeoXConfig

    return {
        "gpt2": GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=120, n_positions=128),
        "bloom": BloomConfig(hidden_size=32, n_layer=1, n_head=2, vocab_size=120),
        "gpt_neox": GPTNeoXConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=120,
            max_position_embeddings=128,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["gpt2", "bloom", "gpt_neox"])
def test_any_decoder_learns_the_words_of_images(name, tmp_path):
    """Their parameters have other names, and GPT-2's linear layers another class."""
    pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    from zoo.language.tiny import character_tokenizer

    AutoModelForCausalLM.from_config(configs()[name]).save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    model = tiny(language_model=str(tmp_path)).train()
    model.losses({"image": images(), "caption": CAPTIONS})["loss"].backward()
    network = model.language_model.network
    for table in (network.get_input_embeddings().weight, network.get_output_embeddings().weight):
        assert table.requires_grad
        assert table.grad[model.words.offset :].abs().sum() > 0
    norms = [m for m in network.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert norms
    assert all(p.requires_grad for m in norms for p in m.parameters())


def test_words_for_images_that_are_there_already_are_not_doubled(tmp_path):
    from transformers import AutoModelForCausalLM

    from zoo.language.tiny import character_tokenizer

    AutoModelForCausalLM.from_config(configs()["gpt2"]).save_pretrained(tmp_path)
    tokenizer = character_tokenizer()
    tokenizer.add_tokens(["<img_00000>", "<img_00001>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has words for images already, <img_00000> and so on"):
        tiny(language_model=str(tmp_path))


def test_rules_of_the_folder_do_not_mix_with_those_of_a_call(tmp_path):
    """A forced last token would stand in the place of EOI."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    from zoo.language.tiny import character_tokenizer

    network = AutoModelForCausalLM.from_config(configs()["gpt2"])
    network.generation_config = GenerationConfig(forced_eos_token_id=3, no_repeat_ngram_size=1)
    network.save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    model = tiny(language_model=str(tmp_path))
    assert model.generate_images(["a cat"], as_tokens=True, top_p=None).ids.shape == (1, 4)


def test_batches_and_settings_that_cannot_be_are_refused():
    model = tiny()
    with pytest.raises(ValueError, match="num_beams and max_new_tokens must be positive, got 0 and 30"):
        model.caption(images(), num_beams=0)
    with pytest.raises(ValueError, match="the batch has 2 captions for 3 images"):
        model.losses({"image": images(), "caption": CAPTIONS[:2]})
    for batch, sentence in (
        ({}, "has no 'caption'"),
        ({"caption": ["a", " ", "b"]}, "caption 1 of the batch is empty"),
    ):
        with pytest.raises(ValueError, match=sentence):
            model.losses({"image": images()} | batch)
    with pytest.raises(ValueError, match="caption 0 is empty"):
        model.generate_images([" "], as_tokens=True)
    with pytest.raises(ValueError, match="has an encoder: take another"):
        tiny(language_model="tiny_t5")
    with pytest.raises(ValueError, match="has no discrete tokens"):
        tiny(tokenizer="blip2_stage1_tiny:random")
    with pytest.raises(ValueError, match=r"generation_share must lie in \[0, 1\]"):
        tiny(generation_share=2.0)
    assert zoo.SEEDLLM is SEEDLLM
    assert IGNORED == -100


@pytest.mark.parametrize("form", ["vocabulary", "embeddings"])
def test_frozen_weights_may_be_of_half_the_size(form):
    """In bfloat16 what is trained is float32, and losses are those of float32 nearly, with and without autocast."""
    whole, half = (tiny(form=form, language_dtype=dtype).train() for dtype in ("float32", "bfloat16"))
    for model in (whole, half):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    kinds = {(p.dtype, p.requires_grad) for p in half.language_model.parameters()}
    assert kinds == {(torch.float32, True), (torch.bfloat16, False)}
    batch = {"image": images(), "caption": CAPTIONS}
    wanted = whole.eval().losses(batch)
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            found = half.eval().losses(batch)
        for name, value in wanted.items():
            assert found[name].item() == pytest.approx(value.item(), rel=0.02), name
            assert found[name].item() != value.item(), "computed in bfloat16"
        half.zero_grad()
        found["loss"].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in half.parameters() if p.requires_grad)
    assert half.generate_images(CAPTIONS, as_tokens=True, seed=0).ids.shape == (3, 4)
    assert len(half.caption(images(), max_new_tokens=3)) == 3


def test_a_language_model_trained_as_a_whole_stays_float32():
    model = tiny(language_dtype="bfloat16", lora=None)
    assert {p.dtype for p in model.language_model.parameters()} == {torch.float32}


# ---------------------------------------------------------------- settings that exclude each other


@pytest.mark.parametrize(
    ("writing", "sentence"),
    [
        ({"num_beams": 4}, "4 beams are a search without chance: set top_p to None"),
        ({"temperature": 0.0}, "temperature is positive"),
        ({"top_p": None, "temperature": 2.0}, "and 1 where nothing is sampled"),
    ],
)
def test_ways_of_writing_that_exclude_each_other(writing, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        tiny().generate_images(["a cat"], as_tokens=True, **writing)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_text_tokens": 0}, "max_text_tokens must be at least 1, got 0"),
        ({"lora": {"alpha": 0}}, "lora.alpha must be a whole number of at least 1, got 0"),
        ({"language_dtype": "fp16", "lora": None}, "language_dtype"),
        ({"max_text_tokens": 2040}, r"words and image tokens are more than the 256 positions"),
    ],
)
def test_settings_that_make_no_language_model(settings, sentence, monkeypatch):
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside of the tests
    with pytest.raises(ValueError, match=sentence) as caught:
        tiny(**settings)
    assert "\n" not in str(caught.value)


def test_what_is_longer_than_the_positions_is_refused_while_writing():
    model = tiny().eval()
    with pytest.raises(ValueError, match="are more than the 256 positions"):
        model.caption(images(1), max_new_tokens=2048)


def test_questions_may_stand_before_and_behind_the_image():
    model = tiny().eval()
    seen = []
    embed = model.language_model.embed
    model.language_model.embed = lambda ids: (seen.append(ids.flatten().tolist()), embed(ids))[1]
    model.answer(images(1), ["what {is} it?"], template="USER: {image}{}\nASSISTANT:", max_new_tokens=1)
    text = model.language_model.text
    words = model.words.span(model.encode(images(1)).ids[0].tolist())
    wanted = [*text.start, *text.ids("USER: "), *words, *text.ids(" what {is} it?\nASSISTANT:")]
    assert wanted in seen
    for template in ("Answer:", "{} {}", "{image}{image}{}"):
        with pytest.raises(ValueError, match="template needs one "):
            model.answer(images(1), ["what?"], template=template)
    with pytest.raises(ValueError, match="there are no images to speak of"):
        model.caption(images(1)[:0])


def test_a_merged_model_is_not_saved_without_what_it_learned(tmp_path):
    from zoo.checkpoints.export import save_weights
    from zoo.language.lora import merge_lora

    model = tiny()
    save_weights(model, tmp_path / "before.safetensors")
    merge_lora(model.language_model)
    with pytest.raises(ValueError, match="save the model before merging"):
        save_weights(model, tmp_path / "after.safetensors")


@pytest.mark.parametrize("stage", ["seed_llm_tiny", "maskgit_tiny", "seed_pixels_tiny"])
def test_a_first_stage_is_no_tokenizer(stage, tmp_path):
    from zoo.checkpoints.export import save_weights

    path = save_weights(zoo.create_model("seed_stage1_tiny"), tmp_path / "first.safetensors")
    with pytest.raises(ValueError, match="no whole tokenizer: the first stage has no codes, so encode_task") as caught:
        zoo.create_model(stage, tokenizer=f"seed_stage2_tiny:{path}")
    assert "\n" not in str(caught.value)


def test_token_shards_with_captions_train_it(tmp_path):
    from datamodules import TokenData
    from zoo.tokens.shards import make_header, write_header, write_shard

    model = tiny()
    ids = model.encode(images()).ids
    for split in ("train", "val"):
        write_shard(tmp_path / split, ids, torch.arange(3), caption=CAPTIONS)
        write_header(tmp_path / split, make_header(model.tokenizer, split=split, count=3))
    data = TokenData(str(tmp_path), batch_size=3)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    model.eval()
    torch.testing.assert_close(model.losses(batch), model.losses({"image": images(), "caption": CAPTIONS}))
    trainer = quiet_trainer(tmp_path, max_steps=1, callbacks=[Captions(max_new_tokens=3)])
    trainer.fit(model, TokenData(str(tmp_path), batch_size=3))
    assert "val/cider_d" in trainer.callback_metrics
    written = next(tmp_path.rglob("captions/*.jsonl")).read_text().splitlines()
    assert [json.loads(line)["references"][0] for line in written] == CAPTIONS
    assert not list(tmp_path.rglob("captions/*.png"))
