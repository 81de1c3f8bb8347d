"""Settings of a codebook: words that are not known are refused also where nobody checks types."""

from types import SimpleNamespace

import pytest

from zoo.quantizers.by_name import make_quantizer
from zoo.quantizers.codebook import QUANTIZERS, Codebook

SIZES = {"fsq": {"vocab_size": 8, "width": 3, "levels": (2, 2, 2)}, "lfq": {"vocab_size": 8, "width": 3}}


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"quantizer": "emma"}, r"codebook\.quantizer cannot be 'emma': did you mean 'ema'"),
        ({"init": "k-means"}, r"codebook\.init cannot be 'k-means': did you mean 'kmeans'"),
        ({"vocab_size": 2.5}, r"codebook\.vocab_size must be a whole number of at least 1, got 2.5"),
        ({"beta": float("nan")}, r"codebook\.beta must be a number of at least 0, got nan"),
    ],
)
def test_unknown_words_are_refused(setting, sentence):
    with pytest.raises(ValueError, match=sentence):
        Codebook.__post_init__(SimpleNamespace(**vars(Codebook()) | setting))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_quantizer_is_built_with_its_sizes(name):
    sizes = SIZES.get(name, {"vocab_size": 8, "width": 4})
    quantizer = make_quantizer(Codebook(**sizes, quantizer=name))
    assert (quantizer.vocab_size, quantizer.dim) == (8, sizes["width"])
