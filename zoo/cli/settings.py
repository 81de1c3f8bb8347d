"""Settings of a run that cannot work, refused before a model is built."""

import inspect
import math
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Timer

from zoo.cli.parser import find_class
from zoo.init_args import settings_groups, takes_none


def check_trainer(config: Any, subcommand: str, oversubscribe: bool = False) -> None:
    """Refuse settings of the Trainer with which a run would do nothing, or fail late and without a reason.

    Args:
        config: the part ``trainer`` of the configuration.
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        oversubscribe: whether there may be more processes than CPUs.

    Raises:
        ValueError: naming the setting and what to write instead.
    """

    def number(name: str) -> float | None:
        value = config.get(name)
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    fit = subcommand == "fit" and not config.get("fast_dev_run")
    for name in ("max_steps", "max_epochs", "limit_train_batches"):
        if fit and number(name) == 0:
            raise ValueError(f"trainer.{name}=0 trains nothing: give a number of at least 1")
    limit = {"validate": "limit_val_batches", "test": "limit_test_batches", "predict": "limit_predict_batches"}
    if subcommand in limit and number(limit[subcommand]) == 0:
        raise ValueError(f"trainer.{limit[subcommand]}=0 leaves nothing to {subcommand}: give a number of at least 1")
    for name in ("max_steps", "max_epochs", "min_steps", "min_epochs", "num_sanity_val_steps"):
        if (value := number(name)) is not None and value < -1:
            raise ValueError(f"trainer.{name} cannot be {value}: it is a number, or -1 for no limit")
    for name in ("val_check_interval", "check_val_every_n_epoch", "accumulate_grad_batches", "num_nodes"):
        if (value := number(name)) is not None and value <= 0:
            more = "; --trainer.limit_val_batches=0 switches validation off" if "val" in name else ""
            raise ValueError(f"trainer.{name} must be above 0, got {value}{more}")
    for name in ("gradient_clip_val", "log_every_n_steps", "reload_dataloaders_every_n_epochs", "fast_dev_run"):
        if (value := number(name)) is not None and not 0 <= value < math.inf:
            raise ValueError(f"trainer.{name} must not be negative, got {value}")
    devices = config.get("devices")
    if devices in (0, "0", [], "[]") or (
        isinstance(devices, (int, str)) and str(devices)[1:].isdigit() and int(devices) < -1
    ):
        raise ValueError(f"trainer.devices={devices} leaves nothing to run on: give a number of at least 1, or auto")
    if not oversubscribe:
        _check_processes(devices, config.get("accelerator"))
    if fit and (left := Timer(config.get("max_time")).time_remaining()) is not None and left <= 0:
        raise ValueError(f"trainer.max_time={config['max_time']} trains nothing: give DD:HH:MM:SS above 0")
    if config.get("barebones"):
        raise ValueError(
            "trainer.barebones=true would leave out the log, the checkpoint and the bar: use "
            "--trainer.fast_dev_run=true for a short trial, or --trainer.logger=false"
        )


def _check_processes(devices: Any, accelerator: Any) -> None:
    """Refuse more processes on a CPU than it has cores: 64 of them, each with a model, can take a machine down."""
    if not str(devices).isdigit() or accelerator not in (None, "auto", "cpu"):
        return
    if accelerator != "cpu":
        import torch

        if torch.accelerator.is_available():
            return
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if int(devices) > max(there, 2):
        raise ValueError(
            f"trainer.devices={devices} would start {devices} processes on {there} CPU{'s'[: there > 1]}: lower it, or "
            "add --oversubscribe if that is meant"
        )


def check_groups(model: Any) -> None:
    """Refuse null for settings groups that a model cannot do without, which the parser takes.

    Args:
        model: the part ``model`` of the configuration.

    Raises:
        ValueError: naming the group and what to write instead.
    """
    if (cls := find_class(model["class_path"])) is None:
        return
    for name, kind in settings_groups(cls).items():
        if name in model["init_args"] and model["init_args"][name] is None and not takes_none(cls, name):
            of = next(iter(inspect.signature(kind).parameters))
            raise ValueError(
                f"model.{name} cannot be null: leave it out, or give the fields that differ, such as "
                f"--model.{name}.{of}=VALUE"
            )


def check_run_folder(folder: str | Path | None) -> None:
    """Refuse a folder that cannot be written to; nothing is made.

    Args:
        folder: of the run; None is ``runs/NAME`` in the working directory.

    Raises:
        ValueError: naming what is in the way.
    """
    path = Path(os.path.expanduser(folder or "runs"))
    if "://" in str(path):
        return
    above = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not above.is_dir():
        raise ValueError(
            f"nothing can be written to {path}: {above} is a file: name a folder, --trainer.default_root_dir=DIR"
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(
            f"nothing can be written to {path}: {above} may not be written to: name a folder of yours, "
            "--trainer.default_root_dir=DIR"
        )
