"""Checkpoints that are folders: every pickle in them is read safely before Lightning or DeepSpeed reads it."""

from pathlib import Path

from zoo.checkpoints import pickles

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


def check_folder(folder: Path) -> None:
    """Refuse a folder in which some file asks for more than tensors and plain data.

    Raises:
        ValueError: naming the file and what it asks for.
    """
    for file in sorted(folder.rglob("*")):
        if file.suffix in PICKLES and file.is_file():
            pickles.load(file)
