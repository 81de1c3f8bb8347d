"""ARTransformer: its GPT against transformers' GPT-2, cached against uncached generation, sampling, taming's layout."""

import pytest
import torch

import zoo
from zoo.nn.gpt import GPT
from zoo.optim import parameter_groups
from zoo.sampling.next_token import draw_next, keep_top_k, keep_top_p


def tiny(**overrides):
    return zoo.create_model("ar_transformer_tiny", **overrides)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    model = tiny().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def test_logits_equal_gpt2_of_transformers():
    """GPT-2 with exact GELU and an untied head is the same network under other names."""
    from transformers import GPT2Config, GPT2LMHeadModel

    width, depth, heads, vocab, positions = 24, 3, 4, 31, 10
    config = GPT2Config(
        vocab_size=vocab, n_positions=positions, n_embd=width, n_layer=depth, n_head=heads, activation_function="gelu",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs, ours = GPT2LMHeadModel(config).eval(), GPT(vocab, vocab, positions, width, depth, heads).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    source = theirs.state_dict()
    state = {
        "tok_emb.weight": source["transformer.wte.weight"],
        "pos_emb": source["transformer.wpe.weight"].unsqueeze(0),
        "head.weight": source["lm_head.weight"],
        **{f"ln_f.{leaf}": source[f"transformer.ln_f.{leaf}"] for leaf in ("weight", "bias")},
    }
    names = {"ln_1": "ln1", "ln_2": "ln2", "attn.c_proj": "attn.proj", "mlp.c_fc": "mlp.0", "mlp.c_proj": "mlp.2"}
    for i in range(depth):
        for old, new in names.items():
            for leaf in ("weight", "bias"):
                value = source[f"transformer.h.{i}.{old}.{leaf}"]
                state[f"blocks.{i}.{new}.{leaf}"] = value.T if value.ndim == 2 else value
        for leaf in ("weight", "bias"):
            parts = source[f"transformer.h.{i}.attn.c_attn.{leaf}"].split(width, -1)
            for name, value in zip(("query", "key", "value"), parts, strict=True):
                state[f"blocks.{i}.attn.{name}.{leaf}"] = value.T if value.ndim == 2 else value
    ours.load_state_dict(state)
    ids = torch.randint(vocab, (2, positions))
    with torch.no_grad():
        expected = theirs(ids).logits
        assert expected.std() > 0.3
        torch.testing.assert_close(ours(ids), expected, atol=1e-4, rtol=1e-4)


def test_published_size():
    with torch.device("meta"):
        network = GPT(16384, 16384, 256, 1536, 48, 24)
    assert sum(p.numel() for p in network.parameters()) == 48 * (12 * 1536**2 + 13 * 1536) + (2 * 16384 + 258) * 1536


def test_cached_logits_equal_uncached(model):
    ids = torch.randint(64, (2, 20))
    network = model.transformer
    cache = network.new_cache(2)
    with torch.no_grad():
        whole = network(ids)
        parts = [network(ids[:, :5], cache)] + [network(ids[:, i : i + 1], cache) for i in range(5, 20)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="one at a time"):
        network(ids[:, :2], cache)


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {}, {"top_k": 5, "temperature": 0.7}, {"top_p": 0.8}])
def test_cached_and_uncached_generation_give_equal_tokens(model, sampling):
    one, two = (
        model.generate([0, 3, 8], as_tokens=True, seed=1, use_cache=cache, **sampling).ids for cache in (True, False)
    )
    assert torch.equal(one, two)
    assert len(one.unique()) > 1


def test_images_lie_in_the_unit_range_and_leave_the_mode(model):
    images = model.generate(2, 2, seed=0)
    assert images.shape == (2, 3, 32, 32)
    assert images.min() >= 0
    assert images.max() <= 1
    assert not model.training


# ---------------------------------------------------------------- sampling


def test_top_k_and_top_p():
    logits = torch.tensor([[0.5, 0.2, 0.15, 0.1, 0.05]]).log()[:, [3, 0, 4, 1, 2]]
    assert keep_top_k(logits, 2).isfinite().tolist() == [[False, True, False, True, False]]
    assert keep_top_p(logits, 0.6).isfinite().tolist() == [[False, True, False, True, False]]
    assert keep_top_p(logits, 0.8).isfinite().tolist() == [[False, True, False, True, True]]
    assert keep_top_p(logits, 1e-6).isfinite().sum() == 1
    assert keep_top_k(logits, 9).isfinite().all()
    assert keep_top_p(logits, 1.0).isfinite().all()


def test_draws_follow_the_distribution():
    p = torch.tensor([0.6, 0.3, 0.1])
    logits = p.log().expand(20_000, 3)

    def shares(**settings):
        return (draw_next(logits, **settings).bincount(minlength=3) / 20_000).tolist()

    assert shares() == pytest.approx(p.tolist(), abs=0.02)
    assert shares(temperature=0.5) == pytest.approx((p**2 / (p**2).sum()).tolist(), abs=0.02)
    assert shares(top_k=2) == pytest.approx([2 / 3, 1 / 3, 0], abs=0.02)
    # the nucleus is taken among the k most likely: of 2/3 and 1/3, the first alone reaches 0.65
    assert shares(top_k=2, top_p=0.65) == [1, 0, 0]
    assert shares(temperature=0) == [1, 0, 0]


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("class_ids", ["shared", "own"])
def test_loss_is_the_likelihood_of_the_tokens(class_ids):
    torch.manual_seed(0)
    model = tiny(class_ids=class_ids).eval()
    ids, labels = torch.randint(64, (2, 64)), torch.tensor([1, 7])
    first = labels if class_ids == "shared" else labels + 64
    assert model.transformer.tok_emb.num_embeddings == (64 if class_ids == "shared" else 64 + 9)
    with torch.no_grad():
        logits = model.transformer(torch.cat([first.unsqueeze(1), ids], 1)[:, :-1])
        expected = -sum(logits[b, n].log_softmax(-1)[ids[b, n]] for b in range(2) for n in range(64)) / 128
        torch.testing.assert_close(model.losses({"ids": ids, "label": labels})["loss"], expected, atol=1e-5, rtol=1e-5)


def test_no_token_sees_a_later_one(model):
    ids = torch.randint(64, (1, 30))
    other = ids.clone()
    other[0, 17] = (ids[0, 17] + 1) % 64
    with torch.no_grad():
        before, after = model.transformer(ids), model.transformer(other)
    assert torch.equal(before[:, :17], after[:, :17])
    assert not torch.allclose(before[:, 17], after[:, 17])


def test_pkeep_replaces_inputs_in_training_only(monkeypatch):
    model, seen = tiny(pkeep=0.7), []
    monkeypatch.setattr(model.transformer, "forward", lambda ids: seen.append(ids) or torch.zeros(*ids.shape, 64))
    batch = {"ids": torch.randint(64, (50, 64)), "label": torch.arange(50) % 9}
    model.train().losses(batch)
    model.eval().losses(batch)
    replaced = (seen[0][:, 1:] != batch["ids"][:, :-1]).float().mean().item()
    assert replaced == pytest.approx(0.3 * 63 / 64, abs=0.03)
    assert torch.equal(seen[0][:, 0], batch["label"])
    assert torch.equal(seen[1][:, 1:], batch["ids"][:, :-1])


def test_unconditional_starts_with_id_zero(monkeypatch):
    model, seen = tiny(num_classes=0), []
    forward = model.transformer.forward
    monkeypatch.setattr(model.transformer, "forward", lambda *a: seen.append(a[0]) or forward(*a))
    assert model.generate(num_images=2, as_tokens=True, seed=0).ids.shape == (2, 64)
    assert seen[0].tolist() == [[0], [0]]


def test_only_weights_of_linear_layers_decay():
    model = tiny()
    groups = parameter_groups(model.named_parameters(), model.optim_settings, model.no_decay)
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    names = {n for n, p in model.named_parameters() if id(p) in decayed}
    assert "transformer.head.weight" in names
    assert "transformer.blocks.0.attn.key.weight" in names
    assert not any("emb" in n or "ln" in n or n.endswith("bias") for n in names)


def test_segments_keep_to_their_ids():
    model = tiny(tokenizer="vqvae2_tiny:random", class_ids="own")
    ids = model.generate([0, 1], as_tokens=True, seed=0, temperature=3.0).ids
    for segment in model.spec.segments:
        part = ids[:, model.spec.span(segment.name)]
        assert part.min() >= segment.offset
        assert part.max() < segment.offset + segment.size


# ---------------------------------------------------------------- weights and refusals


def test_taming_checkpoints_round_trip(model, tmp_path):
    state = dict(model.state_dict())
    n = model.spec.num_tokens
    for i in range(2):
        state[f"transformer.blocks.{i}.attn.mask"] = torch.ones(n, n).tril().view(1, 1, n, n)
    state["first_stage_model.quantize.embedding.weight"] = torch.zeros(4, 2)
    torch.save({"state_dict": state, "global_step": 3, "epoch": 1}, tmp_path / "net2net.ckpt")
    other = tiny(weights=str(tmp_path / "net2net.ckpt"))
    torch.testing.assert_close(dict(other.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    with pytest.raises(ValueError, match="class_ids='shared'"):
        tiny(class_ids="own", weights=str(tmp_path / "net2net.ckpt"))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: m.generate([9]), r"labels must lie in 0..8, got 9..9"),
        (lambda m: m.generate([-1]), r"labels must lie in 0..8, got -1..-1"),
        (lambda m: m.generate(), "class-conditional: give labels in 0..8$"),
        (lambda m: m.generate(0, top_k=0), "top_k at least 1"),
        (lambda m: m.generate(0, top_p=1.5), r"top_p in \(0, 1\]"),
        (lambda m: m.generate(0, temperature=-1.0), "temperature must not be negative"),
        (lambda m: m.losses({"ids": torch.full((1, 64), 64), "label": torch.zeros(1).long()}), r"ids in 64\.\.64"),
        (lambda m: m.transformer(torch.zeros(1, 65).long()), "65 tokens, this network has 64 positions"),
        (lambda m: tiny(pkeep=0.0), "pkeep lie in"),
        (lambda m: tiny(num_classes=65), "set class_ids to 'own'"),
        (lambda m: tiny(tokenizer="beit_classifier_tiny:random"), "no discrete tokens"),
    ],
)
def test_one_sentence(model, call, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        call(model)
    assert "\n" not in str(caught.value)
