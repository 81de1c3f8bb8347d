"""What all data modules share: the lazy package, the command line's view of it, loaders under a Trainer."""

import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import Dataset

import datamodules
from datamodules import ZooDataModule
from datamodules.base import collate
from zoo.choices import one_of


class Numbers(Dataset):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return {"image": torch.full((3, 2, 2), i, dtype=torch.uint8), "index": i, "caption": str(i)}


class NumberData(ZooDataModule):
    def setup(self, stage=None):
        self.train, self.val, self.test = Numbers(10), Numbers(5), Numbers(0)

    def view(self, split):
        return {"train": self.train, "val": self.val}[split]


def test_importing_the_package_imports_no_library():
    code = "import datamodules, sys; assert 'torch' not in sys.modules and 'PIL' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


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
    assert batch["index"].tolist() == [2, 0] and batch["index"].dtype == torch.int64
    assert batch["caption"] == ["2", "0"]
    with pytest.raises(RuntimeError, match="every image of a batch is broken"):
        collate([None])


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
    assert epochs(1) == [first, second] and first != second and epochs(2) != [first, second]


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
    assert trainer.global_step == 2 and model.seen == [0, 1, 2, 3, 4]
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
