"""Reading weights from files and folders into one state dict, whatever wrote them."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints import flax_msgpack, pickles
from zoo.checkpoints.addresses import local_path
from zoo.checkpoints.folders import choose_file, read_shard_index
from zoo.checkpoints.weight_sets import SHADOW, WRAPPERS, choose_set, choose_shadows, split_set_name
from zoo.files.recipes import suggest_recipe

#: entries beside a state dict that are no weights of the model
OF_TRAINING = re.compile(
    r"optim|sched|scaler|callback|loop|rng|random|(^|_)(epoch|step|iter|steps)$|^(averaging_state|zoo_run)$",
    re.IGNORECASE,
)
LORA_FILES = ("adapter_model.safetensors", "adapter_model.bin")
POINTER = b"version h"  # of git-lfs, in place of the file
#: words that torch.compile, Lightning, FSDP and activation checkpointing put into the names of wrapped modules
WRAPPED = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


@dataclass(frozen=True)
class Checkpoint:
    """Weights as they were found on disk.

    Args:
        path: of the file or folder.
        state: name -> tensor, as found.
        zoo: description of its model in one of our own checkpoints: ``class``, ``init_args``, ``version``.
        notes: sentences about the choice among several sets of weights.
    """

    path: Path
    state: dict[str, Tensor]
    zoo: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


def read_checkpoint(path: str | Path, classes: Iterable[str] = ()) -> Checkpoint:
    """Read a file (safetensors, Flax, or anything of ``torch.save``) or a folder of them; no pickle is executed.

    Args:
        path: file, index of shards, folder with ``encoder.pkl`` and/or ``decoder.pkl``, or folder in the layout of
            transformers or diffusers; ``#NAME`` behind it asks for one of several sets of weights.
        classes: full names of classes that pickled modules may have.

    Raises:
        FileNotFoundError: for a path that is not there, or a folder without weights.
        ValueError: for an address, or a file that is damaged, unsafe, or holds no weights.
    """
    path, wanted = split_set_name(local_path(path))
    if path.is_dir():
        return _read_folder(path, tuple(classes), wanted)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}{suggest_recipe(path)}")
    if not path.is_file():
        raise ValueError(f"{path} is no file, and nothing is read from it")
    if path.name.endswith(".json"):
        return Checkpoint(path, _read_shards(path, tuple(classes)))
    with open(path, "rb") as file:
        start = file.read(9)
    if start == POINTER:
        raise ValueError(f"{path} is a pointer of git-lfs and no weights: run git lfs pull where it comes from")
    if flax_msgpack.begins_flax_file(start) and start[8:] != b"{":
        state, notes = flax_msgpack.read_flax_set(path, wanted)
        return Checkpoint(path, state, notes=notes)
    if path.suffix == ".safetensors" or start[8:] == b"{":
        found, inner = read_safetensors(path), wanted is not None
        if wanted not in (None, SHADOW):
            raise ValueError(f"{path} holds no weights called {wanted!r}: it holds one set without a name")
    else:
        content = pickles.load(path, classes)
        said = content.get("zoo") if isinstance(content, Mapping) else None
        inner = wanted == SHADOW and not (isinstance(content, Mapping) and SHADOW in content)
        state, notes = _extract_state(content, path, None if inner else wanted)
        found = Checkpoint(path, _unwrap_state(state), said if isinstance(said, dict) else None, notes)
    state, notes = choose_shadows(found.state, path, inner)
    return replace(found, state=state, notes=(*found.notes, *notes))


def _read_folder(folder: Path, classes: tuple[str, ...], wanted: str | None) -> Checkpoint:
    parts = [part for part in ("encoder", "decoder") if (folder / f"{part}.pkl").exists()]
    if parts and wanted is None:
        state = {
            f"{p}.{name}": v for p in parts for name, v in read_checkpoint(folder / f"{p}.pkl", classes).state.items()
        }
        return Checkpoint(folder, state)
    for name in LORA_FILES if wanted is None else ():
        if (folder / name).exists():
            beside = folder / "non_lora_trainables.bin"  # LLaVA keeps its projector there
            others = read_checkpoint(beside).state if beside.exists() else {}
            return Checkpoint(folder, others | read_checkpoint(folder / name).state)
    file, notes = choose_file(folder, wanted)
    found = read_checkpoint(file, classes)
    return Checkpoint(found.path if file.is_dir() else folder, found.state, found.zoo, (*notes, *found.notes))


def _read_shards(index: Path, classes: tuple[str, ...]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for shard, names in read_shard_index(index).items():
        found = read_checkpoint(Path(shard), classes).state
        if lacking := [name for name, bare in unwrap_names(names).items() if bare not in found]:
            raise ValueError(f"{shard} lacks {', '.join(lacking[:8])}, which {index.name} says is in it")
        state |= found
    return state


def read_safetensors(path: Path) -> Checkpoint:
    """Map the tensors of a safetensors file into memory, and read the description of its model.

    Raises:
        ValueError: for a damaged file.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
            metadata = file.metadata() or {}
        said = json.loads(metadata["zoo"]) if "zoo" in metadata else None
    except Exception as error:  # of safetensors, of torch for a type it lacks, or of json
        raise ValueError(pickles.damage(path, error)) from None
    if said is not None and not isinstance(said, dict):
        raise ValueError(f"{path} is damaged: what it says about its model is a {type(said).__name__}; save it again")
    return Checkpoint(path, _unwrap_state(state), said)


def _extract_state(content: Any, path: Path, wanted: str | None = None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    if pickles.is_module(content):
        return dict(pickles.tensors(content)), ()
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, neither a state dict nor a module")
    key, notes = choose_set(content, path, wanted)
    if key is not None:
        state, more = _extract_state(content[key], path)
        if isinstance(critic := content.get("discriminator"), Mapping) and "model" in content:  # LlamaGen
            state |= {f"discriminator.{name}": v for name, v in _extract_state(critic, path)[0].items()}
        return state, (*notes, *more, *_note_unused_sets(content, key, path, notes))
    others = [str(name)[:99] for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        found = f"{', '.join(others[:8])} are not tensors" if others else "it is empty"
        raise ValueError(f"{path} holds no state dict: {found}, and there is no entry {', '.join(WRAPPERS)}")
    for name, value in content.items():
        if value.layout != torch.strided or value.device.type != "cpu":
            raise ValueError(
                f"{path} holds {name} as a {value.layout} tensor on {value.device.type}, without all values"
            )
    return {str(name): value.detach() for name, value in content.items()}, ()


def _note_unused_sets(content: Mapping[str, Any], key: str, path: Path, notes: tuple[str, ...]) -> tuple[str, ...]:
    """Say which other weights of a file are not used, beside ``key``; what only training needs is passed over."""
    known = {key, "discriminator"} if "model" in content else {key}
    found = [
        str(name)
        for name, value in content.items()
        if name not in known and not OF_TRAINING.search(str(name)) and _holds_tensors(value)
    ]
    found = [name for name in found if not any(name in note for note in notes)]
    return (f"not used from {path}: {', '.join(found)}, beside {key}",) if found else ()


def _holds_tensors(value: Any) -> bool:
    """Tell whether there are tensors in a value, at any depth."""
    if isinstance(value, Mapping):
        return any(_holds_tensors(inner) for inner in value.values())
    return isinstance(value, Tensor) or pickles.is_module(value)


def unwrap_names(names: Iterable[str]) -> dict[str, str]:
    """Map names to the same without the words that compiling and distributing put into them."""
    bare = {name: WRAPPED.sub("", name) for name in names}
    while bare and all(name.startswith("module.") for name in bare.values()):
        bare = {name: short.removeprefix("module.") for name, short in bare.items()}
    return bare


def _unwrap_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = unwrap_names(state)
    if len(set(names.values())) < len(names):  # plain and wrapped side by side: none of them may get lost
        return state
    return {names[name]: value for name, value in state.items()}
