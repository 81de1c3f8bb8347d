"""Abilities are asked for by protocol, and what reads tokens takes those of its own kind alone."""

import pytest
import torch

import zoo
from zoo.tokens.abilities import BuiltOnTokenizer, KnowsClasses, Scorer, default_settings, image_size_of
from zoo.tokens.batch import repeated, rows_of

SCORERS = [n for n in zoo.list_models("*_tiny") if isinstance(zoo.create_model(n), Scorer)]


def test_the_image_size_of_a_second_stage_is_its_tokenizers():
    assert image_size_of(zoo.create_model("vqgan_tiny")) == 32
    assert image_size_of(zoo.create_model("seed_llm_tiny")) == image_size_of(zoo.create_model("seed_stage2_tiny")) == 32
    assert image_size_of(torch.nn.Linear(1, 1)) is None


def test_settings_say_how_and_not_what_is_drawn():
    def generate(labels=None, num_images=None, *, temperature=1.0, top_k=None, seed=None, generator=None):
        pass

    assert default_settings(generate) == {"temperature": 1.0, "top_k": None}


def test_an_ability_is_had_by_its_methods():
    model = zoo.create_model("maskgit_tiny")
    assert isinstance(model, BuiltOnTokenizer)
    assert isinstance(model, KnowsClasses)
    assert not isinstance(model, Scorer)
    assert not isinstance(None, KnowsClasses)


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_refuses_tokens_of_another_kind_in_one_sentence(name):
    model = zoo.create_model(name).eval()
    spec, texts = model.spec, ["a cat", "a dog"]
    ids = torch.zeros(2, spec.num_tokens, dtype=torch.int64)
    vectors = torch.zeros(2, spec.num_tokens, spec.dim + 1)
    segments = (zoo.Segment("other", (spec.num_tokens,), size=spec.vocab_size + 1),)
    wrong = {
        True: [(zoo.Tokens(None, vectors, spec), "reads ids, and these tokens have none"),
               (zoo.Tokens(ids, None, zoo.TokenSpec(segments, dim=4)), "and these tokens are of")],
        False: [(zoo.Tokens(ids, None, spec), "reads vectors, and these tokens have none"),
                (zoo.Tokens(None, vectors, spec), f"of width {spec.dim}, and these have {spec.dim + 1}")],
    }  # fmt: skip
    for tokens, said in wrong[spec.vocab_size > 0]:
        with pytest.raises(ValueError, match=said) as caught:
            model.log_likelihood(tokens, texts)
        assert str(caught.value).endswith("take those of its own encode")
        assert type(model).__name__ in str(caught.value)


def test_rows_are_the_batch_again():
    spec = zoo.TokenSpec((zoo.Segment("one", (3,), size=9),), dim=2)
    tokens = zoo.Tokens(torch.arange(6).view(2, 3), torch.randn(2, 3, 2), spec)
    first, second = rows_of(tokens)
    torch.testing.assert_close(torch.cat([first.ids, second.ids]), tokens.ids)
    torch.testing.assert_close(torch.cat([first.embeddings, second.embeddings]), tokens.embeddings)
    three = repeated(second, 3)
    assert three.ids.tolist() == [[3, 4, 5]] * 3
    assert three.embeddings.shape == (3, 3, 2)
    assert [row.embeddings for row in rows_of(zoo.Tokens(tokens.ids, None, spec))] == [None, None]
