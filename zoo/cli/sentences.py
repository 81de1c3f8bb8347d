"""Errors that are for the user become one sentence; bugs keep their tracebacks.

Three kinds of errors are for the user: those that a ``raise`` of the zoo made, those that Lightning raises by itself
about settings, and those of the machine, such as a full disk.
"""

import errno
import linecache
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException

from zoo.cli.commands import TRACEBACK

FOR_THE_USER = (ValueError, TypeError, RuntimeError, OSError, ImportError, MisconfigurationException)
OURS = ("zoo", "datamodules")
#: the way from the command line to a library
CLI = ("zoo.cli.entry", "zoo.cli.app", "zoo.cli.sentences", "zoo.cli.settings", "zoo.__main__")
MOVE = "for a run --trainer.default_root_dir=DIR"
PLACES = {
    errno.ENOSPC: f"free some space, or name a folder on another disk, {MOVE}",
    errno.EDQUOT: f"free some space, or name a folder on another disk, {MOVE}",
    errno.EACCES: f"name a folder of yours, {MOVE}",
    errno.EPERM: f"name a folder of yours, {MOVE}",
    errno.EROFS: f"name a folder that can be written to, {MOVE}",
    errno.EEXIST: f"a file is there where a folder is needed: name another one, {MOVE}",
    errno.ENOTDIR: f"a file is there where a folder is needed: name another one, {MOVE}",
    errno.EISDIR: f"a folder is there where a file is needed: name another one, {MOVE}",
    errno.ENAMETOOLONG: f"name a shorter one, {MOVE}",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or lower --data.num_workers",
}
CPU = "leave --trainer.accelerator and --trainer.devices out, which takes what is there, or --trainer.accelerator=cpu"
#: message of Lightning's -> our sentence
REMEDIES = (
    (r"No supported gpu backend found|GPUs? requested but none", f"there is no GPU here that torch can use: {CPU}"),
    (r"`(\w+)Accelerator` can ?not run on your system", f"there is no \\1 device here that torch can use: {CPU}"),
    (
        r"`val_check_interval` \((\d+)\) must be less than or equal to the number of the training batches \((\d+)\)",
        r"val_check_interval=\1 is longer than an epoch, which has \2 batches: lower it, or count batches over epochs "
        "with --trainer.check_val_every_n_epoch=null",
    ),
)


def end_with_sentence(error: Exception) -> NoReturn:
    """End the program with one line where the user can help it; otherwise raise the error as it is."""
    said = None if os.environ.get(TRACEBACK) else find_sentence(error)
    if said is None:
        raise error
    sys.stderr.write(f"error: {said}\n")
    sys.exit(1)


def find_sentence(error: BaseException | None) -> str | None:
    """Find the sentence for the user; None for bugs.

    The parser wraps what constructors raise, so causes are looked at as well.
    """
    while error is not None:
        if (said := _sentence_of_one(error)) is not None:
            return said
        error = error.__cause__
    return None


def _sentence_of_one(error: BaseException) -> str | None:
    message = str(error)
    if isinstance(error, RuntimeError) and (
        other := re.match(r"Error\(s\) in loading (\w+) for (\w+):\s+(.+)", message)
    ):
        keys = textwrap.shorten(other[3], 240, placeholder=" ...")
        return f"the checkpoint is not of this {other[2]}: {keys}; use the recipe and flags that made it"
    if said := _find_worker_sentence(message):
        return said
    frames = list(_iterate_frames(error))
    module, line, function = frames[-1] if frames else ("", "", "")
    if module.partition(".")[0] in OURS and line.startswith("raise ") and isinstance(error, FOR_THE_USER):
        return message
    if isinstance(error, OSError) and (remedy := PLACES.get(error.errno or 0)):
        name = "" if error.filename is None else f"{error.filename}: "
        return f"{name}{error.strerror}: {remedy}"
    if isinstance(error, FileNotFoundError) and function in ("mkdir", "makedirs"):
        return f"{error.filename}: no folder can be made there: name another one, {MOVE}"
    if isinstance(error, RuntimeError) and re.search(
        r"PytorchStreamWriter|inline_container\.cc.*unexpected pos", message
    ):
        return f"a file could not be written in full: {PLACES[errno.ENOSPC]}"
    if said := _explain_negative_number(error):
        return said
    if of_list := re.search(r"Problem with given class_path '((?!zoo\.|datamodules\.)[^']+)':\n +(.+)", message):
        return f"{of_list[1]} cannot be built: {of_list[2]}"  # one of several loggers; other lists come as causes
    if isinstance(error, MisconfigurationException) or _is_lightnings_own(frames):
        return _with_remedy(message)
    return None


def _explain_negative_number(error: BaseException) -> str | None:
    """Explain a class that the parser could not build by a negative number among its settings; None without one."""
    message = str(error)
    given = message.rpartition("Given value: ")[2]
    owner = re.match(r"Namespace\(class_path='([^']+)'", given)
    numbers = re.findall(r"(\w+)=(-[\d.]+)\b", given)
    if owner is None or not numbers or error.__cause__ is None or find_sentence(error.__cause__) is not None:
        return None
    reason = textwrap.shorten(str(error.__cause__), 160, placeholder=" ...")
    return f"{owner[1]} cannot be built with {', '.join('='.join(pair) for pair in numbers)}: {reason}"


def _is_lightnings_own(frames: list[tuple[str, str, str]]) -> bool:
    """Tell whether Lightning, or a logger of it, raised this by itself on the way from the command line."""
    above = [module for module, _, _ in frames if module not in CLI]
    called = {module.partition(".")[0] for module in above} <= {"lightning", "jsonargparse", "jaxtyping", "contextlib"}
    return bool(above) and called and above[-1].startswith("lightning.") and frames[-1][1].startswith("raise ")


def _with_remedy(message: str) -> str:
    message = re.sub(r"\s+", " ", message).strip()
    for pattern, remedy in REMEDIES:
        if found := re.search(pattern, message):
            return found.expand(remedy)
    return message


def _iterate_frames(error: BaseException) -> Iterator[tuple[str, str, str]]:
    """Yield module, source line and function of every call on the way to an error."""
    trace = error.__traceback__
    while trace is not None:
        frame: FrameType = trace.tb_frame
        line = linecache.getline(frame.f_code.co_filename, trace.tb_lineno).strip()
        yield frame.f_globals.get("__name__", ""), line, frame.f_code.co_name
        trace = trace.tb_next


def _find_worker_sentence(message: str) -> str | None:
    """Find our sentence inside the traceback that torch makes the message of an error in a data worker."""
    if not re.match(r"Caught \w+ in DataLoader worker", message):
        return None
    *_, (file, line) = re.findall(r'^ +File "(.+?)", line \d+, in .+\n +(.+)$', message, re.MULTILINE) or [("", "")]
    places = [Path(sys.modules[name].__path__[0]).resolve() for name in OURS if name in sys.modules]
    if not line.startswith("raise ") or not any(Path(file).resolve().is_relative_to(place) for place in places):
        return None
    return re.sub(r"^[\w.]+: ", "", message.strip().splitlines()[-1])
