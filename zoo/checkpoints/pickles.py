"""Reading pickled modules without running anything that they ask for.

Some published weights are whole pickled modules (``torch.save(module)``) whose classes belong to packages that we do
not want to import. Every class in such a file is replaced by one inert stand-in, and the tensors are taken out of it.
A file that asks for anything else is refused.
"""

import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
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


class UnsafePickleError(ValueError):
    """A file asks for something that is neither a tensor nor a known class."""


class PickledObject:
    """Stand-in for every known class: takes any arguments and does nothing with them."""

    def __init__(self, *args: Any):
        pass


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
    try:
        with torch.serialization.safe_globals([*((PickledObject, name) for name in names), set]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped and mapped)
    except pickle.UnpicklingError as error:
        if not zipped and "persistent_load" in str(error):  # modules in the old format, which torch cannot read safely
            return _load_old(path, names)
        if asked := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UnsafePickleError(refusal(path, asked[1])) from None
        raise ValueError(damage(path, error)) from error
    except Exception as error:  # torch raises whatever the damaged bytes lead to
        raise ValueError(damage(path, error)) from error


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
    """Whether something read from a file is a pickled module."""
    return isinstance(value, PickledObject | nn.Module) and "_modules" in vars(value)


def refusal(path: Path, name: str) -> str:
    """The sentence for a file that asks for something unknown."""
    return (
        f"{path} was not read because its pickle asks for {name}, which could run code: "
        f"get the weights as safetensors or as a plain state dict"
    )


def damage(path: Path, error: Exception) -> str:
    """The sentence for a file that cannot be read."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0][:120]
    return f"{path} is damaged or is no checkpoint ({reason}): download or save it again"


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
                storages[key] = torch.zeros(count, dtype=dtype), dtype
            return storages[key][0] if view is None else storages[key][0][view[1] : view[1] + view[2]]

    try:
        with open(path, "rb") as file:
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
        raise ValueError(damage(path, error)) from error


def _fill(storage: Tensor, file: BinaryIO) -> None:
    count = int.from_bytes(file.read(8), "little")
    data = file.read(count * storage.element_size())
    if count != storage.numel() or len(data) < count * storage.element_size():
        raise ValueError("the file ends too early")
    if count:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # it is only copied from
            storage.copy_(torch.frombuffer(data, dtype=storage.dtype))
