"""MaskGIT without a number of heads takes the one of its weights, which no tensor of most layouts shows."""

import pytest
import torch
from published_folders import google_maskgit
from safetensors.torch import save_file
from toys import BlurredImageData, quiet_trainer

import zoo
from zoo.checkpoints.export import save_weights
from zoo.models.maskgit import MaskGIT

TINY = {"tokenizer": "dvae_tiny:random", "num_classes": 9, "depth": 1}


def stirred(width, heads, layout="google"):
    torch.manual_seed(0)
    model = zoo.create_model("maskgit_tiny", width=width, depth=1, heads=heads, layout=layout, class_dropout=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def written(model, kind, folder):
    """The weights in a layout that MaskGIT reads."""
    path, heads = folder / f"{kind}.safetensors", model.hparams["heads"]
    if kind == "google":
        save_file(google_maskgit(model.state_dict(), heads), path)
    elif kind == "valeoai":
        save_file({name.removeprefix("network."): value for name, value in model.state_dict().items()}, path)
    elif kind == "ours without a description":
        save_file(model.state_dict(), path)
    elif kind == "exported":
        return str(save_weights(model, path))
    else:
        trainer = quiet_trainer(folder, max_steps=0)
        trainer.fit(model, BlurredImageData(image_size=32))
        trainer.save_checkpoint(path := folder / "last.ckpt")
        model.eval()
    return str(path)


def logits(model):
    ids = torch.arange(64).view(1, 64) % 64
    with torch.no_grad():
        return model.eval().network(ids, torch.tensor([3]))


WAYS = {
    "constructor": lambda path, **sizes: MaskGIT(**TINY, **sizes, heads=None, weights=path),
    "create_model": lambda path, **sizes: zoo.create_model(
        "maskgit_tiny", weights=path, depth=1, class_dropout=0.0, heads=None, **sizes
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["google", "exported", "checkpoint"])
@pytest.mark.parametrize(("width", "heads"), [(24, 3), (24, 1), (32, 4)])  # 16 divides the last, and is not taken
def test_the_number_of_the_weights_is_taken(way, kind, width, heads, tmp_path):
    model = stirred(width, heads)
    found = WAYS[way](written(model, kind, tmp_path), width=width)
    assert found.init_args()["heads"] == heads
    torch.testing.assert_close(logits(found), logits(model))
    again = zoo.create_model(f"ckpt:{save_weights(found, tmp_path / 'again.safetensors')}")
    assert again.init_args()["heads"] == heads


def test_of_the_other_layout_a_description_tells_as_well(tmp_path):
    model = stirred(24, 3, "valeoai")
    path = written(model, "exported", tmp_path)
    found = zoo.create_model("maskgit_tiny", weights=path, width=24, depth=1, heads=None, layout="valeoai")
    assert found.init_args()["heads"] == 3
    torch.testing.assert_close(logits(found), logits(model))


@pytest.mark.parametrize("kind", ["valeoai", "ours without a description"])
@pytest.mark.parametrize("way", WAYS)
def test_where_nothing_tells_the_published_number_is_taken_if_it_can_be(kind, way, tmp_path):
    layout = "valeoai" if kind == "valeoai" else "google"
    path = written(stirred(32, 16, layout), kind, tmp_path)
    assert WAYS[way](path, width=32, layout=layout).init_args()["heads"] == 16
    path = written(stirred(24, 3, layout), kind, tmp_path)
    sentence = (  # one line
        f"^{path} does not say how many attention heads its weights have, and the 16 of the published ones do not "
        "divide width 24: set heads$"
    )
    with pytest.raises(ValueError, match=sentence):
        WAYS[way](path, width=24, layout=layout)


def test_without_weights_the_width_has_to_fit_the_published_number():
    with pytest.raises(ValueError, match=r"^width 24 is not divisible by the 16 heads .*: set heads, or start from"):
        MaskGIT(**TINY, width=24)
    with pytest.raises(ValueError, match="set heads"):
        zoo.create_model("maskgit_tiny", width=24, heads=None)
    assert [layer.heads for layer in MaskGIT(**TINY, width=32).network.layers] == [16]


@pytest.mark.parametrize("kind", ["google", "exported"])
def test_a_number_that_is_given_is_not_replaced(kind, tmp_path):
    path = written(stirred(24, 3), kind, tmp_path)
    if kind == "google":
        with pytest.raises(ValueError, match="the weights have 3 attention heads, the model 4: set heads to 3 or None"):
            MaskGIT(**TINY, width=24, heads=4, weights=path)
    else:
        with pytest.warns(UserWarning, match="was trained with heads 3, and this model has 4"):
            assert MaskGIT(**TINY, width=24, heads=4, weights=path).init_args()["heads"] == 4


def test_a_number_in_a_description_that_does_not_divide_the_width_is_refused(tmp_path):
    model = stirred(24, 3)
    model.hparams["heads"] = 5
    path = written(model, "exported", tmp_path)
    with pytest.raises(ValueError, match="width 24 is not divisible by 5 heads"):
        MaskGIT(**TINY, width=24, weights=path)


def test_the_command_line_takes_the_number_of_the_weights(tmp_path, run_cli, caplog):
    path = written(stirred(24, 3), "google", tmp_path)
    code, out, err = run_cli(
        "validate", "--model=MaskGIT", "--model.tokenizer=dvae_tiny:random", "--model.num_classes=9",
        "--model.width=24", "--model.depth=1", f"--model.weights={path}", "--data=EmojiData", "--data.image_size=32",
        "--trainer.limit_val_batches=1", "--trainer.accelerator=cpu", "--trainer.logger=false",
    )  # fmt: skip
    assert code == 0, err
    assert "val/loss" in out
    assert "3 attention heads, as the weights have" in caplog.text
