"""DataModules, one per file; a class is imported when it is first asked for.

Batches are dicts: ``image`` (uint8, ``b 3 h w``, never normalised), and where known ``label``, ``caption``,
``captions``, ``conversation``, ``image_id``, ``index``, ``token_image`` (a second view for the tokenizer) and ``ids``.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "CaptionData": "datamodules.captions",
    "ConversationData": "datamodules.captions",
    "EmojiData": "datamodules.emoji",
    "ImageFolderData": "datamodules.image_folder",
    "PhotoData": "datamodules.photos",
    "TokenData": "datamodules.tokens",
    "ZooDataModule": "datamodules.base",
}

__all__ = ["CaptionData", "ConversationData", "EmojiData", "ImageFolderData", "PhotoData", "TokenData", "ZooDataModule"]


def __getattr__(name: str) -> Any:
    if name == "ZooDataModule":  # who asks for the base class chooses among its subclasses: --data EmojiData
        for module in _HOME.values():
            import_module(module)
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'datamodules' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
