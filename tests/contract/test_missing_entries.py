"""A batch that lacks what a model reads is refused in one sentence that names the entry and whose need it is."""

import jaxtyping
import pytest
import torch
from toys import RandomImages

import zoo
from datamodules.base import collate
from zoo.tokens.abilities import KnowsClasses

TINY = zoo.list_models("*_tiny")
CAPTIONERS = [name for name in TINY if hasattr(zoo.model_info(name).cls, "caption")]
CONVERSATION = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]


def whole_batch(model):
    size, classes = model.hparams.get("image_size") or 32, model.num_classes if isinstance(model, KnowsClasses) else 9
    images = RandomImages(3, size, classes or 9)
    batch = collate([images[i] for i in range(3)])
    return batch | {"caption": ["a cat", "a dog", "the sun"], "conversation": [CONVERSATION] * 3}


def refused(model, batch):
    """What is said of a batch, or None where its loss is a number."""
    torch.manual_seed(0)
    try:
        loss = model.losses(batch)["loss"]
    except ValueError as error:
        return str(error)
    assert loss.isfinite()
    return None


@pytest.mark.parametrize("name", TINY)
def test_each_missing_entry_is_either_not_needed_or_named(name):
    model = zoo.create_model(name).train()
    batch = whole_batch(model)
    assert refused(model, batch) is None
    needed = set()
    for entry in batch:
        without = {key: value for key, value in batch.items() if key != entry}
        for lacking in (without, without | {entry: None}):
            said = refused(model, lacking)
            assert said is None or (f"no '{entry}'" in said or f"nor '{entry}'" in said), f"{entry}: {said}"
            assert said is None or (f"and {type(model).__name__} " in said and ": " in said), "whose need, and a remedy"
            assert said is None or "\n" not in said
            needed |= {entry} if said else set()
    assert "image" in needed
    assert needed <= {"image", "label", "caption"}


@pytest.mark.parametrize("name", TINY)
def test_one_entry_alone_is_enough_or_what_else_is_needed_is_named(name):
    model = zoo.create_model(name).eval()
    batch = whole_batch(model)
    if model.spec is not None and model.spec.vocab_size:
        with torch.no_grad():
            batch["ids"] = model.encode(batch["image"]).ids
    for entry, value in ({"nothing": None} | batch).items():
        said = refused(model.train(), {entry: value})
        assert said is None or said.startswith(("the batch has no '", "the batch has neither '")), f"{entry}: {said}"
        if entry not in ("image", "ids"):
            assert said is not None, f"{name} learned from {entry} alone"


@pytest.mark.parametrize("name", [n for n in TINY if "llava" in n])
def test_conversations_and_captions_serve_each_other(name):
    model = zoo.create_model(name).train()
    batch = whole_batch(model)
    image, caption, turns = (batch[key] for key in ("image", "caption", "conversation"))
    assert refused(model, {"image": image, "caption": caption}) is None
    assert refused(model, {"image": image, "conversation": turns}) is None
    assert "neither 'conversation' nor 'caption'" in refused(model, {"image": image})
    assert "2 conversations for 3 images" in refused(model, {"image": image, "conversation": turns[:2]})


@pytest.mark.parametrize("name", CAPTIONERS)
def test_captions_are_one_text_per_image(name):
    model = zoo.create_model(name).train()
    batch = {key: value for key, value in whole_batch(model).items() if key in ("image", "caption")}
    for captions, said in (
        (["a", "b"], "the batch has 2 captions for 3 images: give one per image"),
        ("abc", "'caption' must be a list of texts, one per image, got the text 'abc': make it one"),
        (["a", 3, "b"], "'caption' must be a list of texts, one per image, got one of type int: make it one"),
    ):
        assert refused(model, batch | {"caption": captions}) == said
    assert "1 of the batch" in refused(model, batch | {"caption": ["a", " ", "c"]})


@pytest.mark.parametrize("entry", ["question", "text_input"])
def test_what_an_answer_answers_is_needed(entry):
    model = zoo.create_model("blip2_stage2_tiny", max_text_tokens=64).train()
    learned = {"question": "answer", "text_input": "text_output"}[entry]
    batch = {"image": whole_batch(model)["image"], entry: ["is it?"] * 3, learned: ["yes"] * 3}
    assert refused(model, batch) is None
    said = refused(model, {key: value for key, value in batch.items() if key != entry})
    assert said.startswith(f"the batch has no '{entry}', but image, {learned}, and BLIP2Stage2 learns from")
    assert "2 " + learned + "s for 3 images" in refused(model, batch | {learned: ["yes"] * 2})


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("batch", [torch.zeros(2, 3, 32, 32), (torch.zeros(2, 3, 32, 32), torch.zeros(2))])
def test_a_batch_that_is_no_dictionary_is_refused(name, batch, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # which refuses it before, in tests alone
    model = zoo.create_model(name)
    said = f"^the batch is a {type(batch).__name__}, and {type(model).__name__} reads dictionaries: let the data set"
    for step in (model.losses, lambda given: model.predict_step(given, 0)):
        with pytest.raises(ValueError, match=said):
            step(batch)
