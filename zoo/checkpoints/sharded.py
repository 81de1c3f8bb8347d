"""Checkpoints that are folders: everything in them is read safely before Lightning or DeepSpeed reads it their way.

Torch's distributed checkpoints keep an index, ``.metadata``, that their reader unpickles without restriction, as it
does with each entry that is no tensor; DeepSpeed unpickles all of its files.
"""

import tempfile
from pathlib import Path
from typing import Any

from zoo.checkpoints import pickles

INDEX = ".metadata"
SUFFIXES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
_DISTRIBUTED = "torch.distributed.checkpoint"
#: classes in the index of a distributed checkpoint
INDEX_CLASSES = (
    *(f"{_DISTRIBUTED}.metadata.{name}" for name in (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    )),
    *(f"{_DISTRIBUTED}.filesystem.{name}" for name in ("_StorageInfo", "_StoragePrefix")),
    "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
    "torch.distributed._shard.sharded_tensor.metadata.TensorProperties",
    "torch.serialization._get_layout",
)  # fmt: skip
#: records of DeepSpeed beside its tensors
DEEPSPEED_CLASSES = (
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)


def check_sharded_folder(folder: Path) -> None:
    """Refuse a folder in which some file asks for more than tensors and plain data, or leads out of it.

    Raises:
        ValueError: naming the file, and what it asks for.
    """
    for file in sorted(folder.rglob("*")):
        if not file.is_file():
            continue
        if file.name == INDEX:
            _check_entries(file)
        elif file.name == "latest":  # DeepSpeed's: the name of a folder beside it
            resolve_inside(folder, file.read_text(encoding="utf-8", errors="replace").strip(), file)
        elif file.suffix in SUFFIXES:
            pickles.load(file, DEEPSPEED_CLASSES)


def resolve_inside(folder: Path, name: Any, source: Path) -> Path:
    """Find the file or folder whose name was read from a file.

    Args:
        folder: it must be in.
        name: as read.
        source: the file that names it, for the message.

    Raises:
        ValueError: for what is no name, or leads out of the folder.
        FileNotFoundError: for a name of nothing.
    """
    if not isinstance(name, str) or not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{source} names {name!r}, which is no file in {folder}: nothing outside of it is read")
    if not (folder / name).exists():
        raise FileNotFoundError(f"{source} names {name}, which is not in {folder}: the download is not whole")
    return folder / name


def _check_entries(index: Path) -> None:
    """Check the index of a distributed checkpoint, and the entries that it leads to which are no tensors."""
    content = vars(pickles.load_plain(index, INDEX_CLASSES))
    described, stored = content.get("state_dict_metadata"), content.get("storage_data")
    if not isinstance(described, dict) or not isinstance(stored, dict):
        raise ValueError(f"{index} is damaged or is no index of a distributed checkpoint: save it again")
    for entry, place in stored.items():
        name, where = vars(entry).get("fqn"), vars(place)
        file = resolve_inside(index.parent, where.get("relative_path"), index)
        if getattr(described.get(name), "asked", "").endswith(".TensorStorageMetadata"):
            continue
        if where.get("transform_descriptors"):
            raise ValueError(f"{index} was not read: {name} is stored compressed or encrypted")
        with open(file, "rb") as bytes_of, tempfile.TemporaryDirectory() as room:
            bytes_of.seek(where["offset"])
            part = Path(room) / "entry"
            part.write_bytes(bytes_of.read(where["length"]))
            with pickles.called(part, f"{name} in {file}"):
                pickles.load(part)
