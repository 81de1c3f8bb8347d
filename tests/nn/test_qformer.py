"""The Q-Former: masks by definition, passes that must agree, mixings against loops, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zoo.nn.qformer import QFormer
from zoo.nn.qformer_masks import HIDDEN, itc_mask, itg_mask, itm_mask

SIZES = {
    "width": 24, "depth": 3, "heads": 3, "mlp_width": 20, "image_width": 10, "vocab_size": 30, "max_positions": 9,
    "dropout": 0.0,
}  # fmt: skip
TEXT_MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]])


def stirred(module):
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return module.eval()


def inputs(count=3, queries=5):
    torch.manual_seed(4)
    return torch.randn(count, queries, 24), torch.randn(count, 7, 10), torch.randint(30, (count, 4))


def test_masks_by_definition():
    for make, sees in (
        (itc_mask, lambda r, c: (r < 2) == (c < 2)),
        (itm_mask, lambda r, c: True),
        (itg_mask, lambda r, c: c < 2 or (r >= 2 and c <= r)),
    ):
        found = make(TEXT_MASK, 2)
        assert found.shape == (3, 1, 6, 6)
        assert found.dtype == torch.float32
        for b in range(3):
            for r in range(6):
                for c in range(6):
                    padding = c >= 2 and not TEXT_MASK[b, c - 2]
                    expected = 0.0 if sees(r, c) and not padding else HIDDEN
                    assert found[b, 0, r, c] == expected, (make.__name__, b, r, c)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("mixing", ["self_then_cross", "joint"])
def test_one_pass_equals_the_cached_two(mixing, norm):
    model = stirred(QFormer(**SIZES, mixing=mixing, norm=norm))
    queries, image, text = inputs()
    alone = model(queries, image)
    one = model(queries, image, text, itg_mask(TEXT_MASK, 5))
    two = model(text=text, mask=itg_mask(TEXT_MASK, 5)[:, :, 5:], cache=alone.cache)
    torch.testing.assert_close(one.queries, alone.queries, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.text, two.text, rtol=1e-5, atol=1e-5)
    one = model(queries, image, text, itc_mask(TEXT_MASK, 5))
    torch.testing.assert_close(one.queries, alone.queries, rtol=1e-5, atol=1e-5)
    apart = model(text=text, mask=itc_mask(TEXT_MASK, 5)[:, :, 5:, 5:])
    torch.testing.assert_close(one.text, apart.text, rtol=1e-5, atol=1e-5)
    joined = model(queries, image, text, itm_mask(TEXT_MASK, 5))
    assert (joined.queries - alone.queries).abs().max() > 1e-2, "matching lets queries see the text"
    with torch.no_grad():
        assert (two.text - apart.text).abs().max() > 1e-2, "generation lets text see the queries"


@pytest.mark.parametrize("mixing", ["self_then_cross", "joint"])
def test_text_token_by_token_equals_all_at_once(mixing):
    model = stirred(QFormer(**SIZES, mixing=mixing))
    queries, image, text = inputs()
    cache = model(queries, image).cache
    full = torch.ones_like(text)
    every = model(text=text, mask=itg_mask(full, 5)[:, :, 5:], cache=cache).text
    for t in range(4):
        step = model(text=text[:, t : t + 1], cache=cache, offset=t)
        torch.testing.assert_close(step.text[:, 0], every[:, t], rtol=1e-4, atol=1e-5)
        cache = [
            tuple(torch.cat(pair, 2) for pair in zip(a, b, strict=True)) for a, b in zip(cache, step.cache, strict=True)
        ]


def test_padding_does_not_change_the_text_in_front_of_it():
    model = stirred(QFormer(**SIZES))
    queries, image, text = inputs()
    other = torch.where(TEXT_MASK == 1, text, 29 - text)
    one = model(queries, image, text, itm_mask(TEXT_MASK, 5))
    two = model(queries, image, other, itm_mask(TEXT_MASK, 5))
    torch.testing.assert_close(one.queries, two.queries, rtol=1e-6, atol=1e-6)


def attend(layer, rows, sources, heads):
    """Softmax attention in loops over images, heads and rows: output of ``layer`` before its residual sum."""
    q, k, v = layer.self.query(rows), layer.self.key(sources), layer.self.value(sources)
    out = torch.zeros_like(q)
    size = q.shape[-1] // heads
    for b in range(len(q)):
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            for i in range(q.shape[1]):
                weights = torch.softmax(k[b, :, part] @ q[b, i, part] / math.sqrt(size), 0)
                out[b, i, part] = weights @ v[b, :, part]
    return layer.output.dense(out)


def test_joint_is_one_softmax_over_image_and_queries():
    """The resampler's layer: k = v = concat(f, q), pre-norm, one set of projections."""
    model = stirred(QFormer(**SIZES | {"depth": 1, "vocab_size": 0}, mixing="joint", norm="pre", bias=False))
    queries, image, _ = inputs()
    with torch.no_grad():
        layer = model.bert.encoder.layer[0]
        x = model.bert.embeddings.LayerNorm(queries)
        normed = layer.attention.output.LayerNorm(x)
        media = layer.attention.image_LayerNorm(layer.attention.image_projection(image))
        x = x + attend(layer.attention, normed, torch.cat([media, normed], 1), 3)
        hidden = F.gelu(layer.intermediate_query.dense(layer.output_query.LayerNorm(x)))
        expected = model.bert.encoder.final(x + layer.output_query.dense(hidden))
        torch.testing.assert_close(model(queries, image).queries, expected, rtol=1e-5, atol=1e-5)
    assert not any(name.endswith("dense.bias") for name, _ in model.named_parameters())


def test_cross_only_queries_do_not_see_each_other():
    model = stirred(QFormer(**SIZES | {"vocab_size": 0}, mixing="cross_only", cross_every=1))
    queries, image, _ = inputs()
    with torch.no_grad():
        every = model(queries, image).queries
        torch.testing.assert_close(model(queries[:, 2:3], image).queries, every[:, 2:3], rtol=1e-5, atol=1e-5)
        for mixing in ("self_then_cross", "joint"):
            other = stirred(QFormer(**SIZES | {"vocab_size": 0}, mixing=mixing))
            difference = other(queries[:, 2:3], image).queries - other(queries, image).queries[:, 2:3]
            assert difference.abs().max() > 1e-3, mixing


@pytest.mark.parametrize("cross_every", [1, 2, 3])
def test_layers_that_read_the_image(cross_every):
    model = QFormer(**SIZES, cross_every=cross_every)
    found = {int(n.split(".")[3]) for n, _ in model.named_parameters() if "crossattention" in n}
    assert found == set(range(0, 3, cross_every))


def test_query_branch_starts_as_a_copy_of_the_text_branch():
    layer = QFormer(**SIZES).bert.encoder.layer[1]
    assert torch.equal(layer.intermediate_query.dense.weight, layer.intermediate.dense.weight)
    assert layer.intermediate_query.dense.weight is not layer.intermediate.dense.weight
    assert torch.equal(layer.output_query.dense.weight, layer.output.dense.weight)


def test_head_is_tied_to_the_word_embeddings():
    model = QFormer(**SIZES)
    assert model.cls["predictions"].decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert model.cls["predictions"].bias is model.cls["predictions"].decoder.bias


def test_published_parameter_counts():
    with torch.device("meta"):
        stage2, vit_l = QFormer(vocab_size=0), QFormer(vocab_size=0, image_width=1024)
    assert sum(p.numel() for p in stage2.parameters()) == 105_137_664
    keys_and_values = 6 * 2 * 768 * (1408 - 1024)
    assert sum(p.numel() for p in vit_l.parameters()) == 105_137_664 - keys_and_values


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: QFormer(**SIZES, mixing="cross_only", cross_every=1), "no path between queries and text"),
        (lambda: QFormer(**SIZES | {"width": 25}), "multiple of heads"),
        (lambda: QFormer(**SIZES)(queries=torch.zeros(1, 2, 24)), "give both"),
        (lambda: QFormer(**SIZES)(), "queries, text, or both"),
        (lambda: QFormer(**SIZES)(text=torch.zeros(1, 10, dtype=torch.long)), "10 tokens is longer than the 9"),
        (lambda: QFormer(**SIZES | {"vocab_size": 0})(text=torch.zeros(1, 1, dtype=torch.long)), "no text branch"),
    ],
)
def test_bad_input_ends_with_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_epsilon_is_that_of_bert():
    assert {m.eps for m in QFormer(**SIZES).modules() if isinstance(m, nn.LayerNorm)} == {1e-12}
