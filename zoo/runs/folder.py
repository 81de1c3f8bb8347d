"""The folder of a run: where it logs, how messages name it, and the record of an earlier run that is moved aside."""

import itertools
from pathlib import Path

from lightning.pytorch import Trainer

#: files that a run writes about itself
RECORD = ("last.ckpt", "config.yaml", "metrics.csv", "hparams.yaml")


def move_aside(folder: Path) -> list[Path]:
    """Rename the record of an earlier run, its last checkpoint included, by one number for all of its files.

    Args:
        folder: of the run.

    Returns:
        The new paths.
    """
    files = [folder / name for name in RECORD if (folder / name).exists()]
    events = sorted(folder.glob("events.out.tfevents.*"))
    if not files and not events:
        return []
    number = find_free_number(folder)
    kept = [file.rename(folder / f"{file.stem}-{number}{file.suffix}") for file in files]
    if events:  # TensorBoard reads all files of a folder as one run
        kept.append(folder / f"tensorboard-{number}")
        kept[-1].mkdir()
        for file in events:
            file.rename(kept[-1] / file.name)
    return kept


def find_free_number(folder: Path) -> int:
    """Find the first number under which nothing was moved aside."""
    taken = [f"{Path(name).stem}-{{}}{Path(name).suffix}" for name in RECORD] + ["tensorboard-{}"]
    return next(n for n in itertools.count(1) if not any((folder / name.format(n)).exists() for name in taken))


def log_folder(trainer: Trainer) -> Path:
    """The folder that a run logs to; every rank must call this, because Lightning's ``log_dir`` broadcasts."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def display_path(path: str | Path) -> Path:
    """Shorten a path for a message: relative to the working directory where it is below and looks like no option."""
    path = Path(path)
    near = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return near.absolute() if str(near).startswith("-") else near
