import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from toys import BlurredImageData, BlurredImages, TinyTokenizer, quiet_trainer

import zoo
from datamodules import EmojiData
from datamodules.tokens import TokenData
from zoo.callbacks.evaluation import Evaluation
from zoo.callbacks.grids import ImageGrids
from zoo.callbacks.token_dump import TokenDump
from zoo.files.lock import FolderLock
from zoo.tokens.shards import check_header, read_header, read_shards, read_text, write_shard


def dump(folder, model_, split="train", **options):
    data = BlurredImageData(num_images=22, batch_size=8)
    trainer = quiet_trainer(folder, callbacks=[TokenDump(str(folder), split, **options)])
    return trainer.predict(model_, data)


def test_round_trip(tmp_path):
    model = TinyTokenizer()
    assert dump(tmp_path, model, shard_size=10, with_images=True, model="tiny") is None  # nothing is kept in memory
    dump(tmp_path, model, "val")
    files = sorted(p.name for p in (tmp_path / "train").iterdir())
    assert files == ["header.json", *(f"tokens-0-0000{i}.safetensors" for i in range(3))]
    shards = read_shards(tmp_path / "train")
    assert [len(s["ids"]) for s in shards] == [10, 10, 2]
    images = BlurredImages(22, 16, 0).images
    assert torch.equal(torch.cat([s["ids"] for s in shards]).long(), model.encode(images).ids)
    assert torch.equal(torch.cat([s["image"] for s in shards]), images)
    assert torch.cat([s["index"] for s in shards]).tolist() == list(range(22))
    assert torch.cat([s["label"] for s in shards]).tolist() == [i % 3 for i in range(22)]
    header = json.loads((tmp_path / "train" / "header.json").read_text())
    assert (header["count"], header["vocab_size"], header["split"], header["model"]) == (22, 16, "train", "tiny")

    data = TokenData(str(tmp_path), batch_size=5)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    assert torch.equal(batch["ids"], model.encode(BlurredImages(22, 16, 1).images[:5]).ids)
    assert batch["index"].tolist() == [0, 1, 2, 3, 4]


def test_tokens_of_another_tokenizer_are_refused(tmp_path):
    model = TinyTokenizer()
    dump(tmp_path, model)
    header = read_header(tmp_path / "train")
    check_header(header, model)
    with torch.no_grad():
        model.codes += 1e-3
    with pytest.raises(ValueError, match="other weights"):
        check_header(header, model)


def test_a_second_dump_into_a_folder_is_refused_while_the_first_one_writes(tmp_path):
    dump(tmp_path, TinyTokenizer())
    before = {path.name: path.read_bytes() for path in (tmp_path / "train").iterdir()}
    first = FolderLock(tmp_path / "train", "")
    first.acquire()
    with pytest.raises(FileExistsError, match=r"train is in use by this process: .* take another out_dir"):
        dump(tmp_path, TinyTokenizer(), overwrite=True)
    first.release()
    assert {path.name: path.read_bytes() for path in (tmp_path / "train").iterdir()} == before
    dump(tmp_path, TinyTokenizer(), overwrite=True)
    assert {path.name for path in (tmp_path / "train").iterdir()} == set(before)


def test_a_dump_that_fails_before_it_predicts_keeps_the_shards_that_it_was_to_replace(tmp_path, monkeypatch):
    dump(tmp_path, TinyTokenizer())
    before = {path.name: path.read_bytes() for path in (tmp_path / "train").iterdir()}

    def broken(self):
        raise ValueError("no images")

    monkeypatch.setattr(BlurredImageData, "predict_dataloader", broken)
    with pytest.raises(ValueError, match="no images"):
        dump(tmp_path, TinyTokenizer(), overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "train").iterdir()} == before


def test_existing_shards_are_not_mixed(tmp_path):
    dump(tmp_path, TinyTokenizer(), shard_size=10)
    with pytest.raises(FileExistsError, match="overwrite=true"):
        dump(tmp_path, TinyTokenizer())
    dump(tmp_path, TinyTokenizer(), overwrite=True)
    assert [len(s["ids"]) for s in read_shards(tmp_path / "train")] == [22]


def test_models_without_ids_are_refused_before_any_work(tmp_path):
    class Blind(TinyTokenizer):
        def __init__(self):
            super().__init__()
            self.spec = None

    with pytest.raises(ValueError, match="no discrete tokens"):
        dump(tmp_path, Blind())


@pytest.fixture
def beit_shards(tmp_path):
    """BEiT, and shards with images that its tokenizer wrote in the view that BEiT needs, not in its own size."""
    torch.manual_seed(0)
    beit = zoo.create_model("beit_tiny")
    assert beit.spec.num_tokens != beit.tokenizer.spec.num_tokens
    data = EmojiData(image_size=32, token_image_size=16, batch_size=20)
    for split in ("train", "val"):
        dump_of = TokenDump(str(tmp_path / "tokens"), split, with_images=True)
        quiet_trainer(tmp_path, callbacks=[dump_of], limit_predict_batches=2).predict(beit.tokenizer, data)
    return beit, str(tmp_path / "tokens"), data


def test_second_stage_has_equal_losses_on_shards_and_on_the_fly(beit_shards):
    """The tokenizer's predict run writes ids of its own view beside the image; BEiT then needs no tokenizer pass."""
    beit, folder, data = beit_shards
    beit.eval()
    shards = TokenData(folder, batch_size=20)
    shards.setup("fit")
    data.setup("fit")
    for stored, fresh in zip(shards.val_dataloader(), data.val_dataloader(), strict=False):
        assert "token_image" not in stored
        assert torch.equal(stored["image"], fresh["image"])
        assert torch.equal(stored["ids"], beit.tokenize(fresh))
        from_shards, on_the_fly = beit.losses(stored), beit.losses(fresh)
        assert from_shards["loss"].item() == on_the_fly["loss"].item() > 0


def test_second_stage_trains_on_shards(beit_shards, tmp_path):
    beit, folder, data = beit_shards
    trainer = quiet_trainer(tmp_path, max_steps=2, callbacks=[Evaluation(), ImageGrids()])
    trainer.fit(beit, TokenData(folder, image_size=32, batch_size=20))
    assert beit.global_step == 2
    assert list((tmp_path / "images").glob("step_*.png"))
    by_shards = trainer.callback_metrics["val/loss"].item()
    on_the_fly = quiet_trainer(tmp_path, limit_val_batches=2).validate(beit, data, verbose=False)[0]["val/loss"]
    assert by_shards == pytest.approx(on_the_fly, rel=1e-5)
    assert by_shards > 0


def test_shards_of_another_length_tokenizer_or_image_size_are_refused(beit_shards, tmp_path):
    beit, folder, _ = beit_shards

    def fit(model, **settings):
        quiet_trainer(tmp_path, max_steps=1).fit(model, TokenData(folder, batch_size=20, **settings))

    with pytest.raises(ValueError, match="with num_tokens 16, but BEiT has 64: write the shards again at the image"):
        fit(zoo.create_model("beit_tiny", patch_size=4))
    torch.manual_seed(1)
    with pytest.raises(ValueError, match="with other weights"):
        fit(zoo.create_model("beit_tiny"))
    with pytest.raises(ValueError, match=r"holds images of 32x32, but image_size is 64: set data\.image_size to 32"):
        fit(beit, image_size=64)


def test_a_named_tokenizer_may_have_made_tokens_of_another_image_size(tmp_path):
    data = EmojiData(image_size=64, token_image_size=32, batch_size=20)
    model = zoo.create_model("dvae_emoji", weights=True)
    for split in ("train", "val"):
        quiet_trainer(tmp_path, callbacks=[TokenDump(str(tmp_path), split)], limit_predict_batches=1).predict(
            model, data
        )
    shards = TokenData(str(tmp_path), tokenizer="dvae_emoji")
    shards.setup()
    assert shards.headers["train"]["num_tokens"] == 64 != model.spec.num_tokens
    with pytest.raises(ValueError, match="vocab_size 512, but DVAE has 64"):
        TokenData(str(tmp_path), tokenizer="dvae_tiny:random").setup()


def test_shards_without_images_are_refused_by_a_model_that_reads_pixels(tmp_path):
    beit = zoo.create_model("beit_tiny")
    batch = {"ids": torch.zeros(2, 16, dtype=torch.int64), "index": torch.arange(2)}
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    for call in (beit.losses, beit.masks, beit.tokenize, lambda b: beit.losses(b | {"mask": mask})):
        with pytest.raises(ValueError, match=r"no 'image', but ids, index.*with_images=true"):
            call(batch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first", "settings"),
    [
        ("beit", 0, []),
        (
            "seed_llm",
            3,
            ["--model.language_model=tiny_llama", "--trainer.val_check_interval=2", "--trainer.precision=32"],
        ),
    ],
)
def test_the_documented_commands_train_second_stages_on_shards(run_cli, name, first, settings):
    """Those of docs/data.md, with fewer steps and a small language model."""
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text().partition("## TokenData")[2]
    commands = [shlex.split(line.strip())[1:] for line in page.splitlines() if line.startswith("    lightning ")]
    assert [command[0] for command in commands] == ["predict", "predict", "fit"] * 2
    for command in commands[first : first + 3]:
        short = ["--trainer.max_steps=2", *settings] if command[0] == "fit" else ["--trainer.limit_predict_batches=2"]
        code, out, err = run_cli(*command, *short, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")
        assert code == 0, err
    assert "2 steps" in out
    assert Path(f"runs/{name}/last.ckpt").exists()
    folders = [Path(part.partition("=")[2]) for part in commands[first] if "out_dir" in part]
    assert read_header(folders[0] / "train")["count"] == read_header(folders[0] / "val")["count"] > 0


class Captioned(BlurredImages):
    def __getitem__(self, i):
        return super().__getitem__(i) | {"caption": f"Bär no. {i}" * (i % 3)}  # some are empty, some of many bytes


class CaptionedData(BlurredImageData):
    def predict_dataloader(self):
        return DataLoader(Captioned(22, 16, 0), batch_size=8)


def rows_of(folder, model, data):
    """What a dump of the validation images tells of each of them."""
    for split in ("train", "val"):
        quiet_trainer(folder, callbacks=[TokenDump(str(folder), split, shard_size=3)]).predict(model, data)
    shards = TokenData(str(folder))
    shards.setup("fit")
    return [shards.val[i] for i in range(len(shards.val))]


def test_it_can_be_told_which_tokens_belong_to_which_file(tmp_path):
    from PIL import Image

    from datamodules.image_folder import read_image

    root = tmp_path / "images"
    for i in range(10):
        path = root / f"class {i % 2}" / f"Bär {i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i == 0:
            path.write_bytes(b"no picture")  # is left out, and moves the others to other places
        else:
            pixels = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(path)
    model = TinyTokenizer()
    data = zoo_folder(root)
    with pytest.warns(UserWarning, match="skipping"):
        rows = rows_of(tmp_path / "tokens", model, data)
    assert len(rows) == len(data.val) - 1 > 1
    for row in rows:
        expected = model.encode(read_image(root / row["file"])[None]).ids[0]
        assert torch.equal(row["ids"], expected), row["file"]
        assert data.val.paths[data.val.index.index(row["index"])] == row["file"]
        assert row["file"].startswith(f"class {row['label']}/")


def zoo_folder(root):
    from datamodules import ImageFolderData

    return ImageFolderData(
        str(root), image_size=16, batch_size=4, val_fraction=0.6, train_transform="none", max_broken=0.4
    )


def test_tokens_of_annotated_images_know_their_file_and_record(tmp_path):
    from PIL import Image

    from datamodules import CaptionData

    records = [{"image": f"a/{i}.png", "image_id": 700 + i, "caption": [f"no. {i}", "again"]} for i in range(8)]
    (tmp_path / "a").mkdir()
    for i in range(8):
        Image.new("RGB", (16, 16), (i * 30, 10, 200)).save(tmp_path / "a" / f"{i}.png")
    (tmp_path / "captions.json").write_text(json.dumps(records))
    data = CaptionData(
        str(tmp_path), str(tmp_path / "captions.json"), image_size=16, batch_size=3, val_fraction=0.5,
        train_transform="none",
    )  # fmt: skip
    rows = rows_of(tmp_path / "tokens", TinyTokenizer(), data)
    assert rows
    for row in rows:
        number = int(row["caption"].rpartition(" ")[2])
        assert (row["file"], row["image_id"]) == (f"a/{number}.png", str(700 + number))


@pytest.mark.parametrize(("name", "file"), [("EmojiData", "1f4a9"), ("PhotoData", "skimage/chelsea.png")])
def test_embedded_images_have_the_names_of_their_files(name, file):
    import datamodules

    data = getattr(datamodules, name)(image_size=64)
    data.setup("fit")
    every = [data.view("all")[i]["file"] for i in range(len(data.view("all")))]
    assert file in every
    assert all(isinstance(data.train[0][key], str) for key in ("file",))


def test_file_names_of_any_bytes_come_back(tmp_path):
    names = [b"caf\xe9.png".decode("utf-8", "surrogateescape"), "", "日本/1.png"]
    write_shard(tmp_path, torch.zeros(3, 4, dtype=torch.int64), torch.arange(3), file=names)
    (shard,) = [load_file(path) for path in tmp_path.glob("tokens-*")]
    assert [read_text(shard, i, "file") for i in range(3)] == names
    with pytest.raises(ValueError, match="2 entries of file for the ids of 3 images"):
        write_shard(tmp_path, torch.zeros(3, 4, dtype=torch.int64), torch.arange(3), file=["a", "b"])


def test_captions_come_back(tmp_path):
    model = TinyTokenizer()
    for split in ("train", "val"):
        quiet_trainer(tmp_path, callbacks=[TokenDump(str(tmp_path), split, shard_size=10)]).predict(
            model, CaptionedData()
        )
    tokens = TokenData(str(tmp_path), batch_size=22)
    tokens.setup("fit")
    batch = next(iter(tokens.val_dataloader()))
    assert batch["caption"] == [f"Bär no. {i}" * (i % 3) for i in range(22)]
    assert torch.equal(batch["ids"], model.encode(BlurredImages(22, 16, 0).images).ids)
