"""Captions and conversations as people bring them: five layouts, several captions per image, splits, broken files."""

import json

import pytest
import torch
from PIL import Image

from datamodules import CaptionData, ConversationData
from datamodules.annotations import read_captions, read_conversations


def paint(path, colour=(10, 20, 30), size=(40, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def root(tmp_path):
    for i in range(12):
        paint(tmp_path / "images" / f"{i}.png", (i * 20, 0, 0))
    return tmp_path


def write(root, content, name="captions.json"):
    path = root / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def make(root, annotations, cls=CaptionData, **options):
    data = cls(
        str(root / "images"), str(annotations),
        **({"image_size": 16, "batch_size": 2, "train_transform": "none", "val_fraction": 0.2, "seed": 0} | options),
    )  # fmt: skip
    data.setup()
    return data


RECORDS = [{"image": f"{i}.png", "caption": [f"one {i}", f"two {i}"]} for i in range(12)]


def test_five_layouts_say_the_same(root):
    pairs = [(f"{i}.png", c) for i in range(12) for c in (f"one {i}", f"two {i}")]
    layouts = {
        "list.json": RECORDS,
        "pairs.jsonl": "\n".join(json.dumps({"image": p, "caption": c, "image_id": int(p[:-4])}) for p, c in pairs),
        "pairs.csv": "image,caption\n" + "\n".join(f"{p},{c}" for p, c in pairs),
        "pairs.tsv": "image\tcaption\n" + "\n".join(f"{p}\t{c}" for p, c in pairs),
        "coco.json": {
            "images": [{"id": i, "file_name": f"{i}.png"} for i in range(12)],
            "annotations": [{"image_id": int(p[:-4]), "caption": c} for p, c in pairs],
        },
    }
    for name, content in layouts.items():
        found = read_captions(write(root, content, name))
        assert [(e.path, e.captions) for e in found] == [(r["image"], r["caption"]) for r in RECORDS], name


def test_karpathys_file_brings_its_splits(root):
    splits = ["train"] * 6 + ["restval"] * 2 + ["val"] * 2 + ["test"] * 2
    content = {
        "images": [
            {
                "filename": f"{i}.png",
                "filepath": "",
                "cocoid": 100 + i,
                "split": split,
                "sentences": [{"raw": f"c {i}"}],
            }
            for i, split in enumerate(splits)
        ]
    }
    data = make(root, write(root, content))
    assert (len(data.train), len(data.val), len(data.test)) == (8, 2, 2)
    assert data.view("test")[0]["image_id"] == "110"


def test_every_caption_is_a_training_sample_and_every_image_an_evaluation_sample(root):
    data = make(root, write(root, RECORDS))
    assert len(data.train) == 2 * (12 - len(data.val))
    assert len(data.val) >= 1
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 16, 16)
    assert batch["image"].dtype == torch.uint8
    seen = {(s["image_id"], s["caption"]) for s in (data.train[i] for i in range(len(data.train)))}
    assert len(seen) == len(data.train)
    for image_id, caption in seen:
        assert caption.split()[1] == image_id.removesuffix(".png")
    one = data.val[0]
    assert one["captions"] == RECORDS[int(one["image_id"][:-4])]["caption"]
    assert int(one["image"][0].float().mean()) == 20 * int(one["image_id"][:-4]), "the caption belongs to the image"
    assert not {s for s, _ in seen} & {data.val[i]["image_id"] for i in range(len(data.val))}


def test_a_broken_image_is_replaced_together_with_its_caption(root):
    (root / "images" / "3.png").write_bytes(b"no image")
    data = make(root, write(root, RECORDS), max_broken=0.3, val_fraction=0)
    for i in range(len(data.train)):
        if data.train.entries[data.train.samples[i][0]].path == "3.png":
            with pytest.warns(UserWarning, match="3.png") if not data.train.images.broken else _nothing():
                sample = data.train[i]
            assert sample["image_id"] == "4.png"
            assert sample["caption"].endswith(" 4")


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


def test_stage_one_trains_on_it(root):
    import zoo

    data = make(root, write(root, RECORDS), image_size=32, batch_size=4)
    batch = next(iter(data.train_dataloader()))
    torch.manual_seed(0)
    terms = zoo.create_model("blip2_stage1_tiny").train().losses(batch)
    assert terms["loss"].isfinite()


# ---------------------------------------------------------------- conversations

TALK = [
    {"id": f"{i}", "image": f"{i}.png", "conversations": [
        {"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": f"red {i}"},
    ]} for i in range(8)
] + [{"id": "words", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}]  # fmt: skip


def test_conversations_with_and_without_images(root):
    data = make(root, write(root, TALK), ConversationData, val_fraction=0)
    assert len(data.train) == 9
    words = next(s for s in (data.train[i] for i in range(9)) if s["image_id"] == "words")
    assert words["image"].shape == (3, 16, 16)
    assert words["conversation"][1]["value"] == "ho"
    batch = next(iter(data.train_dataloader()))
    assert len(batch["conversation"]) == 2
    assert batch["conversation"][0][0]["from"] == "human"


def test_other_names_of_splits_and_minigpt4s_layout(root):
    content = [{"image": f"{i}.png", "caption": "x", "split": s} for i, s in enumerate(("validation", "dev", ""))]
    assert [entry.split for entry in read_captions(write(root, content))] == ["val", "val", None]
    found = read_captions(write(root, {"annotations": [{"image_id": "2", "caption": "a red cat"}]}))
    assert (found[0].path, found[0].captions) == ("2.jpg", ["a red cat"])


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is no JSON"),
        ([], "holds no captions"),
        ({"x": 1}, "holds no captions"),
        ([{"image": "0.png"}], "record 0 of .* has no image or no caption: it has image"),
        ([{"image": "0.png", "conversations": []}], "it has image, conversations; conversations are read by Conversat"),
        ([{"image": "0.png", "caption": ["a", " "]}], "has an empty caption: remove it"),
        ({"images": [], "annotations": [{"image_id": 4, "caption": "x"}]}, "a caption of image 4, which is not among"),
        ({"images": [{"id": 1, "file_name": "a"}], "annotations": []}, "has images and no captions"),
        (["a", "b"], "record 0 of .* is 'a': it must be an object"),
        (
            {"images": [{"id": 1, "file_name": "a"}], "annotations": [{"caption": "x"}]},
            "annotation 0 of .* no image_id",
        ),
        (
            {"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "caption": " "}]},
            "an empty caption",
        ),
        ({"images": [{"filename": "a", "sentences": []}]}, "image 0 of .*, a, has no captions"),
        ({"images": [{"filename": "a", "sentences": [{"raw": ""}]}]}, "has an empty caption"),
        ([{"image": "a", "caption": "x", "split": "half"}], "split 'half': write train, val or test"),
    ],
)
def test_bad_captions(root, content, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        read_captions(write(root, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([{"id": 1}], "record 0 of .* has no conversations"),
        ([{"conversations": [{"from": "gpt", "value": "x"}]}], "turn 0 of record 0 of .* must be words of human"),
        ([{"conversations": [{"from": "human", "value": "x"}]}], "record 0 of .* ends with a question"),
        ({}, "holds no conversations"),
        (["a"], "record 0 of .* is 'a'"),
        ([{"conversations": ["hello", "you"]}], "turn 0 of record 0"),
    ],
)
def test_bad_conversations(root, content, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        read_conversations(write(root, content))
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders(root):
    with pytest.raises(FileNotFoundError, match="no annotation file"):
        make(root, root / "nowhere.json")
    with pytest.raises(FileNotFoundError, match=r"image folder .* does not exist"):
        CaptionData(str(root / "nothing"), str(write(root, RECORDS))).setup()
    (root / "images" / "0.png").unlink()
    data = make(root, write(root, RECORDS), val_fraction=0)
    with pytest.raises(RuntimeError, match=r"max_broken=0.01 allows: .*0.png"):
        [data.train[i] for i in range(len(data.train))]
