"""``--ckpt_path``: the checkpoint that a command goes on from, found and checked before anything is built."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from zoo.checkpoints import pickles
from zoo.checkpoints.addresses import fetch_file, is_address, local_path
from zoo.checkpoints.run_state import check_run
from zoo.checkpoints.sharded import check_sharded_folder
from zoo.files.recipes import suggest_recipe

#: names that Lightning resolves by itself, and how the files begin that it then looks for
KEYWORDS = {"last": "last", "hpc": "hpc_ckpt_"}
#: what is in the folder of a sharded checkpoint: Lightning's FSDP and model-parallel, DeepSpeed
SHARDED = ("meta.pt", "checkpoint")
WHAT_IT_IS = "--ckpt_path takes a checkpoint that lightning fit wrote, weights go to --model.init_args.weights={}"


def find_checkpoint(path: str | None, subcommand: str | None, run_dir: Path, fetch: bool = False) -> str | None:
    """Find the checkpoint that ``--ckpt_path`` names; refuse what cannot be restored before anything is built.

    Args:
        path: as on the command line; None for a run that begins anew.
        subcommand: ``fit`` restores the optimizer as well.
        run_dir: in which Lightning looks for ``last`` and ``hpc``.
        fetch: download the file behind an address.

    Returns:
        A path on this machine, or a keyword of Lightning's; None for None.

    Raises:
        FileNotFoundError: naming checkpoints that are there.
        ValueError: for anything but a Lightning checkpoint.
    """
    if path is None:
        return None
    if path == "best":
        raise ValueError(
            f"--ckpt_path best means nothing before a run has monitored a metric: give a path{_name_a_few()}"
        )
    if path in KEYWORDS:
        pattern = f"{KEYWORDS[path]}*.ckpt"
        if path == "last" and subcommand == "fit":
            return path  # which may be the first run of its folder
        if all(p.parent.name.startswith(".") for p in run_dir.rglob(pattern)):  # what a kill left
            raise FileNotFoundError(f"--ckpt_path {path}: there is no {pattern} in {run_dir}{_name_a_few()}")
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
        raise FileNotFoundError(f"there is no checkpoint {path}{_name_a_few()}{suggest_recipe(file)}")
    _check_checkpoint(file, subcommand)
    return str(file)


def _name_a_few() -> str:
    """Name up to five checkpoints below ``runs``, for the end of a message."""
    there = sorted(str(p) for p in Path().glob("runs/**/*.ckpt") if not any(n.startswith(".") for n in p.parts))[:5]
    return f"; there are {', '.join(there)}" if there else ""


def _check_checkpoint(file: Path, subcommand: str | None) -> None:
    """Refuse a file or folder that holds no state of a run.

    Raises:
        ValueError: naming the file, and the place for weights.
    """
    weights = WHAT_IT_IS.format(shlex.quote(str(file)))
    if file.is_dir():
        if not any((file / name).exists() for name in SHARDED):
            raise ValueError(f"{file} is a folder and no sharded checkpoint: {weights}")
        check_sharded_folder(file)
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
