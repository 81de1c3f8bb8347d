"""SEED's first stage: causality for any number of queries, contrast of the last one, retrieval, starting weights."""

import pytest
import torch

import zoo
from zoo.losses.contrastive import find_same_image
from zoo.models.seed_stage1 import SEEDStage1, query_overlap
from zoo.nn.qformer import QFormer

CAPTIONS = ["a red cat", "two dogs", "a tree", "sun"]


def stirred(name="seed_stage1_tiny", **settings):
    torch.manual_seed(1)
    model = zoo.create_model(name, **settings)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key != "temp":
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def images(count=4):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("count", [8, 16, 32])
@torch.no_grad()
def test_a_query_changes_what_comes_after_it_and_nothing_before(count):
    """The published code is causal for 32 queries only, and silently bidirectional for any other number."""
    model = stirred(qformer={"queries": count}).eval()
    before = model.causal_embeddings(images(2))
    for k in (0, 3, count - 1):
        queries = model.query_tokens.clone()
        model.query_tokens[:, k] += torch.randn(24)
        changed = (model.causal_embeddings(images(2)) - before).abs().amax((0, 2)) > 1e-6
        assert changed.tolist() == [i >= k for i in range(count)]
        model.query_tokens.copy_(queries)
    assert model.spec.order == "causal"
    free = stirred(qformer={"queries": count}, causal=False).eval()
    seen = free.causal_embeddings(images(2))
    free.query_tokens[:, count - 1] += torch.randn(24)
    assert ((free.causal_embeddings(images(2)) - seen).abs().amax((0, 2)) > 1e-6).all()
    assert free.spec.order == "set"


def test_contrast_is_that_of_the_last_query():
    model = stirred().eval()
    terms = model.losses({"image": images(), "caption": CAPTIONS})
    with torch.no_grad():
        embeddings = model.causal_embeddings(images())
        shown = torch.nn.functional.normalize(model.vision_proj(embeddings[:, -1]), dim=-1)
        rows = []
        for caption in CAPTIONS:
            ids, mask = model.tokenise([caption])
            rows.append(torch.nn.functional.normalize(model.text_proj(model.Qformer(text=ids).text[:, 0]), dim=-1))
        sim = shown @ torch.cat(rows).t() / 0.07
        target = torch.arange(4)
        smooth = torch.nn.functional.cross_entropy
        expected = (smooth(sim, target, label_smoothing=0.1) + smooth(sim.t(), target, label_smoothing=0.1)) / 2
    torch.testing.assert_close(terms["loss"], expected, rtol=1e-4, atol=1e-5)
    assert find_same_image(4, None, torch.device("cpu")).sum() == 4


def test_queries_that_repeat_each_other_are_counted_and_parted():
    torch.manual_seed(0)
    one = torch.randn(64, 1, 24)
    assert query_overlap(one.expand(64, 4, 24)).item() == pytest.approx(1)
    assert query_overlap(one.expand(64, 4, 24) + torch.randn(1, 4, 24)).item() == pytest.approx(1, abs=1e-4)
    assert query_overlap(torch.randn(64, 4, 24)).item() == pytest.approx(1 / 24, rel=0.2)
    assert query_overlap(one) == 0
    batch = {"image": torch.rand(8, 3, 32, 32), "caption": [f"picture {i}" for i in range(8)]}
    plain, parted = (zoo.create_model("seed_stage1_tiny", diversity_weight=w) for w in (0.0, 2.0))
    parted.load_state_dict(plain.state_dict())
    loss, terms = plain.losses(batch)["loss"], parted.losses(batch)
    assert terms["loss"].item() == pytest.approx(loss.item() + 2 * terms["query_overlap"].item(), rel=1e-5)
    before = terms["query_overlap"].item()
    optimizer = torch.optim.Adam(parted.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        parted.losses(batch)["loss"].backward()
        optimizer.step()
    assert parted.losses(batch)["query_overlap"] < 0.5 * before


def test_one_image_in_a_batch_is_no_trouble():
    terms = stirred().losses({"image": images(1), "caption": CAPTIONS[:1]})
    assert terms["loss"].isfinite()
    assert terms["i2t_recall"] == 1


def test_retrieval_of_images_and_of_embeddings():
    model = stirred().train()
    scores = model.retrieve(images(), CAPTIONS[:3], batch_size=2)
    assert scores.contrast.shape == (4, 3)
    assert model.training
    with torch.no_grad():
        given = model.eval().retrieve(None, CAPTIONS[:3], embeddings=model.causal_embeddings(images()))
    torch.testing.assert_close(given.contrast, scores.contrast, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="give images, or embeddings in their place"):
        model.retrieve(None, CAPTIONS[:3])


def test_from_blip2(tmp_path):
    blip = stirred("blip2_stage1_tiny")
    zoo.checkpoints.export.save_weights(blip, tmp_path / "blip2.safetensors")
    model = zoo.create_model("seed_stage1_tiny", weights=tmp_path / "blip2.safetensors")
    torch.testing.assert_close(model.query_tokens, blip.query_tokens)
    torch.testing.assert_close(model.vision_proj.weight, blip.vision_proj.weight)
    for name, value in model.Qformer.state_dict().items():
        torch.testing.assert_close(value, blip.Qformer.state_dict()[name], msg=name)
    with pytest.raises(ValueError, match="query_tokens is 1x4x24 in the file and 1x8x24 in the model"):
        zoo.create_model("seed_stage1_tiny", qformer={"queries": 8}, weights=tmp_path / "blip2.safetensors")


def test_narrow_networks_of_the_queries():
    former = QFormer(24, 2, 2, 48, 20, vocab_size=30, query_mlp_width=12, word_head=False)
    layer = former.bert.encoder.layer[0]
    assert layer.intermediate_query.dense.out_features == 12
    assert layer.intermediate.dense.out_features == 48
    same = QFormer(24, 2, 2, 48, 20, vocab_size=30)
    pair = same.bert.encoder.layer[0]
    torch.testing.assert_close(pair.intermediate_query.dense.weight, pair.intermediate.dense.weight)


def test_batches_and_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="diversity_weight must be a number of at least 0"):
        zoo.create_model("seed_stage1_tiny", diversity_weight=-1.0)
    model = stirred()
    with pytest.raises(ValueError, match="has no 'caption'"):
        model.losses({"image": images()})
    with pytest.raises(zoo.NotInvertible, match="train the second stage"):
        model.decode(model.encode(images()))
    with pytest.raises(ValueError, match=r"qformer\.queries must be a whole number of at least 1, got 0"):
        zoo.create_model("seed_stage1_tiny", qformer={"queries": 0})
    assert zoo.SEEDStage1 is SEEDStage1
