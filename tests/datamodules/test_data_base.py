"""What all data modules share: the lazy package, the command line's view of it, loaders under a Trainer."""

import subprocess
import sys
from contextlib import nullcontext

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import Dataset, DistributedSampler

import datamodules
from datamodules import ZooDataModule
from datamodules.base import GoodBatches, Joined, Samples, collate, collate_found
from zoo.choices import one_of


class Numbers(Dataset):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return {"image": torch.full((3, 2, 2), i, dtype=torch.uint8), "index": i, "caption": str(i)}


class Holes(Samples):
    """Numbers, of which some are broken images."""

    def __init__(self, count, broken=()):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def sample(self, i):
        return None if i in self.broken else Numbers(self.count)[i]


class NumberData(ZooDataModule):
    def setup(self, stage=None):
        self.train, self.val, self.test = Numbers(10), Numbers(5), Numbers(0)

    def view(self, split):
        return {"train": self.train, "val": self.val}[split]


def test_importing_the_package_imports_no_library():
    code = "import datamodules, sys; assert 'torch' not in sys.modules and 'PIL' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_importing_the_classes_leaves_heavy_libraries_out():
    code = (
        "import lightning.pytorch, sys; before = set(sys.modules); "
        "import datamodules as d; [getattr(d, n) for n in d.__all__]; "
        "new = {m.partition('.')[0] for m in set(sys.modules) - before}; "
        "bad = {'torchvision', 'timm', 'transformers', 'PIL', 'skimage', 'sklearn', 'emoji', 'resvg_py'} & new; "
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_a_data_module():
    for name in datamodules.__all__:
        assert issubclass(getattr(datamodules, name), ZooDataModule)
    assert set(datamodules.__all__) <= set(dir(datamodules))
    with pytest.raises(AttributeError, match="no attribute 'Emojis'"):
        _ = datamodules.Emojis


@pytest.mark.slow
def test_the_command_line_finds_classes_by_name():
    # in a fresh process, where nothing but the base class has been asked for
    code = """if True:
        import datamodules
        from jsonargparse import ArgumentParser
        parser = ArgumentParser()
        parser.add_subclass_arguments(datamodules.ZooDataModule, "data")
        for name in ("EmojiData", "datamodules.EmojiData", "PhotoData", "ImageFolderData", "TokenData"):
            root = ["--data.root", "x"] if name in ("ImageFolderData", "TokenData") else []
            found = parser.parse_args(["--data", name, *root]).data.class_path
            assert found == "datamodules." + name.removeprefix("datamodules."), found
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_collate_stacks_lists_and_leaves_broken_out():
    batch = collate([Numbers(3)[2], None, Numbers(3)[0]])
    assert batch["image"][:, 0, 0, 0].tolist() == [2, 0]
    assert batch["index"].tolist() == [2, 0]
    assert batch["index"].dtype == torch.int64
    assert batch["caption"] == ["2", "0"]
    with pytest.raises(RuntimeError, match="every image of a batch is broken"):
        collate([None])


# ---------------------------------------------------------------- as a list


def places(samples):
    return [sample and sample["index"] for sample in samples]


@pytest.mark.parametrize("data", [Holes(5), Joined([Holes(2), Holes(0), Holes(3)])], ids=["one", "joined"])
def test_a_data_set_is_used_as_a_list_is(data):
    numbers = [0, 1, 2, 3, 4] if isinstance(data, Holes) else [0, 1, 0, 1, 2]
    assert places(data) == numbers
    assert len(data) == 5
    for cut in (slice(None), slice(1, 3), slice(-2, None), slice(None, None, -1), slice(3, 99), slice(4, 1)):
        assert places(data[cut]) == numbers[cut]
    for i in range(-5, 5):
        assert data[i]["index"] == data[torch.tensor(i)]["index"] == numbers[i]
    for beyond in (5, 6, -6, 10**9):
        with pytest.raises(IndexError, match=f"there is no sample {beyond}: the data set has 5"):
            data[beyond]
    with pytest.raises(TypeError, match="integer"):
        data["2"]


def test_a_loop_leaves_broken_images_out():
    assert places(Holes(5, {0, 3, 4})) == [1, 2]
    assert places(Holes(5, {0, 3})[:]) == [None, 1, 2, None, 4]
    assert list(Joined([])) == []
    assert list(Holes(2, {0, 1})) == []


# ---------------------------------------------------------------- batches without an image


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_of_broken_images_alone_is_left_out(workers):
    data = NumberData(batch_size=2, num_workers=workers)
    for broken, expected in [({2, 3}, [[0, 1], [4]]), ({0, 1, 4}, [[2, 3]]), ({1}, [[0], [2, 3], [4]])]:
        loader = data._eval_loader(Holes(5, broken))
        for _ in range(2):  # and in the next epoch
            assert [b["index"].tolist() for b in loader] == expected
    assert collate_found([None, None]) is None


def test_ranks_that_evaluate_together_take_the_same_number_of_steps(monkeypatch):
    monkeypatch.setattr("datamodules.base.world_size", lambda: 2)
    for broken, expected in [({2}, [0, 0, 4]), ({0}, [2, 2, 4]), ({2, 4}, [0, 0, 0]), (set(), [0, 2, 4])]:
        data = Holes(6, broken)
        sampler = DistributedSampler(data, num_replicas=2, rank=0, shuffle=False)
        loader = GoodBatches(data, batch_size=1, sampler=sampler, collate_fn=collate_found)
        with pytest.warns(UserWarning, match="another image stands in") if broken else nullcontext():
            batches = list(loader)
        assert [b["index"].tolist() for b in batches] == [[i] for i in expected]
        assert all(len(b["caption"]) == 1 for b in batches)


def test_predictions_stay_beside_their_images(tmp_path):
    """Lightning tells a writer which images a prediction is of; it must not count batches that never came."""
    seen = []

    class Writer(pl.callbacks.BasePredictionWriter):
        def write_on_batch_end(self, trainer, model, prediction, batch_indices, batch, *where):
            seen.append((batch["index"].tolist(), batch_indices))

    class Model(pl.LightningModule):
        def predict_step(self, batch, _):
            return batch["index"]

    class Data(NumberData):
        def setup(self, stage=None):
            self.train = self.val = Holes(7, {2, 3})

        def view(self, split):
            return self.val

    trainer = pl.Trainer(
        accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Writer("batch")],
    )  # fmt: skip
    for workers in (0, 2):
        seen.clear()
        found = trainer.predict(Model(), datamodule=Data(batch_size=2, num_workers=workers))
        assert torch.cat(found).tolist() == [0, 1, 4, 5, 6]
        assert seen == [([0, 1], [0, 1]), ([4, 5], [4, 5]), ([6], [6])]


def test_training_drops_the_last_batch_and_evaluation_does_not():
    data = NumberData(batch_size=4, eval_batch_size=3)
    assert [len(b["index"]) for b in data.train_dataloader()] == [4, 4]
    assert [b["index"].tolist() for b in data.val_dataloader()] == [[0, 1, 2], [3, 4]]
    assert data.test_dataloader() == []
    assert sum(len(b["index"]) for b in data.predict_dataloader()) == 5


def test_order_follows_the_seed_and_changes_with_the_epoch():
    def epochs(seed):
        loader = NumberData(batch_size=10, seed=seed).train_dataloader()
        return [next(iter(loader))["index"].tolist() for _ in range(2)]

    first, second = epochs(1)
    assert epochs(1) == [first, second]
    assert first != second
    assert epochs(2) != [first, second]


def test_order_does_not_depend_on_what_the_model_draws():
    torch.manual_seed(5)
    undisturbed = next(iter(NumberData(batch_size=10).train_dataloader()))["index"]
    torch.manual_seed(5)
    torch.rand(1000)
    assert torch.equal(next(iter(NumberData(batch_size=10).train_dataloader()))["index"], undisturbed)


def test_fit_predict_and_hyperparameters(tmp_path):
    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.seen = []

        def training_step(self, batch, _):
            return (batch["image"].float().mean() * self.weight).sum()

        def validation_step(self, batch, _):
            self.seen += batch["index"].tolist()

        def predict_step(self, batch, _):
            return batch["index"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    data = NumberData(batch_size=5, predict_split="train")
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    model = Model()
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 2
    assert model.seen == [0, 1, 2, 3, 4]
    assert torch.cat(trainer.predict(Model(), datamodule=data)).tolist() == list(range(10))
    assert dict(data.hparams) == {
        "batch_size": 5, "eval_batch_size": None, "num_workers": 0, "predict_split": "train", "seed": None,
    }  # fmt: skip


def test_one_of_names_the_nearest():
    with pytest.raises(ValueError, match=r"style cannot be 'twemojy': did you mean 'twemoji'\? it is one of"):
        one_of("style", "twemojy", ("twemoji", "openmoji"))
    assert one_of("style", "openmoji", ("twemoji", "openmoji")) == "openmoji"


@pytest.mark.parametrize(("options", "message"), [
    ({"eval_batch_size": 0}, "eval_batch_size must be at least 1, got 0"),
    ({"num_workers": -1}, "num_workers must not be negative, got -1"),
])  # fmt: skip
def test_bad_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        NumberData(**options)
