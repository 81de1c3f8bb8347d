"""A check that the model which a checkpoint describes is no larger than its weights, before memory is taken for it.

A file of a few bytes can ask for a model of any width and depth. It is built without memory first, and its parts are
counted while that goes on.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from zoo.init_args import without_classes, without_weights

#: no size of a published model comes near it; a larger number must be a size of one of its tensors
MOST = 2**20
LARGEST = {"image_size": 4096}  # pixels; frozen encoders have positions for each patch
#: settings that count steps or images, not parts
COUNTERS = re.compile(r"optim|(.*\.)?(tau|beta|temperature|start|warmup)|.*_(start|warmup|cache)")
#: layers and parameters of a model beyond eight for each tensor in its file: those of frozen networks
PARTS = 4_000
NUMBERS = 2**24  # of a model beyond twice those of its file: tables that are made anew


class TooLargeError(ValueError):
    """A file asks for far more than it holds."""


def check_size(
    cls: type, settings: Mapping[str, Any], state: Mapping[str, Tensor], path: Path, absent: Iterable[str] = ()
) -> None:
    """Refuse a description of a model that its weights cannot be of.

    Args:
        cls: of the model.
        settings: constructor arguments, as in the file.
        state: the weights in the file.
        path: of the file, for the message.
        absent: prefixes of weights that the file leaves out and says so.

    Raises:
        TooLargeError: naming what the file asks for.
    """
    sizes = {size for value in state.values() if isinstance(value, Tensor) for size in value.shape}
    for name, number in _iterate_numbers(without_classes(settings)):
        if abs(number) > LARGEST.get(name, MOST) and number not in sizes:
            raise TooLargeError(f"{path} asks for a model with {name} {number:,}, and holds no tensor of that size")
    allowed, count = 8 * len(state) + PARTS, 0

    def register(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > allowed:
            raise TooLargeError(
                f"{path} asks for a model of more than {allowed:,} layers and parameters, and holds {len(state):,} "
                "tensors"
            )

    hooks = (
        registration.register_module_parameter_registration_hook(register),
        registration.register_module_module_registration_hook(register),
    )
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
            model = cls(**without_weights(cls, dict(settings)))
    except TooLargeError:
        raise
    except Exception:  # said by the constructor itself when the model is made
        return
    finally:
        for hook in hooks:
            hook.remove()
    assert isinstance(model, nn.Module)
    tensors = dict(model.named_buffers()) | model.state_dict()  # buffers that are made anew take memory as well
    wanted = sum(value.numel() for name, value in tensors.items() if not name.startswith(tuple(absent)))
    found = sum(value.numel() for value in state.values() if isinstance(value, Tensor))
    if wanted > 2 * found + NUMBERS:
        raise TooLargeError(f"{path} asks for a model of {min(wanted, 10**18):,} numbers or more, and holds {found:,}")


def _iterate_numbers(settings: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, float]]:
    """Yield each number among the settings, with the dotted name of its setting."""
    for key, value in settings.items():
        name = f"{where}{key}"
        waiting = [] if COUNTERS.fullmatch(name) else [value]
        while waiting:
            found = waiting.pop()
            if isinstance(found, list | tuple):
                waiting += found
            elif isinstance(found, dict):
                yield from _iterate_numbers(found, f"{name}.")
            elif isinstance(found, int | float) and not isinstance(found, bool):
                yield name, found
            elif isinstance(found, str) and (match := re.search(r":(\d{1,30})$", found)):  # tiny_random:WIDTH
                yield name, int(match[1])
