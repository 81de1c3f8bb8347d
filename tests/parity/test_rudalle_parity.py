"""The transformer of DALL-E against recorded outputs of ruDALL-E, in both of its versions."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import zoo
from zoo.checkpoints.export import save_weights
from zoo.models.dalle import DALLE
from zoo.nn.dalle_transformer import DALLETransformer
from zoo.nn.sparse_attention import joint_mask, lay_out_kinds

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module", params=["rudalle_tiny", "rudalle_v2_tiny"])
def recorded(request):
    with safe_open(FIXTURES / f"{request.param}.safetensors", "pt") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return arrays, json.loads(file.metadata()["config"])["constructor"]


def build(sizes, **settings):
    second = sizes["hf_version"] == "v2"
    side = sizes["image_tokens_per_dim"]
    version = (
        {"start_token": 2, "shift": 1, "wraparound": "torus"} if second else {"start_token": None, "wraparound": "none"}
    )
    return DALLETransformer(
        text_vocab=sizes["vocab_size"], text_length=sizes["text_seq_length"], image_vocab=sizes["image_vocab_size"],
        shapes=[(side, side)], width=sizes["hidden_size"], heads=sizes["num_attention_heads"],
        kinds=lay_out_kinds(sizes["num_layers"]), sandwich=True, **version, **settings,
    )  # fmt: skip


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "stable"])
def network(request, recorded):
    arrays, sizes = recorded
    network = build(sizes, stable_softmax=request.param)
    state = {name.removeprefix("sd."): v for name, v in arrays.items() if name.startswith("sd.")}
    network.load_state_dict({name: value for name, value in state.items() if not name.endswith("_mask")})
    return network.eval()


@pytest.fixture
def tokens(recorded):
    """Text with its padding, and image ids."""
    arrays, sizes = recorded
    length = sizes["text_seq_length"]
    text, image = arrays["in.input_ids"].split([length, sizes["image_tokens_per_dim"] ** 2], 1)
    return torch.where(text == 0, sizes["vocab_size"] - length + torch.arange(length), text), image


def test_masks_are_the_ones_in_the_file(recorded):
    arrays, sizes = recorded
    side, wraparound = sizes["image_tokens_per_dim"], "torus" if sizes["hf_version"] == "v2" else "none"
    for kind, name in (("row", "row"), ("column", "col"), ("conv", "conv")):
        theirs = arrays[f"sd.transformer.{name}_mask"].tril()
        assert torch.equal(joint_mask(kind, sizes["text_seq_length"], [(side, side)], 11, wraparound), theirs), kind


@torch.no_grad()
def test_logits_of_whole_sequences_of_beginnings_and_of_texts(recorded, network, tokens):
    arrays, _ = recorded
    text, image = tokens
    whole = image[:, : arrays["out.logits"].shape[1] - network.prefix]
    torch.testing.assert_close(network(text, whole), arrays["out.logits"], atol=5e-5, rtol=0)
    begun = image[:, : int(arrays["in.prefix"])]
    torch.testing.assert_close(network(text, begun), arrays["out.logits_prefix"], atol=5e-5, rtol=0)
    torch.testing.assert_close(network(text), arrays["out.logits_text_only"], atol=5e-5, rtol=0)


@torch.no_grad()
def test_logits_one_token_at_a_time(recorded, network, tokens):
    arrays, _ = recorded
    text, image = tokens
    caches = network.make_caches()
    network(text, image[:, :3], caches)
    for place in range(3, arrays["out.logits"].shape[1] - network.prefix):
        logits = network.step(image[:, place : place + 1], place, caches)
        torch.testing.assert_close(logits, arrays["out.logits"][:, network.prefix + place], atol=5e-5, rtol=0)


def test_embeddings_get_a_share_of_their_gradient_and_give_the_same_vectors(recorded, tokens):
    _, sizes = recorded
    text, image = tokens
    found = {}
    for share in (1.0, 0.1):
        torch.manual_seed(0)
        network = build(sizes, embedding_gradient=share)
        logits = network(text, image[:, :5])
        logits.square().sum().backward()
        found[share] = logits.detach(), network.image_embeddings.weight.grad, network.to_logits[1].weight.grad
    torch.testing.assert_close(found[0.1][0], found[1.0][0])
    torch.testing.assert_close(found[0.1][1], 0.1 * found[1.0][1], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found[0.1][2], found[1.0][2])


def test_activations_computed_again_give_the_same_gradients(recorded, tokens):
    _, sizes = recorded
    text, image = tokens
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = build(sizes, checkpointing=checkpointing)
        network(text, image[:, :9]).square().sum().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.fixture
def published(recorded, tmp_path):
    """The file as it is published, and a model of its version."""
    arrays, sizes = recorded
    path, version = tmp_path / "pytorch_model.bin", f"rudalle_{sizes['hf_version']}"
    torch.save({name.removeprefix("sd."): v for name, v in arrays.items() if name.startswith("sd.")}, path)
    side, codes = sizes["image_tokens_per_dim"], sizes["image_vocab_size"]
    tokenizer = zoo.create_model("dvae_tiny", image_size=4 * side, vocab_size=codes)
    settings = {
        "tokenizer": f"ckpt:{save_weights(tokenizer, tmp_path / 'tokenizer.safetensors')}",
        "text_vocab": sizes["vocab_size"] - sizes["text_seq_length"], "text_length": sizes["text_seq_length"],
        "width": sizes["hidden_size"], "depth": sizes["num_layers"], "heads": sizes["num_attention_heads"],
        "version": version, "sandwich": True, "stable_softmax": True, "embedding_gradient": 0.1,
    }  # fmt: skip
    return path, settings


def test_published_files_are_read_and_have_the_losses_of_the_reference(recorded, published, tokens):
    arrays, _ = recorded
    path, settings = published
    loss = "rudalle_v3" if settings["version"] == "rudalle_v3" else "paper"
    model = DALLE(**settings, loss=loss, weights=str(path)).eval()
    assert list(model.not_in_file) == ["text_merges"]
    found = model.token_losses(*tokens)
    for own, theirs in (("loss", "loss"), ("text", "loss_text"), ("image", "loss_image")):
        torch.testing.assert_close(found[own], arrays[f"out.{theirs}"], atol=5e-5, rtol=0, msg=own)


def test_a_file_of_the_other_version_is_refused_by_its_masks(published):
    path, settings = published
    other = {"rudalle_v2": "rudalle_v3", "rudalle_v3": "rudalle_v2"}[settings["version"]]
    with pytest.raises(ValueError, match="conv_mask holds other values than the conv mask of version"):
        DALLE(**settings | {"version": other}, weights=str(path))
