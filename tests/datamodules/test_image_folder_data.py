"""Folders as people bring them: nested, flat, divided, empty, broken."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import ImageFolderData
from datamodules.image_folder import TooManyBroken, Unreadable, find_images, hold_out, read_image


def paint(path, colour=(10, 20, 30), size=(40, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def classes(tmp_path):
    for i in range(30):
        paint(tmp_path / "cat" / f"{i}.png", (i, 0, 0))
        paint(tmp_path / "dog" / "deep" / f"{i}.jpg", (0, i, 0))
    return tmp_path


def make(root, **options):
    data = ImageFolderData(str(root), **({"image_size": 16, "train_transform": "none", "batch_size": 4} | options))
    data.setup()
    return data


def test_sub_folders_are_classes_at_any_depth(classes):
    data = make(classes, val_fraction=0.2)
    assert data.class_names == ["cat", "dog"]
    assert data.num_classes == 2
    assert len(data.train) + len(data.val) == 60
    assert 4 <= len(data.val) <= 22
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 16, 16)
    assert batch["image"].dtype == torch.uint8
    red = batch["image"][:, 0].float().mean((1, 2)) > batch["image"][:, 1].float().mean((1, 2)) + 0.5
    assert not batch["label"][red].any()  # cats are red


def test_train_and_val_are_disjoint_and_stay_so(classes):
    data = make(classes, val_fraction=0.2)
    held = set(data.val.paths)
    assert not held & set(data.train.paths)
    paint(classes / "cat" / "another.png")
    more = make(classes, val_fraction=0.2)
    assert held <= set(more.val.paths) <= held | {"cat/another.png"}


def test_hold_out_takes_the_fraction_and_at_least_one():
    assert 60 <= len(hold_out([f"{i}.png" for i in range(1000)], 0.08)) <= 100
    assert len(hold_out(["a.png", "b.png", "c.png"], 0.001)) == 1
    assert hold_out(["a.png"], 0) == []
    with pytest.raises(ValueError, match="1 images cannot be divided"):
        hold_out(["a.png"], 0.05)


def test_a_flat_folder_has_no_labels(tmp_path):
    for i in range(8):
        paint(tmp_path / f"{i}.webp")
    data = make(tmp_path)
    assert data.class_names is None
    assert data.num_classes is None
    assert set(next(iter(data.train_dataloader()))) == {"image", "index", "file"}
    with pytest.raises(ValueError, match=r"0.webp and 7 more images lie directly in .* set labels to false"):
        make(tmp_path, labels=True)


def test_folders_of_splits_are_not_taken_for_classes(tmp_path):
    for split in ("train", "val"):
        for i in range(4):
            paint(tmp_path / split / "a" / f"{i}.png")
    with pytest.raises(ValueError, match=r"splits, not classes \(train, val\): set root, val_root"):
        make(tmp_path)
    data = make(tmp_path / "train", val_root=str(tmp_path / "val"))
    assert data.class_names == ["a"]
    assert len(data.train) == 4
    assert len(data.val) == 4
    assert data.test is data.val


def test_a_class_that_only_validation_knows_is_named(classes, tmp_path_factory):
    other = tmp_path_factory.mktemp("val")
    paint(other / "bird" / "1.png")
    with pytest.raises(ValueError, match=r"has classes that .* lacks: bird"):
        make(classes, val_root=str(other))


@pytest.mark.parametrize(("make_it", "message"), [
    (lambda p: p / "nowhere", "nowhere does not exist: give the path of a folder of images"),
    (lambda p: p, r"there is no image in .* or below it: bring files that end in bmp"),
    (lambda p: paint(p / "one.png"), "one.png is a file, not a folder"),
])  # fmt: skip
def test_missing_and_empty_folders_are_one_sentence(make_it, message, tmp_path):
    with pytest.raises(FileNotFoundError, match=message) as error:
        find_images(make_it(tmp_path))
    assert "\n" not in str(error.value)


def test_hidden_files_are_passed_over(tmp_path):
    paint(tmp_path / "a.PNG")
    paint(tmp_path / "._a.png")
    paint(tmp_path / "__MACOSX" / "a.png")
    (tmp_path / "notes.txt").write_text("no image")
    assert list(find_images(tmp_path)) == ["a.PNG"]


def test_a_broken_image_is_skipped_counted_and_named(classes):
    broken = classes / "cat" / "7.png"
    broken.write_bytes(broken.read_bytes()[:60])
    data = make(classes, val_fraction=0, max_broken=0.05)
    with pytest.warns(UserWarning, match=r"skipping .*7\.png: .*1 broken so far"):
        batches = list(data.train_dataloader())
    assert all(len(b["image"]) == 4 for b in batches)
    assert len(batches) == 15
    assert data.broken == [broken]
    with pytest.warns(UserWarning, match=r"skipping .*7\.png"):
        order = torch.cat([b["index"] for b in data._eval_loader(data.view("train"))])
    assert len(order) == 59  # nothing stands in where metrics are taken


def test_too_many_broken_images_end_the_run(classes):
    for i in range(3):
        (classes / "cat" / f"{i}.png").write_text("not a picture")
    data = make(classes, val_fraction=0, max_broken=0.02)
    with (
        pytest.warns(UserWarning, match="skipping"),
        pytest.raises(TooManyBroken, match=r"3 of 60 images cannot be used, more than max_broken=0.02 allows: .*png, "),
    ):
        list(data._eval_loader(data.view("train")))


@pytest.mark.filterwarnings("ignore:skipping")
def test_workers_share_the_count_of_broken_images(classes):
    for i in range(4):
        (classes / "cat" / f"{i}.png").write_text("not a picture")
    data = make(classes, val_fraction=0, max_broken=0.5, num_workers=2)
    assert len(torch.cat([b["index"] for b in data._eval_loader(data.view("train"))])) == 56
    assert len(data.broken) == 4  # seen here, found there


def test_images_too_small_for_listing_1_count_as_broken(tmp_path):
    for i in range(8):
        paint(tmp_path / f"{i}.png", size=(20, 12))
    data = make(tmp_path, train_transform="dalle", val_fraction=0)
    with pytest.raises(TooManyBroken, match="20x12 pixels hold no crop of 16"):
        list(data.train_dataloader())


def test_images_are_read_as_they_are_meant(tmp_path):
    sideways = Image.new("RGB", (4, 2), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    sideways.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (3, 4, 2)
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png").unique().tolist() == [255]
    Image.fromarray(np.full((2, 2), 0x8040, dtype=np.uint16)).save(tmp_path / "c.png")
    assert read_image(tmp_path / "c.png").unique().tolist() == [0x80]
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(tmp_path / "d.tiff")
    with pytest.raises(Unreadable, match="pixels of kind F"):
        read_image(tmp_path / "d.tiff")


def test_predict_covers_everything_once(classes):
    data = make(classes, val_fraction=0.2, predict_split="all")
    order = torch.cat([b["index"] for b in data.predict_dataloader()])
    assert sorted(order.tolist()) == list(range(60))


def test_all_broken_images_are_named_at_once(classes):
    """Nobody wants to start a run 37 times to find 37 files."""
    broken = [classes / "cat" / f"{i}.png" for i in range(30)] + [classes / "dog" / "deep" / f"{i}.jpg" for i in (3, 9)]
    for path in broken:
        path.write_text("not a picture")
    data = make(classes, val_fraction=0)
    with pytest.raises(TooManyBroken, match=r"^32 of 60 images cannot be used, more than max_broken=0\.01") as error:
        data.train[0]
    assert all(f" {path.relative_to(classes)}" in str(error.value) for path in broken)
    assert "\n" not in str(error.value)
    assert data.broken == sorted(broken)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_broken_images_of_the_other_splits_are_named_too(classes, workers, tmp_path_factory):
    """A few validation images are read first; the many that are broken may be elsewhere."""
    test = tmp_path_factory.mktemp("test")
    for i in range(4):
        paint(test / "cat" / f"{i}.png")
    broken = [classes / "cat" / f"{i}.png" for i in range(20)] + [test / "cat" / "3.png"]
    for path in broken:
        path.write_text("not a picture")
    data = make(classes, val_fraction=0.1, test_root=str(test), num_workers=workers)
    count = sum(classes / path in broken for path in data.val.paths)
    assert 0 < count < 20
    with pytest.raises(TooManyBroken) as error:
        list(data.val_dataloader())
    said = str(error.value)
    assert f"{count} of {len(data.val)} images cannot be used" in said
    assert f", and {21 - count} in the other splits: " in said
    assert str(test / "cat" / "3.png") in said
    assert all(re.search(rf"[ :]cat/{i}\.png", said) for i in range(20))
    assert data.broken == sorted(broken)


def test_more_broken_images_than_a_sentence_holds_are_listed_in_a_file(tmp_path):
    for i in range(70):
        (tmp_path / f"{i:02d}.png").write_text("no")
    data = make(tmp_path, val_fraction=0)
    with pytest.raises(
        TooManyBroken, match=r"70 of 70 .*00\.png.*49\.png, \.\.\. in .*\(all of them: (\S+)\)"
    ) as error:
        data.train[0]
    assert "50.png" not in str(error.value)
    file = Path(re.search(r"all of them: (\S+)\)", str(error.value))[1])
    lines = file.read_text().splitlines()
    file.unlink()
    assert lines == [f"{tmp_path}/{i:02d}.png\tcannot identify image file" for i in range(70)]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_name_all_broken_images_too(classes, workers):
    for i in range(30):
        (classes / "cat" / f"{i}.png").write_text("not a picture")
    data = make(classes, val_fraction=0, num_workers=workers)
    with pytest.raises(TooManyBroken, match=r"30 of 60 images cannot be used.*cat/0\.png.*cat/9\.png"):
        list(data.train_dataloader())


def test_looking_for_broken_images_has_an_end(classes, monkeypatch):
    import datamodules.image_folder as module

    for i in range(30):
        (classes / "cat" / f"{i}.png").write_text("not a picture")
    monkeypatch.setattr(module, "_LOOK", 0.0)
    data = make(classes, val_fraction=0)
    with pytest.raises(
        TooManyBroken, match=r"^1 of 60 images cannot be used \(the first 0 of 60 were looked at\), more"
    ):
        data.train[0]


@pytest.mark.filterwarnings("ignore:skipping")
def test_a_few_broken_images_at_the_beginning_do_not_end_a_fine_run(tmp_path):
    for i in range(200):
        paint(tmp_path / f"{i:03d}.png", size=(4, 4))
    for i in range(3):
        (tmp_path / f"{i:03d}.png").write_text("no")
    data = make(tmp_path, val_fraction=0, max_broken=0.015, eval_batch_size=1)
    assert sum(len(b["image"]) for b in data._eval_loader(data.view("train"))) == 197
    assert len(list(data.view("train"))) == 197


@pytest.mark.filterwarnings("ignore:skipping")
@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_broken_image_alone_in_its_batch_does_not_end_a_run(classes, command, tmp_path_factory):
    from toys import quiet_trainer

    import zoo
    from zoo.callbacks import Evaluation, ImageGrids, TokenDump

    val = tmp_path_factory.mktemp("val")
    for i in range(5):
        paint(val / "cat" / f"{i}.png", (50 * i, 0, 0))
    for i in (0, 4):  # the first, and the last
        (val / "cat" / f"{i}.png").write_text("no")
    data = ImageFolderData(
        str(classes), image_size=32, train_transform="none", batch_size=4, eval_batch_size=1, val_root=str(val),
        max_broken=0.5,
    )  # fmt: skip
    model, folder = zoo.create_model("dvae_tiny"), tmp_path_factory.mktemp("run")
    callbacks = (
        [TokenDump(str(folder / "t"), split="val")] if command == "predict" else [Evaluation(lite0=False), ImageGrids()]
    )
    trainer = quiet_trainer(folder, max_steps=2, callbacks=callbacks, val_check_interval=2)
    getattr(trainer, command)(model, datamodule=data)
    if command == "predict":
        from zoo.tokens.shards import read_shards

        assert torch.cat([shard["index"] for shard in read_shards(folder / "t" / "val")]).tolist() == [1, 2, 3]
    else:
        stage = "test" if command == "test" else "val"
        assert trainer.callback_metrics[f"{stage}/loss"].isfinite()
        assert trainer.callback_metrics[f"{stage}/psnr"].isfinite()
        assert callbacks[0].reports[stage].num_images == 3
