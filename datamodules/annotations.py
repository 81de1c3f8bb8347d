"""Annotations of images: captions in JSON, JSONL, CSV and COCO's layouts, conversations in LLaVA's."""

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from datamodules.image_files import shown
from datamodules.records import Records, check_words, read_records
from zoo.language.conversations import IMAGE, Turn

IMAGE_KEYS = ("image", "file_name", "filename", "path")
CAPTION_KEYS = ("caption", "captions", "text", "sentences")
MISSING = ("nan", "NaN", "<NA>", "NULL", "#N/A", "\\N")  # as pandas, spreadsheets and data bases write it into tables


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

    @property
    def file(self) -> str | None:
        """The path in its shortest spelling, which tells images apart."""
        return None if self.path is None else posixpath.normpath(self.path)


# ------------------------------------------------------------------ captions


def read_captions(file: Path) -> list[Annotated]:
    """Images with all of their captions, in the order of the file.

    Read are: a list of records with ``image`` and ``caption`` (a string or several), as JSON, JSONL, CSV or TSV; COCO's
    ``{"images": ..., "annotations": ...}``; Karpathy's ``dataset_coco.json``. Records of the same ``image_id``, or
    without one of the same image, become one.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for a file in another layout, a record without image or words, and two images of one ``image_id``.
    """
    records = read_records(file)
    content = records.content
    if isinstance(content, dict) and "images" in content:
        return (_coco if "annotations" in content else _karpathy)(records)
    if isinstance(content, dict) and "annotations" in content:  # MiniGPT-4's cc_sbu_align
        content = [
            {"image": f"{_of(entry, 'image_id', records.where(i, 'annotation'))}.jpg"} | entry
            for i, entry in enumerate(_listed(content["annotations"], file))
        ]
    if not isinstance(content, list) or not content:
        raise ValueError(f"{shown(file)} holds no captions: it needs records with image and caption, or COCO's layout")
    found: dict[str, Annotated] = {}
    spelling: dict[str, str] = {}  # a/b.png and ./a/b.png are one image
    for i, record in enumerate(content):
        where = records.where(i)
        if not isinstance(record, dict):
            raise ValueError(f"{where} is {_short(record)}: it must be an object with image and caption")
        path, said = _first(record, IMAGE_KEYS), _first(record, CAPTION_KEYS)
        if path in (None, "") or said is None:
            has = ", ".join(shown(name) + (" (null)" if value is None else "") for name, value in record.items())
            hint = "; conversations are read by ConversationData" if "conversations" in record else ""
            raise ValueError(f"{where} has no image or no caption: it has {has}{hint}")
        path = _one_path(path, where)
        captions = _captions(said, f"{where} {shown(path)}," if records.lines else f"{where}, {shown(path)},", records)
        given = record.get("image_id")
        key = spelling.setdefault(posixpath.normpath(path), path) if given in (None, "") else str(given)
        _merge(found, Annotated(path, key, captions, split=_split(record.get("split"), where)), where)
    return list(found.values())


def _merge(found: dict[str, Annotated], new: Annotated, where: str) -> None:
    """Add an image, or the captions of one that is there."""
    old = found.setdefault(new.image_id, new)
    if old is new:
        return
    if old.file != new.file:
        raise ValueError(
            f"{where} has the image_id {shown(new.image_id)} of another image: {shown(old.path)} and {shown(new.path)} "
            f"need ids of their own"
        )
    if old.split != new.split:
        raise ValueError(f"{where} puts {shown(new.path)} into the split {new.split}, and an earlier one: {old.split}")
    old.captions += new.captions


def _coco(records: Records) -> list[Annotated]:
    found: dict[str, Annotated] = {}
    for i, entry in enumerate(_listed(records.content["images"], records.file)):
        where = records.where(i, "image")
        key, path = _of(entry, "id", where), _one_path(_of(entry, "file_name", where), where)
        _merge(found, Annotated(path, str(key)), where)
    for i, annotation in enumerate(_listed(records.content["annotations"], records.file)):
        where = records.where(i, "annotation")
        if (number := str(_of(annotation, "image_id", where))) not in found:
            raise ValueError(f"{shown(records.file)} has a caption of image {number}, which is not among its images")
        found[number].captions += _captions(_of(annotation, "caption", where), where, records)
    kept = [entry for entry in found.values() if entry.captions]
    if not kept:
        raise ValueError(f"{shown(records.file)} has images and no captions of them")
    if silent := len(found) - len(kept):
        rank_zero_info(f"{shown(records.file)}: {silent:,} of {len(found):,} images have no caption and are left out")
    return kept


def _karpathy(records: Records) -> list[Annotated]:
    found: dict[str, Annotated] = {}
    for i, entry in enumerate(_listed(records.content["images"], records.file)):
        where = records.where(i, "image")
        path = _one_path(_of(entry, "filename", where), where)
        folder = f"{entry['filepath']}/" if entry.get("filepath") else ""
        captions = [
            caption
            for sentence in _listed(_of(entry, "sentences", where), records.file)
            for caption in _captions(_of(sentence, "raw", where), where, records)
        ]
        if not captions:
            raise ValueError(f"{where}, {shown(path)}, has no captions: remove it")
        key = str(entry.get("cocoid", entry.get("imgid", path)))
        _merge(found, Annotated(f"{folder}{path}", key, captions, split=_split(entry.get("split"), where)), where)
    return list(found.values())


def _captions(said: Any, where: str, records: Records) -> list[str]:
    """One caption or several, as a list.

    Raises:
        ValueError: for what is no text, or an empty one.
    """
    captions: list[str] = []
    for entry in said if isinstance(said, list) else [said]:
        caption = entry.get("raw", entry.get("caption")) if isinstance(entry, dict) else entry
        if not isinstance(caption, str):
            raise ValueError(f"{where} has the caption {_short(caption)}, which is no text: write words, or remove it")
        if records.is_table and caption in MISSING:
            raise ValueError(f"{where} has the caption {caption}, as tables write what is missing: remove it")
        check_words(caption, where)
        captions.append(caption)
    if not captions or any(not caption.strip() for caption in captions):
        raise ValueError(f"{where} has an empty caption: remove it")
    return captions


# ------------------------------------------------------------------ conversations


def read_conversations(file: Path) -> list[Annotated]:
    """LLaVA's records: ``id``, ``image`` (none for text alone) and ``conversations``, turns of human and gpt.

    A conversation that begins with an answer begins at the question behind it, as in LLaVA. An image that no turn shows
    stands in front of the first question.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for a file in another layout, turns that do not alternate, and ``<image>`` without an image.
    """
    records = read_records(file)
    if not isinstance(records.content, list) or not records.content:
        raise ValueError(f"{shown(file)} holds no conversations: it needs a list of records with conversations")
    found, late, unseen = [], 0, 0
    for i, record in enumerate(records.content):
        where = records.where(i)
        if not isinstance(record, dict):
            raise ValueError(f"{where} is {_short(record)}: it must be an object with conversations")
        turns = record.get("conversations")
        if not turns:
            raise ValueError(f"{where} has no conversations: it has {', '.join(map(shown, record))}")
        if answers_first := isinstance(turns, list) and len(turns) > 1 and _says(turns[0], "gpt"):
            turns, late = turns[1:], late + 1
        _check_turns(turns, where, int(answers_first))
        path, shows = _image_of(record, where), sum(turn["value"].count(IMAGE) for turn in turns)
        if shows and path is None:
            raise ValueError(f"{where} has {IMAGE} in its conversation and no image: name one, or take {IMAGE} out")
        if shows > 1:
            raise ValueError(f"{where} shows {shows} images in its conversation: one is supported")
        if path is not None and not shows:
            turns, unseen = [turns[0] | {"value": f"{IMAGE}\n{turns[0]['value']}"}, *turns[1:]], unseen + 1
        found.append(Annotated(path, str(record.get("id", i)), conversation=turns))
    if late:
        rank_zero_info(f"{shown(file)}: conversations that begin with an answer, which is left out: {late:,}")
    if unseen:
        rank_zero_info(f"{shown(file)}: conversations with an image and no {IMAGE}, which is shown first: {unseen:,}")
    return found


def _says(turn: Any, who: str) -> bool:
    value = turn.get("value") if isinstance(turn, dict) and turn.get("from") == who else None
    return isinstance(value, str) and bool(value.strip())


def _check_turns(turns: Any, where: str, first: int) -> None:
    """Refuse what does not alternate.

    Args:
        turns: of one record.
        where: name of the record.
        first: number of the first of them in the file.
    """
    if not isinstance(turns, list):
        raise ValueError(f"{where} has the conversations {_short(turns)}: they must be a list of turns")
    for number, turn in enumerate(turns):
        wanted = ("human", "gpt")[number % 2]
        if not _says(turn, wanted):
            raise ValueError(f"turn {number + first} of {where} must be words of {wanted}: {_short(turn)}")
        check_words(turn["value"], f"turn {number + first} of {where}")
    if len(turns) % 2:
        raise ValueError(f"{where} ends with a question: remove it")


def _image_of(record: dict[str, Any], where: str) -> str | None:
    image = record.get("image")
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    return None if image in (None, "", []) else _one_path(image, where)


# ------------------------------------------------------------------ pieces


def _split(name: Any, where: str) -> str | None:
    """The split of a record by our names; COCO's restval is trained on, as usual."""
    known = {"": None, "restval": "train", "validation": "val", "valid": "val", "dev": "val"}
    found = known.get(name or "", name) if isinstance(name, str | None) else name
    if found not in (None, "train", "val", "test"):
        raise ValueError(f"{where} is of the split {_short(name)}: write train, val or test")
    return found


def _one_path(path: Any, where: str) -> str:
    if not isinstance(path, str) or not path.strip():
        raise ValueError(f"{where} has the image {_short(path)}: give the name of one file")
    return path


def _listed(entries: Any, file: Path) -> list[Any]:
    if not isinstance(entries, list):
        raise ValueError(f"{shown(file)} has {_short(entries)} where a list of records should be")
    return entries


def _of(entry: Any, key: str, where: str) -> Any:
    if not isinstance(entry, dict) or entry.get(key) is None:
        raise ValueError(f"{where} has no {key}: {_short(entry)}")
    return entry[key]


def _first(record: dict[str, Any], keys: Sequence[str]) -> Any:
    """The value of the first of these keys that has one, else an empty value that is there."""
    given = [record[key] for key in keys if record.get(key) is not None]
    return next((value for value in given if value not in ("", [])), next(iter(given), None))


def _short(value: Any) -> str:
    text = shown(repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."
