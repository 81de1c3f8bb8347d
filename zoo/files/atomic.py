"""Files that are whole or not there: written beside their place, synced to the disk, then renamed over the old ones.

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
_swept: set[Path] = set()


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
    with _beside(path) as part:
        mode = _mode_of_new_files(part)
        yield part
        if part.is_dir():
            for file in part.rglob("*"):
                _sync(file)
        elif part.stat().st_mode != mode:
            part.chmod(mode)  # safetensors makes files that nobody else may read
        _sync(part)
        if not path.exists() or not (path.is_dir() or part.is_dir()):
            os.replace(part, path)
        elif not _exchange(part, path):
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


def refusal(folder: Path, size: int) -> OSError | None:
    """The error of writing so many bytes into a folder, which is made if need be, found by trying; None without one."""
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
def _beside(path: Path) -> Iterator[Path]:
    """A path of the same name in a new hidden folder beside, which is removed at the end; errors in a sentence."""
    scratch, held = None, None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        scratch, held = _make_scratch(path)
        yield scratch / path.name
    except Exception as error:
        reason = _reason(error, None if scratch is None else scratch / path.name)
        if scratch is not None:
            _empty(scratch)
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


def _prefix(path: Path) -> str:
    return f".{path.name[:100]}."


def _make_scratch(path: Path) -> tuple[Path, int | None]:
    """A new folder, locked for as long as this process writes in it, and the descriptor that holds the lock."""
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=SUFFIX, dir=path.parent))
        if (held := _lock(scratch)) is None or scratch.exists():  # a sweep elsewhere may have come between
            return scratch, held
        os.close(held)


def _lock(folder: Path) -> int | None:
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


def _sweep(path: Path) -> None:
    """Remove what killed processes left of earlier writes of this file: folders that nobody holds locked."""
    if path in _swept:
        return
    _swept.add(path)
    for name in os.listdir(path.parent):
        if name.startswith(_prefix(path)) and name.endswith(SUFFIX):
            leftover = path.parent / name
            if (held := _lock(leftover)) is not None:
                if (leftover / OLD).exists() and not path.exists():
                    os.rename(leftover / OLD, path)
                shutil.rmtree(leftover, ignore_errors=True)
                os.close(held)


def _empty(scratch: Path) -> None:
    """Give the room back at once: a writer that failed may hold its file open, and with it keep the disk full."""
    for file in scratch.rglob("*"):
        with contextlib.suppress(OSError):
            if file.is_file() and not file.is_symlink() and file.stat().st_nlink == 1:
                os.truncate(file, 0)


def _mode_of_new_files(part: Path) -> int:
    """The permissions that the user wants for them, found by making one."""
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


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step, as Linux can on most file systems; False where it cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0


def _reason(error: Exception, part: Path | None) -> str | None:
    """Why the system refused to write, in its words; None for errors of another kind."""
    if isinstance(error, OSError):
        return error.strerror  # None for sentences that somebody else made
    if found := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors
        return os.strerror(int(found[1]))
    if part is None or "inline_container" not in str(error):  # torch tells where it noticed, not why
        return None
    cause = refusal(part.parent, _PROBE)
    return None if cause is None else cause.strerror
