"""Annotation files of other people: every text arrives as it was written, or file and record are named."""

import codecs
import json
import os

import pytest
import torch
from PIL import Image

from datamodules import CaptionData, ConversationData
from datamodules.annotations import read_captions, read_conversations

ODD = [
    "line\u2028separator", "paragraph\u2029separator", "next\u0085line", "form\x0cfeed", "vertical\x0btab", "\x1cfile",
    'he said "hi"', "comma, semicolon; tab\tend", "two\nlines", "ends with \\", "emoji \U0001f431\u200d\U0001f464",
    "caf\u00e9 cafe\u0301", "\u65e5\u672c\u8a9e", "\ufeffmark", "null", "None", "3.5", "'", "{}", "=1+1",
]  # fmt: skip


def save(folder, content, name, encoding="utf-8"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def table(rows, separator=",", end="\r\n"):
    quoted = [['"' + field.replace('"', '""') + '"' for field in row] for row in rows]
    return end.join(separator.join(row) for row in quoted) + end


def written(captions, kind, raw=True):
    """The same captions in a file of each kind; ``raw`` leaves out JSON's escapes."""
    pairs = [(f"{i}.png", caption) for i, caption in enumerate(captions)]
    if kind in ("csv", "tsv"):
        return table([("image", "caption"), *pairs], {"csv": ",", "tsv": "\t"}[kind])
    records = [{"image": path, "caption": caption} for path, caption in pairs]
    lines = [json.dumps(record, ensure_ascii=not raw) for record in records]
    return "\n".join(lines) + "\n" if kind == "jsonl" else "[" + ",\n".join(lines) + "]"


KINDS = ["json", "jsonl", "csv", "tsv"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("raw", [True, False])
def test_captions_arrive_as_they_were_written(kind, raw, tmp_path):
    for name in (f"a.{kind}", f"A.{kind.upper()}"):
        found = read_captions(save(tmp_path, written(ODD, kind, raw), name))
        assert [entry.captions for entry in found] == [[caption] for caption in ODD]
        assert [entry.path for entry in found] == [f"{i}.png" for i in range(len(ODD))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_line_ends_and_blank_lines(kind, ends, tmp_path):
    lines = written(["one", "two", "three"], kind).replace("\r\n", "\n").rstrip("\n").split("\n")
    for text in (ends.join(lines), ends.join(lines) + ends, ends + (ends + ends).join(lines) + ends * 3 + "  "):
        found = read_captions(save(tmp_path, text, f"a.{kind}"))
        assert [entry.captions for entry in found] == [["one"], ["two"], ["three"]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_encodings_that_say_what_they_are(kind, encoding, tmp_path):
    mark = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE, "utf-32-le": codecs.BOM_UTF32_LE}
    text = written(["caf\u00e9", "\U0001f431"], kind, raw=True).encode(encoding)
    for data in {text, mark.get(encoding, b"") + text}:
        found = read_captions(save(tmp_path, data, f"a.{kind}"))
        assert [entry.captions for entry in found] == [["caf\u00e9"], ["\U0001f431"]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp437", "shift_jis"])
def test_other_encodings_are_refused_with_file_record_and_byte(kind, encoding, tmp_path):
    word = "\u65e5" if encoding == "shift_jis" else "caf\u00e9"
    byte = next(b for b in word.encode(encoding) if b > 127)
    path = save(tmp_path, written(["good", word], kind, raw=True), f"a.{kind}", encoding)
    wanted = rf"record 1 of .*a\.{kind}.*1\.png, holds the byte 0x{byte:02x}, which is not UTF-8, at .*save the file as"
    with pytest.raises(ValueError, match=wanted) as error:
        read_captions(path)
    assert "\n" not in str(error.value)
    assert str(error.value).encode()


def test_a_torn_file_of_wide_characters_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.csv is not UTF-16: byte \d+, 0x.*belongs to no character: save it as"):
        read_captions(save(tmp_path, written(["one"], "csv").encode("utf-16")[:-1], "a.csv"))


# ------------------------------------------------------------------ tables


@pytest.mark.parametrize(("content", "sentence"), [
    ("image,caption\n0.png,a cat, a dog\n", r"a\.csv, line 2, has 3 fields and the header has 2, so that ' a dog' bel"),
    ('image,caption\n0.png,"a\nb"\n1.png,a,b\n', r"a\.csv, line 4, has 3 fields"),
    ('image,caption\n0.png,"never closed\n1.png,b\n', r"a\.csv, line 2, cannot be read: unexpected end of data; put"),
    ('image,caption\n0.png,"hi" he said\n', r"a\.csv, line 2, cannot be read: ',' expected after '\"'"),
    ("image,caption\n0.png," + "x" * 200_000, r"a\.csv, line 2, cannot be read: field larger"),
    ("image,caption,caption\n0.png,a,b\n", r"a\.csv has two columns 'caption': rename or remove one"),
    ("image, caption ,caption\n0.png,a,b\n", r"a\.csv has two columns 'caption'"),
    ("image;caption\n0.png;a; b\n", r"a\.csv, line 2, has 3 fields and the header has 2, so that ' b' belongs"),
    ("picture;caption\n0.png;a\n", r"record 0 of .*a\.csv, line 2, has no image or .*: it has picture, caption"),
    ("sep=;\nimage;caption\n0.png;a;b\n", r"a\.csv, line 3, has 3 fields"),
    ("image,caption\n", "holds no captions"),
    ("", r"a\.csv is empty"),
    ("\ufeff\r\n \n", r"a\.csv is empty"),
    ("image,caption\n0.png,a\n1.png\n", r"record 1 of .*a\.csv, line 3, has no image or no caption"),
    ("image,caption\n0.png,\n", r"record 0 of .*a\.csv, line 2, 0\.png, has an empty caption"),
    ("image,caption\n0.png,nan\n", r"0\.png, has the caption nan, as tables write what is missing: remove it"),
    ("image,caption\n0.png,<NA>\n", r"0\.png, has the caption <NA>, as tables write what is missing: remove it"),
    ("image,caption\n0.png,NULL\n", "has the caption NULL, as tables"),
    ("image,caption\n0.png,#N/A\n", "has the caption #N/A, as tables"),
    ("image,caption\n0.png,\\N\n", r"has the caption \\N, as tables"),
    ("image,caption\n0.png,a\n,b\n", r"record 1 of .*a\.csv, line 3, has no image or no caption"),
])  # fmt: skip
def test_tables_that_lose_something_are_refused_with_their_line(content, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence) as error:
        read_captions(save(tmp_path, content, "a.csv"))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_what_is_harmless_in_tables_is_read(tmp_path):
    for content in (
        "image,caption\n0.png,one\n1.png,two\n",
        "image,caption,\n0.png,one,\n1.png,two,\n",  # a separator at the end of each line
        "image,caption\n0.png,one,,\n1.png,two\n,,\n",
        ",image,caption\n0,0.png,one\n1,1.png,two\n",  # the index of pandas
        " image , caption\n0.png,one\n1.png,two\n",
        "caption,split,image\none,,0.png\ntwo,,1.png\n",
        "image,caption,split\n0.png,one\n1.png,two\n",
    ):
        found = read_captions(save(tmp_path, content, "a.csv"))
        assert [(entry.path, entry.captions) for entry in found] == [("0.png", ["one"]), ("1.png", ["two"])], content


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("first", ["", "sep={}\r\n", "\r\n"])
def test_the_header_of_a_table_shows_its_separator(separator, name, first, tmp_path):
    rows = [("image", "caption"), *((f"{i}.png", caption) for i, caption in enumerate(ODD))]
    found = read_captions(save(tmp_path, first.format(separator) + table(rows, separator), name, "utf-8-sig"))
    assert [entry.captions for entry in found] == [[caption] for caption in ODD]
    # as spreadsheets of many countries write it: without quotes where nothing asks for them
    rows = ["image;caption", "0.png;one, two", "1.png;three"]
    plain = "\n".join(row.replace(";", separator) if separator != "," else row for row in rows)
    assert [entry.captions for entry in read_captions(save(tmp_path, plain, name))] == [["one, two"], ["three"]]


# ------------------------------------------------------------------ records


@pytest.mark.parametrize(("caption", "sentence"), [
    (float("nan"), "has the caption nan, which is no text"), (float("inf"), "inf, which is no text"),
    (7, "has the caption 7, which is no text: write words"), (0, "0, which is no text"), (2.5, "which is no text"),
    (True, "True, which is no text"), (False, "False, which is no text"), ({}, "None, which is no text"),
    ({"en": "x"}, "which is no text"), ([["a"]], r"\['a'\], which is no text"), (["a", None], "None, which is no text"),
    (["a", 3], "3, which is no text"), (None, r"has image, caption \(null\)$"), ("", "has an empty caption: remove it"),
    ("  \n", "has an empty caption"), ([], "has an empty caption"), (["a", ""], "has an empty caption"),
    ("half \ud83d emoji", r"holds half a character, \\ud83d: write the whole one"), ("\u2003\u2028", "empty caption"),
])  # fmt: skip
def test_captions_that_are_no_text_are_refused_with_their_record(caption, sentence, tmp_path):
    good = [{"image": "a.png", "caption": "fine"}]
    for content in (
        [*good, {"image": "0.png", "caption": caption}],
        {"images": [{"id": 1, "file_name": "0.png"}], "annotations": [{"image_id": 1, "caption": caption}]},
        {"images": [{"filename": "0.png", "sentences": [{"raw": caption}]}]},
    ):
        listed = isinstance(content, list)
        if not listed and (isinstance(caption, list) or caption is None):
            continue
        with pytest.raises(ValueError, match=sentence if listed else sentence.rpartition("or ")[2]) as error:
            read_captions(save(tmp_path, json.dumps(content), "a.json"))
        assert ("record 1 of" if listed else " 0 of") in str(error.value)
        assert "a.json" in str(error.value)
        assert "\n" not in str(error.value)


def test_several_captions_and_other_keys(tmp_path):
    content = [
        {"image": "a.png", "caption": None, "text": "one"}, {"image": None, "file_name": "b.png", "captions": ["two"]},
        {"path": "c.png", "sentences": [{"raw": "three"}, "four"]}, {"filename": "./a.png", "caption": "five"},
        {"image": "d.png", "caption": "six", "image_id": 0}, {"image": "d.png", "caption": "seven", "image_id": 0},
    ]  # fmt: skip
    found = read_captions(save(tmp_path, json.dumps(content), "a.json"))
    assert [(e.path, e.image_id, e.captions) for e in found] == [
        ("a.png", "a.png", ["one", "five"]), ("b.png", "b.png", ["two"]), ("c.png", "c.png", ["three", "four"]),
        ("d.png", "0", ["six", "seven"]),
    ]  # fmt: skip


@pytest.mark.parametrize(("content", "sentence"), [
    ([{"image": 5, "caption": "x"}], "record 0 of .* has the image 5: give the name of one file"),
    ([{"image": ["a", "b"], "caption": "x"}], "has the image .*: give the name of one file"),
    ([{"image": " ", "caption": "x"}], "has the image ' ': give the name"),
    ([{"image": "a", "caption": "x", "split": 3}], "is of the split 3: write train, val or test"),
    ({"images": {"1": "a"}, "annotations": []}, "where a list of records should be"),
    ({"images": [3], "annotations": []}, "image 0 of .* has no id: 3"),
    ({"annotations": [None]}, "annotation 0 of .* has no image_id"),
    ("nothing", "holds no captions"),
])  # fmt: skip
def test_odd_records_are_named(content, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence) as error:
        read_captions(save(tmp_path, json.dumps(content), "a.json"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "name", "sentence"), [
    ('{"image": "0.png", "caption": "x"}\n{"image": "1.png", "caption": "y"}\n', "a.json",
     r"a\.json is no JSON: Extra data at line 2, column 1; if every line is a record, let its name end in \.jsonl"),
    ('{"image": "0.png", "caption": "x"}\n{oops}\n', "a.jsonl", r"a\.jsonl, line 2, is no JSON: .* at column 2"),
    ("\n\nnull\n", "a.jsonl", r"record 0 of .*a\.jsonl, line 3, is None: it must be an object"),
    ('[{"image": "0.png", "caption": "x", "caption": "y"}]', "a.json", "an object has 'caption' twice"),
    ("[" * 100_000, "a.json", "nested too deeply"),
    ("[" + "1" * 5000 + "]", "a.json", "is no JSON that can be read: Exceeds the limit"),
    ("", "a.jsonl", "is empty"),
    ("image,caption\n0.png,x\n", "a.txt", "a table has to end in .csv or .tsv, a file of one record per line"),
])  # fmt: skip
def test_broken_json_is_one_sentence(content, name, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence) as error:
        read_captions(save(tmp_path, content, name))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


# ------------------------------------------------------------------ images


def test_two_images_of_one_id_are_refused_and_nothing_is_dropped(tmp_path):
    """The second would vanish, and its captions would be told of the first."""
    layouts = {
        "list.json": [
            {"image": "a.png", "image_id": 1, "caption": "x"}, {"image": "b.png", "image_id": 1, "text": "y"},
        ],
        "coco.json": {
            "images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}],
            "annotations": [{"image_id": 1, "caption": "x"}],
        },
        "karpathy.json": {
            "images": [{"cocoid": 1, "filename": name, "sentences": [{"raw": "x"}]} for name in ("a.png", "b.png")]
        },
    }  # fmt: skip
    for name, content in layouts.items():
        with pytest.raises(ValueError, match=r" 1 of .* has the image_id 1 of another image: a\.png and b\.png need"):
            read_captions(save(tmp_path, json.dumps(content), name))
        same = json.dumps(content).replace("b.png", "./a.png")
        (found,) = read_captions(save(tmp_path, same, name))
        assert found.path == "a.png"
        assert found.captions in (["x"], ["x", "y"], ["x", "x"])
    split = [{"image": "a.png", "image_id": 1, "caption": "x", "split": split} for split in ("train", "val")]
    with pytest.raises(ValueError, match=r"record 1 of .* puts a\.png into the split val, and an earlier one: train"):
        read_captions(save(tmp_path, json.dumps(split), "a.json"))


def test_images_of_coco_without_captions_are_told(tmp_path, caplog):
    content = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(3)],
        "annotations": [{"image_id": "1", "caption": "x"}],  # as text here, as a number there
    }
    with caplog.at_level("INFO"):
        (found,) = read_captions(save(tmp_path, json.dumps(content), "a.json"))
    assert found.path == "1.png"
    assert "2 of 3 images have no caption and are left out" in caplog.text


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(8):
        Image.new("RGB", (8, 8), (30 * i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
    return tmp_path


def make(folder, content, name="a.json", cls=CaptionData, **options):
    file = save(folder, content if isinstance(content, str | bytes) else json.dumps(content), name)
    given = {"image_size": 8, "batch_size": 2, "train_transform": "none", "val_fraction": 0.3} | options
    data = cls(str(folder / "images"), str(file), **given)
    data.setup()
    return data


def test_records_of_one_image_are_on_one_side(images):
    """LLaVA's mix has several conversations about one image, each with an id of its own."""
    talk = [{"from": "human", "value": "<image>\n?"}, {"from": "gpt", "value": "!"}]
    content = [
        {"id": str(n), "image": ("./" if n % 3 else "") + f"{n % 8}.png", "conversations": talk} for n in range(40)
    ]
    data = make(images, content, cls=ConversationData)
    sides = [{entry.file for entry in side.entries} for side in (data.train, data.val)]
    assert sum(len(side.entries) for side in (data.train, data.val)) == 40
    assert all(sides)
    assert not sides[0] & sides[1]


def test_links_to_one_image_are_on_one_side(images):
    for i in range(8):
        (images / "images" / f"link{i}.png").symlink_to(f"{i}.png")
    (images / "images" / "again").symlink_to(".")
    content = [{"image": f"{name}{i}.png", "caption": "x"} for i in range(8) for name in ("", "link", "again/link")]
    data = make(images, content)
    sides = [{os.path.realpath(data.root / e.path) for e in d.entries} for d in (data.train, data.val)]
    assert len(data.train) + len(data.val) == 24
    assert all(sides)
    assert not sides[0] & sides[1]


def test_images_that_are_validated_on_and_trained_on_are_told(images, caplog):
    content = [{"image": f"{i}.png", "caption": "x"} for i in range(6)]
    (images / "images" / "link.png").symlink_to("3.png")
    file = save(images, json.dumps([{"image": f"{name}.png", "caption": "y"} for name in ("link", "5", "7")]), "v.json")
    other = save(images, json.dumps([{"image": "7.png", "caption": "y"}]), "other.json")
    with caplog.at_level("INFO"):
        make(images, content, val_annotations=str(other))
        # measuring trains on nothing
        CaptionData(str(images / "images"), str(images / "a.json"), val_annotations=str(file)).setup("test")
        assert "trained on" not in caplog.text
        for split in ("val", "test"):
            caplog.clear()
            data = make(images, content, **{f"{split}_annotations": str(file)}, val_fraction=0.0)
            assert len(data.train) == 6
            assert "2 of 3 images of" in caplog.text
            assert "v.json are trained on, too, such as link.png" in caplog.text


def test_text_alone_is_not_trained_on_as_a_caption_of_grey(images):
    """The first stage's layout leaves the questions out and always shows an image."""
    from toys import quiet_trainer

    import zoo

    records = [{"id": f"text {i}", "conversations": talk("hi", "ho")} for i in range(2)]
    records += [{"id": str(i), "image": f"{i}.png", "conversations": talk("<image>\n?", "red")} for i in range(6)]
    file = save(images, json.dumps(records), "a.json")
    data = ConversationData(str(images / "images"), str(file), image_size=32, batch_size=2, val_fraction=0.3)
    trainer = quiet_trainer(images, max_steps=2)
    with pytest.raises(
        ValueError, match="2 conversations have no image, such as text 0, and the plain layout of LLaVA"
    ):
        trainer.fit(zoo.create_model("llava_tiny"), datamodule=data)
    trainer = quiet_trainer(images, max_steps=2)
    trainer.fit(zoo.create_model("llava_tiny", conversation="v1"), datamodule=data)
    assert trainer.global_step == 2


def test_a_file_that_names_the_split_of_some_is_refused(images):
    content = [{"image": f"{i}.png", "caption": "x", **({"split": "val"} if i < 3 else {})} for i in range(8)]
    with pytest.raises(ValueError, match=r"names no split of 5 images, such as 3\.png, and one of others"):
        make(images, content)


def test_held_out_images_are_never_trained_on(images):
    content = [{"image": f"{i}.png", "caption": "x", "split": "val"} for i in range(8)]
    with pytest.raises(ValueError, match=r"a\.json leaves no image to train on"):
        make(images, content)
    data = CaptionData(str(images / "images"), str(images / "a.json"), image_size=8)
    data.setup("test")
    assert (len(data.train), len(data.val), len(data.test)) == (0, 8, 8)


def test_images_that_are_missing_are_all_named(images):
    content = [{"image": f"{i}.png", "caption": "x"} for i in (0, 1, 20, 21, 22)]
    data = make(images, content, val_fraction=0)
    with pytest.raises(RuntimeError, match=r"3 of 5 .*: 20\.png, 21\.png, 22\.png in .*last: No such file or dir.*y\)"):
        list(data.train)


def test_annotations_find_files_whose_names_are_no_text(images):
    names = [b"\xff\xfe.png", b"caf\xe9.png", b"two\nlines.png", "\U0001f431.png".encode(), b'a "b", c.png']
    for i, name in enumerate(names):
        with open(os.path.join(os.fsencode(images / "images"), name), "wb") as file:
            Image.new("RGB", (8, 8), (0, 40 * i, 0)).save(file, "PNG")
    decoded = [os.fsdecode(name) for name in names]
    rows = table([("image", "caption"), *((name, f"number {i}") for i, name in enumerate(decoded))])
    records = [{"image": name, "caption": f"number {i}"} for i, name in enumerate(decoded)]
    raw = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    for content, file in [
        (rows.encode(errors="surrogateescape"), "a.csv"), (json.dumps(records), "a.json"),
        (raw.encode(errors="surrogateescape"), "a.jsonl"),
    ]:  # fmt: skip
        for workers in (0, 2):
            data = make(images, content, file, eval_batch_size=2, num_workers=workers)
            batches = list(data._eval_loader(data.view("all")))
            captions = [caption for batch in batches for caption in batch["caption"]]
            greens = torch.cat([batch["image"][:, 1, 0, 0] for batch in batches]).tolist()
            assert sorted(zip(captions, greens, strict=True)) == [(f"number {i}", 40 * i) for i in range(len(names))]


# ------------------------------------------------------------------ conversations


def talk(*values, first="human"):
    speakers = ("human", "gpt") if first == "human" else ("gpt", "human")
    return [{"from": speakers[i % 2], "value": value} for i, value in enumerate(values)]


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_turns_arrive_as_they_were_written(kind, tmp_path):
    records = [{"id": i, "conversations": talk(f"say {said}", said)} for i, said in enumerate(ODD)]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    content = "\n".join(lines) if kind == "jsonl" else "[" + ",".join(lines) + "]"
    for name, encoding in [(f"a.{kind}", "utf-8"), (f"A.{kind.upper()}", "utf-8-sig"), (f"b.{kind}", "utf-16")]:
        found = read_conversations(save(tmp_path, content, name, encoding))
        assert [entry.conversation[1]["value"] for entry in found] == ODD


def test_a_conversation_that_begins_with_the_answer_begins_behind_it(tmp_path, caplog):
    records = [
        {"id": "a", "image": "0.png", "conversations": talk("Hello.", "<image>\nwhat?", "red", first="gpt")},
        {"id": "b", "image": "1.png", "conversations": talk("<image>\nwhat?", "blue")},
    ]
    with caplog.at_level("INFO"):
        found = read_conversations(save(tmp_path, json.dumps(records), "a.json"))
    assert [entry.conversation for entry in found] == [talk("<image>\nwhat?", "red"), talk("<image>\nwhat?", "blue")]
    assert "conversations that begin with an answer, which is left out: 1" in caplog.text


def test_an_image_that_no_turn_shows_is_shown_first(tmp_path, caplog):
    records = [
        {"id": "a", "image": "0.png", "conversations": talk("what?", "red")},
        {"id": "b", "image": ["1.png"], "conversations": talk("what?", "blue", "and <image> now?", "still")},
        {"id": "c", "image": "2.png", "conversations": talk("<image> lost", "what?", "red", first="gpt")},
        {"id": "d", "image": "", "conversations": talk("what?", "a word")},
        {"id": "e", "image": None, "conversations": talk("what?", "a word")},
    ]
    with caplog.at_level("INFO"):
        found = read_conversations(save(tmp_path, json.dumps(records), "a.json"))
    assert [entry.conversation[0]["value"] for entry in found] == [
        "<image>\nwhat?", "what?", "<image>\nwhat?", "what?", "what?",
    ]  # fmt: skip
    assert [entry.path for entry in found] == ["0.png", "1.png", "2.png", None, None]
    assert "conversations with an image and no <image>, which is shown first: 2" in caplog.text


@pytest.mark.parametrize(("record", "sentence"), [
    ({"conversations": talk("<image>\nwhat?", "red")}, "has <image> in its conversation and no image: name one, or"),
    ({"image": "", "conversations": talk("<image>\nwhat?", "red")}, "has <image> in its conversation and no image"),
    ({"image": None, "conversations": talk("what?", "see <image>")}, "has <image> in its conversation and no image"),
    ({"image": "0.png", "conversations": talk("<image> <image>", "red")}, "shows 2 images in its conversation: one is"),
    ({"image": "0.png", "conversations": talk("<image>", "a", "<image>", "b")}, "shows 2 images"),
    ({"image": ["0.png", "1.png"], "conversations": talk("<image>", "a")}, "has the image .*: give the name of one f"),
    ({"image": 3, "conversations": talk("<image>", "a")}, "has the image 3: give the name of one file"),
    ({"conversations": talk("hi", first="gpt")}, "turn 0 of record 1 of .* must be words of human"),
    ({"conversations": talk("hi", "what?", first="gpt")}, "ends with a question: remove it"),
    ({"conversations": [*talk("hi", first="gpt"), *talk("ho", first="gpt")]}, "turn 1 of .* must be words of human"),
    ({"conversations": talk("what?", 7)}, "turn 1 of record 1 of .* must be words of gpt"),
    ({"conversations": talk("what?", None)}, "turn 1 of record 1 of .* must be words of gpt"),
    ({"conversations": talk("what?", float("nan"))}, "turn 1 of record 1 of .* must be words of gpt"),
    ({"conversations": talk("what?", ["a"])}, "turn 1 of record 1 of .* must be words of gpt"),
    ({"conversations": talk("what?", "\u2028")}, "turn 1 of record 1 of .* must be words of gpt"),
    ({"conversations": talk("what?", "half \ud83d")}, "turn 1 of record 1 of .* holds half a character"),
    ({"conversations": 5}, "has the conversations 5: they must be a list of turns"),
    ({"conversations": True}, "has the conversations True: they must be a list of turns"),
    ({"conversations": "what?"}, "has the conversations 'what\\?': they must be a list of turns"),
    ({"conversations": {"from": "human"}}, "they must be a list of turns"),
])  # fmt: skip
def test_conversations_that_would_be_trained_on_wrongly_are_refused(record, sentence, tmp_path):
    records = [{"id": "fine", "conversations": talk("what?", "a word")}, record]
    with pytest.raises(ValueError, match=sentence) as error:
        read_conversations(save(tmp_path, json.dumps(records), "a.json"))
    assert "record 1 of" in str(error.value)
    assert "a.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_bytes_of_another_encoding_in_a_turn_are_named(tmp_path):
    line = json.dumps({"conversations": talk("what?", "caf\u00e9")}, ensure_ascii=False).encode("latin-1")
    with pytest.raises(
        ValueError, match=r"turn 1 of record 0 of .*a\.jsonl, line 1, holds the byte 0xe9, which is not"
    ):
        read_conversations(save(tmp_path, line, "a.jsonl"))
