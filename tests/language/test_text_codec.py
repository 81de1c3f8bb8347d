"""Every tokenizer of text has the same interface."""

import pytest
import torch

from zoo.language.text_codec import PretrainedCodec, TextCodec
from zoo.language.tiny import character_tokenizer
from zoo.language.wordpiece import WordPiece
from zoo.tokens import Segment, Tokens, TokenSpec

CODECS = {
    "word pieces": WordPiece("characters"),
    "llama": PretrainedCodec(character_tokenizer()),
    "t5": PretrainedCodec(character_tokenizer(t5=True)),
}


@pytest.fixture(params=CODECS)
def codec(request):
    return CODECS[request.param]


def test_texts_come_back(codec):
    assert isinstance(codec, TextCodec)
    ids = codec.ids("a dog")
    assert codec.text((*codec.start, *ids, *codec.stop, codec.pad)) == "a dog"
    assert codec.text(()) == ""


def test_a_batch_is_framed_cut_and_padded(codec):
    ids, mask = codec.batch(["dog", "do", "a dog"], 5)
    frame = len(codec.start) + len(codec.stop)
    assert (ids.dtype, ids.shape, mask.shape) == (torch.int64, (3, 5), (3, 5))
    for row, kept, text in zip(ids.tolist(), mask.tolist(), ("dog", "do", "a dog"), strict=True):
        expected = [*codec.start, *codec.ids(text)[: 5 - frame], *codec.stop]
        assert row == expected + [codec.pad] * (5 - len(expected))
        assert kept == [1] * len(expected) + [0] * (5 - len(expected))
    assert codec.batch(["d"], 9)[0].shape == (1, frame + 1)
    assert codec.batch(["d"], 9, full=True)[0].shape == (1, 9)
    assert codec.batch([], 9)[0].shape == (0, 9)


def test_the_vocabulary_has_a_word_for_each_id(codec):
    assert len(codec.vocabulary) == codec.vocab_size
    words = [codec.vocabulary[i] for i in codec.ids("ab")]
    assert [codec.vocabulary.find(word) for word in words] == list(codec.ids("ab"))


def test_only_captions_need_words():
    assert PretrainedCodec(character_tokenizer()).batch([""], 3)[0].tolist() == [[1]]
    with pytest.raises(ValueError, match="caption 1 of the batch is '!!', which has no words: remove such images"):
        WordPiece("characters").batch(["a", "!!"], 5)


def test_what_stands_around_a_text():
    pieces = CODECS["word pieces"]
    assert [pieces.vocabulary[i] for i in (*pieces.start, *pieces.stop, pieces.pad)] == ["[CLS]", "[SEP]", "[PAD]"]
    assert pieces.vocabulary[pieces.start_id] == "[DEC]"
    assert (CODECS["llama"].start, CODECS["llama"].stop) == ((1,), ())
    assert (CODECS["t5"].start, CODECS["t5"].stop) == ((), (2,))
    with pytest.raises(ValueError, match="no mask token: take a masked language model's"):
        _ = CODECS["llama"].mask


def test_text_and_image_share_one_stream(codec):
    """DALL-E, Section 2.2: 256 ids of text, then those of the image, in one id space."""
    image = TokenSpec((Segment("grid", (2, 2), 0, 16),), dim=8)
    said = Tokens(codec.batch(["a dog", "dog"], 6, full=True)[0], None, codec.spec(6))
    drawn = Tokens(torch.arange(8).view(2, 4), None, image)
    both = Tokens.join(said, drawn, dim=32)
    assert both.spec.vocab_size == codec.vocab_size + 16
    assert both.spec.dim == 32
    assert both.ids[:, 6:].min() == codec.vocab_size
    text, picture = both.split(codec.spec(6), image)
    assert torch.equal(picture.ids, drawn.ids)
    assert codec.text(text.ids[0].tolist()) in ("a dog", "a do", "a d")
    assert text.words()[1][len(codec.start)] == "d"
