"""A lock on a folder: one process writes in it at a time, and the others are told which."""

import contextlib
import errno
import os
import socket
from datetime import datetime
from pathlib import Path
from typing import IO, ClassVar

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class FolderLock:
    """Held by the one process that writes in a folder. It ends with the process, also with one that is killed.

    Processes of other hosts are seen where the file system knows locks of other hosts. Without any locks a process of
    this host is looked for, and one of another host is believed to live.

    Args:
        folder: made if need be.
        remedy: what to do where it is in use.
    """

    NAME = ".in_use"
    _held: ClassVar[set[Path]] = set()

    def __init__(self, folder: str | Path, remedy: str):
        self.folder, self.remedy = Path(folder), remedy
        self.path = self.folder.absolute() / self.NAME
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            FileExistsError: where another process has it, naming that.
            OSError: where the folder cannot be written to.
        """
        folder = self.folder
        if self.path in self._held:
            raise FileExistsError(f"{folder} is in use by this process: {self.remedy}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            holder = self._try_acquire()
        except OSError as error:
            raise OSError(f"nothing can be written to {folder}: {error.strerror}") from None
        if holder is not None:
            raise FileExistsError(f"{folder} is in use by {holder}: {self.remedy}")
        self._held.add(self.path)

    def release(self) -> None:
        """Let others have the lock; its file is removed, and so is the folder where nothing was written in it."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None
            self._held.discard(self.path)
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()  # only if it is empty

    def _try_acquire(self) -> str | None:
        """Take the lock unless another process has it; return who that is, or None."""
        while True:
            file = self.path.open("a+")
            holder = self._lock_file(file)
            if holder is not None:
                file.close()
                return holder
            if self.path.exists() and os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                break
            file.close()  # of a process that has just released it
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()} {datetime.now().isoformat(' ', 'seconds')}")
        file.flush()
        self._file = file
        return None

    def _lock_file(self, file: IO[str]) -> str | None:
        """Lock the open file; return in words who holds it, or None."""
        file.seek(0)
        pid, host, since = (*file.read().split(" ", 2), "?", "?", "?")[:3]
        holder = f"process {pid} on {host} since {since}"
        if fcntl is not None:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock not passed on to data workers
                return None
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    return holder
        if not pid.isdigit() or (host == socket.gethostname() and not _is_running(int(pid))):
            return None
        return f"{holder}, if that is still at work (otherwise remove {self.folder / self.NAME})"


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
