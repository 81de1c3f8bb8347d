"""Published layouts of weights: how one is recognised, and how its names become ours."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zoo.checkpoints.unused_entries import entries_of

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Converted:
    """Weights under the names of the model that reads them.

    Entries that a reader leaves out need not be listed: every one that is neither in ``state``, in whatever form, nor
    in ``checked`` is reported when the weights are loaded, see :mod:`zoo.checkpoints.unused_entries`.

    Args:
        state: name -> tensor; every name must exist in the model, with this shape.
        not_in_file: prefix of parameters that this layout does not hold -> why. What needs them then refuses to work.
        newly_initialised: prefix of parameters that are meant to start anew -> why (the head of a fine-tuning run).
        settings: constructor arguments that the shapes in the file show and ours do not, such as the number of heads.
        checked: entries of the file that the model computes by itself, found equal by :func:`check_constant`.
        notes: other things done to the weights, to be reported.
    """

    state: dict[str, Tensor]
    not_in_file: dict[str, str] = field(default_factory=dict)
    newly_initialised: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    checked: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """A published layout of weights.

    Args:
        name: how messages call it.
        matches: whether a state dict is in this layout, judged by names and shapes alone.
        convert: from the state dict and the model that reads it.
        classes: full names of the classes inside published files that are pickled modules.
        check_config: compares the ``config.json`` that lies beside the weights with the model: returns notes, and
            raises ValueError for a fact that no tensor shows and that the model has otherwise.
        convert_described: in place of ``convert`` where a layout needs to know more than its tensors show; the third
            argument is what the file says of its model: our constructor arguments, or the ``config.json`` beside it.
        rearranges: whether weights under the model's own names and in its shapes must be converted all the same, by
            what their file says; arguments as for ``convert_described``.
    """

    name: str
    matches: Callable[[State], bool]
    convert: Callable[[State, nn.Module], Converted]
    classes: tuple[str, ...] = ()
    check_config: Callable[[Mapping[str, Any], nn.Module], tuple[str, ...]] | None = None
    convert_described: Callable[[State, Any, Mapping[str, Any]], Converted] | None = None
    rearranges: Callable[[State, Any, Mapping[str, Any]], bool] | None = None


def check_constant(state: State, name: str, expected: Tensor, meaning: str) -> tuple[str, ...]:
    """Make sure that an entry which the model does not store has the value that the model computes with.

    Args:
        state: of the file.
        name: of the entry.
        expected: what the model takes it to be, up to the type.
        meaning: of the entry, for the message.

    Returns:
        The name in the file, for ``checked``.

    Raises:
        ValueError: naming the entry where it holds something else.
    """
    found = state[name]
    if found.shape != expected.shape or not torch.equal(found.to(expected.dtype), expected.to(found.device)):
        raise ValueError(
            f"{name} holds other values than {meaning}, which this model computes with: these weights belong to "
            "another network"
        )
    return tuple(entries_of([found])) or (name,)


def check_positions(state: State, names: Iterable[str]) -> tuple[str, ...]:
    """Make sure that entries count positions, 0, 1, 2, ..., as every model here does; absent ones are skipped.

    Raises:
        ValueError: for one that counts otherwise.
    """
    found: list[str] = []
    for name in set(names) & state.keys():
        counted = torch.arange(state[name].numel()).view(state[name].shape)
        found += check_constant(state, name, counted, "the positions 0, 1, 2, ...")
    return tuple(found)
