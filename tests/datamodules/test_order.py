"""The order of the training images, and that every data module can be entered in the middle of an epoch."""

import json
import random
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import CaptionData, ConversationData, EmojiData, ImageFolderData, PhotoData, TokenData
from datamodules.order import OwnNoise, TrainOrder
from datamodules.transforms import TrainTransform
from zoo.distributed import keep_rng_states


def indices(order):
    return [index for index, _ in order]


def test_an_epoch_holds_every_image_once_in_whole_batches_on_all_ranks():
    for size, batch, ranks in ((21, 4, 1), (21, 2, 3), (8, 8, 1), (7, 1, 2)):
        orders = [TrainOrder(size, batch, 3, ranks, rank) for rank in range(ranks)]
        seen = [indices(order) for order in orders]
        assert {len(s) for s in seen} == {size // (batch * ranks) * batch}
        every = list(chain.from_iterable(seen))
        assert len(set(every)) == len(every)
        assert set(every) <= set(range(size))


def test_order_and_seeds_depend_on_seed_and_epoch_alone():
    def epoch(seed, number):
        order = TrainOrder(20, 4, seed)
        order.set_epoch(number)
        return list(order)

    order = TrainOrder(20, 4, 1)
    assert [list(order), list(order)] == [epoch(1, 0), epoch(1, 1)]
    places = [dict(epoch(seed, number)) for seed in (1, 2) for number in (0, 1)]
    assert len({tuple(p) for p in places}) == 4
    assert len({p[7] for p in places}) == 4  # an image is augmented anew in each epoch


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_epoch_that_is_entered_goes_on_with_the_rest(ranks):
    whole = [list(TrainOrder(22, 2, 5, ranks, rank)) for rank in range(ranks)]
    for batches in range(22 // (2 * ranks) + 1):
        for rank in range(ranks):
            order = TrainOrder(22, 2, 5, ranks, rank)
            order.go_on(0, batches * 2 * ranks, 5)
            assert order.skipped(0) == batches
            assert len(order) == len(whole[rank])
            assert order.seen(0, batches + 1) == (batches + 1) * 2 * ranks
            assert list(order) == whole[rank][batches * 2 :]
            assert len(list(order)) == len(whole[rank])  # the next epoch is a whole one


@pytest.mark.parametrize(("ranks", "batch"), [(1, 3), (2, 2), (4, 1), (2, 3)])
def test_other_processes_and_batch_sizes_divide_the_images_that_are_left(ranks, batch):
    first = indices(TrainOrder(24, 4, 5))[:12]
    rest = []
    for rank in range(ranks):
        order = TrainOrder(24, batch, 5, ranks, rank)
        order.go_on(0, 12, 5)
        assert len(order) == len(TrainOrder(24, batch, 5, ranks, rank))  # Lightning counts all epochs by the first
        rest += indices(order)
    assert sorted(first + rest) == list(range(24))


class Drawing(torch.utils.data.Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, i):
        return torch.rand(()).item(), np.random.rand(), random.random()  # noqa: NPY002


def test_augmentation_leaves_the_generators_alone_and_follows_its_seed():
    data = OwnNoise(Drawing())
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = data.__getitems__([(0, 11), (3, 12)])
    assert torch.equal(state[0], torch.get_rng_state())
    assert (state[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    state = random.getstate()
    with keep_rng_states():
        random.random()
    assert state == random.getstate()
    assert data[(3, 12)] == second
    assert data[(4, 11)] == first != second
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert data[0] == data[0] != data[1]  # a place without a seed is augmented alike each time


# ---------------------------------------------------------------- every data module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images with captions, conversations and tokens."""
    root = tmp_path_factory.mktemp("data")
    generator = torch.Generator().manual_seed(0)
    names = [f"{'ab'[i % 2]}/{i:02}.png" for i in range(14)]
    for name in names:
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (40, 44, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(root / "images" / name)
    captions = [{"image": name, "caption": [f"one {name}", f"two {name}"]} for name in names]
    (root / "captions.json").write_text(json.dumps(captions))
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
    (root / "talk.json").write_text(json.dumps([{"id": name, "image": name, "conversations": turns} for name in names]))
    return root


def make(kind, folder, **options):
    images = str(folder / "images")
    if kind in TrainTransform.__args__:
        return ImageFolderData(images, 32, train_transform=kind, **options)
    if kind == "captions":
        return CaptionData(images, str(folder / "captions.json"), 32, **options)
    if kind == "conversations":
        return ConversationData(images, str(folder / "talk.json"), 32, train_transform="finetune", **options)
    if kind == "photos":
        return PhotoData(32, crops_per_epoch=14, **options)
    if kind == "emoji":
        data = EmojiData(32, background="random", conversations=True, **options)
        data.setup()
        data.train = torch.utils.data.Subset(data.train, range(14))
        return data
    raise ValueError(kind)


def same(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


KINDS = [*TrainTransform.__args__, "captions", "conversations", "photos", "emoji"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_data_module_goes_on_within_an_epoch_as_if_it_had_not_stopped(kind, folder):
    loader = make(kind, folder, batch_size=3, seed=4).train_dataloader()
    first, second = list(loader), list(loader)
    assert len(second) > 3
    assert not same(first[0], second[0])
    for workers in (0, 2) if kind in ("finetune", "emoji") else (0,):
        torch.manual_seed(9)
        data = make(kind, folder, batch_size=3, num_workers=workers)
        data.load_state_dict({"epoch": 1, "seen": 6, "seed": 4, "size": 14})
        rest = list(data.train_dataloader())
        assert len(rest) == len(second) - 2
        assert all(same(a, b) for a, b in zip(rest, second[2:], strict=True))


def test_token_shards_go_on_within_an_epoch(folder, tmp_path):
    shard = {"ids": torch.arange(28).reshape(14, 2), "index": torch.arange(14)}

    class Data(TokenData):
        def setup(self, stage=None):
            from datamodules.tokens import TokenDataset

            self.train = TokenDataset([shard])

    loader = Data(str(tmp_path), batch_size=3, seed=4).train_dataloader()
    second = (list(loader), list(loader))[1]
    data = Data(str(tmp_path), batch_size=3, seed=4)
    data.load_state_dict({"epoch": 1, "seen": 6, "seed": 4, "size": 14})
    assert all(same(a, b) for a, b in zip(list(data.train_dataloader()), second[2:], strict=True))


def test_other_images_than_the_checkpoint_saw_are_said(folder):
    data = make("none", folder, batch_size=3)
    data.setup()
    with pytest.warns(UserWarning, match=r"there are \d+ training images, and there were 99"):
        data.load_state_dict({"epoch": 0, "seen": 6, "seed": 4, "size": 99})
