"""What earlier runs left behind: checkpoints to go on from, and files that a new run would overwrite."""

import itertools
import shlex
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch import Trainer

from zoo.checkpoints import pickles
from zoo.checkpoints.addresses import fetch_file, is_address, local_path
from zoo.checkpoints.run_state import check_run
from zoo.checkpoints.sharded import check_folder
from zoo.files.recipes import how_to_make

#: names that Lightning resolves by itself, and how the files begin that it then looks for
KEYWORDS = {"last": "last", "hpc": "hpc_ckpt_"}
#: what is in the folder of a sharded checkpoint: Lightning's FSDP and model-parallel, DeepSpeed
SHARDED = ("meta.pt", "checkpoint")
WHAT_IT_IS = "--ckpt_path takes a checkpoint that lightning fit wrote, weights go to --model.init_args.weights={}"


def find_checkpoint(path: str | None, subcommand: str | None, run_dir: Path, fetch: bool = False) -> str | None:
    """What ``--ckpt_path`` means, refused before anything is built where it cannot be restored.

    Args:
        path: as on the command line.
        subcommand: ``fit`` restores the optimizer as well.
        run_dir: in which Lightning looks for ``last`` and ``hpc``.
        fetch: download the file behind an address.

    Returns:
        A path on this machine, or a keyword of Lightning's.

    Raises:
        FileNotFoundError: naming checkpoints that are there.
        ValueError: for anything but a Lightning checkpoint.
    """
    if path is None:
        return None
    if path == "best":
        raise ValueError(
            f"--ckpt_path best means nothing before a run has monitored a metric: give a path{_those_there()}"
        )
    if path in KEYWORDS:
        pattern = f"{KEYWORDS[path]}*.ckpt"
        if path == "last" and subcommand == "fit":
            return path  # which may be the first run of its folder
        if all(p.parent.name.startswith(".") for p in run_dir.rglob(pattern)):  # what a kill left
            raise FileNotFoundError(f"--ckpt_path {path}: there is no {pattern} in {run_dir}{_those_there()}")
        return path  # which Lightning resolves
    if is_address(path):
        if not fetch:
            raise ValueError(
                f"{path} is an address, and --ckpt_path reads files of this machine: download it, or add "
                "--fetch_checkpoint to have it downloaded first"
            )
        file = fetch_file(path)
    else:
        file = local_path(path)
    if not file.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}{_those_there()}{how_to_make(file)}")
    _check_checkpoint(file, subcommand)
    return str(file)


def _those_there() -> str:
    """A few checkpoints below ``runs``, for the end of a message."""
    there = sorted(str(p) for p in Path().glob("runs/**/*.ckpt") if not any(n.startswith(".") for n in p.parts))[:5]
    return f"; there are {', '.join(there)}" if there else ""


def _check_checkpoint(file: Path, subcommand: str | None) -> None:
    weights = WHAT_IT_IS.format(shlex.quote(str(file)))
    if file.is_dir():
        if not any((file / name).exists() for name in SHARDED):
            raise ValueError(f"{file} is a folder and no sharded checkpoint: {weights}")
        check_folder(file)
        return
    if file.suffix == ".safetensors":
        raise ValueError(f"{file} is no checkpoint of a run: {weights}")
    try:
        content = pickles.load(file)  # tensors are mapped into memory, not read
    except pickles.UnsafePickleError:
        raise
    except ValueError:
        raise ValueError(f"{file} is damaged, or no checkpoint of a run: {weights}") from None
    if not isinstance(content, Mapping) or not {"state_dict", "pytorch-lightning_version"} <= content.keys():
        raise ValueError(f"{file} is no checkpoint of a run: {weights}")
    check_run(content, file)
    if subcommand == "fit" and "optimizer_states" not in content:
        raise ValueError(f"{file} holds no optimizer, so no run can go on from it: {weights}")


#: what a run writes about itself
RECORD = ("last.ckpt", "config.yaml", "metrics.csv", "hparams.yaml")


def move_aside(folder: Path) -> list[Path]:
    """Give the record of an earlier run, its last checkpoint included, names with one number.

    Args:
        folder: of the run.

    Returns:
        The new paths.
    """
    files = [folder / name for name in RECORD if (folder / name).exists()]
    events = sorted(folder.glob("events.out.tfevents.*"))
    if not files and not events:
        return []
    number = free_number(folder)
    kept = [file.rename(folder / f"{file.stem}-{number}{file.suffix}") for file in files]
    if events:  # TensorBoard reads all files of a folder as one run
        kept.append(folder / f"tensorboard-{number}")
        kept[-1].mkdir()
        for file in events:
            file.rename(kept[-1] / file.name)
    return kept


def free_number(folder: Path) -> int:
    """The first one under which nothing was moved aside."""
    taken = [f"{Path(name).stem}-{{}}{Path(name).suffix}" for name in RECORD] + ["tensorboard-{}"]
    return next(n for n in itertools.count(1) if not any((folder / name.format(n)).exists() for name in taken))


def log_folder(trainer: Trainer) -> Path:
    """Where a run writes what it logs; every rank must ask, because Lightning's ``log_dir`` broadcasts."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def shown(path: str | Path) -> Path:
    """A path as a message should name it: from here, where it is below and does not look like an option."""
    path = Path(path)
    near = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return near.absolute() if str(near).startswith("-") else near
