"""Tokenizers whose tokens are words, in the forms of LQAE, SPAE and V2L: toys that use no more than the interface."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zoo
from zoo import presets
from zoo.language.by_name import find_masked_language_model, find_vocabulary
from zoo.optim import Optim
from zoo.tokens import Segment, Tokens, TokenSpec, as_pixels
from zoo.tokens.allowed import allowed_ids
from zoo.tokens.shards import make_header, spec_from_header

SIDE = 4


class Words(zoo.ZooModule):
    """Patches of 4 x 4 pixels, projected to the width of words and back."""

    def __init__(self, image_size: int = 8, optim: Optim = Optim(lr=1e-3)):
        super().__init__(optim)
        self.image_size = image_size
        torch.manual_seed(0)
        self.into, self.out = nn.Conv2d(3, 32, SIDE, SIDE), nn.ConvTranspose2d(32, 3, SIDE, SIDE)

    def features(self, images):
        return self.into(as_pixels(images, multiple_of=SIDE))

    def pixels(self, vectors):
        return self.out(vectors).sigmoid()

    def embed(self, ids):
        return F.embedding(ids, self.codebook)

    def losses(self, batch):
        return {"loss": self.pixels(self.features(batch["image"])).mean()}


class Pyramid(Words):
    """SPAE: levels of 1 and 2 x 2 tokens of one vocabulary, streaming average quantization, any-length decoding."""

    def __init__(self, image_size: int = 8, optim: Optim = Optim(lr=1e-3)):
        super().__init__(image_size, optim)
        words = find_vocabulary("tiny_words")
        self.register_buffer("codebook", words.vectors.clone(), persistent=False)
        levels = tuple(Segment(f"level_{i}", (side, side), size=len(words)) for i, side in enumerate((1, 2)))
        self.spec = TokenSpec(levels, words.width, "pyramid", "words", word_list=words)

    def encode(self, images):
        z = self.features(images)
        first = torch.cdist(z.mean((2, 3)), self.codebook).argmin(1)
        rest = (2 * z - self.embed(first)[..., None, None]).flatten(2).transpose(1, 2)
        return Tokens(torch.cat([first[:, None], torch.cdist(rest, self.codebook).argmin(2)], dim=1), None, self.spec)

    def decode(self, tokens):
        assert tokens.spec == self.spec.first(tokens.spec.num_tokens)
        levels = [self.embed(grid).permute(0, 3, 1, 2) for grid in tokens.grids().values()]
        return self.pixels(sum(F.interpolate(level, size=(2, 2)) for level in levels) / len(levels))


class Masked(Words):
    """LQAE: the words of a masked language model, whose hidden states are decoded."""

    def __init__(self, image_size: int = 8, optim: Optim = Optim(lr=1e-3)):
        super().__init__(image_size, optim)
        self.add_frozen("language", find_masked_language_model("tiny_roberta"), role="ids")
        language = self.frozen["language"]
        grid = Segment("grid", (2, 2), size=language.vocab_size)
        self.spec = TokenSpec((grid,), language.width, vocabulary="words", word_list=language.vocabulary)

    @property
    def codebook(self):
        return self.frozen["language"].vectors

    def encode(self, images):
        z = F.normalize(self.features(images).flatten(2).transpose(1, 2), dim=-1)
        return Tokens((z @ F.normalize(self.codebook, dim=-1).T).argmax(2), None, self.spec)

    def decode(self, tokens):
        language = self.frozen["language"]
        hidden = language(self.embed(tokens.ids), positions=language.positions_of(tokens.ids))
        return self.pixels(hidden.transpose(1, 2).unflatten(2, (2, 2)))

    def losses(self, batch):
        ids, language = self.encode(batch["image"]).ids, self.frozen["language"]
        hidden = torch.tensor([True, False, True, False]).expand(ids.shape)
        read = torch.where(hidden[..., None], language.mask_vector, language.embed(ids))
        guessed = language.score(language(read), ids.masked_fill(~hidden, -100))
        return {"loss": super().losses(batch)["loss"] + 1e-4 * guessed.sum() / hidden.sum()}


class GlobalLocal(Words):
    """V2L: words of the image and words of its patches, in one id space."""

    def __init__(self, image_size: int = 8, optim: Optim = Optim(lr=1e-3)):
        super().__init__(image_size, optim)
        words = find_vocabulary("tiny_words")
        both = words + words
        self.register_buffer("codebook", both.vectors.clone(), persistent=False)
        local = Segment("local", (2, 2), offset=len(words), size=len(words))
        self.spec = TokenSpec(
            (Segment("global", (3,), size=len(words)), local), words.width, "set", "words", word_list=both
        )

    def encode(self, images):
        z, few = self.features(images), self.spec.segment("global").size
        nearest = torch.cdist(z.mean((2, 3)), self.codebook[:few]).topk(3, largest=False).indices
        local = torch.cdist(z.flatten(2).transpose(1, 2), self.codebook[few:]).argmin(2) + few
        return Tokens(torch.cat([nearest, local], dim=1), None, self.spec)

    def decode(self, tokens):
        return self.pixels(self.embed(tokens.grid("local")).permute(0, 3, 1, 2))


TOYS = {"pyramid_toy": Pyramid, "masked_toy": Masked, "global_local_toy": GlobalLocal}


@pytest.fixture(params=TOYS)
def name(request):
    zoo.register(request.param, TOYS[request.param], paper="none")
    yield request.param
    del presets._PRESETS[request.param]


def images(count=2):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def test_words_go_around(name):
    model = zoo.create_model(name).eval()
    tokens = model.encode(images())
    assert torch.equal(Tokens.from_words(tokens.words(), model.spec).ids, tokens.ids)
    assert model.decode(tokens).shape == (2, 3, 8, 8)
    assert model.embed(tokens.ids).shape == (2, model.spec.num_tokens, model.spec.dim)
    assert zoo.model_info(name).spec == model.spec
    assert spec_from_header(make_header(model, split="train", count=2)) == model.spec
    assert model.losses({"image": images()})["loss"].isfinite()


@pytest.mark.parametrize("stage", ["ar_transformer_tiny", "maskgit_tiny"])
def test_second_stages_train_on_words_and_write_them(name, stage):
    model = zoo.create_model(stage, tokenizer=f"{name}:random")
    batch = {"image": images(), "label": torch.tensor([0, 1])}
    loss = model.losses(batch)["loss"]
    loss.backward()
    assert loss.isfinite()
    tokens = model.eval().generate([0, 1], as_tokens=True)
    assert [len(words) for words in tokens.words()] == [model.spec.num_tokens] * 2


def test_a_pyramid_decodes_after_every_level():
    model = Pyramid().eval()
    tokens = model.encode(images())
    drawn = [model.decode(tokens.first(n)) for n in model.spec.prefix_lengths]
    assert torch.equal(drawn[-1], model.decode(tokens))
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3
    assert drawn[0][0, :, :SIDE, :SIDE].equal(drawn[0][0, :, SIDE:, SIDE:]), "one word for the whole image"


def test_words_of_two_vocabularies_stay_in_their_segments():
    model = GlobalLocal()
    allowed = allowed_ids(model.spec)
    size = model.spec.segment("local").offset
    assert allowed[:3].sum(1).tolist() == [size] * 3
    assert allowed[3:, size:].all(), "local words"
    assert not allowed[3:, :size].any(), "no global ones"
