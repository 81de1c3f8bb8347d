import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from toys import BlurredImageData, TinyTokenizer, quiet_trainer

from zoo.callbacks.grids import ImageGrids, read_metrics
from zoo.callbacks.pictures import LABEL_HEIGHT, image_rows, line_plots
from zoo.tokens import reconstruct


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_rows_show_the_images():
    images = torch.rand(3, 3, 8, 8)
    picture = np.asarray(image_rows({"original": images, "twice": 2 * images - 0.5}, border=2))
    assert picture.shape == (2 * (LABEL_HEIGHT + 8 + 4), 3 * 10 + 2, 3)
    top = LABEL_HEIGHT + 2
    second = (images[1].permute(1, 2, 0) * 255).round().numpy()
    assert np.array_equal(picture[top : top + 8, 12:20], second)
    assert (picture[:LABEL_HEIGHT] < 128).any()  # the name is drawn
    below = picture[top + LABEL_HEIGHT + 12 :][:8, 12:20]
    assert np.array_equal(below, ((2 * images[1] - 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy())


def test_rows_of_different_sizes():
    picture = image_rows({"a": torch.rand(2, 3, 16, 16), "b": torch.rand(2, 3, 8, 8)}, border=0)
    assert picture.size == (32, 2 * (16 + LABEL_HEIGHT))


def test_pictures_on_disk_and_in_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model, data = TinyTokenizer(), BlurredImageData(num_images=16, batch_size=4)
    loggers = [CSVLogger(tmp_path, name="csv"), TensorBoardLogger(tmp_path, name="tb", version="")]
    trainer = quiet_trainer(
        tmp_path, max_epochs=3, logger=loggers, callbacks=[ImageGrids(6, every_n_validations=2)], log_every_n_steps=1,
        num_sanity_val_steps=1,
    )  # fmt: skip
    trainer.fit(model, data)
    folder = tmp_path / "csv" / "version_0" / "images"
    assert sorted(p.name for p in folder.iterdir()) == ["curves.png", "step_000004.png", "step_000012.png"]
    picture = read(folder / "step_000012.png")
    assert picture.shape == (2 * (LABEL_HEIGHT + 16 + 4), 6 * 18 + 2, 3)
    images = data.val_dataloader().dataset.images
    for column, index in enumerate((2, 5, 7, 10, 13, 15)):  # spread over the four batches of four
        shown = picture[LABEL_HEIGHT + 2 :][:16, 2 + column * 18 :][:, :16]
        assert np.array_equal(shown, images[index].permute(1, 2, 0).numpy())
        below = picture[2 * LABEL_HEIGHT + 16 + 4 + 2 :][:16, 2 + column * 18 :][:, :16]
        expected = (reconstruct(model, images)[index].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
        assert np.array_equal(below, expected)
    events = EventAccumulator(str(tmp_path / "tb"), size_guidance={"images": 0}).Reload()
    assert [e.step for e in events.Images("val/images")] == [4, 12]
    assert {"train/loss", "val/loss"} <= set(read_metrics(folder.parent / "metrics.csv"))


def test_model_draws_its_own_rows(tmp_path):
    class Painter(TinyTokenizer):
        def picture_rows(self, images, batch):
            assert images.is_floating_point()
            assert images.max() <= 1
            assert len(images) == len(batch["label"])
            return {"masked": images * 0, "prediction": images, "third": 1 - images}

    trainer = quiet_trainer(tmp_path, callbacks=[ImageGrids(2)])
    trainer.validate(Painter(), BlurredImageData(), verbose=False)
    picture = read(tmp_path / "images" / "step_000000.png")
    assert picture.shape == (3 * (LABEL_HEIGHT + 20), 2 * 18 + 2, 3)


def test_models_without_pictures_are_left_alone(tmp_path):
    class Blind(TinyTokenizer):
        def __init__(self):
            super().__init__()
            self.spec = None

        def losses(self, batch):
            return {"loss": self.codes.sum()}

    quiet_trainer(tmp_path, max_steps=2, callbacks=[ImageGrids()]).fit(Blind(), BlurredImageData())
    assert not (tmp_path / "images").exists()


def test_curves_leave_out_what_is_no_number_and_share_panels(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("epoch,step,train/loss,val/loss,val/psnr\n0,1,3.0,,\n0,2,nan,,\n0,2,,2.5,11\n0,3,1.0,,\n")
    series = read_metrics(file)
    assert series == {"train/loss": [(1, 3.0), (3, 1.0)], "val/loss": [(2, 2.5)], "val/psnr": [(2, 11.0)]}
    picture = np.asarray(line_plots(series))
    assert picture.shape == (200, 2 * 320, 3)  # the two losses share a panel
    red, blue = (214, 39, 40), (31, 119, 180)
    assert (picture[40:, :320] == blue).all(-1).sum() > 50  # a line from one corner of the panel to the other
    assert (picture[40:, :320] == red).all(-1).sum() >= 25  # a dot


def test_single_values_are_dots_in_the_middle_with_their_number():
    picture = np.asarray(line_plots({"val/psnr": [(2, 11.0)], "val/flat": [(1, 5.0), (9, 5.0)]}))
    box = np.s_[32:170, 9:290]
    flat, dot = (picture[:, :320][box] < 200).any(-1), (picture[:, 320:][box] < 200).any(-1)
    assert flat.any(1).sum() <= 2
    assert flat.any(0).sum() > 250
    assert 40 < np.argwhere(flat)[:, 0].mean() < 100
    rows, columns = np.argwhere(dot).T
    assert dot.sum() > 40
    assert 50 < rows.mean() < 90
    assert 120 < columns.mean() < 200
