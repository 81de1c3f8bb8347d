"""Checks that a file holds the state of a run, and a sentence where restoring it fails all the same."""

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

VERSION = "pytorch-lightning_version"
#: types of the entries that Lightning and we put into a checkpoint
KINDS: dict[str, tuple[type, ...]] = {
    "callbacks": (dict,),
    "datamodule_hyper_parameters": (dict,),
    "epoch": (int,),
    "global_step": (int,),
    "hyper_parameters": (dict,),
    "loops": (dict,),
    "lr_schedulers": (list,),
    "metrics_file": (dict, type(None)),
    "optimizer_states": (list,),
    "state_dict": (Mapping,),
    "zoo": (dict,),
    "zoo_run": (dict,),
}
ENTRIES = {"lr_schedulers": dict, "optimizer_states": dict, "state_dict": Tensor}
#: errors of Lightning, torch and ours for an entry that is not as it was written
MISFITS = (AttributeError, IndexError, KeyError, TypeError)


def check_run(content: Any, path: Path) -> dict[str, Any]:
    """Return the content of a file if it is the state of a run.

    Raises:
        ValueError: naming the entry that is missing or of another kind.
    """
    if not isinstance(content, dict) or VERSION not in content:
        raise ValueError(f"{path} is no checkpoint of a run; weights alone are read with model.load_weights(PATH)")
    version = content[VERSION]
    if not isinstance(version, str) or not re.fullmatch(
        r"\d+(\.\d+)*((a|b|rc|\.?dev|\.?post)\d*)*(\+[\w.]+)?", version
    ):
        raise ValueError(f"{path} is damaged: it does not say which version of Lightning wrote it")
    kinds = KINDS | {name: (dict,) for name in content if isinstance(name, str) and name.endswith("Data")}
    for name, wanted in kinds.items():
        value = content.get(name)
        entries = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        whole = name not in content or isinstance(value, wanted)
        if not whole or not all(isinstance(entry, ENTRIES.get(name, object)) for entry in entries):
            raise ValueError(f"{path} is damaged: its {name} is not what a run writes; take another checkpoint")
    return content


def explain_failed_restores(trainer: Trainer) -> None:
    """Give the errors of a trainer that restores a state a sentence which names the file."""
    connector = trainer._checkpoint_connector
    for name in ("_restore_modules_and_callbacks", "restore_training_state"):
        setattr(connector, name, _with_sentence(getattr(connector, name), connector))


def _with_sentence(restore: Callable[..., None], connector: Any) -> Callable[..., None]:
    @functools.wraps(restore)
    def named(*args: Any, **kwargs: Any) -> None:
        try:
            restore(*args, **kwargs)
        except (*MISFITS, ValueError) as error:
            if isinstance(error, ValueError) and not str(error).startswith("loaded state dict"):  # that of torch
                raise
            raise ValueError(
                f"{connector._ckpt_path} could not be restored ({type(error).__name__}: {str(error)[:200]}): it is "
                "of another recipe or version, or damaged"
            ) from error

    return named
