"""DALL-E: losses by hand, the stream of text and image, drawing with and without a cache, completion and ranking."""

import math

import pytest
import torch
import torch.nn.functional as F

import zoo
from zoo.language.caption_bpe import CaptionBPE
from zoo.models.dalle import DALLE
from zoo.tokens import Tokens

CAPTIONS = ["a red heart", "grinning face", "drapeau : france", "日本の旗"]
#: one grid; a sequence of generation queries; two grids behind one another
TOKENIZERS = ["dvae_tiny:random", "seed_stage2_tiny:random", "vqvae2_tiny:random"]


def make(tokenizer="dvae_tiny:random", **settings):
    torch.manual_seed(0)
    model = zoo.create_model("dalle_tiny", tokenizer=tokenizer, **settings)
    model.learn_pieces(CAPTIONS * 3)
    for parameter in model.transformer.parameters():  # so that positions and ids tell
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture
def batch(model):
    torch.manual_seed(1)
    return {"image": torch.rand(4, 3, 32, 32), "caption": CAPTIONS}


def test_losses_are_those_of_the_paper_by_hand(model, batch):
    text, ids = model.text_ids(CAPTIONS), model.encode(batch["image"]).ids
    logits = model.transformer(text, ids[:, :-1])
    length, pieces = model.text_length, model.transformer.text_vocab
    words = F.cross_entropy(logits[:, :length, :pieces].flatten(0, 1), text.flatten())
    image = F.cross_entropy(logits[:, length:, pieces:].flatten(0, 1), ids.flatten())
    found = model.losses(batch)
    torch.testing.assert_close(found["text"], words)
    torch.testing.assert_close(found["image"], image)
    torch.testing.assert_close(found["loss"], words / 8 + image * 7 / 8)


def test_every_position_of_the_text_has_its_own_padding_behind_the_caption(model):
    text = model.text_ids(["red"])
    (ids,) = text.tolist()
    pieces = len(model.codec.ids("red"))
    assert tuple(ids[:pieces]) == model.codec.ids("red")
    assert ids[pieces:] == [model.text_vocab + place for place in range(pieces, model.text_length)]
    assert model.null_text(1).tolist() == [[model.text_vocab + place for place in range(model.text_length)]]


def test_padding_is_attended_to(model, batch):
    text, ids = model.text_ids(CAPTIONS), model.encode(batch["image"]).ids
    other = text.clone()
    other[:, -1] = 0
    before, after = (model.transformer(t, ids[:, :-1])[:, -5:] for t in (text, other))
    assert not torch.allclose(before, after)


def test_what_comes_later_is_not_seen(model, batch):
    text, ids = model.text_ids(CAPTIONS), model.encode(batch["image"]).ids
    changed = ids.clone()
    changed[:, 20] = (changed[:, 20] + 1) % model.spec.vocab_size
    a, b = (model.transformer(text, x[:, :-1]) for x in (ids, changed))
    place = model.transformer.prefix + 20
    torch.testing.assert_close(a[:, :place], b[:, :place])
    assert not torch.allclose(a[:, place], b[:, place])


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_cache_draws_what_is_drawn_without(tokenizer, guidance):
    model = make(tokenizer)
    drawn = [
        model.generate(CAPTIONS[:2], as_tokens=True, seed=3, guidance=guidance, use_cache=cached).ids
        for cached in (True, False)
    ]
    assert torch.equal(drawn[0], drawn[1])
    for segment in model.spec.segments:
        ids = drawn[0][:, model.spec.span(segment.name)]
        assert int(ids.min()) >= segment.offset
        assert int(ids.max()) < segment.offset + segment.size


def test_guidance_is_the_difference_to_no_text(model):
    found = {g: model.generate("a red heart", as_tokens=True, temperature=0, guidance=g).ids for g in (0.0, 1.0)}
    null = model._draw(model.null_text(1), torch.zeros(1, 0, dtype=torch.int64), 1.0, True, (0, None, None, None))
    assert torch.equal(found[0.0], null)
    assert not torch.equal(found[1.0], null)


def test_candidates_of_one_caption_stand_together_and_follow_it(model):
    tokens = model.generate(CAPTIONS[:2], 3, as_tokens=True, temperature=0)
    assert tokens.ids.shape == (6, 64)
    assert torch.equal(tokens.ids[0], tokens.ids[2])
    assert not torch.equal(tokens.ids[0], tokens.ids[3])
    assert model.generate("a red heart", 2, seed=0).shape == (2, 3, 32, 32)


def test_ranking_without_a_scorer_is_by_the_models_own_likelihood(model):
    tokens = model.generate(CAPTIONS[:2], 4, as_tokens=True, seed=0)
    ranking = model.rank(tokens, CAPTIONS[:2])
    text = model.text_ids([c for c in CAPTIONS[:2] for _ in range(4)])
    logits = model.transformer(text, tokens.ids[:, :-1])[:, model.text_length :, model.transformer.text_vocab :]
    expected = logits.log_softmax(-1).gather(2, tokens.ids.unsqueeze(2)).sum((1, 2)).view(2, 4)
    torch.testing.assert_close(ranking.scores, expected.sort(1, descending=True).values)
    torch.testing.assert_close(expected.flatten()[ranking.order], ranking.scores)


def test_candidates_come_in_the_order_of_a_scorer(model):
    scorer = zoo.create_model("blip2_stage1_tiny:random").eval()
    plain = model.generate(CAPTIONS[:2], 3, as_tokens=True, seed=0)
    ranked = model.generate(CAPTIONS[:2], 3, as_tokens=True, seed=0, scorer=scorer)
    order, scores = model.rank(plain, CAPTIONS[:2], scorer)
    assert torch.equal(ranked.ids, plain.ids[order.flatten()])
    assert (scores.diff(dim=1) <= 0).all()


def test_completion_keeps_the_rows_that_are_given(model, batch):
    ids = model.encode(batch["image"]).ids
    for rows in (0, 3, 8):
        found = model.complete(batch["image"], CAPTIONS, rows, as_tokens=True, seed=0).ids
        assert torch.equal(found[:, : rows * 8], ids[:, : rows * 8])
    assert not torch.equal(model.complete(batch["image"], CAPTIONS, 3, as_tokens=True, seed=0).ids, ids)


def test_pieces_of_words_travel_in_the_weights(model, tmp_path):
    from zoo.checkpoints.export import save_weights

    path = save_weights(model, tmp_path / "dalle.safetensors")
    again = zoo.create_model(f"ckpt:{path}")
    assert again.codec.ids("a red heart") == model.codec.ids("a red heart")


def test_text_dropout_leaves_captions_out_in_training_alone(batch):
    model = make(text_dropout=1.0, bpe_dropout=0.0)
    text = model.null_text(4)
    torch.testing.assert_close(
        model.train().losses(batch)["image"], model.token_losses(text, model.encode(batch["image"]).ids)["image"]
    )
    assert not torch.allclose(
        model.eval().losses(batch)["image"], model.token_losses(text, model.encode(batch["image"]).ids)["image"]
    )


def test_sizes_are_those_of_the_paper():
    for name, billions in (("dalle_2b8", 2.8), ("dalle_5b6", 5.6), ("dalle_12b", 12)):
        assert zoo.model_info(name).num_parameters / 1e9 == pytest.approx(billions, rel=0.05), name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.generate([]), "at least one caption"),
        (lambda m: m.generate(["a", " "]), "caption 1 is empty"),
        (lambda m: m.generate("a", temperature=-1), "temperature must not be negative"),
        (lambda m: m.generate("a", guidance=-1), "guidance must not be negative"),
        (lambda m: m.generate("a", top_k=0), "top_k at least 1"),
        (lambda m: m.generate("a", top_p=0), r"top_p in \(0, 1\]"),
        (lambda m: m.generate("a", top_p=1.5), r"top_p in \(0, 1\]"),
        (lambda m: m.complete(torch.rand(1, 3, 32, 32), ["a"], 9), r"rows must lie in 0\.\.8"),
        (lambda m: m.rank(m.generate("a", 3, as_tokens=True), ["a", "b"]), "3 images for 2 captions"),
        (lambda m: m.generate("a", scorer="dvae_tiny:random"), "does not score images against texts"),
        (lambda m: m.generate("a", known=Tokens(torch.full((1, 64), 64), None, m.spec)), "known holds the first"),
    ],
)
def test_one_sentence(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text_length": 0}, "must be at least 1"),
        ({"text_weight": 1.5}, "text_weight must lie in"),
        ({"loss": "rudalle_v3"}, "without a start token"),
        ({"tokenizer": "blip2_stage2_tiny:random"}, "no discrete tokens"),
        ({"heads": 5}, "not divisible by 5 heads"),
    ],
)
def test_settings_that_make_no_model(settings, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("dalle_tiny", **settings)


def test_long_captions_are_refused_or_cut_and_counted(caplog):
    model = make(cut_captions=False)
    with pytest.raises(ValueError, match="1 of 2 captions have more than 12 pieces of words: set a larger text_length"):
        model.text_ids(["a red heart", "x" * 40])
    model.cut_captions = True
    caplog.set_level("INFO")
    for _ in range(2):
        assert model.text_ids(["a red heart", "x" * 40]).shape == (2, 12)
    assert model.num_cut == 2
    assert caplog.text.count("1 of 2 captions have more than 12 pieces of words and are cut") == 1


def test_captions_are_read_byte_by_byte_before_words_are_learned():
    model = zoo.create_model("dalle_tiny")
    assert len(model.codec.ids("red")) == 4  # a space and three letters
    model.not_in_file["text_merges"] = "the pieces are elsewhere"
    with pytest.raises(ValueError, match="the pieces are elsewhere"):
        model.generate("red")


def test_training_learns_words_from_the_captions_of_its_data():
    import lightning.pytorch as pl

    from datamodules import EmojiData

    model = zoo.create_model("dalle_tiny")
    data = EmojiData(image_size=32, batch_size=4)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    pl.Trainer(max_steps=1, limit_val_batches=0, accelerator="cpu", **options).fit(model, data)
    assert len(model.codec.ids("face")) < 5
    assert model.codec.ids("face") == CaptionBPE.train(data.train_captions(), 288).ids("face")


def test_loss_of_a_uniform_model_is_the_logarithm_of_the_choices(model, batch):
    model = make()
    torch.nn.init.zeros_(model.transformer.to_logits[1].weight)
    found = model.losses(batch)
    assert isinstance(model, DALLE)
    assert found["image"].item() == pytest.approx(math.log(64))
    assert found["text"].item() == pytest.approx(math.log(288 + 12 + 1))
