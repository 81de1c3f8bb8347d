"""Reading annotations of images: captions in JSON, JSONL, CSV and COCO's layouts, conversations in LLaVA's."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Turn = dict[str, str]
IMAGE_KEYS = ("image", "file_name", "filename", "path")
CAPTION_KEYS = ("caption", "captions", "text", "sentences")


@dataclass
class Annotated:
    """One image and what is said of it.

    Args:
        path: of the image, relative to the root; None for text alone.
        image_id: equal for all captions of one image.
        captions: one or more.
        conversation: turns, where there is one.
        split: as the file says, if it does.
    """

    path: str | None
    image_id: str
    captions: list[str] = field(default_factory=list)
    conversation: list[Turn] = field(default_factory=list)
    split: str | None = None


def read_records(file: Path) -> Any:
    """The content of a JSON, JSONL, CSV or TSV file.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: naming the line that cannot be read.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no annotation file {file}")
    if file.suffix in (".csv", ".tsv"):
        with file.open(newline="", encoding="utf-8") as lines:
            return list(csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ","))
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        return [_json(line, f"{file}, line {i}") for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    return _json(text, str(file))


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is no JSON: {error}") from error


def read_captions(file: Path) -> list[Annotated]:
    """Images with all of their captions, in the order of the file.

    Read are: a list of records with ``image`` and ``caption`` (a string or several), as JSON, JSONL, CSV or TSV; COCO's
    ``{"images": ..., "annotations": ...}``; Karpathy's ``dataset_coco.json``. Records of the same ``image_id``, or
    without one of the same image, become one.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for a file in another layout, or a record without image or words.
    """
    content = read_records(file)
    if isinstance(content, dict) and "annotations" in content and "images" in content:
        return _coco(content, file)
    if isinstance(content, dict) and "images" in content:
        return [_karpathy(entry, f"image {i} of {file}") for i, entry in enumerate(content["images"])]
    if isinstance(content, dict) and "annotations" in content:  # MiniGPT-4's cc_sbu_align
        content = [
            {"image": f"{_of(entry, 'image_id', f'annotation {i} of {file}')}.jpg"} | entry
            for i, entry in enumerate(content["annotations"])
        ]
    if not isinstance(content, list) or not content:
        raise ValueError(f"{file} holds no captions: it needs records with image and caption, or COCO's layout")
    found: dict[str, Annotated] = {}
    for i, record in enumerate(content):
        if not isinstance(record, dict):
            raise ValueError(f"record {i} of {file} is {record!r}: it must be an object with image and caption")
        path, said = _first(record, IMAGE_KEYS), _first(record, CAPTION_KEYS)
        if path is None or said is None:
            raise ValueError(f"record {i} of {file} has no image or no caption: it has {', '.join(map(str, record))}")
        captions = [said] if isinstance(said, str) else list(said)
        if not captions or any(not str(caption).strip() for caption in captions):
            raise ValueError(f"record {i} of {file}, {path}, has an empty caption: remove it")
        key = str(record.get("image_id") or path)
        split = _split(record.get("split"), f"record {i} of {file}")
        found.setdefault(key, Annotated(str(path), key, split=split)).captions.extend(map(str, captions))
    return list(found.values())


def _coco(content: dict[str, Any], file: Path) -> list[Annotated]:
    found = {}
    for i, entry in enumerate(content["images"]):
        where = f"image {i} of {file}"
        found[_of(entry, "id", where)] = Annotated(_of(entry, "file_name", where), str(entry["id"]))
    for i, annotation in enumerate(content["annotations"]):
        where = f"annotation {i} of {file}"
        if (number := _of(annotation, "image_id", where)) not in found:
            raise ValueError(f"{file} has a caption of image {number}, which is not among its images")
        found[number].captions.append(_words(_of(annotation, "caption", where), where))
    kept = [entry for entry in found.values() if entry.captions]
    if not kept:
        raise ValueError(f"{file} has images and no captions of them")
    return kept


def _karpathy(entry: dict[str, Any], where: str) -> Annotated:
    _of(entry, "filename", where)
    folder = f"{entry['filepath']}/" if entry.get("filepath") else ""
    name = str(entry.get("cocoid", entry.get("imgid", entry["filename"])))
    captions = [_words(_of(sentence, "raw", where), where) for sentence in _of(entry, "sentences", where)]
    if not captions:
        raise ValueError(f"{where}, {entry['filename']}, has no captions: remove it")
    return Annotated(f"{folder}{entry['filename']}", name, captions, split=_split(entry.get("split"), where))


def _of(entry: Any, key: str, where: str) -> Any:
    if not isinstance(entry, dict) or entry.get(key) is None:
        raise ValueError(f"{where} has no {key}: {str(entry)[:80]}")
    return entry[key]


def _words(caption: Any, where: str) -> str:
    if not str(caption).strip():
        raise ValueError(f"{where} has an empty caption: remove it")
    return str(caption)


def _split(name: Any, where: str) -> str | None:
    """The split of a record by our names; COCO's restval is trained on, as usual."""
    found = {"": None, "restval": "train", "validation": "val", "valid": "val", "dev": "val"}.get(name or "", name)
    if found not in (None, "train", "val", "test"):
        raise ValueError(f"{where} is of the split {name!r}: write train, val or test")
    return found


def read_conversations(file: Path) -> list[Annotated]:
    """LLaVA's records: ``id``, ``image`` (none for text alone) and ``conversations``, turns of human and gpt.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for a file in another layout, or turns that do not alternate.
    """
    content = read_records(file)
    if not isinstance(content, list) or not content:
        raise ValueError(f"{file} holds no conversations: it needs a list of records with conversations")
    found = []
    for i, record in enumerate(content):
        if not isinstance(record, dict):
            raise ValueError(f"record {i} of {file} is {record!r}: it must be an object with conversations")
        turns = record.get("conversations")
        if not turns:
            raise ValueError(f"record {i} of {file} has no conversations: it has {', '.join(map(str, record))}")
        for number, turn in enumerate(turns):
            wanted = ("human", "gpt")[number % 2]
            if not isinstance(turn, dict) or turn.get("from") != wanted or not str(turn.get("value", "")).strip():
                raise ValueError(f"turn {number} of record {i} of {file} must be words of {wanted}: {turn}")
        if len(turns) % 2:
            raise ValueError(f"record {i} of {file} ends with a question: remove it")
        found.append(Annotated(record.get("image"), str(record.get("id", i)), conversation=turns))
    return found


def _first(record: dict[str, Any], keys: Sequence[str]) -> Any:
    return next((record[key] for key in keys if record.get(key)), None)
