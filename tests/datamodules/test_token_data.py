"""Token shards: what is written is read, and never by another tokenizer."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import zoo
from datamodules import TokenData
from zoo.checkpoints.export import save_weights
from zoo.fingerprints import fingerprint
from zoo.tokens import Segment, TokenSpec
from zoo.tokens.shards import check_header, make_header, read_header, read_shards, write_header, write_shard


class ToyTokenizer(nn.Module):
    def __init__(self, vocab_size=50, side=2):
        super().__init__()
        self.table = nn.Embedding(vocab_size, 3)
        self.register_buffer("scale", torch.tensor(2.0))
        self.spec = TokenSpec((Segment("grid", (side, side), 0, vocab_size),), dim=3)


@pytest.fixture
def tokenizer():
    return ToyTokenizer()


@pytest.fixture
def shards(tmp_path, tokenizer):
    """10 training images over two processes and three files, with labels and pixels; 4 for validation."""
    ids, label = torch.randint(0, 50, (10, 4)), torch.arange(10) % 3
    image = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8)
    for rank, number, part in ((0, 0, slice(0, 4)), (0, 1, slice(4, 6)), (1, 0, slice(6, 10))):
        index = torch.arange(10)[part]
        write_shard(
            tmp_path / "train", ids[part], index, rank=rank, number=number, label=label[part], image=image[part]
        )
    write_header(tmp_path / "train", make_header(tokenizer, split="train", count=10, model="toy"))
    write_shard(tmp_path / "val", ids[:4], torch.arange(4))
    write_header(tmp_path / "val", make_header(tokenizer, split="val", count=4, model="toy"))
    return SimpleNamespace(root=tmp_path, ids=ids, label=label, image=image)


def test_round_trip(shards):
    assert sorted(p.name for p in (shards.root / "train").iterdir()) == [
        "header.json", "tokens-0-00000.safetensors", "tokens-0-00001.safetensors", "tokens-1-00000.safetensors",
    ]  # fmt: skip
    stored = read_shards(shards.root / "train")
    assert stored[0]["ids"].dtype == torch.int32
    assert stored[0]["index"].dtype == torch.int64
    data = TokenData(str(shards.root), batch_size=5)
    data.setup()
    assert len(data.train) == 10
    assert len(data.val) == 4
    assert data.test is data.val
    seen = 0
    for batch in data.train_dataloader():
        index = batch["index"]
        assert batch["ids"].dtype == torch.int64
        assert torch.equal(batch["ids"], shards.ids[index])
        assert torch.equal(batch["label"], shards.label[index])
        assert torch.equal(batch["image"], shards.image[index])
        seen += len(index)
    assert seen == 10
    assert set(next(iter(data.val_dataloader()))) == {"ids", "index"}


def test_header_says_what_the_tokens_are(shards, tokenizer):
    header = read_header(shards.root / "train")
    assert header["vocab_size"] == 50
    assert header["num_tokens"] == 4
    assert header["count"] == 10
    assert header["segments"] == [{"name": "grid", "shape": [2, 2], "offset": 0, "size": 50}]
    assert header["model"] == "toy"
    assert header["class"].endswith("ToyTokenizer")
    assert header["split"] == "train"
    assert header["fingerprint"] == fingerprint(tokenizer)


def test_fingerprint_depends_on_every_value_name_and_type():
    a = ToyTokenizer()
    b = ToyTokenizer()
    b.load_state_dict(a.state_dict())
    assert fingerprint(a) == fingerprint(b)
    with torch.no_grad():
        b.scale += 1e-6
    assert fingerprint(a) != fingerprint(b)
    assert fingerprint(ToyTokenizer().bfloat16()) != fingerprint(a)
    assert fingerprint(nn.Sequential(a)) != fingerprint(a)


def test_a_foreign_tokenizer_is_refused(shards, tokenizer):
    header = read_header(shards.root / "train")
    check_header(header, tokenizer)
    with pytest.raises(ValueError, match="written by toy with vocab_size 50, but ToyTokenizer has 60"):
        check_header(header, ToyTokenizer(vocab_size=60))
    with pytest.raises(ValueError, match="written by toy with num_tokens 4, but ToyTokenizer has 9"):
        check_header(header, ToyTokenizer(side=3))
    with pytest.raises(ValueError, match=r"written by toy with other weights \(fingerprint \w{12}\)"):
        check_header(header, ToyTokenizer())


def test_a_discriminator_that_starts_anew_changes_no_tokens(tmp_path):
    """Published files and our small ones hold none; shards belong to the tokenizer that they make, each time."""
    model = zoo.create_model("vqgan_tiny", discriminator={"lecam": 0.1})
    model.drop_discriminator()
    save_weights(model, tmp_path / "small.safetensors")
    name = f"ckpt:{tmp_path / 'small.safetensors'}"
    one, two = zoo.create_model(name), zoo.create_model(name, discriminator={"lecam": 0.0})
    assert not torch.equal(one.discriminator.main[0].weight, two.discriminator.main[0].weight)
    check_header(make_header(one, split="train", count=1), two)
    with torch.no_grad():
        two.quantize.embedding.weight[3, 5] += 1e-3
    assert fingerprint(one) != fingerprint(two)


def test_a_tower_leaves_its_discriminator_behind(tmp_path):
    whole = zoo.create_model("vqgan_tiny")
    save_weights(whole, tmp_path / "whole.safetensors")
    tower = zoo.create_model("maskgit_tiny", tokenizer=f"ckpt:{tmp_path / 'whole.safetensors'}").tokenizer
    assert tower.discriminator is None
    assert not any("discriminator" in name for name in tower.state_dict())
    check_header(make_header(whole, split="train", count=1), tower)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(tower.encode(images).ids, whole.eval().encode(images).ids)
    assert whole.discriminator is not None


def test_token_data_refuses_a_model_that_holds_another_tokenizer(shards, tokenizer):
    data = TokenData(str(shards.root))
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(frozen={"tokenizer": tokenizer}))
    data.setup()
    data.trainer.lightning_module.frozen["tokenizer"] = ToyTokenizer()
    with pytest.raises(ValueError, match="with other weights"):
        data.setup()


def test_token_data_refuses_a_named_tokenizer(shards, monkeypatch):
    monkeypatch.setattr("zoo.registry.model_from", lambda name: {"toy": ToyTokenizer(vocab_size=60)}[name])
    with pytest.raises(ValueError, match="vocab_size 50, but ToyTokenizer has 60"):
        TokenData(str(shards.root), tokenizer="toy").setup()


def test_unfinished_and_damaged_dumps_are_refused(shards):
    (shards.root / "train" / "tokens-1-00000.safetensors").unlink()
    with pytest.raises(ValueError, match="holds tokens of 6 images, its header says 10"):
        TokenData(str(shards.root)).setup()
    header = shards.root / "train" / "header.json"
    header.write_text(json.dumps({"format": 9}))
    with pytest.raises(ValueError, match="has format 9, this version reads 1"):
        read_header(shards.root / "train")
    header.write_text("{")
    with pytest.raises(ValueError, match="is not a header of token shards"):
        read_header(shards.root / "train")
    header.unlink()
    with pytest.raises(FileNotFoundError, match=r"train has no header.json: the dump was not finished"):
        TokenData(str(shards.root)).setup()
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        TokenData(str(shards.root / "nowhere")).setup()


def test_shards_of_another_length_are_refused(shards):
    write_shard(shards.root / "val", torch.zeros(4, 7, dtype=torch.int64), torch.arange(4))
    with pytest.raises(ValueError, match="has 7 tokens per image, its header says 4"):
        read_shards(shards.root / "val")


def test_continuous_tokens_have_no_shards():
    continuous = SimpleNamespace(spec=TokenSpec((Segment("queries", (32,)),), dim=8, vocabulary=None))
    with pytest.raises(ValueError, match="no discrete tokens"):
        make_header(continuous, split="train", count=1)
