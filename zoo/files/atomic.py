"""Atomic writes: a file is written beside its place, synced to the disk, and renamed over the old one.

A process that is killed, or a disk that is full, leaves the old file as it was. What was begun lies in a hidden folder
``.NAME.XXXXXXXX.part`` beside it, which the next write of the same file removes.
"""

import contextlib
import ctypes
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has no such locks: leftovers of a kill stay there
    fcntl = None  # type: ignore[assignment]

SUFFIX, OLD = ".part", "the old one"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_PROBE = 2**20  # bytes
_cleaned: set[Path] = set()


@contextlib.contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Give a path to write to; at the end of the block what was written takes the place of ``path``, at once.

    Args:
        path: of a file, or of a folder whose files belong together; the folder that it is in is made if need be.

    Yields:
        A path of the same name on the same file system, where nothing is yet.

    Raises:
        OSError: where it cannot be written, in one sentence; what was there is as it was.
    """
    path = Path(path)
    with _open_scratch(path) as part:
        mode = _find_default_mode(part)
        yield part
        if part.is_dir():
            for file in part.rglob("*"):
                _sync(file)
        elif part.stat().st_mode != mode:
            part.chmod(mode)  # safetensors makes files that nobody else may read
        _sync(part)
        if not path.exists() or not (path.is_dir() or part.is_dir()):
            os.replace(part, path)
        elif not _swap_names(part, path):
            os.rename(path, part.with_name(OLD))  # between this and the next line there is none
            os.rename(part, path)
        _sync(path.parent)


def write_text_whole(path: str | Path, text: str) -> Path:
    """Write text as UTF-8; a reader sees the old file or the new one.

    Args:
        path: of the file.
        text: all of it.
    """
    with write_whole(path) as part:
        part.write_text(text, encoding="utf-8")
    return Path(path)


def write_picture_whole(path: str | Path, picture: Any) -> Path:
    """Write a Pillow image in the format of the path's suffix."""
    with write_whole(path) as part:
        picture.save(part)
    return Path(path)


def find_write_error(folder: Path, size: int) -> OSError | None:
    """Try to write so many bytes into a folder, which is made if need be; return the error, or None."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None


@contextlib.contextmanager
def _open_scratch(path: Path) -> Iterator[Path]:
    """Yield a path of the same name in a new hidden folder beside, removed at the end; errors become one sentence."""
    scratch, held = None, None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        scratch, held = _make_scratch(path)
        yield scratch / path.name
    except Exception as error:
        reason = _explain(error, None if scratch is None else scratch / path.name)
        if scratch is not None:
            _truncate_files(scratch)
        if reason is None:
            raise
        kept = "what was there before is unchanged" if path.exists() else "nothing is left of it"
        said = OSError(f"{path} was not written: {reason}; {kept}")
        said.errno = getattr(error, "errno", None)
        raise said from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        if held is not None:
            os.close(held)


def _scratch_prefix(path: Path) -> str:
    return f".{path.name[:100]}."


def _make_scratch(path: Path) -> tuple[Path, int | None]:
    """Make a folder that is locked for as long as this process writes in it; also return what holds the lock."""
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=_scratch_prefix(path), suffix=SUFFIX, dir=path.parent))
        if (held := _try_lock(scratch)) is None or scratch.exists():  # a sweep elsewhere may have come between
            return scratch, held
        os.close(held)


def _try_lock(folder: Path) -> int | None:
    """Lock a folder against other processes; return the descriptor that holds it, or None where it is not to be had."""
    """Lock a folder against other processes; return the descriptor that holds it, or None where it is not to be had."""
    if fcntl is None:
        return None
    held = None
    try:
        held = os.open(folder, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return held
    except OSError:  # taken, gone, or a file system without locks
        if held is not None:
            os.close(held)
        return None


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of earlier writes of this file: folders that nobody holds locked."""
    if path in _cleaned:
        return
    _cleaned.add(path)
    for name in os.listdir(path.parent):
        if name.startswith(_scratch_prefix(path)) and name.endswith(SUFFIX):
            leftover = path.parent / name
            if (held := _try_lock(leftover)) is not None:
                if (leftover / OLD).exists() and not path.exists():
                    os.rename(leftover / OLD, path)
                shutil.rmtree(leftover, ignore_errors=True)
                os.close(held)


def _truncate_files(scratch: Path) -> None:
    """Cut files to nothing: a writer that failed may hold one open, and would keep the disk full with it."""
    for file in scratch.rglob("*"):
        with contextlib.suppress(OSError):
            if file.is_file() and not file.is_symlink() and file.stat().st_nlink == 1:
                os.truncate(file, 0)


def _find_default_mode(part: Path) -> int:
    """Find the permissions that new files get from the user's settings, by making one."""
    made = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return os.fstat(made).st_mode
    finally:
        os.close(made)
        part.unlink()


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt":  # cannot open folders
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot sync folders
            raise
    finally:
        os.close(opened)


def _swap_names(one: Path, other: Path) -> bool:
    """Swap two names in one step, as Linux can on most file systems; False where it cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0


def _explain(error: Exception, part: Path | None) -> str | None:
    """Say in the system's words why it refused to write; None for errors of another kind."""
    if isinstance(error, OSError):
        return error.strerror  # None for sentences that somebody else made
    if found := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors
        return os.strerror(int(found[1]))
    if part is None or "inline_container" not in str(error):  # torch tells where it noticed, not why
        return None
    cause = find_write_error(part.parent, _PROBE)
    return None if cause is None else cause.strerror
