"""Every data set of every data module is used as a list is: loops end, negative places count from the end."""

import itertools
import json

import jaxtyping
import pytest
import torch
from PIL import Image

import datamodules
from datamodules.base import Samples
from zoo.tokens.shards import write_header, write_shard


def folder(root):
    for i in range(9):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(root / "ab"[i % 2] / f"{i}.png")
    return datamodules.ImageFolderData(str(root), image_size=8, train_transform="none", val_fraction=0.3)


def captions(root):
    folder(root)
    records = [{"image": f"{'ab'[i % 2]}/{i}.png", "caption": ["x", "y"]} for i in range(9)]
    (root / "a.json").write_text(json.dumps(records))
    return datamodules.CaptionData(str(root), str(root / "a.json"), 8, train_transform="none", val_fraction=0.3)


def conversations(root):
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]
    (root / "a.json").write_text(json.dumps([{"id": str(i), "conversations": turns} for i in range(9)]))
    return datamodules.ConversationData(str(root), str(root / "a.json"), image_size=8, val_fraction=0.3)


def tokens(root):
    for split, sizes in (("train", (4, 3)), ("val", (2, 3))):
        first = 0
        for number, size in enumerate(sizes):
            index = torch.arange(first, first + size)
            write_shard(root / split, index[:, None].expand(-1, 4), index, number=number)
            first += size
        header = {"format": 1, "num_tokens": 4, "vocab_size": 16, "count": sum(sizes), "model": "", "class": "x"}
        header |= {"fingerprint": "x", "precision": "float32"}
        write_header(root / split, header)
    return datamodules.TokenData(str(root))


MAKERS = {
    "ImageFolderData": folder,
    "CaptionData": captions,
    "ConversationData": conversations,
    "TokenData": tokens,
    "PhotoData": lambda root: datamodules.PhotoData(image_size=32, crops_per_epoch=20),
    "EmojiData": lambda root: datamodules.EmojiData(image_size=16, conversations=True),
}


def test_every_data_module_is_looked_at():
    assert set(MAKERS) == set(datamodules.__all__) - {"ZooDataModule"}


@pytest.mark.parametrize("name", MAKERS)
def test_views_and_training_sets_are_used_as_lists_are(name, tmp_path):
    data = MAKERS[name](tmp_path)
    data.setup()
    for split in ("train", "val", "test", "all"):
        view = data.view(split)
        size = len(view)
        first = [int(s["index"]) for s in itertools.islice(view, size + 1)]
        assert len(first) == size > 0, "the loop ends where the data ends"
        assert int(view[-1]["index"]) == first[-1]
        assert int(view[-size]["index"]) == first[0]
        assert [int(s["index"]) for s in view[-2:]] == first[-2:]
        assert [int(s["index"]) for s in view[: size + 5 : max(1, size // 3)]] == first[:: max(1, size // 3)]
        for beyond in (size, size + 1, -size - 1):
            with pytest.raises(IndexError, match=f"the data set has {size}"):
                view[beyond]
    for dataset in (data.train, data.val, data.test):
        assert isinstance(dataset, Samples)
        assert sum(1 for _ in itertools.islice(dataset, 10_000)) == len(dataset)


@pytest.mark.parametrize("name", MAKERS)
def test_a_view_needs_no_setup_and_a_split_that_is_none_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside of the tests
    data = MAKERS[name](tmp_path)
    assert len(data.view("val")) > 0
    with pytest.raises(ValueError, match="split cannot be 'vall': did you mean 'val'"):
        data.view("vall")
