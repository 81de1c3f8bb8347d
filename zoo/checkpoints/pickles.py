"""Reading pickled modules without running anything that they ask for.

Some published weights are whole pickled modules (``torch.save(module)``) whose classes belong to packages that we do
not want to import. Every class in such a file is replaced by one inert stand-in, and the tensors are taken out of it.
A file that asks for anything else is refused.
"""

import _compat_pickle
import io
import pickle
import pickletools
import re
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

#: layers of torch that hold nothing but settings and other layers
LAYERS = (
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.upsampling.Upsample",
)
#: plain records that training scripts leave beside their weights
RECORDS = ("argparse.Namespace",)
MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of torch's format before 1.6
DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
}


#: what any pickle may hold
PLAIN = ("collections.OrderedDict", "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.WindowsPath", "torch.Size")
SHOWN = 4  # names of what a file asks for
SLACK = 2**26  # bytes of tensors that any file may ask for


class UnsafePickleError(ValueError):
    """A file asks for something that is neither a tensor nor a known class."""


class PickledObject:
    """Stand-in for every known class: takes any arguments and does nothing with them."""

    def __init__(self, *args: Any):
        pass


class _Record(PickledObject):
    """Stand-in that remembers the state it is given."""

    def __setstate__(self, state: Any) -> None:
        vars(self).update(state if isinstance(state, dict) else {})


def load(path: Path, classes: Iterable[str] = (), mapped: bool = True) -> Any:
    """Read a file of ``torch.save``, zip or older, with stand-ins for the known classes.

    Args:
        path: the file.
        classes: full names of classes, beyond torch's own layers, that the file may hold.
        mapped: leave tensors in the file until they are touched; off for what outlives the file.

    Raises:
        UnsafePickleError: naming what the file asks for; nothing of it has run.
        ValueError: for a damaged file.
    """
    names = (*LAYERS, *RECORDS, *classes)
    zipped = zipfile.is_zipfile(path)
    if zipped:
        _check_archive(path)
    elif _is_tar(path):
        raise ValueError(
            f"{path} is in torch's tar format of 2016, which is not read: save it again with a newer torch"
        )
    if "builtins.bytearray" in _names_in(path, zipped, b"bytearray"):  # its length would be a number in the pickle
        raise ValueError(f"{path} was not read: its pickle asks for an array of bytes, which no weights hold")
    try:
        known = torch.serialization.safe_globals([*((PickledObject, name) for name in names), set])
        with known, open(path, "rb") as f, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            # by its path for the map alone: torch goes by the suffix of a path, and by the bytes of an open file
            source = path if zipped and mapped and path.suffix != ".safetensors" else f
            content = torch.load(source, map_location="cpu", weights_only=True, mmap=source is path)
    except pickle.UnpicklingError as error:
        if not zipped and "persistent_load" in str(error):  # modules in the old format, which torch cannot read safely
            content = _load_old(path, names)
        elif asked := _asked_for(path, zipped, str(error), names):
            raise UnsafePickleError(refusal(path, *asked)) from None
        else:
            raise ValueError(damage(path, error)) from None
    except Exception as error:  # torch raises whatever the damaged bytes lead to
        raise ValueError(damage(path, error)) from None
    _check_sizes(content, path)
    return content


def load_plain(path: Path, classes: Iterable[str]) -> Any:
    """Read a pickle that is no file of ``torch.save``, with stand-ins for its classes; each says what it was ``asked``.

    Args:
        path: the file.
        classes: full names of everything that it may hold beside plain data, paths and torch's types.

    Raises:
        UnsafePickleError: naming what else the file asks for; nothing of it has run.
        ValueError: for a damaged file.
    """
    types = {f"torch.{name}" for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
    reachable = {*classes, *types, *PLAIN}

    class Restricted(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if f"{module}.{name}" not in reachable:
                raise UnsafePickleError(refusal(path, f"{module}.{name}"))
            return type(name, (_Record,), {"asked": f"{module}.{name}"})

    try:
        with open(path, "rb") as file:
            _check_memo(file, 1)
            return Restricted(file).load()
    except UnsafePickleError:
        raise
    except Exception as error:
        raise ValueError(damage(path, error)) from None


def tensors(module: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a pickled module, named as in its ``state_dict``."""
    parts = vars(module)
    transient = parts.get("_non_persistent_buffers_set", ())
    for name, value in (parts.get("_parameters", {}) | parts.get("_buffers", {})).items():
        if value is not None and name not in transient:
            yield prefix + name, value.detach()
    for name, child in parts.get("_modules", {}).items():
        if child is not None:
            yield from tensors(child, f"{prefix}{name}.")


def is_module(value: Any) -> bool:
    """Tell whether a value that was read is a pickled module."""
    return isinstance(value, PickledObject | nn.Module) and "_modules" in vars(value)


def refusal(path: Path, *names: str) -> str:
    """The sentence for a file that asks for something unknown."""
    spelled = [re.sub(r"^(posix|nt)\.(.+)", r"\g<0> (os.\2)", name) for name in names]
    asked = " and ".join(spelled[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    return (
        f"{path} was not read because its pickle asks for {asked}, which could run code: "
        f"get the weights as safetensors or as a plain state dict"
    )


@contextmanager
def called(path: Path, name: str) -> Iterator[None]:
    """Make errors about a temporary file name what is in it instead."""
    try:
        yield
    except ValueError as error:
        raise type(error)(str(error).replace(str(path), name)) from None


def damage(path: Path, error: Exception) -> str:
    """The sentence for a file that cannot be read."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0][:120]
    if "weights" in reason.lower():  # torch's advice is to run what the file asks for
        reason = f"its bytes are no {'pickle' if isinstance(error, pickle.UnpicklingError) else 'weights'} of torch"
    return f"{path} is damaged or is no checkpoint ({reason}): download or save it again"


def _check_archive(path: Path) -> None:
    """Refuse zip files that ``torch.save`` does not write: programs, and small files of huge content."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:
        raise ValueError(damage(path, error)) from None
    names = [entry.filename.rpartition("/")[2] for entry in entries]
    if "constants.pkl" in names:
        raise ValueError(
            f"{path} is a TorchScript archive, which is a program: save the state dict of its module instead"
        )
    if "data.pkl" not in names:
        raise ValueError(damage(path, ValueError("a zip file that torch.save did not write")))
    size = sum(entry.file_size for entry in entries)
    compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if compressed or size > path.stat().st_size:
        raise ValueError(
            f"{path} is no file of torch.save: it is compressed, and would grow from {path.stat().st_size:,} to "
            f"{size:,} bytes"
        )


def _data(archive: zipfile.ZipFile) -> str:
    return next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")


def _is_tar(path: Path) -> bool:
    """Tell whether a file is in torch's first format, which torch refuses by advising to run it."""
    try:
        with tarfile.open(path, "r:") as archive:  # without decompressing anything
            return "pickle" in archive.getnames()
    except (tarfile.TarError, EOFError):
        return False


def _check_sizes(content: Any, path: Path) -> None:
    """Refuse tensors that are larger than the file they are in: views that repeat a few bytes, or nothing at all."""
    allowed = path.stat().st_size + SLACK
    try:
        written_out = _written_out(content, {})
    except RecursionError:
        raise ValueError(f"{path} was not read: its lists hold themselves, or lie too deep in each other") from None
    if written_out > 16 * path.stat().st_size + 2**24:
        raise ValueError(f"{path} was not read: its lists repeat each other, and written out they are endless")
    total, seen, waiting = 0, set(), [content]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            size = value.numel() * value.element_size()
            total += size
            if size > allowed or total > 4 * allowed:
                raise ValueError(
                    f"{path} was not read: it is {path.stat().st_size:,} bytes long and asks for tensors of {total:,}"
                )
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value
        elif isinstance(value, PickledObject | nn.Module):
            waiting += vars(value).values()


def _written_out(value: Any, known: dict[int, int]) -> int:
    """Bytes of plain data in which nothing refers to anything: what it takes to print, copy or compare it."""
    if isinstance(value, str | bytes):
        return len(value)
    if not isinstance(value, Mapping | list | tuple | set):
        return 8
    if id(value) not in known:
        parts = (*value.keys(), *value.values()) if isinstance(value, Mapping) else value
        known[id(value)] = 8 + sum(_written_out(part, known) for part in parts)
    return known[id(value)]


def _names_in(path: Path, zipped: bool, mark: bytes = b"") -> list[str]:
    """The names that a file's pickles ask for, up to where its bytes are none; of a zip only with ``mark`` in it."""
    found: list[str] = []
    try:
        if zipped:
            with zipfile.ZipFile(path) as archive:
                data = archive.read(_data(archive))
            found.extend(_names(io.BytesIO(data), 1) if mark in data else ())
        else:
            with open(path, "rb") as file:
                found.extend(_names(file, 5))
    except Exception:  # the bytes end in another way, or are no pickle, which is said elsewhere
        pass
    return found


def _check_memo(file: BinaryIO, pickles: int) -> None:
    """Refuse numbers in the memo of a pickle that no file of its length needs: Python makes room for all below."""
    size = file.seek(0, 2)
    file.seek(0)
    for _ in range(pickles):
        for code, argument, _ in pickletools.genops(file):
            if "PUT" in code.name and int(argument or 0) > size:
                raise ValueError("its pickle asks for more memory than it can need")
    file.seek(0)


def _asked_for(path: Path, zipped: bool, message: str, known: Iterable[str]) -> list[str]:
    """The names in a refused pickle that are neither torch's own nor known."""
    asked = dict.fromkeys(name for name in _names_in(path, zipped) if not _harmless(name, known))
    if not asked and (found := re.search(r"GLOBAL ([\w.]+)", message)):
        asked[found[1]] = None
    return list(asked)


def _harmless(name: str, known: Iterable[str]) -> bool:
    own = ("collections.OrderedDict", "builtins.set", "__builtin__.set", *known)
    return name in own or re.fullmatch(r"torch\.(_utils\._rebuild\w+|\w*Storage|Size|device|\w+\d+)", name) is not None


def _names(file: Any, pickles: int) -> Iterator[str]:
    """Full names that the first pickles of a file ask for, in any protocol, without unpickling anything."""
    for _ in range(pickles):
        texts: list[Any] = []
        memo: dict[int, Any] = {}
        for code, argument, _ in pickletools.genops(file):
            if code.name in ("GLOBAL", "INST"):
                yield _spelled(*str(argument).split(" "))
                texts.append(None)
            elif code.name == "STACK_GLOBAL":
                yield _spelled(*map(str, texts[-2:]))
                texts.append(None)
            elif code.name.startswith("EXT"):
                yield f"the extension {argument} of copyreg"
            elif code.name == "MEMOIZE":
                memo[len(memo)] = texts[-1]
            elif "PUT" in code.name:
                memo[int(str(argument))] = texts[-1] if texts else None
            elif "GET" in code.name:
                texts.append(memo.get(int(str(argument))))
            elif code.stack_after and code.name != "MARK":
                texts.append(argument if isinstance(argument, str) else None)


def _spelled(module: str, name: str) -> str:
    """The full name as Python 3 knows it; older protocols use Python 2's."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    module = _compat_pickle.IMPORT_MAPPING.get(module, module)
    if not all(part.isidentifier() for part in f"{module}.{name}".split(".")):
        raise ValueError("these bytes are no pickle")
    return f"{module}.{name}"


def _load_old(path: Path, names: Iterable[str]) -> Any:
    """Pickled modules in torch's format before 1.6: four pickles, then the storages.

    The unpickler can reach the names below and nothing else; stand-in and functions are made anew for each file, so
    that nothing a file does to them outlives it.
    """
    stand_in = type("PickledObject", (PickledObject,), {})
    storages: dict[str, tuple[Tensor, torch.dtype]] = {}

    def rebuild_tensor(storage: Tensor, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
        return storage.as_strided(size, stride, storage.storage_offset() + offset)  # torch checks the bounds

    def rebuild_parameter(data: Tensor, *rest: Any) -> Tensor:
        return data

    reachable: dict[str, Any] = {
        "collections.OrderedDict": OrderedDict,
        "__builtin__.set": set,  # protocol 2 spells it so
        "builtins.set": set,
        "torch.Size": tuple,
        "torch.device": stand_in,
        "torch._utils._rebuild_tensor_v2": rebuild_tensor,
        "torch._utils._rebuild_parameter": rebuild_parameter,
        **{f"torch.{name}": dtype for name, dtype in DTYPES.items()},
        **dict.fromkeys(names, stand_in),
    }

    class Restricted(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if f"{module}.{name}" not in reachable:
                raise UnsafePickleError(refusal(path, f"{module}.{name}"))
            return reachable[f"{module}.{name}"]

        def persistent_load(self, reference: Any) -> Any:
            if reference[0] == "module":  # (class, file, source code): only the class matters
                return reference[1]
            _, dtype, key, _, count, view = reference
            if key not in storages:
                if count * dtype.itemsize > path.stat().st_size:
                    raise ValueError(f"it is shorter than the {count} numbers that it announces")
                storages[key] = torch.zeros(count, dtype=dtype), dtype
            return storages[key][0] if view is None else storages[key][0][view[1] : view[1] + view[2]]

    try:
        with open(path, "rb") as file:
            _check_memo(file, 5)
            magic, _, _ = (Restricted(file).load() for _ in range(3))
            if magic != MAGIC:
                raise ValueError("unknown first bytes")
            result = Restricted(file).load()
            for key in Restricted(file).load():
                _fill(storages[key][0], file)
            return result
    except UnsafePickleError:
        raise
    except Exception as error:
        raise ValueError(damage(path, error)) from None


def _fill(storage: Tensor, file: BinaryIO) -> None:
    count = int.from_bytes(file.read(8), "little")
    data = file.read(count * storage.element_size())
    if count != storage.numel() or len(data) < count * storage.element_size():
        raise ValueError("the file ends too early")
    if count:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # it is only copied from
            storage.copy_(torch.frombuffer(data, dtype=storage.dtype))
