"""Every second stage trains on, and decodes through, every discrete tokenizer: pairs of tiny presets."""

import inspect
from dataclasses import replace

import pytest
import torch
from toys import RandomImages

import zoo
from datamodules.base import collate
from zoo import presets

TINY = {name: zoo.model_info(name) for name in zoo.list_models("*_tiny")}
TAKES = [
    name for name, info in TINY.items()
    if "tokenizer" in inspect.signature(info.cls).parameters and info.init_args.get("tokenizer", "") is not None
]  # fmt: skip
#: what predicts ids, what only projects vectors, and what can stand before either
STAGES = [name for name in TAKES if TINY[name].spec.vocab_size]
BRIDGES = [name for name in TAKES if TINY[name].spec.decodes is None]
TOKENIZERS = [
    name for name, info in TINY.items() if name not in TAKES and info.spec is not None and info.spec.vocab_size
]
CONTINUOUS = [name for name, info in TINY.items() if name not in TAKES and info.spec and not info.spec.vocab_size]


def combine(stage, tokenizer):
    return zoo.create_model(stage, tokenizer=f"{tokenizer}:random")


def batch_for(model):
    size = model.hparams.get("image_size") or model.tokenizer.image_size
    images = RandomImages(4, size, getattr(model, "num_classes", 0) or 1)
    return collate([images[i] for i in range(4)])


def made(model):
    """Images that the model makes (or generation embeddings, where its tokens decode to these), and their tokens."""
    if hasattr(model, "generate_images"):
        tokens = model.generate_images(["a cat", "two dogs"], as_tokens=True, seed=0)
        return tokens, model.decode(tokens)
    if not hasattr(model, "generate"):
        tokens = model.encode(batch_for(model)["image"][:2])
        return tokens, model.decode(tokens)
    labels = [0, model.num_classes - 1] if model.num_classes else None
    tokens = model.generate(labels, num_images=2, seed=0, as_tokens=True)
    images = model.generate(labels, num_images=2, seed=0)
    torch.testing.assert_close(images, model.decode(tokens))
    return tokens, images


def test_the_matrix_is_not_empty():
    assert len(STAGES) >= 4
    assert len(TOKENIZERS) >= 7
    assert len(BRIDGES) >= 1
    assert len(CONTINUOUS) >= 4
    assert any(TINY[name].spec.order == "causal" for name in TOKENIZERS), "one whose tokens are a causal sequence"
    assert any(TINY[name].spec.grid_shape is None for name in TOKENIZERS), "one without a single grid"


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("stage", STAGES)
def test_pair_trains_one_step_and_decodes(stage, tokenizer):
    torch.manual_seed(0)
    spec = TINY[tokenizer].spec
    model = combine(stage, tokenizer).train()
    assert model.spec.vocab_size == spec.vocab_size
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    before = {name: p.detach().clone() for name, p in parameters.items()}
    tower = {name: t.clone() for name, t in model.frozen["tokenizer"].state_dict().items()}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    loss = model.losses(batch_for(model))["loss"]
    loss.backward()
    assert loss.isfinite()
    assert loss.item() > 0
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    optimizer.step()
    moved = [name for name, p in parameters.items() if not torch.equal(p, before[name])]
    assert len(moved) > 0.9 * len(parameters), sorted(set(parameters) - set(moved))  # stochastic depth skips some
    torch.testing.assert_close(model.frozen["tokenizer"].state_dict(), tower, rtol=0, atol=0)

    with torch.no_grad():
        tokens, images = made(model.eval())
    assert tokens.spec == model.spec
    assert tokens.ids.shape == (2, model.spec.num_tokens)
    for segment in model.spec.segments:
        ids = tokens.ids[:, model.spec.span(segment.name)]
        assert ids.min() >= segment.offset
        assert ids.max() < segment.offset + segment.size
    if spec.decodes == "pixels":
        assert images.shape[:2] == (2, 3)
        assert images.min() >= 0
        assert images.max() <= 1
    assert images.isfinite().all()
    assert images.std() > 0
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize("tokenizer", CONTINUOUS)
@pytest.mark.parametrize("bridge", BRIDGES)
def test_bridges_take_every_model_with_vectors(bridge, tokenizer):
    torch.manual_seed(0)
    model = combine(bridge, tokenizer).train()
    tower = {name: t.clone() for name, t in model.frozen["tokenizer"].state_dict().items()}
    loss = model.losses(batch_for(model))["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    torch.testing.assert_close(model.frozen["tokenizer"].state_dict(), tower, rtol=0, atol=0)
    tokens = model.eval().encode(batch_for(model)["image"])
    assert tokens.embeddings.shape[1] == TINY[tokenizer].spec.num_tokens
    with pytest.raises(zoo.NotInvertible) as caught:
        model.decode(tokens)
    assert len(str(caught.value)) > 30, "the reason"


@pytest.mark.parametrize("bridge", BRIDGES)
def test_bridges_refuse_ids_and_second_stages_refuse_vectors(bridge):
    with pytest.raises(ValueError, match="has no continuous tokens"):
        combine(bridge, "vqgan_tiny")
    for stage in STAGES:
        with pytest.raises(ValueError, match="has no discrete tokens") as caught:
            combine(stage, "blip2_stage1_tiny")
        assert "\n" not in str(caught.value)


@pytest.fixture
def thirty_two():
    """A preset of SEED's tokenizer with as many tokens as published, for one test."""
    name = "seed_stage2_of_32"
    args = TINY["seed_stage2_tiny"].init_args
    zoo.register(name, zoo.SEEDTokenizer, paper="none", **args | {"qformer": replace(args["qformer"], queries=32)})
    yield name
    del presets._PRESETS[name]


@pytest.mark.parametrize("stage", ["beit_tiny", "maskgit_tiny", "ar_transformer_tiny", "seed_llm_tiny"])
def test_thirty_two_causal_tokens_as_published(stage, thirty_two):
    torch.manual_seed(0)
    model = combine(stage, thirty_two).train()
    loss = model.losses(batch_for(model))["loss"]
    loss.backward()
    assert loss.isfinite()
    assert model.spec.order == "causal"
    tokens, embeddings = made(model.eval())
    assert tokens.ids.shape == (2, 32)
    assert not torch.equal(embeddings[0], embeddings[1])


@pytest.mark.parametrize("tokenizer", ["vqgan_tiny", "vqvae2_tiny", "seed_stage2_tiny"])
def test_codes_stand_before_the_language_model_too(tokenizer):
    torch.manual_seed(0)
    model = zoo.create_model("seed_llm_tiny", tokenizer=f"{tokenizer}:random", form="embeddings").train()
    model.losses(batch_for(model))["loss"].backward()
    projection = model.language_model.network.get_input_embeddings().visual_proj
    assert projection.weight.grad.abs().sum() > 0
    tokens, images = made(model.eval())
    assert tokens.spec == model.spec
    assert images.isfinite().all()
