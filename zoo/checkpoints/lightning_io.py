"""Safe reading and writing of checkpoints by Lightning, for every way in which it can be asked to."""

import contextlib
import pickle
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.core.saving import _load_state, load_hparams_from_tags_csv, load_hparams_from_yaml
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.migration.utils import _pl_migrate_checkpoint

from zoo.checkpoints import pickles
from zoo.checkpoints.addresses import is_address, local_path
from zoo.checkpoints.run_state import check_run, explain_failed_restores
from zoo.checkpoints.sharded import check_sharded_folder
from zoo.files.atomic import write_whole
from zoo.files.recipes import suggest_recipe
from zoo.init_args import as_init_args, class_by_path, migrate_and_say, typed_arguments, without_classes


class SafeCheckpointIO(TorchCheckpointIO):
    """Reads checkpoints without running anything that they ask for, and replaces old ones only by whole new ones."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint beside its place and rename it; until then the old one is there.

        Lightning writes to the temporary folder and moves the file, which between file systems is a copy over the old.

        Args:
            checkpoint: state of trainer and model.
            path: of a local file; for addresses Lightning's own way is taken.
            storage_options: not known for files.

        Raises:
            OSError: where it cannot be written, for example on a full disk; the old one is as it was.
        """
        if is_address(path) or storage_options is not None:
            return super().save_checkpoint(checkpoint, path, storage_options)
        with write_whole(local_path(path)) as part:
            torch.save(checkpoint, part)

    def load_checkpoint(
        self, path: str | Path, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint onto the CPU.

        Args:
            path: of a local file.
            map_location: not used; Lightning moves what it needs.
            weights_only: not used; nothing else is ever read.

        Raises:
            FileNotFoundError: for a path that is not there.
            ValueError: for a file that is damaged, unsafe, or an address.
        """
        path = _find_existing(path)
        if path.is_dir():
            raise ValueError(f"{path} is a folder: the shards in it are restored by the strategy that wrote them")
        # Not mapped: what stays in memory must not depend on a file that the run may write again.
        return pickles.load(path, mapped=False)


def read_safely(trainer: Trainer) -> None:
    """Make a trainer read and write checkpoints safely; called as soon as one of our modules meets it.

    Args:
        trainer: whose strategy is changed, once.
    """
    strategy = trainer.strategy
    if getattr(strategy, "reads_safely", False):
        return
    _replace_io(strategy)
    inner = strategy.load_checkpoint

    def load_checkpoint(checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        path = _find_existing(checkpoint_path)
        if path.is_dir():
            check_sharded_folder(path)
        elif type(strategy).load_checkpoint is not Strategy.load_checkpoint or not _is_safe(strategy.checkpoint_io):
            pickles.load(path)  # strategies and plugins with a reader of their own
        torch.cuda.empty_cache()
        try:
            return check_run(inner(path, weights_only=True), path)
        except pickle.UnpicklingError as error:  # of a strategy's own reader, which advises to run the file
            raise ValueError(pickles.damage(path, error)) from None

    save = strategy.save_checkpoint

    def save_checkpoint(checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        failed: OSError | None = None
        try:
            if type(strategy).save_checkpoint is Strategy.save_checkpoint or is_address(filepath):
                save(checkpoint, filepath, storage_options)
            else:
                _save_whole(strategy, save, checkpoint, filepath, storage_options)
        except OSError as error:
            failed = error
        said = strategy.broadcast(None if failed is None else str(failed))
        if failed is not None:
            raise failed
        if said is not None:  # by the first rank, for which the others would wait
            from zoo.distributed import exit_code_of_rank

            raise SystemExit(exit_code_of_rank(trainer, 1))

    strategy.load_checkpoint = load_checkpoint
    strategy.save_checkpoint = save_checkpoint
    explain_failed_restores(trainer)
    strategy.reads_safely = True


def _save_whole(
    strategy: Strategy, save: Callable, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any
) -> None:
    """Let every rank write its part of a folder, which then takes the place of the old one as a whole."""
    path = local_path(strategy.broadcast(filepath))
    with write_whole(path) if strategy.is_global_zero else contextlib.nullcontext() as part:
        part = strategy.broadcast(part)
        save(checkpoint, part, storage_options)
        strategy.barrier("all parts of the checkpoint are written")


def load_from_checkpoint(
    cls: type,
    source: str | Path | BinaryIO,
    map_location: Any = None,
    hparams_file: str | Path | None = None,
    strict: bool | None = None,
    **overrides: Any,
) -> Any:
    """Load a module or data module as Lightning's ``load_from_checkpoint`` does, safely.

    Args:
        cls: to be made, or its base.
        source: a path, or an open file.
        map_location: device of the module; a mapping or a function is not supported.
        hparams_file: YAML or CSV with constructor arguments in place of the file's.
        strict: whether the names of the weights must be the module's.
        overrides: constructor arguments that differ from the file's.

    Raises:
        FileNotFoundError: for a path that is not there.
        ValueError: for a file that is damaged, unsafe, or no checkpoint of a run.
    """
    from zoo.checkpoints.size import check_size

    if isinstance(source, str | Path):
        path = _find_existing(source)
        content = check_run(pickles.load(path, mapped=False), path)
    else:
        with tempfile.TemporaryDirectory() as room:
            path = Path(room) / "checkpoint"
            path.write_bytes(source.read())
            with pickles.called(path, str(getattr(source, "name", "the open file"))):
                content = check_run(pickles.load(path, mapped=False), path)
    content = _pl_migrate_checkpoint(content)
    key = cls.CHECKPOINT_HYPER_PARAMS_KEY  # type: ignore[attr-defined]
    if hparams_file is not None:
        table = str(hparams_file).endswith(".csv")
        reader = load_hparams_from_tags_csv if table else partial(load_hparams_from_yaml, use_omegaconf=False)
        content[key] = reader(local_path(hparams_file))
    said = dict(content.get(key) or {})
    if issubclass(cls, LightningDataModule):
        content[key] = said | overrides
        return _load_state(cls, content, **overrides)
    made = _find_requested_class(cls, said | overrides)
    settings = as_init_args(made, migrate_and_say(made, overrides), typed_arguments(made, said))
    # the parser of the command line makes classes of dictionaries itself
    content[key] = without_classes(settings) if "_instantiator" in said else settings
    check_size(made, settings, content["state_dict"], path)
    module = _load_state(cls, content, strict=strict)
    return module if map_location is None else module.to(map_location)


def _find_requested_class(cls: type, settings: dict[str, Any]) -> type:
    """Find the class that Lightning will make: one that is imported, or the one that was asked for."""
    named = str(settings.get("_class_path", ""))
    classes, waiting = {}, [cls]
    while waiting:
        found = waiting.pop()
        classes[f"{found.__module__}.{found.__qualname__}"] = found
        waiting += found.__subclasses__()
    if (known := class_by_path(named, classes.values())) is not None:
        return known
    return next((c for name, c in classes.items() if name.endswith(f".{named}")), cls)


def _find_existing(source: str | Path) -> Path:
    path = local_path(source)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}{suggest_recipe(path)}")
    return path


def _replace_io(strategy: Strategy) -> None:
    found: CheckpointIO | None = strategy._checkpoint_io
    if isinstance(found, _WrappingCheckpointIO):
        while isinstance(found._checkpoint_io, _WrappingCheckpointIO):
            found = found._checkpoint_io
        if found._checkpoint_io is None or type(found._checkpoint_io) is TorchCheckpointIO:
            found._checkpoint_io, found._base_checkpoint_io_configured = SafeCheckpointIO(), True
    elif found is None or type(found) is TorchCheckpointIO:
        strategy.checkpoint_io = SafeCheckpointIO()


def _is_safe(reader: CheckpointIO) -> bool:
    while isinstance(reader, _WrappingCheckpointIO) and reader.checkpoint_io is not None:
        reader = reader.checkpoint_io
    return isinstance(reader, SafeCheckpointIO)
