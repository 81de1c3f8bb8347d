"""Reading weights from files and folders into one state dict, whatever wrote them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.checkpoints import flax_msgpack, pickles

WRAPPERS = ("state_dict", "model", "module", "model_state_dict")  # Lightning and OpenMMLab, unilm, DeepSpeed, valeoai
HF_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
)
LORA_FILES = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Checkpoint:
    """What was found on disk.

    Args:
        path: of the file or folder.
        state: name -> tensor, as found.
        zoo: what one of our own checkpoints says about its model: ``class``, ``init_args``, ``version``.
    """

    path: Path
    state: dict[str, Tensor]
    zoo: dict[str, Any] | None = None


def read(path: Path, classes: Iterable[str] = ()) -> Checkpoint:
    """Read a file (safetensors, Flax, or anything of ``torch.save``) or a folder of them; no pickle is executed.

    Args:
        path: file, folder with ``encoder.pkl`` and/or ``decoder.pkl``, or folder in the layout of transformers.
        classes: full names of classes that pickled modules may have.

    Raises:
        FileNotFoundError: for a path that is not there, or a folder without weights.
        ValueError: for a file that is damaged, unsafe, or holds no weights.
    """
    if path.is_dir():
        return Checkpoint(path, _read_folder(path, tuple(classes)))
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    with open(path, "rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors" or start[8:] == b"{":
        return _read_safetensors(path)
    if flax_msgpack.matches(start):
        return Checkpoint(path, flax_msgpack.read(path))
    content = pickles.load(path, classes)
    zoo = content.get("zoo") if isinstance(content, Mapping) else None
    return Checkpoint(path, _without_ddp(_state_of(content, path)), zoo if isinstance(zoo, dict) else None)


def _read_folder(folder: Path, classes: tuple[str, ...]) -> dict[str, Tensor]:
    parts = [part for part in ("encoder", "decoder") if (folder / f"{part}.pkl").exists()]
    if parts:
        return {f"{p}.{name}": v for p in parts for name, v in read(folder / f"{p}.pkl", classes).state.items()}
    for name in LORA_FILES:
        if (folder / name).exists():
            beside = folder / "non_lora_trainables.bin"  # LLaVA keeps its projector there
            others = read(beside).state if beside.exists() else {}
            return others | read(folder / name).state
    for name in HF_FILES:
        if (folder / name).exists():
            if not name.endswith(".index.json"):
                return read(folder / name, classes).state
            shards = sorted(set(json.loads((folder / name).read_text())["weight_map"].values()))
            return {name: v for shard in shards for name, v in read(folder / shard, classes).state.items()}
    raise FileNotFoundError(
        f"the folder {folder} holds neither encoder.pkl, decoder.pkl nor {HF_FILES[0]}, {HF_FILES[2]}"
    )


def adapter_settings(folder: Path) -> dict[str, Any] | None:
    """What peft's ``adapter_config.json`` says of the LoRA beside it, as our own checkpoints say it; None without it.

    The scale of LoRA is in no tensor: with another one the weights load and mean other things.
    """
    file = folder / "adapter_config.json"
    if not file.is_file():
        return None
    config = json.loads(file.read_text(encoding="utf-8"))
    names = {"lora_rank": "r", "lora_alpha": "lora_alpha"}
    return {"init_args": {ours: config[theirs] for ours, theirs in names.items() if theirs in config}}


def _read_safetensors(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
            metadata = file.metadata() or {}
        return Checkpoint(path, state, json.loads(metadata["zoo"]) if "zoo" in metadata else None)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(pickles.damage(path, error)) from error


def _state_of(content: Any, path: Path) -> dict[str, Tensor]:
    if pickles.is_module(content):
        return dict(pickles.tensors(content))
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, neither a state dict nor a module")
    for wrapper in WRAPPERS:
        inner = content.get(wrapper)
        if isinstance(inner, Mapping) or pickles.is_module(inner):
            return _state_of(inner, path)
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        found = f"{', '.join(others[:8])} are not tensors" if others else "it is empty"
        raise ValueError(f"{path} holds no state dict: {found}, and there is no entry {', '.join(WRAPPERS)}")
    return {str(name): value.detach() for name, value in content.items()}


def _without_ddp(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return state
