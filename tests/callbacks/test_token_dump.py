import json

import pytest
import torch
from tiny_tokenizer import RandomImageData, RandomImages, TinyTokenizer, quiet_trainer

import zoo
from datamodules.tokens import TokenData
from zoo.callbacks.token_dump import TokenDump
from zoo.token_shards import check_header, read_header, read_shards


def dump(folder, model_, split="train", **options):
    data = RandomImageData(num_images=22, batch_size=8)
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
    images = RandomImages(22, 16, 0).images
    assert torch.equal(torch.cat([s["ids"] for s in shards]).long(), model.encode(images).ids)
    assert torch.equal(torch.cat([s["image"] for s in shards]), images)
    assert torch.cat([s["index"] for s in shards]).tolist() == list(range(22))
    assert torch.cat([s["label"] for s in shards]).tolist() == [i % 3 for i in range(22)]
    header = json.loads((tmp_path / "train" / "header.json").read_text())
    assert (header["count"], header["vocab_size"], header["split"], header["model"]) == (22, 16, "train", "tiny")

    data = TokenData(str(tmp_path), batch_size=5)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    assert torch.equal(batch["ids"], model.encode(RandomImages(22, 16, 1).images[:5]).ids)
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


def test_second_stage_has_equal_losses_on_shards_and_on_the_fly(tmp_path):
    """The tokenizer's predict run writes ids of its own view beside the image; BEiT then needs no tokenizer pass."""
    from datamodules import EmojiData

    torch.manual_seed(0)
    beit = zoo.create_model("beit_tiny").eval()
    data = EmojiData(image_size=32, token_image_size=16, batch_size=20)
    for split in ("train", "val"):
        dump_of = TokenDump(str(tmp_path), split, with_images=True)
        quiet_trainer(tmp_path, callbacks=[dump_of], limit_predict_batches=2).predict(beit.tokenizer, data)
    shards = TokenData(str(tmp_path), batch_size=20)
    shards.setup("fit")
    data.setup("fit")
    for stored, fresh in zip(shards.val_dataloader(), data.val_dataloader(), strict=False):
        assert "token_image" not in stored and torch.equal(stored["image"], fresh["image"])
        assert torch.equal(stored["ids"], beit.tokenize(fresh))
        from_shards, on_the_fly = beit.losses(stored), beit.losses(fresh)
        assert from_shards["loss"].item() == on_the_fly["loss"].item() > 0
