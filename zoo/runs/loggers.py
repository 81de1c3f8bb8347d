"""Loggers that write nothing before a run trains, and that append to the metrics of a run which is resumed."""

import contextlib
import csv
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from zoo.files.atomic import write_text_whole, write_whole
from zoo.files.strict_json import dump_json

Row = dict[str, Any]


class _OpensLate:
    """Keeps hyper-parameters back until :meth:`open` is called, at the latest with the first metric."""

    opened = False
    _held: tuple[Any, dict[str, Any]] | None = None

    def open(self) -> None:
        """Write from now on, beginning with the hyper-parameters that were kept back."""
        if not self.opened:
            self.opened = True
            if self._held is not None:
                params, options = self._held
                self.log_hyperparams(params, **options)

    def log_hyperparams(self, params: Any = None, **options: Any) -> None:
        if self.opened:
            super().log_hyperparams(params, **options)  # type: ignore[misc]
        else:
            self._held = params, options

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.open()
        super().log_metrics(metrics, step)  # type: ignore[misc]

    def log_graph(self, *args: Any, **options: Any) -> None:
        if self.opened:
            super().log_graph(*args, **options)  # type: ignore[misc]

    def save(self) -> None:
        if self.opened:
            super().save()  # type: ignore[misc]

    def finalize(self, status: str) -> None:
        if self.opened:
            super().finalize(status)  # type: ignore[misc]


class RunTensorBoardLogger(_OpensLate, TensorBoardLogger):
    """Lightning's, which begins its file when the run trains, in the folder as it is called.

    Lightning's puts the value of ``$NAME`` into it.
    """

    @property
    def log_dir(self) -> str:
        version = self.version if isinstance(self.version, str) else f"version_{self.version}"
        return os.path.join(self.root_dir, version, self.sub_dir or "")

    @property
    def experiment(self) -> Any:
        return super().experiment if self.opened else _DummyExperiment()


class RunCSVLogger(_OpensLate, CSVLogger):
    """Lightning's ``metrics.csv``, begun when the run trains; a run that goes on appends to the rows that are kept.

    Args:
        save_dir: folder of the file.
        name: folder in it.
        version: folder in that.
        prefix: of all names.
        flush_logs_every_n_steps: steps between two writes.
    """

    #: rows that the file begins with; None for those that are there
    kept: Sequence[Row] | None = ()
    _experiment: Any

    @classmethod
    def of(cls, logger: Any) -> Any:
        """Make one of a ``CSVLogger`` of Lightning's; other loggers are returned as they are."""
        if type(logger) is not CSVLogger:
            return logger
        version, every = logger._version, logger._flush_logs_every_n_steps
        mine = cls(logger._save_dir, logger._name, version, logger._prefix, every)
        mine.kept = None
        return mine

    @property
    @rank_zero_experiment  # type: ignore[untyped-decorator]
    def experiment(self) -> Any:
        if not self.opened:
            return _DummyExperiment()
        if self._experiment is None:
            path = Path(self.log_dir) / "metrics.csv"
            self._experiment = MetricsFile(self.log_dir, read_rows(path) if self.kept is None else self.kept)
        return self._experiment

    @rank_zero_only  # type: ignore[untyped-decorator]
    def state(self) -> Row:
        """Describe the file for a checkpoint: its number of rows, all of them on the disk, and their digest."""
        self.save()
        file = self.experiment
        return {"rows": file.rows, "digest": file.digest.hexdigest()} if isinstance(file, MetricsFile) else {}


class MetricsFile(ExperimentWriter):
    """The rows of ``metrics.csv``. New columns rewrite the file as a whole; otherwise rows are appended.

    Args:
        log_dir: folder of the file.
        rows: that it begins with.
    """

    metrics: list[Row]  # that are to be written

    def __init__(self, log_dir: str, rows: Iterable[Row] = ()):
        super().__init__(log_dir)
        rows = list(rows)
        self.path = Path(self.metrics_file_path)
        self.rows, self.digest = len(rows), digest_rows(rows)
        self.metrics_keys = sorted({name for row in rows for name in row})
        self._begun = rows if rows != read_rows(self.path) else None  # to be written with the first new ones

    def _check_log_dir_exists(self) -> None:
        """Delete nothing."""

    def log_hparams(self, params: dict[str, Any]) -> None:
        self.hparams.update(params)
        with write_whole(Path(self.log_dir) / self.NAME_HPARAMS_FILE) as part:
            save_hparams_to_yaml(part, self.hparams)

    def save(self) -> None:
        if not self.metrics:
            return
        rows, self.metrics = self.metrics, []
        new = {name for row in rows for name in row} - set(self.metrics_keys)
        self.rows += len(rows)
        for row in rows:
            self.digest.update(_to_bytes(row))
        if new or self._begun is not None or not self.path.exists():
            before = read_rows(self.path) if self._begun is None else self._begun
            self._begun = None
            self.metrics_keys = sorted({*self.metrics_keys, *new})
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, self.metrics_keys)
            writer.writeheader()
            writer.writerows([*before, *rows])
            write_text_whole(self.path, text.getvalue())
        else:
            self._append(rows)

    def _append(self, rows: list[Row]) -> None:
        size = self.path.stat().st_size
        try:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.metrics_keys).writerows(rows)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)
            raise OSError(f"{self.path} was not written: {error.strerror}; its earlier rows are unchanged") from error


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a file of metrics, without empty values, and without a last row that a kill cut short."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    return [{name: value for name, value in row.items() if name and value} for row in csv.DictReader(whole)]


def select_rows_to_keep(rows: list[Row], said: Row | None, step: int) -> list[Row] | None:
    """Select the rows of a file that had been written when a checkpoint was.

    Args:
        rows: of the file.
        said: what the checkpoint says of its own file; None in an older one.
        step: of the checkpoint, whose rows are of steps before it.

    Returns:
        The rows; None for a file of another run.
    """
    if said:
        kept = rows[: said["rows"]]
        return kept if digest_rows(kept).hexdigest() == said["digest"] else None
    return [row for row in rows if str(row.get("step", "")).isdigit() and int(row["step"]) < step]


def digest_rows(rows: Iterable[Row]) -> Any:
    """Begin a running hash with these rows; it is the same for rows that are logged and rows that are read."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(_to_bytes(row))
    return digest


def _to_bytes(row: Row) -> bytes:
    said = sorted((name, str(value)) for name, value in row.items() if value not in ("", None))
    return dump_json(said, indent=None).encode()
