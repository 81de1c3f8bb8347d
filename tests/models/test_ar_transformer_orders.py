"""Orders of reading, unmasked prefixes and conditions of ARTransformer, against taming's semantics written out here."""

import math

import numpy as np
import pytest
import torch

import zoo
from zoo.sampling.token_order import ORDERS, token_order

DEPTH, WIDTH, HEADS, VOCAB, SIDE = 2, 32, 4, 64, 8


def tiny(**overrides):
    return zoo.create_model("ar_transformer_tiny", **overrides).eval()


def reference_order(order, side):
    """Cells by the words of taming's permuters, one coordinate at a time, without any arithmetic on bits or runs."""
    grid = np.arange(side * side).reshape(side, side)
    if order == "raster":
        return grid.ravel().tolist()
    if order == "alternate_parsing":
        return [int(c) for i, row in enumerate(grid) for c in (row[::-1] if i % 2 else row)]
    if order == "random":
        return np.random.RandomState(1).permutation(side * side).tolist()
    if order == "subsample":  # take the corners of all 2x2 cells first, each such quarter again in the same way
        blocks = [grid]
        while blocks[0].size > 1:
            blocks = [block[i::2, j::2] for block in blocks for i in (0, 1) for j in (0, 1)]
        return [int(block.item()) for block in blocks]
    if order == "z_curve":  # the quarters of the image one after the other, each in the same way

        def quarters(block):
            if block.size == 1:
                return [int(block.item())]
            half = len(block) // 2
            parts = (block[:half, :half], block[:half, half:], block[half:, :half], block[half:, half:])
            return [cell for part in parts for cell in quarters(part)]

        return quarters(grid)
    inwards, left = [], grid  # peel: the outermost turn of the spiral ends in the lower left corner, walking back
    while left.size:
        found = [*left[:, -1][::-1], *left[0, :-1][::-1], *left[1:, 0], *left[-1, 1:-1]]
        inwards += [int(cell) for cell in found]
        left = left[1:-1, 1:-1]
    return inwards if order == "spiral_in" else inwards[::-1]


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_is_the_one_of_taming(order):
    for side in (2, 4, 8):
        assert token_order(order, (side, side)).tolist() == reference_order(order, side), side


@pytest.mark.parametrize(
    ("order", "grid", "sentence"),
    [
        ("z_curve", (4, 8), "z_curve needs a square grid of 2, 4, 8"),
        ("subsample", (6, 6), "subsample needs a square grid of 2, 4, 8"),
        ("spiral_in", (3, 3), "spiral_in needs a square grid with an even side, not 3x3"),
        ("zigzag", (4, 4), "order is one of raster, subsample"),
    ],
)
def test_a_grid_without_that_order_is_refused(order, grid, sentence):
    with pytest.raises(ValueError, match=sentence):
        token_order(order, grid)


def net2net(n_unmasked=0, order="raster", positions=SIDE**2, seed=0):
    """A checkpoint as taming writes it, with a permuter where the order is not the identity's."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(shape, generator=generator) * 0.3

    state = {"transformer.tok_emb.weight": drawn(VOCAB, WIDTH), "transformer.pos_emb": drawn(1, positions, WIDTH)}
    mask = torch.tril(torch.ones(positions, positions))
    mask[:n_unmasked, :n_unmasked] = 1
    for i in range(DEPTH):
        stem = f"transformer.blocks.{i}."
        for name in ("ln1", "ln2"):
            state |= {f"{stem}{name}.weight": 1 + drawn(WIDTH), f"{stem}{name}.bias": drawn(WIDTH)}
        for name in ("key", "query", "value", "proj"):
            state |= {f"{stem}attn.{name}.weight": drawn(WIDTH, WIDTH), f"{stem}attn.{name}.bias": drawn(WIDTH)}
        state[f"{stem}attn.mask"] = mask.view(1, 1, positions, positions)
        state |= {f"{stem}mlp.0.weight": drawn(4 * WIDTH, WIDTH), f"{stem}mlp.0.bias": drawn(4 * WIDTH)}
        state |= {f"{stem}mlp.2.weight": drawn(WIDTH, 4 * WIDTH), f"{stem}mlp.2.bias": drawn(WIDTH)}
    state |= {"transformer.ln_f.weight": 1 + drawn(WIDTH), "transformer.ln_f.bias": drawn(WIDTH)}
    state["transformer.head.weight"] = drawn(VOCAB, WIDTH)
    state["first_stage_model.quantize.embedding.weight"] = torch.zeros(VOCAB, 4)
    if order != "raster":
        forward = torch.tensor(reference_order(order, SIDE))
        state |= {"permuter.forward_shuffle_idx": forward, "permuter.backward_shuffle_idx": forward.argsort()}
    return state


def reference_logits(state, inputs):
    """The GPT of taming on these input ids, head by head, with the mask of the file."""

    def linear(x, name):
        return x @ state[f"transformer.{name}.weight"].T + state[f"transformer.{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * state[f"transformer.{name}.weight"] + state[f"transformer.{name}.bias"]

    length = inputs.shape[1]
    x = state["transformer.tok_emb.weight"][inputs] + state["transformer.pos_emb"][:, :length]
    for i in range(DEPTH):
        y = norm(x, f"blocks.{i}.ln1")
        q, k, v = (linear(y, f"blocks.{i}.attn.{name}").chunk(HEADS, -1) for name in ("query", "key", "value"))
        hidden = state[f"transformer.blocks.{i}.attn.mask"][0, 0, :length, :length] == 0
        heads = []
        for head in range(HEADS):
            scores = (q[head] @ k[head].transpose(1, 2)) / math.sqrt(WIDTH // HEADS)
            heads.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v[head])
        x = x + linear(torch.cat(heads, -1), f"blocks.{i}.attn.proj")
        y = linear(norm(x, f"blocks.{i}.ln2"), f"blocks.{i}.mlp.0")
        x = x + linear(0.5 * y * (1 + torch.erf(y / math.sqrt(2))), f"blocks.{i}.mlp.2")
    return norm(x, "ln_f") @ state["transformer.head.weight"].T


def saved(state, path):
    torch.save({"state_dict": state, "epoch": 1}, path)
    return str(path)


@pytest.mark.parametrize("n_unmasked", [0, 5])
@pytest.mark.parametrize("order", ORDERS)
def test_logits_and_loss_of_a_taming_file(order, n_unmasked, tmp_path):
    state = net2net(n_unmasked, order)
    model = tiny(order=order, n_unmasked=n_unmasked, weights=saved(state, tmp_path / "net2net.ckpt"))
    ids, labels = torch.randint(VOCAB, (2, SIDE**2), generator=torch.Generator().manual_seed(1)), torch.tensor([1, 7])
    read = ids[:, reference_order(order, SIDE)]
    inputs = torch.cat([labels[:, None], read[:, :-1]], 1)
    expected = reference_logits(state, inputs)
    assert expected.std() > 0.3
    with torch.no_grad():
        torch.testing.assert_close(model.transformer(inputs), expected, atol=2e-4, rtol=1e-5)
        loss = -expected.log_softmax(-1).gather(-1, read[..., None]).mean()
        found = model.losses({"ids": ids, "label": labels})["loss"]
        torch.testing.assert_close(found, loss, atol=1e-5, rtol=1e-5)
        cache, start = model.transformer.new_cache(2), max(1, n_unmasked)
        parts = [model.transformer(inputs[:, :start], cache)]
        parts += [model.transformer(inputs[:, i : i + 1], cache) for i in range(start, SIDE**2)]
        torch.testing.assert_close(torch.cat(parts, 1), expected, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("n_unmasked", [0, 5])
@pytest.mark.parametrize("order", ORDERS)
def test_generated_tokens_come_out_in_raster_order(order, n_unmasked, tmp_path):
    state = net2net(n_unmasked, order, seed=4)
    model = tiny(order=order, n_unmasked=n_unmasked, weights=saved(state, tmp_path / "net2net.ckpt"))
    sequence = torch.tensor([[3], [8]])
    for _ in range(SIDE**2):
        sequence = torch.cat([sequence, reference_logits(state, sequence)[:, -1:].argmax(-1)], 1)
    expected = torch.zeros(2, SIDE**2, dtype=torch.long)
    expected[:, reference_order(order, SIDE)] = sequence[:, 1:]
    assert len(expected.unique()) > 3
    for cached in (True, False):
        found = model.generate([3, 8], as_tokens=True, temperature=0.0, use_cache=cached)
        assert torch.equal(found.ids, expected), cached


@pytest.mark.parametrize("order", ["raster", "spiral_in"])
def test_known_tokens_stay_in_their_places_and_are_seen_by_those_read_later(order, tmp_path):
    state = net2net(order=order, seed=4)
    model = tiny(order=order, weights=saved(state, tmp_path / "net2net.ckpt"))
    known = torch.full((1, SIDE**2), -1)
    known[0, [0, 9, 35, 63]] = torch.tensor([5, 6, 7, 8])
    sequence = torch.tensor([[3]])
    for cell in reference_order(order, SIDE):
        drawn = reference_logits(state, sequence)[:, -1:].argmax(-1)
        sequence = torch.cat([sequence, drawn if known[0, cell] < 0 else known[:, cell, None]], 1)
    expected = torch.zeros(1, SIDE**2, dtype=torch.long)
    expected[:, reference_order(order, SIDE)] = sequence[:, 1:]
    for cached in (True, False):
        found = model.generate([3, 3], known=known, as_tokens=True, temperature=0.0, use_cache=cached).ids
        assert torch.equal(found, expected.expand(2, -1))
    with pytest.raises(ValueError, match=r"known has shape \(1, 64\) and ids in -2"):
        model.generate([3], known=known - 1)
    with pytest.raises(ValueError, match=r"known has shape \(3, 64\) .*give \(1, 64\) ids"):
        model.generate([3], known=known.expand(3, -1))


def test_weights_of_another_order_prefix_or_number_of_heads_are_warned_of(tmp_path):
    from zoo.checkpoints.export import save_weights

    path = save_weights(tiny(), tmp_path / "own.safetensors")
    for name, value, own in (("order", "z_curve", "raster"), ("n_unmasked", 5, 0), ("heads", 2, 4)):
        with pytest.warns(UserWarning, match=f"was trained with {name} {own}, and this model has {value}"):
            tiny(**{name: value}, weights=str(path))
    tiny(weights=str(path))  # a warning would be an error


@pytest.mark.parametrize("n_unmasked", [0, SIDE**2])
def test_a_condition_stands_in_front_and_may_see_itself(n_unmasked, tmp_path):
    """As taming's models of depth maps: 512 positions for 256 + 256 tokens, of which the last is never reached."""
    state = net2net(n_unmasked, "z_curve", positions=2 * SIDE**2)
    state["cond_stage_model.quantize.embedding.weight"] = torch.zeros(4, 2)
    options = {"num_classes": 0, "condition_tokenizer": "dvae_tiny:random", "order": "z_curve"}
    path = saved(state, tmp_path / "drin.ckpt")
    model = tiny(**options, n_unmasked=n_unmasked, weights=path)
    generator = torch.Generator().manual_seed(2)
    ids, images = torch.randint(VOCAB, (2, SIDE**2), generator=generator), torch.rand(2, 3, 32, 32, generator=generator)
    condition = model.frozen["condition_tokenizer"].encode(images).ids
    read = ids[:, reference_order("z_curve", SIDE)]
    expected = reference_logits(state, torch.cat([condition, read[:, :-1]], 1))[:, SIDE**2 - 1 :]
    loss = -expected.log_softmax(-1).gather(-1, read[..., None]).mean()
    with torch.no_grad():
        for given in ({"condition": images}, {"condition_ids": condition}):
            torch.testing.assert_close(model.losses({"ids": ids, **given})["loss"], loss, atol=1e-5, rtol=1e-5)
        settings = {"as_tokens": True, "temperature": 0.0}
        one = model.generate(condition=images, **settings).ids
        assert torch.equal(one, model.generate(condition=condition, use_cache=False, **settings).ids)
        sequence = condition
        for _ in range(4):
            sequence = torch.cat([sequence, reference_logits(state, sequence)[:, -1:].argmax(-1)], 1)
        first = reference_order("z_curve", SIDE)[:4]
        assert torch.equal(one[:, first], sequence[:, SIDE**2 :])
        assert model.generate(condition=images[:1], num_images=3, **settings).ids.shape == (3, SIDE**2)
    other = tiny(num_classes=0, condition_tokens=SIDE**2, order="z_curve", n_unmasked=n_unmasked, weights=path)
    with torch.no_grad():
        torch.testing.assert_close(
            other.losses({"ids": ids, "condition_ids": condition})["loss"], loss, atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("order", [o for o in ORDERS if o != "raster"])
def test_a_file_in_another_order_is_refused_with_the_setting(order, tmp_path):
    path = saved(net2net(order=order), tmp_path / "net2net.ckpt")
    with pytest.raises(ValueError, match=rf"in the order {order} \(permuter.*raster: build it with order='{order}'"):
        tiny(weights=path)
    with pytest.raises(ValueError, match=r"no permuter.* raster order.* build it with order='raster'"):
        tiny(order=order, weights=saved(net2net(), tmp_path / "raster.ckpt"))


def changed(**entries):
    return lambda state: {**state, **entries}


@pytest.mark.parametrize(
    ("settings", "change", "sentence"),
    [
        ({}, lambda s: net2net(5), r"first 5 positions see each other .*this model none: build it with n_unmasked=5"),
        ({"n_unmasked": 3}, lambda s: net2net(5), "this model the first 3: build it with n_unmasked=5"),
        ({"n_unmasked": 3}, lambda s: s, r"no position sees a later one .*build it with n_unmasked=0"),
        (
            {},
            lambda s: s | {"transformer.blocks.1.attn.mask": torch.ones(1, 1, 64, 64).tril(1)},
            "blocks.1.attn.mask holds other values than a causal mask",
        ),
        (
            {"order": "z_curve"},
            lambda s: net2net(order="z_curve") | {"permuter.backward_shuffle_idx": torch.arange(64)},
            "permuter.backward_shuffle_idx holds other values than the inverse order",
        ),
        (
            {},
            lambda s: s | {"permuter.forward_shuffle_idx": torch.arange(64).roll(1)},
            "in an order of their own .* none of raster, subsample",
        ),
        (
            {},
            lambda s: net2net(positions=128) | {"cond_stage_model.quantize.embedding.weight": torch.zeros(4, 2)},
            "continue the tokens of a condition .*this model has none: build it with num_classes=0 and condition",
        ),
        ({}, lambda s: s | {"transformer.stray.attn.mask": torch.ones(1)}, "unexpected transformer.stray.attn.mask"),
    ],
)
def test_a_file_that_states_another_fact_is_refused(settings, change, sentence, tmp_path):
    path = saved(change(net2net()), tmp_path / "net2net.ckpt")
    with pytest.raises(ValueError, match=sentence) as caught:
        tiny(**settings, weights=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: tiny(condition_tokens=4), "the condition is a class or tokens, not both: set num_classes to 0, not 9"),
        (lambda: tiny(order="z_curve", tokenizer="vqvae2_tiny:random", class_ids="own"), "are no grid"),
        (lambda: tiny(n_unmasked=65), r"n_unmasked must lie in 0\.\.64"),
        (lambda: tiny().generate(0, condition=torch.zeros(1, 4).long()), "no condition tokens: leave condition out"),
        (lambda: tiny(num_classes=0, condition_tokens=4).generate(), "continues 4 condition tokens: give condition"),
        (
            lambda: tiny(num_classes=0, condition_tokens=4).losses({"ids": torch.zeros(1, 64).long()}),
            "the batch has no 'condition_ids', but ids, and ARTransformer has 4 condition tokens",
        ),
        (
            lambda: tiny(num_classes=0, condition_tokens=4).generate(condition=[[64, 0, 0, 0]]),
            r"ids in 0\.\.64; this model needs 4 ids in 0\.\.63",
        ),
        (
            lambda: tiny(num_classes=0, condition_tokens=2).generate(condition=[[1, 2], [3, 4]], num_images=3),
            "2 conditions for 3 images",
        ),
    ],
)
def test_impossible_conditions_end_with_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_conditions_with_ids_of_their_own_have_rows_of_their_own():
    model = tiny(num_classes=0, condition_tokenizer="vqvae_tiny:random", class_ids="own")
    assert model.transformer.tok_emb.num_embeddings == 64 + 32
    assert model.transformer.block_size == 64 + 64 - 1
    images = torch.rand(1, 3, 32, 32)
    assert model.generate(condition=images, as_tokens=True, seed=0).ids.shape == (1, 64)
