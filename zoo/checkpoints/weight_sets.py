"""Files that hold several sets of weights, averaged and raw: one is chosen, and another can be asked for.

A path with ``#`` and a name asks for a set: ``last.pt#model``. Without one it is the set that the project which writes
such files evaluates and publishes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.checkpoints import pickles
from zoo.choices import shorten_list

WRAPPERS = ("state_dict", "model", "module", "model_state_dict")  # Lightning and OpenMMLab, unilm, DeepSpeed, valeoai
#: averaged set, raw set, the one that is read, and whose choice that is
PAIRS = (
    ("ema", "model", "ema", "LlamaGen"),
    ("state_dict_ema", "state_dict", "state_dict_ema", "timm"),
    ("model_ema", "model", "model", "unilm"),
    ("state_dict", "current_model_state", "state_dict", "Lightning's weight averaging"),
    ("state_dict", "ema_state_dict", "state_dict", "OpenMMLab"),  # which swaps them when it saves
)
SHADOW = "model_ema"  # prefix of averages inside a state dict, whose names have lost their dots: Latent Diffusion
SHADOW_COUNTERS = ("model_ema.decay", "model_ema.num_updates")


def split_set_name(source: str | Path) -> tuple[Path, str | None]:
    """Split a path from the set that is asked for behind ``#``; a file whose own name has a ``#`` is not split."""
    path = Path(source)
    stem, mark, wanted = path.name.rpartition("#")
    if not mark or not stem or path.exists():
        return path, None
    return path.with_name(stem), wanted


def choose_set(content: Mapping[str, Any], path: Path, wanted: str | None) -> tuple[str | None, tuple[str, ...]]:
    """Choose the key of the set to read; None where the content is one set by itself.

    Args:
        content: of the file.
        path: of the file, for messages.
        wanted: set that was asked for.

    Returns:
        The key, and sentences about the choice.

    Raises:
        ValueError: for a set that is not there.
    """
    known = (*WRAPPERS, *(key for pair in PAIRS for key in pair[:2]))
    others = (key for key in content if isinstance(key, str) and "ema" in key.lower())
    sets = [key for key in dict.fromkeys((*known, *others)) if holds_weights(content.get(key))]
    if wanted is not None:
        if wanted not in sets:
            there = ", ".join(f"{path}#{key}" for key in sets) or "one set without a name"
            raise ValueError(f"{path} holds no weights called {wanted!r}: it holds {there}")
        return wanted, ()
    for averaged, raw, first, whose in PAIRS:
        if averaged in sets and raw in sets:
            other = raw if first == averaged else averaged
            kinds = {averaged: "averaged", raw: "raw"}
            return first, (
                f"read the {kinds[first]} weights {first!r} of {path}, as {whose} does; {path}#{other} are the "
                f"{kinds[other]} ones",
            )
    found = next((key for key in (*WRAPPERS, *sets) if key in sets), None)
    rest = [f"{path}#{key}" for key in sets if key != found and "ema" in key.lower()]
    return found, ((f"read {found!r} of {path}, which also holds {', '.join(rest)}",) if found and rest else ())


def holds_weights(value: Any) -> bool:
    """Tell whether a value is a state dict, perhaps wrapped once more, or a pickled module."""
    if pickles.is_module(value):
        return True
    if not isinstance(value, Mapping):
        return False
    return any(isinstance(v, Tensor) for v in value.values()) or any(holds_weights(value.get(key)) for key in WRAPPERS)


def find_shadows(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Map each parameter to the name of its average in the same state dict."""
    prefix = f"{SHADOW}."
    bare = {name.replace(".", ""): name for name in state if not name.startswith(prefix)}
    found = {bare.get(name.removeprefix(prefix)): name for name in state if name.startswith(prefix)}
    return {name: shadow for name, shadow in found.items() if name is not None}


def choose_shadows(state: dict[str, Tensor], path: Path, wanted: bool) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Choose between raw parameters and their averages inside one state dict, and say which it was.

    Raises:
        ValueError: for averages that are wanted and not there.
    """
    shadows = find_shadows(state)
    if wanted and not shadows:
        raise ValueError(f"{path} holds no averaged weights {SHADOW}.*")
    if not shadows:
        return state, ()
    averaged = set(shadows.values()).union(SHADOW_COUNTERS)
    raw = {name: value for name, value in state.items() if name not in averaged}
    if wanted:
        left = [name for name in raw if name not in shadows]  # buffers, or what was not trained
        notes = (f"{path} holds no averages of {shorten_list(left)}: these are raw",) if left else ()
        return raw | {name: state[shadow] for name, shadow in shadows.items()}, notes
    said = (
        f"read the raw weights of {path}, as Latent Diffusion does for its first stage; {path}#model_ema are averaged"
    )
    return raw, (said,)
