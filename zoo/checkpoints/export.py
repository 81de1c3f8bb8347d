"""Writing weights: safetensors with a description of the model, from which it can be built again."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.files.atomic import write_text_whole, write_whole
from zoo.files.strict_json import dump_json


def save_weights(model: Any, path: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Write the weights of a model, without its frozen towers, as safetensors.

    ``create_model("ckpt:PATH")`` builds the model from the file alone; ``weights=PATH`` loads it into an existing one.

    Args:
        model: whose ``state_dict`` is written, less what ``model.not_in_file`` names.
        path: of the file; the suffix is ``.safetensors``.
        dtype: store floats in this type, e.g. ``torch.float16`` for half the size; None keeps theirs.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"weights are written as safetensors: give a path that ends in .safetensors, not {path}")
    description: dict[str, Any] = {}
    model.on_save_checkpoint(description)
    block = description["zoo"] | ({"absent": model.not_in_file} if model.not_in_file else {})
    state = {name: v for name, v in model.state_dict().items() if not name.startswith(tuple(model.not_in_file))}
    return write_safetensors(
        {name: _prepare_for_file(v, dtype) for name, v in state.items()}, path, {"zoo": dump_json(block, indent=None)}
    )


def write_folder(
    folder: str | Path, config: dict[str, Any], state: dict[str, Tensor], file: str = "model.safetensors"
) -> Path:
    """Write a folder that a library loads as a whole: ``config.json``, and the weights beside it.

    Args:
        folder: made if need be.
        config: values that are no plain data are written as their text.
        state: the weights, on any device; they are copied.
        file: gets them.
    """
    folder = Path(folder)
    write_text_whole(folder / "config.json", dump_json(config, default=str) + "\n")
    write_safetensors(
        {name: _prepare_for_file(value) for name, value in state.items()}, folder / file, {"format": "pt"}
    )
    return folder


def write_safetensors(state: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> Path:
    """Write tensors; the file appears only when it is whole."""
    from safetensors.torch import save_file

    with write_whole(path) as part:
        save_file(state, part, metadata)
    return path


def _prepare_for_file(value: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    value = value.detach().cpu()
    value = value.to(dtype) if dtype is not None and value.is_floating_point() else value
    return value.clone(memory_format=torch.contiguous_format)  # tied weights are written twice
