"""Headers of token shards: they give back what the tokens are."""

import json
from dataclasses import replace

import pytest
from torch import nn

import zoo
from zoo.tokens import Segment, TokenSpec, Vocabulary
from zoo.tokens.shards import check_tokenizer, make_header, read_header, spec_from_header, write_header

DISCRETE = [n for n in zoo.list_models("*_tiny") if (spec := zoo.model_info(n).spec) is not None and spec.vocab_size]
WORDS = TokenSpec(
    (Segment("global", (3,), 0, 5), Segment("local", (2, 2), 5, 7)), dim=3, order="set", vocabulary="words",
    word_list=Vocabulary([f"word {i}" for i in range(12)], "few"),
)  # fmt: skip
PYRAMID = TokenSpec((Segment("a", (1, 1), 0, 9), Segment("b", (2, 2), 0, 9)), dim=2, order="pyramid")
OLD = ("dim", "order", "decodes", "prefix_of", "vocabulary")


class Encoder(nn.Linear):
    def __init__(self, spec):
        super().__init__(1, 1)
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        self.spec = spec


def written(folder, spec, **options):
    write_header(folder, make_header(Encoder(spec), split="train", count=0, **options))
    return read_header(folder)


@pytest.mark.parametrize("name", DISCRETE)
def test_the_spec_of_every_tokenizer_comes_back(name, tmp_path):
    spec = zoo.model_info(name).spec
    assert spec_from_header(written(tmp_path, spec)) == spec


@pytest.mark.parametrize("spec", [WORDS, PYRAMID.first(1), TokenSpec.join(PYRAMID, replace(WORDS, dim=2))])
def test_specs_of_words_beginnings_and_streams_come_back(spec, tmp_path):
    assert spec_from_header(written(tmp_path, spec)) == spec


def test_the_spec_is_that_of_the_image_size_of_the_dump(tmp_path):
    spec = TokenSpec((Segment("grid", (2, 2), 0, 4),), dim=1)
    header = make_header(Encoder(spec), split="train", count=0, spec=spec.with_grid((4, 4)))
    assert spec_from_header(header) == spec.with_grid((4, 4))


def test_words_are_named_and_not_listed(tmp_path):
    header = written(tmp_path, WORDS)
    assert header["vocabulary"] == {
        "kind": "words", "name": "few", "size": 12, "fingerprint": WORDS.words.fingerprint,
    }  # fmt: skip
    assert "word 3" not in json.dumps(header)
    with pytest.raises(ValueError, match="the words of few are not here, only their fingerprint: take the spec of the"):
        _ = spec_from_header(header).words[0]


def test_tokens_of_other_words_are_refused(tmp_path):
    header = written(tmp_path, WORDS)
    check_tokenizer(header, Encoder(WORDS))
    other = replace(WORDS, word_list=[f"other {i}" for i in range(12)])
    with pytest.raises(ValueError, match=r"written by .*Encoder with other words \(fingerprint \w{12}\) than this"):
        check_tokenizer(header, Encoder(other))


def test_headers_of_earlier_versions_stay_readable(tmp_path):
    header = make_header(Encoder(WORDS), split="train", count=0)
    write_header(tmp_path, {name: value for name, value in header.items() if name not in OLD})
    old = read_header(tmp_path)
    check_tokenizer(old, Encoder(WORDS))
    with pytest.raises(
        ValueError, match="does not say vocabulary, as those of earlier versions: take the spec of"
    ) as e:
        spec_from_header(old)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "broken", [{"vocabulary": 3}, {"segments": [4]}, {"segments": None}, {"dim": None, "order": 7}]
)
def test_headers_that_somebody_edited_end_with_one_sentence(broken):
    header = make_header(Encoder(WORDS), split="train", count=0) | broken
    with pytest.raises(ValueError, match="the header of these token shards") as e:
        spec_from_header(header)
    assert "\n" not in str(e.value)
