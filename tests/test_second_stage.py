"""What second stages refuse: tokens at other places, ids of nothing, labels that are none."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zoo
from zoo.registry import Reference
from zoo.sampling.image_masks import box_mask
from zoo.second_stage import SecondStage


@pytest.fixture(scope="module", params=["maskgit_tiny", "ar_transformer_tiny"])
def model(request):
    return zoo.create_model(request.param).eval()


def one_sentence(error):
    return "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tokenizer", "size", "layouts"),
    [("dvae_tiny", (16, 64), "8x8, not 4x16"), ("vqvae2_tiny", (16, 64), "4x4 and 8x8, not 2x8 and 4x16")],
)
def test_as_many_tokens_in_another_layout_are_refused(tokenizer, size, layouts):
    model = zoo.create_model("ar_transformer_tiny", tokenizer=f"{tokenizer}:random")
    batch = {"image": torch.rand(2, 3, *size), "label": torch.tensor([0, 1])}
    assert model.tokenizer.encode(batch["image"]).ids.shape[1] == model.spec.num_tokens
    with pytest.raises(
        ValueError, match=rf"images of 16x64 give (\d+) tokens, .* for \1 in another .*\({layouts}\)"
    ) as e:
        model.losses(batch)
    assert one_sentence(e)


def test_parts_of_images_in_another_layout_are_refused():
    maskgit, images = zoo.create_model("maskgit_tiny").eval(), torch.rand(1, 3, 16, 64)
    with pytest.raises(ValueError, match="images of 16x64 give 64 tokens"):
        maskgit.inpaint(images, torch.ones(16, 64, dtype=torch.bool), 0)
    with pytest.raises(ValueError, match="images of 16x64 give 64 tokens"):
        maskgit.edit(images, 0, box=(0, 0, 8, 8))


@pytest.mark.parametrize("strange", [-1, 64])
def test_ids_outside_of_the_vocabulary_are_refused(model, strange):
    ids = torch.randint(64, (2, 64))
    ids[1, 5] = strange
    low, high = min(strange, int(ids.min())), max(strange, int(ids.max()))
    with pytest.raises(ValueError, match=rf"ids in {low}\.\.{high}; this model needs 64 ids in 0\.\.63") as e:
        model.losses({"ids": ids, "label": torch.tensor([0, 1])})
    assert one_sentence(e)


# ---------------------------------------------------------------- what is asked for


@pytest.mark.parametrize("labels", ["cat", 2.7, [1, 2.0], torch.tensor([0.5]), [[0, 1], [2]], [], [True, False]])
def test_labels_that_are_no_whole_numbers_are_refused(model, labels):
    with pytest.raises(ValueError, match=r"labels are whole numbers, a class in 0\.\.8 for each image, got ") as e:
        model.generate(labels)
    assert one_sentence(e)


def test_labels_of_other_libraries_are_taken(model):
    import numpy as np

    for labels in (np.array([1, 2]), (1, 2), torch.tensor([[1], [2]], dtype=torch.uint8)):
        assert len(model.generate(labels, as_tokens=True)) == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"guidance": float("nan")}, "guidance must be a finite number, got nan"),
        ({"guidance": float("inf")}, "guidance must be a finite number, got inf"),
        ({"choice_temperature": float("nan")}, "temperatures must not be negative, and finite, got nan"),
        ({"sampling_temperature": float("inf")}, "temperatures must not be negative, and finite, got 4.5 .* inf"),
    ],
)
def test_numbers_that_are_none_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence) as e:
        zoo.create_model("maskgit_tiny").generate(0, **options)
    assert one_sentence(e)


@pytest.mark.parametrize("temperature", [float("nan"), float("inf"), -1.0])
def test_temperatures_that_are_none_are_refused(temperature):
    with pytest.raises(ValueError, match=f"temperature must not be negative, and finite, .* got {temperature}"):
        zoo.create_model("ar_transformer_tiny").generate(0, temperature=temperature)


def test_an_unknown_option_of_sampling_gets_the_nearest():
    maskgit, images = zoo.create_model("maskgit_tiny").eval(), torch.rand(1, 3, 32, 32)
    hidden = torch.ones(32, 32, dtype=torch.bool)
    for call in (
        lambda **options: maskgit.generate(0, **options),
        lambda **options: maskgit.inpaint(images, hidden, 0, **options),
        lambda **options: maskgit.edit(images, 0, mask=hidden, **options),
        lambda **options: maskgit.outpaint(images, "up", 8, 0, **options),
        lambda **options: maskgit.decoding_steps(0, **options),
    ):
        with pytest.raises(
            TypeError, match=r"sampling takes no 'seeds': did you mean seed\? it takes steps, start, "
        ) as e:
            call(seeds=8)
        assert one_sentence(e)


@pytest.mark.parametrize("box", [(0, 0, 8), (0, 0, 8.0, 8), (0.5, 0, 8, 8), "0088", (0, 0, 8, 8, 8)])
def test_a_box_is_four_whole_numbers(box):
    spec = zoo.create_model("vqgan_tiny").spec
    with pytest.raises(
        ValueError, match=r"a box is four whole numbers of pixels, \(top, left, height, width\), got"
    ) as e:
        box_mask(spec, box, (32, 32))
    assert one_sentence(e)
    with pytest.raises(ValueError, match="a box is four whole numbers"):
        zoo.create_model("maskgit_tiny").edit(torch.rand(1, 3, 32, 32), 0, box=box)


@pytest.mark.parametrize("reference", [None, 3, torch.nn.Linear(1, 1)])
def test_a_model_is_named_by_a_string(reference):
    kind = type(reference).__name__
    with pytest.raises(TypeError, match=f"named by a string, not by a {kind}: write 'dvae_emoji'") as e:
        Reference.parse(reference)
    assert one_sentence(e)


ROOT = Path(__file__).parents[1]
OUTSIDE = """
import warnings; warnings.simplefilter("ignore")
import zoo
dvae = zoo.create_model("dvae_tiny")
for name in ("maskgit_tiny", "ar_transformer_tiny"):
    for options in ({"tokenizer": None}, {"tokenizer": dvae}, {"heads": 0}, {"heads": -2}):
        try:
            zoo.create_model(name, **options)
        except Exception as error:
            print(type(error).__name__, error)
try:
    zoo.create_model("maskgit_tiny", heads=0, layout="valeoai")
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_constructors_refuse_in_one_sentence():
    """In a process of its own: the annotations that the tests enforce would catch these first."""
    done = subprocess.run([sys.executable, "-c", OUTSIDE], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 9
    for i, line in enumerate(lines[:8]):
        wanted = ("TypeError a model is named by a string, not by a", "ValueError width 32 is not divisible by")[
            i % 4 > 1
        ]
        assert line.startswith(wanted), line
    assert lines[0].count("NoneType") == lines[1].count("DVAE") == 1
    assert lines[8] == "ValueError width 32 is not divisible by 0 heads"


# ---------------------------------------------------------------- the class that they share


class Unigram(SecondStage):
    """Learns how often each id stands at each position: as little as a second stage can be.

    Args:
        tokenizer: whose ids are counted.
        num_classes: of the condition; 0 for none.
    """

    def __init__(self, tokenizer: str = "dvae_tiny:random", num_classes: int = 0):
        super().__init__()
        self.num_classes = num_classes
        self.add_tokenizer(tokenizer)
        self.add_allowed_ids()
        self.scores = torch.nn.Parameter(torch.zeros(self.spec.num_tokens, self.spec.vocab_size))

    def losses(self, batch):
        target = self.tokenize(batch)
        self.labels_of(batch)
        logits = self.keep_allowed(self.scores.expand(len(target), -1, -1))
        return {"loss": torch.nn.functional.cross_entropy(logits.transpose(1, 2), target)}


@pytest.mark.parametrize("tokenizer", ["dvae_tiny", "vqvae2_tiny", "seed_stage2_tiny"])
def test_a_second_stage_is_a_network_and_its_losses(tokenizer):
    model = Unigram(f"{tokenizer}:random")
    tower, images = model.frozen["tokenizer"], torch.rand(2, 3, 32, 32)
    tokens = model.encode(images)
    assert torch.equal(tokens.ids, tower.encode(images).ids)
    assert model.spec == tower.spec
    assert torch.equal(model.embed(tokens.ids), tower.embed(tokens.ids))
    assert torch.equal(model.decode(tokens), tower.decode(tokens))
    assert list(model.state_dict()) == ["scores"]
    sizes = [segment.size for segment in model.spec.segments for _ in range(segment.num_tokens)]
    expected = sum(math.log(size) for size in sizes) / len(sizes)
    assert model.losses({"image": images})["loss"].item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="neither 'ids' nor 'image', but label, and Unigram reads tokens of"):
        model.losses({"label": torch.zeros(2)})


def test_allowed_ids_follow_the_order_of_prediction():
    model = Unigram("vqvae2_tiny:random")
    as_it_is, order = model.allowed, torch.arange(model.spec.num_tokens - 1, -1, -1)
    model.add_allowed_ids(order)
    assert torch.equal(model.allowed, as_it_is.flip(0))
    assert not torch.equal(model.allowed, as_it_is)


def test_classes_are_read_where_the_model_has_some():
    model, images = Unigram(num_classes=3), torch.rand(2, 3, 32, 32)
    assert model.losses({"image": images, "label": torch.tensor([0, 2])})["loss"] > 0
    with pytest.raises(ValueError, match="no 'label', but image, and Unigram has 3 classes"):
        model.losses({"image": images})
    labels, count = model.wanted_labels(1, 4)
    assert (labels.tolist(), count) == ([1, 1, 1, 1], 4)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2"):
        model.wanted_labels(-1, 4)
    model.has_null = True
    assert model.wanted_labels(-1, 1)[0].tolist() == [-1]


@pytest.mark.parametrize("cls", [zoo.MaskGIT, zoo.ARTransformer, zoo.SEEDLLM, zoo.BEiT])
def test_what_second_stages_share_is_written_once(cls):
    assert issubclass(cls, SecondStage)
    own = {"tokenizer", "encode", "decode", "embed", "tokenize"} & set(vars(cls))
    assert own == ({"encode", "tokenize"} if cls is zoo.BEiT else set()), "BEiT predicts its own ids"
