"""What a published layout of weights is: how to recognise it, and how to rename it to ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Converted:
    """Weights under the names of the model that reads them.

    Args:
        state: name -> tensor; every name must exist in the model, with this shape.
        absent: prefix of parameters that this layout does not hold -> why. What needs them then refuses to work.
        fresh: prefix of parameters that are meant to start anew -> why (the head of a fine-tuning run).
        ignored: entries of the file that the model has no use for; they are reported.
        notes: other things done to the weights, to be reported.
    """

    state: dict[str, Tensor]
    absent: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """A published layout of weights.

    Args:
        name: how messages call it.
        matches: whether a state dict is in this layout, judged by names and shapes alone.
        convert: from the state dict and the model that reads it.
        classes: full names of the classes inside published files that are pickled modules.
    """

    name: str
    matches: Callable[[State], bool]
    convert: Callable[[State, nn.Module], Converted]
    classes: tuple[str, ...] = ()
