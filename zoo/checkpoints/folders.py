"""Folders of weights: the files that hold them, whole or in shards, in variants, or averaged beside raw."""

import json
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from zoo.checkpoints import pickles
from zoo.checkpoints.sharded import resolve_inside

#: safetensors before pickles, transformers before diffusers
NAMES = (
    "model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
)
#: ``model.fp16.safetensors``, ``model.safetensors.index.json``, ``model.safetensors.index.fp16.json``
PATTERN = re.compile(
    r"(?P<stem>model|pytorch_model|diffusion_pytorch_model)(\.(?P<first>[\w-]+))?\.(?P<kind>safetensors|bin)"
    r"(?P<index>\.index(\.(?P<last>[\w-]+))?\.json)?"
)
SHARD = re.compile(r"-\d+-of-\d+$")
ADAPTERS = ("adapter_model.bin",)
#: folders that training scripts write side by side: averaged weights first, which they evaluate and publish
AVERAGED = {"vqmodel_ema": "vqmodel", "ema_model": "unwrapped_model"}  # diffusers; open-muse and TiTok
PUBLISHERS = {"vqmodel_ema": "diffusers", "ema_model": "TiTok"}


def find_weight_files(folder: Path) -> dict[str, Path]:
    """Find the file or index with the weights of each variant of a folder; the variant without a name is ``""``."""
    found: dict[str, tuple[tuple[int, bool], Path]] = {}
    for file in folder.iterdir():
        match = PATTERN.fullmatch(file.name)
        if match is None or SHARD.search(match["first"] or ""):
            continue
        order = NAMES.index(f"{match['stem']}.{match['kind']}"), match["index"] is not None
        variant = match["first"] or match["last"] or ""
        if variant not in found or order < found[variant][0]:
            found[variant] = order, file
    return {variant: file for variant, (_, file) in sorted(found.items())}


def choose_file(folder: Path, wanted: str | None) -> tuple[Path, tuple[str, ...]]:
    """Choose the file, index or folder that holds the wanted weights of a folder, and say which it was.

    Args:
        folder: in the layout of transformers, diffusers, or a training script with averaged weights beside.
        wanted: a variant, or the name of an inner folder; None takes the usual one.

    Raises:
        FileNotFoundError: where there are no weights, or not those.
        ValueError: where there are several variants and none is the usual one.
    """
    files = find_weight_files(folder)
    inner = {child.name: child for child in sorted(folder.iterdir()) if child.is_dir() and find_weight_files(child)}
    if wanted is not None:
        choices = {variant: file for variant, file in files.items() if variant} | inner
        if wanted not in choices:
            there = ", ".join(choices) or "none"
            raise FileNotFoundError(f"{folder} holds no weights called {wanted!r}: there are {there}")
        return choices[wanted], ()
    if "" in files:
        return files[""], ()
    if len(files) == 1:
        variant, file = next(iter(files.items()))
        return file, (f"{folder} holds the variant {variant} alone, which was read",)
    if files:
        names = ", ".join(f"{folder}#{variant}" for variant in files)
        raise ValueError(f"{folder} holds several variants of its weights: choose one of {names}")
    for averaged, raw in AVERAGED.items():
        if averaged in inner:
            note = f"read the averaged weights {folder / averaged}, which {PUBLISHERS[averaged]} publishes"
            return inner[averaged], (note + (f"; {folder}#{raw} are those before averaging" if raw in inner else ""),)
    nearby = sorted(folder.glob("*.ckpt")) or list(inner.values())
    more = ", ..." if len(nearby) > 3 else ""
    hint = f"; there are weights in {', '.join(map(str, nearby[:3]))}{more}" if nearby else ""
    raise FileNotFoundError(
        f"the folder {folder} holds neither encoder.pkl, decoder.pkl nor {', '.join(NAMES)}, whole or in shards{hint}"
    )


def read_shard_index(index: Path) -> dict[str, list[str]]:
    """Read the files that an index names, each with the tensors that are to be in it.

    Raises:
        ValueError: for an index without its map, or one that leads out of its folder.
        FileNotFoundError: for a file that is not there.
    """
    content = read_json(index)
    shards = content.get("weight_map")
    if not isinstance(shards, Mapping) or not shards:
        raise ValueError(f"{index} has no weight_map that says which file holds which tensor: download it again")
    found: dict[str, list[str]] = {}
    for name, shard in shards.items():
        found.setdefault(str(resolve_inside(index.parent, shard, index)), []).append(name)
    return dict(sorted(found.items()))


def check_network_folder(folder: Path) -> None:
    """Refuse a folder for transformers or diffusers whose weights ask for more than tensors, or lead out of it.

    Raises:
        ValueError: naming the file, and what it asks for.
        FileNotFoundError: for a shard that is not there.
    """
    files = [folder / name for name in ADAPTERS if (folder / name).is_file()]
    for file in find_weight_files(folder).values():
        files += map(Path, read_shard_index(file)) if file.suffix == ".json" else [file]
    for file in files:
        if file.suffix == ".bin":
            pickles.load(file)


def refuse_custom_code(folder: Path, known: Container[str]) -> None:
    """Refuse a folder whose model is defined by a program in it.

    Args:
        folder: in transformers' layout.
        known: kinds of models that transformers defines itself.

    Raises:
        ValueError: naming the program.
    """
    config = read_json(folder / "config.json")
    own = config.get("auto_map")
    if own and config.get("model_type") not in known:
        programs = sorted(
            {str(value).partition(".")[0] for value in (own.values() if isinstance(own, dict) else [own])}
        )
        raise ValueError(
            f"{folder} is a model of the kind {config.get('model_type')!r}, which a program in it defines "
            f"({', '.join(programs)}.py): programs of folders are never run, take a model that transformers knows"
        )


def check_pipeline_folder(folder: Path) -> None:
    """Refuse a folder of a diffusers pipeline that names programs, or whose weights ask for more than tensors.

    Raises:
        ValueError: naming what it asks for.
    """
    index = folder / "model_index.json"
    for name, part in read_json(index).items():
        if name == "_class_name" and not isinstance(part, str):
            raise ValueError(f"{index} asks for the program {part!r}, which is not run")
        if name.startswith("_") or not isinstance(part, list):
            continue
        if not part or part[0] not in (None, "diffusers", "transformers", "stable_diffusion"):
            raise ValueError(f"{index} asks for {'.'.join(map(str, part))} as its {name}, which is not run")
        if (inside := folder / name).is_dir():
            check_network_folder(inside)


def read_json(path: Path) -> dict[str, Any]:
    """Read the mapping in a JSON file.

    Raises:
        ValueError: for anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(pickles.damage(path, error)) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} and not settings by name: download it again")
    return content
