"""MaskGIT: its loss re-derived, its masks, generation over grids and segments, editing, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F
from toys import quiet_trainer

import zoo
from datamodules import TokenData
from zoo.models.maskgit import MaskGIT
from zoo.sampling.image_masks import box_mask, token_mask
from zoo.tokens.shards import make_header, write_header, write_shard

SIZE = 32


def tiny(**overrides):
    return zoo.create_model("maskgit_tiny", **overrides)


def stirred(**overrides):
    torch.manual_seed(3)
    model = tiny(**overrides).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def model():
    return stirred()


@pytest.fixture
def images():
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))


# ---------------------------------------------------------------- network


def test_class_token_stands_first_and_matters(model):
    ids = torch.randint(64, (2, 64))
    with torch.no_grad():
        logits = model.network(ids, torch.tensor([3, -1]))
        sequence = torch.cat([torch.tensor([[64 + 3], [64 + 9]]), ids], 1)
        torch.testing.assert_close(logits, model.network.sequence_logits(sequence)[:, 1:], rtol=0, atol=0)
        other = model.network(ids, torch.tensor([4, -1]))
    assert not torch.allclose(logits[0], other[0])
    assert torch.equal(logits[1], other[1])


def test_weights_of_valeoai_round_trip(tmp_path):
    model = stirred(layout="valeoai")
    state = {name.removeprefix("network."): v for name, v in model.state_dict().items()}
    assert "transformer.layers.0.0.fn.mha.in_proj_weight" in state
    assert "transformer.layers.1.1.fn.net.3.bias" in state
    torch.save({"iter": 7, "global_epoch": 1, "model_state_dict": state}, tmp_path / "MaskGIT.pth")
    other = tiny(layout="valeoai", weights=str(tmp_path / "MaskGIT.pth"))
    torch.testing.assert_close(dict(other.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    with pytest.raises(ValueError, match="layout='valeoai'"):
        tiny(weights=str(tmp_path / "MaskGIT.pth"))
    tokens = other.generate([0, 1], as_tokens=True, guidance=1.0, guidance_schedule="linear", seed=0)
    assert tokens.ids.max() < 64


# ---------------------------------------------------------------- training


def test_loss_is_the_mean_of_means_over_hidden_tokens(model):
    ids, labels = torch.randint(64, (2, 64)), torch.tensor([1, 2])
    mask = torch.zeros(2, 64, dtype=torch.bool)
    mask[0, 5] = mask[1, :40] = True
    with torch.no_grad():
        terms = model.losses({"ids": ids, "label": labels, "mask": mask})
        logits = model.network(ids.masked_fill(mask, model.network.mask_id), labels)
    vocab, means = logits.shape[-1], []
    assert vocab == 64 + 9 + 1 + 1
    for row in range(2):
        total = 0.0
        for n in mask[row].nonzero().flatten().tolist():
            log_p = logits[row, n].double().log_softmax(-1)
            target = torch.full((vocab,), 0.1 / vocab, dtype=torch.float64)
            target[ids[row, n]] += 0.9
            total -= float((target * log_p).sum())
        means.append(total / int(mask[row].sum()))
    assert terms["loss"].item() == pytest.approx(sum(means) / 2, rel=1e-5)
    assert terms["masked"].item() == pytest.approx(41 / 128)
    assert terms["accuracy"].item() == pytest.approx((logits.argmax(-1) == ids)[mask].float().mean().item())
    mask[:] = False
    mask[:, :4] = True
    with torch.no_grad():
        best = model.network(ids.masked_fill(mask, model.network.mask_id), labels)[..., :64].argmax(-1)
        best[0, 0] = (best[0, 0] + 1) % 64  # one of eight hidden tokens is not the likeliest; visible ones do not count
        terms = model.losses({"ids": torch.where(mask, best, ids), "label": labels, "mask": mask})
    assert terms["accuracy"].item() == 7 / 8


def test_masks_follow_the_schedule_and_belong_to_the_image():
    model = tiny()
    ids = torch.zeros(2000, 64, dtype=torch.long)
    model.train()
    share = model.masks({}, ids).float().mean(1)
    assert share.min() >= 1 / 64
    assert share.max() == 1
    assert share.mean().item() == pytest.approx(2 / math.pi, abs=0.03)  # E cos(pi r / 2), and rounding up
    model.eval()
    index = torch.tensor([7, 3, 7])
    masks = model.masks({"index": index}, ids[:3])
    assert torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[1])
    r = torch.rand(65, generator=torch.Generator().manual_seed(3))[0]
    assert masks[1].sum() == math.ceil(64 * math.cos(math.pi / 2 * r))


def test_class_dropout_only_in_training(monkeypatch):
    model, seen = tiny(class_dropout=0.5), []
    network = model.network.forward
    monkeypatch.setattr(model.network, "forward", lambda ids, labels: seen.append(labels) or network(ids, labels))
    batch = {"ids": torch.randint(64, (400, 64)), "label": torch.arange(400) % 9}
    with torch.no_grad():
        model.train().losses(batch)
        model.eval().losses(batch)
    assert (seen[0] == -1).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(seen[1], batch["label"])


def test_token_shards_give_the_loss_of_encoding_on_the_fly(model, images, tmp_path):
    labels, index = torch.tensor([0, 4, 8]), torch.arange(3)
    ids = model.tokenizer.encode(images).ids
    with torch.no_grad():
        live = model.losses({"image": images, "label": labels, "index": index})
        read = model.losses({"ids": ids, "label": labels, "index": index})
    torch.testing.assert_close(read, live, rtol=0, atol=0)

    torch.manual_seed(0)
    other = tiny()
    for split in ("train", "val"):
        write_shard(tmp_path / split, other.tokenizer.encode(images).ids, index, label=labels)
        write_header(tmp_path / split, make_header(other.tokenizer, split=split, count=3))
    quiet_trainer(tmp_path, max_steps=2).fit(other, TokenData(str(tmp_path), batch_size=3))
    assert other.global_step == 2


# ---------------------------------------------------------------- decoding


def test_guidance_moves_logits_away_from_those_without_a_class(model):
    ids, labels = torch.randint(64, (2, 64)), torch.tensor([1, 2])
    with torch.no_grad():
        given = model.network(ids, labels)[..., :64]
        nothing = model.network(ids, torch.tensor([-1, -1]))[..., :64]
        torch.testing.assert_close(model._code_logits(ids, labels, 2.0), 3 * given - 2 * nothing, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model._code_logits(ids, labels, 0.0), given, atol=0, rtol=0)


def test_generation_is_repeatable_and_decodes(model):
    one, two = (model.generate([0, 5], seed=4) for _ in range(2))
    assert one.shape == (2, 3, SIZE, SIZE)
    assert torch.equal(one, two)
    assert not torch.equal(one, model.generate([0, 5], seed=5))
    tokens, steps = model.generate(
        7, 2, seed=4, steps=5, order="halton", guidance=1.0, as_tokens=True, return_steps=True
    )
    assert tokens.ids.shape == (2, 64)
    assert tokens.ids.max() < 64
    assert steps.sampled.shape == (2, 5, 64)
    cold = {"sampling_temperature": 0.0, "choice_temperature": 0.0, "as_tokens": True}
    assert torch.equal(model.generate(-1, **cold).ids, model.generate(-1, **cold).ids)


def test_generation_leaves_the_model_as_it_was():
    model = tiny().train()
    model.generate(0, seed=0)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_without_classes():
    model = tiny(num_classes=0, class_dropout=0.0)
    assert model.network.mask_id == 64
    assert model.network.position_embeddings.num_embeddings == 64
    assert model.generate(num_images=3, seed=0).shape == (3, 3, SIZE, SIZE)
    assert model.losses({"image": torch.rand(2, 3, SIZE, SIZE)})["loss"].isfinite()


@pytest.mark.parametrize("order", ["confidence", "halton"])
def test_segments_keep_to_their_ids(order):
    model = tiny(tokenizer="vqvae2_tiny:random")
    assert len(model.spec.segments) == 2
    assert model.allowed is not None
    tokens = model.generate([0, 1, 2], as_tokens=True, seed=0, order=order, sampling_temperature=3.0)
    for segment in model.spec.segments:
        part = tokens.ids[:, model.spec.span(segment.name)]
        assert part.min() >= segment.offset
        assert part.max() < segment.offset + segment.size
    images = torch.rand(2, 3, SIZE, SIZE)
    hidden = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    hidden[: SIZE // 2] = True
    kept = model.inpaint(images, hidden, [0, 1], as_tokens=True).ids
    for segment in model.spec.segments:
        rows = segment.shape[0] // 2
        below = kept[:, model.spec.span(segment.name)].unflatten(1, segment.shape)[:, rows:]
        assert torch.equal(below, model.encode(images).grid(segment.name)[:, rows:])


# ---------------------------------------------------------------- parts of images


def test_inpainting_keeps_what_is_visible(model, images):
    hidden = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    hidden[9, 10] = True  # one pixel hides one token, row 2, column 2
    ids, before = model.inpaint(images, hidden, [0, 1, 2], as_tokens=True, seed=1).ids, model.encode(images).ids
    flat = token_mask(model.spec, hidden, 3, (SIZE, SIZE))
    assert flat[0].nonzero().flatten().tolist() == [2 * 8 + 2]
    assert torch.equal(ids[~flat], before[~flat])
    each = hidden.repeat(3, 1, 1)
    each[1:] = False
    ids = model.inpaint(images, each, [0, 1, 2], as_tokens=True).ids
    assert torch.equal(ids[1:], before[1:])


def test_the_box_of_the_released_editing_code():
    spec = zoo.TokenSpec((zoo.Segment("grid", (16, 16), 0, 8),), dim=1)
    hidden = box_mask(spec, (64, 32, 128, 96), (256, 256)).view(16, 16)
    rows, columns = hidden.any(1).nonzero().flatten().tolist(), hidden.any(0).nonzero().flatten().tolist()
    assert rows == list(range(64 // 16 - 1, 128 // 16 + 64 // 16 + 1))
    assert columns == list(range(32 // 16 - 1, 96 // 16 + 32 // 16 + 1))
    assert box_mask(spec, (0, 0, 256, 256), (256, 256)).all()


def test_editing_changes_the_box_and_skips_two_steps(model, images, monkeypatch):
    seen = []
    complete = MaskGIT.complete
    monkeypatch.setattr(MaskGIT, "complete", lambda self, *a, **k: seen.append(k) or complete(self, *a, **k))
    edited = model.edit(images, [1, 1, 1], box=(20, 20, 8, 8), seed=0)
    assert (seen[0]["steps"], seen[0]["start"]) == (12, 2)
    assert torch.allclose(edited[:, :, :8, :8], images[:, :, :8, :8], atol=1e-4)
    assert (edited - images)[:, :, 20:28, 20:28].abs().mean() > 0.05
    hidden = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    hidden[:8, :8] = True
    assert not torch.allclose(model.edit(images, [1, 1, 1], mask=hidden)[:, :, :4, :4], images[:, :, :4, :4], atol=1e-2)


@pytest.mark.parametrize("side", ["left", "right", "up", "down"])
def test_outpainting_adds_pixels_and_keeps_the_image(model, images, side):
    longer = model.outpaint(images, side, 8, [0, 1, 2], seed=0)
    axis = 2 if side in ("up", "down") else 3
    assert longer.shape[axis] == SIZE + 8
    assert torch.equal(longer.narrow(axis, 8 if side in ("left", "up") else 0, SIZE), images)
    again = model.outpaint(longer, side, None, [0, 1, 2], seed=0)
    assert again.shape[axis] == SIZE + 8 + SIZE // 2


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m, x: m.generate([9]), r"labels must lie in -1..8, got 9..9"),
        (lambda m, x: m.generate(), "class-conditional: give labels"),
        (lambda m, x: m.generate([1, 2], 3), "2 labels for 3 images"),
        (lambda m, x: m.generate(0, 0), "num_images must be at least 1"),
        (lambda m, x: m.generate(0, steps=0), "steps must be at least 1"),
        (lambda m, x: m.generate(0, steps=4, start=4), "steps must be at least 1 and the first"),
        (lambda m, x: m.generate(0, schedule="cosin"), "did you mean 'cosine'"),
        (lambda m, x: m.generate(0, order="random"), "order cannot be 'random'"),
        (lambda m, x: m.generate(0, choice_temperature=-1.0), "temperatures must not be negative"),
        (lambda m, x: m.complete(torch.full((1, 64), -1), torch.tensor([0])), r"or be network.mask_id = 74 .*, got -1"),
        (lambda m, x: m.complete(torch.full((1, 64), 64), torch.tensor([0])), "got 64"),
        (lambda m, x: m.complete(torch.full((1, 64), 74)), "class-conditional: give labels"),
        (
            lambda m, x: tiny(class_dropout=0.0).complete(torch.full((1, 64), 73), torch.tensor([-1])),
            r"labels must lie in 0..8, got -1..-1",
        ),
        (lambda m, x: m.inpaint(x, torch.ones(16, 16, dtype=torch.bool), 0), "the mask is torch.bool of shape"),
        (lambda m, x: m.inpaint(x, torch.ones(2, 32, 32, dtype=torch.bool), 0), "give a bool mask of shape"),
        (lambda m, x: m.edit(x, 0, box=(30, 0, 8, 8)), "is not inside an image of 32x32"),
        (lambda m, x: m.edit(x, 0), "either a box or a mask"),
        (lambda m, x: m.outpaint(x, "right", 32, 0), "pixels must lie in 1..31"),
        (lambda m, x: m.outpaint(x, "top", 8, 0), "side cannot be 'top'"),
        (lambda m, x: m.losses({"image": x}), "the batch has no 'label'"),
        (lambda m, x: m.losses({"image": x, "label": torch.tensor([0, 1, 11])}), "got 0..11"),
        (lambda m, x: m.losses({"label": torch.tensor([0])}), "neither 'ids' nor 'image'"),
        (
            lambda m, x: m.losses({"image": F.interpolate(x, (64, 64)), "label": torch.zeros(3).long()}),
            "images of 64x64 give 256 tokens, this model has positions for 64",
        ),
        (lambda m, x: m.network.sequence_logits(torch.zeros(1, 66).long()), "66 tokens, this network has 65 positions"),
        (lambda m, x: tiny(num_classes=0), "class_dropout needs classes"),
        (lambda m, x: tiny(class_dropout=0.0).generate(0, guidance=1.0), "train with class_dropout > 0"),
        (lambda m, x: tiny(num_classes=0, class_dropout=0.0).generate(0), "unconditional"),
        (
            lambda m, x: tiny(num_classes=0, class_dropout=0.0).generate(guidance=1.0),
            "guidance pulls towards a class and this model is unconditional",
        ),
        (lambda m, x: tiny(tokenizer="beit_classifier_tiny:random"), "no discrete tokens"),
        (lambda m, x: tiny(heads=5), "not divisible by 5 heads"),
    ],
)
def test_one_sentence(model, images, call, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        call(model, images)
    assert "\n" not in str(caught.value)
