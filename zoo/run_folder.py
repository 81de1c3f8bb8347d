"""What earlier runs left behind: checkpoints to go on from, and files that a new run would overwrite."""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from zoo.checkpoints import pickles
from zoo.checkpoints.addresses import fetch_file, is_address, local_path
from zoo.checkpoints.sharded import check_folder

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
    there = sorted(map(str, Path().glob("runs/**/*.ckpt")))[:5]
    named = f"; there are {', '.join(there)}" if there else ""
    if path == "best":
        raise ValueError(f"--ckpt_path best means nothing before a run has monitored a metric: give a path{named}")
    if path in KEYWORDS:
        pattern = f"{KEYWORDS[path]}*.ckpt"
        if not any(run_dir.rglob(pattern)) and (path == "hpc" or subcommand != "fit"):
            raise FileNotFoundError(f"--ckpt_path {path}: there is no {pattern} in {run_dir}{named}")
        return path  # which Lightning resolves; a fit with 'last' may be the first of its folder
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
        raise FileNotFoundError(f"there is no checkpoint {path}{named}")
    _check_checkpoint(file, subcommand)
    return str(file)


def _check_checkpoint(file: Path, subcommand: str | None) -> None:
    weights = WHAT_IT_IS.format(file)
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
    if subcommand == "fit" and "optimizer_states" not in content:
        raise ValueError(f"{file} holds no optimizer, so no run can go on from it: {weights}")


@rank_zero_only
def keep_old_metrics(log_dir: Path) -> None:
    """Move ``metrics.csv`` of an earlier run aside, which the CSV logger would delete."""
    if (log_dir / "metrics.csv").exists():
        (log_dir / "metrics.csv").rename(log_dir / f"metrics-{_free_number(log_dir)}.csv")


@rank_zero_only
def keep_old_checkpoint(run_dir: Path) -> None:
    """Move ``last.ckpt`` of an earlier run aside, under the number of its metrics."""
    old = run_dir / "last.ckpt"
    if not old.exists():
        return
    numbers = [
        int(found[1]) for p in run_dir.glob("metrics-*.csv") if (found := re.fullmatch(r"metrics-(\d+)", p.stem))
    ]
    kept = run_dir / f"last-{max(numbers, default=0)}.ckpt"
    if not numbers or kept.exists():
        kept = run_dir / f"last-{_free_number(run_dir)}.ckpt"
    old.rename(kept)
    rank_zero_info(f"{old} of an earlier run is now {kept}")


def _free_number(folder: Path) -> int:
    taken = ("metrics-{}.csv", "last-{}.ckpt")
    return next(n for n in itertools.count(1) if not any((folder / name.format(n)).exists() for name in taken))


def shown(path: str | Path) -> Path:
    """A path as a message should name it: from here, where it is below."""
    path = Path(path)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
