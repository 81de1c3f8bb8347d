"""What a model can do beyond the tokenizer interface, checked on every ``*_tiny`` preset that has the protocol."""

import inspect

import pytest
import torch
from toys import RandomImages

import zoo
from zoo.tokens import abilities
from zoo.tokens.abilities import (
    Answerer,
    BuiltOnTokenizer,
    Captioner,
    CodeSources,
    ConditionalGenerator,
    Generator,
    ImageDecoder,
    Inpainter,
    KnowsClasses,
    PictureRows,
    Retriever,
    Scorer,
    StepwiseGenerator,
    TextToImage,
    TokenCaptioner,
    image_size_of,
)

TINY = zoo.list_models("*_tiny")
MODELS = {name: zoo.create_model(name).eval() for name in TINY}
PROTOCOLS = [c for _, c in inspect.getmembers(abilities, inspect.isclass) if getattr(c, "_is_protocol", False)]
METHODS = {
    (name, protocol): method
    for protocol in PROTOCOLS
    for name, method in vars(protocol).items()
    if inspect.isfunction(method) and name[0] != "_"
}
SHORT = {"num_beams": 1, "max_new_tokens": 3}


def of(*protocols):
    """Names of the presets that have all of these abilities."""
    return [name for name, model in MODELS.items() if all(isinstance(model, p) for p in protocols)]


def images_for(model, count=3):
    data = RandomImages(count, image_size_of(model), 1)
    return torch.stack([data[i]["image"] for i in range(count)])


def misfits(method, promised):
    """What a method does not take, or wants besides, that a caller who knows the promise alone would find out."""
    own, wanted = (list(inspect.signature(f).parameters.values())[1:] for f in (method, promised))
    open_ended = any(p.kind is p.VAR_KEYWORD for p in own)
    places = [p.name for p in own if p.kind is p.POSITIONAL_OR_KEYWORD]
    found = []
    for i, p in enumerate(q for q in wanted if q.kind is q.POSITIONAL_OR_KEYWORD):
        if places[i : i + 1] != [p.name]:
            found.append(f"argument {i + 1} is not {p.name}")
        elif p.default is not p.empty and own[i].default is p.empty:
            found.append(f"{p.name} has no default")
    known = {p.name for p in wanted}
    found += [
        p.name for p in wanted if p.kind is p.KEYWORD_ONLY and not open_ended and p.name not in {q.name for q in own}
    ]
    found += [
        f"{p.name} must be given" for p in own
        if p.name not in known and p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]  # fmt: skip
    return found


# ---------------------------------------------------------------- one name, one signature


@pytest.mark.parametrize("name", TINY)
def test_a_method_of_an_abilitys_name_has_its_signature(name):
    model, found = MODELS[name], {}
    for (method, protocol), promised in METHODS.items():
        alone = sum(other == method for other, _ in METHODS) == 1  # else the other ability has another signature
        if hasattr(model, method) and (alone or isinstance(model, protocol)):
            found |= {f"{protocol.__name__}.{method}": misfits(getattr(type(model), method), promised)}
    assert {key: wrong for key, wrong in found.items() if wrong} == {}


def test_every_registered_class_has_a_tiny_preset():
    assert {zoo.model_info(name).cls for name in zoo.list_models()} == {type(model) for model in MODELS.values()}


def test_another_signature_is_found():
    class Confused:
        def caption(self, tokens, prompt):
            pass

    assert misfits(Confused.caption, Captioner.caption) == [
        "argument 1 is not images", "tokens must be given", "prompt must be given",
    ]  # fmt: skip


def test_every_ability_of_models_is_had_by_one():
    lonely = [p.__name__ for p in PROTOCOLS if p.__module__ == abilities.__name__ and not of(p)]
    assert lonely == ["EntersEpochs", "NamesClasses", "PredictsSplit", "SaysCaptions", "StartsAnew", "Views"], (
        "those of data modules"
    )


# ---------------------------------------------------------------- text


@pytest.mark.parametrize("name", of(Captioner))
def test_captions_are_one_text_per_image_and_always_the_same(name):
    model = MODELS[name].train()
    images = images_for(model)
    said = model.caption(images, **SHORT)
    assert [type(text) for text in said] == [str] * 3
    assert model.training, "the mode is restored"
    assert model.caption(images.float() / 255, **SHORT) == said
    model.eval()


@pytest.mark.parametrize("name", of(TokenCaptioner))
def test_captions_of_tokens_are_those_of_their_images(name):
    images = images_for(MODELS[name])
    tokens = MODELS[name].encode(images)
    assert MODELS[name].caption_tokens(tokens, **SHORT) == MODELS[name].caption(images, **SHORT)


@pytest.mark.parametrize("name", of(Answerer))
def test_there_is_one_answer_per_image_and_question(name):
    images, questions = images_for(MODELS[name]), ["what?", "who?", "where?"]
    said = MODELS[name].answer(images, questions, **SHORT)
    assert [type(text) for text in said] == [str] * 3
    assert MODELS[name].answer(images, questions, **SHORT) == said
    with pytest.raises(ValueError, match="there are 2 questions for 3 images: give one per image"):
        MODELS[name].answer(images, questions[:2], **SHORT)


@pytest.mark.parametrize("name", of(Scorer))
def test_likelihoods_are_of_the_text_and_the_image_in_the_same_row(name):
    model, texts = MODELS[name], ["a cat", "a dog", "the sun"]
    with torch.no_grad():
        tokens = model.encode(images_for(model))
        found = model.log_likelihood(tokens, texts)
        assert found.shape == (3,)
        assert (found < 0).all()
        turned = zoo.Tokens(*(None if v is None else v.flip(0) for v in (tokens.ids, tokens.embeddings)), tokens.spec)
        torch.testing.assert_close(model.log_likelihood(turned, texts[::-1]).flip(0), found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", of(Retriever))
def test_scores_are_of_all_pairs_whatever_the_batch_size(name):
    model, texts = MODELS[name].train(), ["a cat", "a dog", "the sun", "rain"]
    images = images_for(model)
    scores = model.retrieve(images, texts)
    assert model.training, "the mode is restored"
    assert [tuple(s.shape) for s in scores] == [(3, 4)] * 3
    assert scores.contrast.abs().max() <= 1 + 1e-5
    assert not scores.contrast.requires_grad
    again = model.eval().retrieve(images, texts, rerank=2, batch_size=1)
    torch.testing.assert_close(again.contrast, scores.contrast, rtol=1e-4, atol=1e-5)
    assert [tuple(s.shape) for s in again] == [(3, 4)] * 3


@pytest.mark.parametrize("name", of(TextToImage))
def test_images_of_captions_depend_on_the_seed_alone(name):
    model, captions = MODELS[name], ["a cat", "two dogs"]
    tokens = model.generate_images(captions, as_tokens=True, seed=1)
    assert tokens.spec == model.spec
    assert tokens.ids.shape == (2, model.spec.num_tokens)
    assert torch.equal(model.generate_images(captions, as_tokens=True, seed=1).ids, tokens.ids)
    assert not torch.equal(model.generate_images(captions, as_tokens=True, seed=2).ids, tokens.ids)
    with pytest.raises(ValueError, match="caption 1 is empty"):
        model.generate_images(["a", " "], as_tokens=True)


# ---------------------------------------------------------------- images


def some_labels(model):
    return [0, model.num_classes - 1] if model.num_classes else None


@pytest.mark.parametrize("name", of(Generator))
def test_images_depend_on_the_seed_alone(name):
    model = MODELS[name].train()
    labels = some_labels(model)
    tokens = model.generate(labels, 2, as_tokens=True, seed=1)
    assert model.training, "the mode is restored"
    assert tokens.spec == model.spec
    assert tokens.ids.shape == (2, model.spec.num_tokens)
    assert torch.equal(model.eval().generate(labels, 2, as_tokens=True, seed=1).ids, tokens.ids)
    assert not torch.equal(model.generate(labels, 2, as_tokens=True, seed=2).ids, tokens.ids)
    torch.testing.assert_close(model.generate(labels, 2, seed=1), model.decode(tokens))


@pytest.mark.parametrize("name", of(Generator))
def test_settings_with_their_defaults_are_those_of_generate(name):
    model, settings = MODELS[name], MODELS[name].sampling_settings()
    assert settings
    assert all(isinstance(value, bool | int | float | str | None) for value in settings.values())
    labels = some_labels(model)
    tokens = model.generate(labels, 2, as_tokens=True, seed=1, **settings)
    assert torch.equal(tokens.ids, model.generate(labels, 2, as_tokens=True, seed=1).ids)
    with pytest.raises(TypeError, match="temprature"):
        model.generate(labels, 2, temprature=1.0)


@pytest.mark.parametrize("name", of(Generator))
def test_guidance_needs_images_without_a_class(name):
    model = MODELS[name]
    if model.has_null:
        assert len(model.generate([-1, 0], 2, as_tokens=True)) == 2
    elif model.num_classes:
        with pytest.raises(ValueError, match=r"labels must lie in 0\.\."):
            model.generate([-1, 0], 2, as_tokens=True)


@pytest.mark.parametrize("name", of(StepwiseGenerator))
def test_steps_are_one_row_per_image_and_as_long_as_each_other(name):
    rows = MODELS[name].decoding_steps(some_labels(MODELS[name]), 2, seed=1)
    shapes = {tuple(row.shape) for row in rows.values()}
    assert len(rows) == 2
    assert len(shapes) == 1
    assert shapes.pop()[1] == 3


@pytest.mark.parametrize("name", of(ConditionalGenerator))
def test_a_condition_is_refused_where_the_model_has_none(name):
    assert MODELS[name].condition_tokens == 0, "a tiny one with a condition is to be tested here too"
    with pytest.raises(ValueError, match="leave condition out"):
        MODELS[name].generate(some_labels(MODELS[name]), 2, condition=torch.zeros(2, 4, dtype=torch.int64))


@pytest.mark.parametrize("name", of(Inpainter))
def test_hidden_parts_are_filled_in_and_the_others_keep_their_tokens(name):
    model = MODELS[name]
    images = images_for(model, 2)
    hidden = torch.zeros(images.shape[-2:], dtype=torch.bool)
    hidden[:, hidden.shape[1] // 2 :] = True
    made = model.inpaint(images, hidden, some_labels(model), seed=1)
    assert made.shape == images.shape
    assert torch.equal(made, model.inpaint(images, hidden, some_labels(model), seed=1))
    nothing = model.inpaint(images, torch.zeros_like(hidden), some_labels(model), as_tokens=True)
    assert torch.equal(nothing.ids, model.tokenizer.encode(images).ids)
    with pytest.raises(ValueError, match="mask"):
        model.inpaint(images, hidden[:5], some_labels(model))


@pytest.mark.parametrize("name", of(ImageDecoder))
def test_embeddings_of_another_width_are_not_drawn(name):
    model = MODELS[name]
    with torch.no_grad():
        assert model.images_of(torch.randn(2, model.spec.dim)).shape == (2, 3, model.image_size, model.image_size)
    with pytest.raises(ValueError, match=f"vectors of width {model.spec.dim}"):
        model.images_of(torch.randn(2, model.spec.dim + 1))


# ---------------------------------------------------------------- looking into a model


@pytest.mark.parametrize("name", of(PictureRows))
def test_rows_are_of_one_size_and_in_range(name):
    model = MODELS[name].train()
    images = images_for(model)
    rows = model.picture_rows(images[:2].float() / 255, {"image": images, "index": torch.arange(3)})
    assert model.training, "the mode is restored"
    assert "original" in rows
    assert {tuple(row.shape) for row in rows.values()} == {(2, 3, model.image_size, model.image_size)}
    assert all(row.min() >= 0 and row.max() <= 1 for row in rows.values())
    model.eval()


@pytest.mark.parametrize("name", of(CodeSources))
def test_sources_of_codes_are_modules_whose_outputs_are_read(name):
    model, found = MODELS[name], {}
    for source, (count, ids_of) in model.code_sources().items():

        def note(module, given, output, source=source, count=count, ids_of=ids_of):
            found[source] = ids_of(output)
            assert found[source].min() >= 0
            assert found[source].max() < count

        hook = model.get_submodule(source).register_forward_hook(note)
        ids = model.encode(images_for(model)).ids
        hook.remove()
        assert torch.equal(found[source].flatten(), ids.flatten())


@pytest.mark.parametrize("name", of(BuiltOnTokenizer))
def test_what_a_tokenizer_is_named_for_is_frozen(name):
    model = MODELS[name]
    assert isinstance(model.tokenizer, zoo.Tokenizer)
    assert not any(p.requires_grad for p in model.tokenizer.parameters())
    assert not any(key.startswith("tokenizer.") for key in model.state_dict())


@pytest.mark.parametrize("name", of(KnowsClasses))
def test_classes_are_a_number(name):
    assert isinstance(MODELS[name].num_classes, int)
    assert MODELS[name].num_classes >= 0


@pytest.mark.parametrize("name", of(Scorer))
def test_a_scorer_refuses_another_number_of_texts_than_images(name):
    model = MODELS[name]
    tokens = model.encode(images_for(model))
    for few in (["a cat"], ["a cat"] * (len(tokens) + 1)):
        with pytest.raises(ValueError, match=rf"^the batch has {len(few)} captions for {len(tokens)} images: give one"):
            model.log_likelihood(tokens, few)
    with pytest.raises(ValueError, match=r"^'caption' must be a list of texts, one per image, got the text 'ab'"):
        model.log_likelihood(tokens, "ab")


@pytest.mark.parametrize("name", of(Answerer))
def test_one_string_is_the_question_about_one_image(name):
    model = MODELS[name]
    images = images_for(model, 2)
    writing = {"max_new_tokens": 2, "num_beams": 1}
    assert model.answer(images[:1], "why?", **writing) == model.answer(images[:1], ["why?"], **writing)
    with pytest.raises(ValueError, match=r"^there are 1 questions for 2 images: give one per image$"):
        model.answer(images, "ab", **writing)
