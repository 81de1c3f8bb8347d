"""Optimizer settings as plain data: parameter groups and schedules."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.choices import one_of

GroupOf = Callable[[str], int]


@dataclass(frozen=True)
class Optim:
    """AdamW, linear warm-up from 0, then cosine or constant; stepped once per optimizer step.

    Args:
        lr: peak learning rate.
        betas: AdamW moments.
        eps: AdamW epsilon.
        weight_decay: decoupled weight decay.
        decay: which parameters decay: ``matrices`` (2-D and more, without what the model exempts) or ``all``.
        warmup_steps: steps of linear warm-up from 0.
        schedule: ``cosine`` down to ``min_lr``, or ``constant``.
        min_lr: where the cosine ends; with an ``lr`` below it the rate stays at ``lr``.
        total_steps: where the cosine ends, in optimizer steps; None takes the length of the run.
        layer_decay: learning rate factor per layer counted from the top (BEiT fine-tuning); 1 switches it off.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    decay: Literal["matrices", "all"] = "matrices"
    warmup_steps: int = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    min_lr: float = 0.0
    total_steps: int | None = None
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        one_of("decay", self.decay, ("matrices", "all"))
        one_of("schedule", self.schedule, ("cosine", "constant"))
        for name in ("lr", "eps", "weight_decay", "min_lr", "layer_decay"):
            self._check(name, getattr(self, name))
        if not isinstance(self.betas, (tuple, list)) or len(self.betas) != 2:
            raise ValueError(f"optim.betas are two numbers, got {self.betas!r}")
        for beta in self.betas:
            self._check("betas", beta)
            if beta >= 1:
                raise ValueError(f"optim.betas must be below 1, got {tuple(self.betas)}")
        if self.layer_decay == 0:
            raise ValueError("optim.layer_decay must be above 0; 1 switches it off")
        for name, least in (("warmup_steps", 0), ("total_steps", 1)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"optim.{name} must be a whole number of at least {least}, got {value!r}")

    @staticmethod
    def _check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ValueError(f"optim.{name} must be a number and not negative, got {value!r}")


torch.serialization.add_safe_globals([Optim])


def cosine(step: float, start: float, end: float, steps: float) -> float:
    """Half a cosine from ``start`` at step 0 to ``end`` at ``steps``, constant afterwards.

    The shape of every schedule of DALL-E (Section A.2): temperature, KL weight and learning rate.
    """
    if steps <= 0:
        return end
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(max(step, 0), steps) / steps))


def lr_factor(optim: Optim, total_steps: int) -> Callable[[int], float]:
    """Make the schedule: a function of the step that returns the learning rate as a factor of ``optim.lr``."""
    floor = min(optim.min_lr / optim.lr, 1.0) if optim.lr else 0.0

    def factor(step: int) -> float:
        if step < optim.warmup_steps:
            return step / optim.warmup_steps
        if optim.schedule == "constant":
            return 1.0
        return cosine(step - optim.warmup_steps, 1.0, floor, max(1, total_steps - optim.warmup_steps))

    return factor


def can_fuse(parameters: Iterable[Tensor]) -> bool:
    """Tell whether AdamW can update all parameters in one pass over the memory, exactly and several times faster."""
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    optim: Optim,
    no_decay: Callable[[str, nn.Parameter], bool] = lambda name, parameter: False,
    layer_of: GroupOf | None = None,
    num_layers: int = 0,
    scale_of: Callable[[str], float] = lambda name: 1.0,
) -> list[dict[str, Any]]:
    """Sort parameters into optimizer groups by weight decay and layer.

    The layer factor is multiplied into each group's ``lr`` itself, because torch schedulers ignore an ``lr_scale``.

    Args:
        parameters: names and parameters; frozen ones are left out.
        optim: settings.
        no_decay: names the model's own exemptions beyond 1-D tensors (only asked with ``decay="matrices"``).
        layer_of: layer index of a parameter name, 0 at the input.
        num_layers: index of the topmost layer, whose factor is 1.
        scale_of: another factor of the learning rate by parameter name, for parts that learn slower or faster.
    """
    groups: dict[tuple[bool, int, float], dict[str, Any]] = {}
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        decays = optim.decay == "all" or not (parameter.ndim < 2 or name.endswith(".bias") or no_decay(name, parameter))
        layer = num_layers if layer_of is None or optim.layer_decay == 1 else layer_of(name)
        scale = scale_of(name)
        group = groups.setdefault(
            (decays, layer, scale),
            {
                "params": [],
                "lr": optim.lr * scale * optim.layer_decay ** (num_layers - layer),
                "weight_decay": optim.weight_decay if decays else 0.0,
                "name": f"layer{layer}_{'decay' if decays else 'no_decay'}" + ("" if scale == 1 else f"_x{scale:g}"),
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def settings_of(group: dict[str, Any]) -> dict[str, Any]:
    """The settings of an optimizer's group, without its parameters."""
    return {name: value for name, value in group.items() if name != "params"}


def names_by_group(module: nn.Module, groups: Iterable[dict[str, Any]]) -> list[list[str]]:
    """List the names of the parameters of each group, in its order."""
    name_of = {id(parameter): name for name, parameter in module.named_parameters()}
    return [[name_of[id(parameter)] for parameter in group["params"]] for group in groups]


def regroup_state(state: dict[str, Any], was: list[list[str]], groups: list[list[str]]) -> dict[str, Any]:
    """Rearrange an optimizer's state for other groups of parameters; each keeps its moments, by its name.

    Args:
        state: of ``Optimizer.state_dict``, which counts parameters through all groups.
        was: names of the parameters of its groups.
        groups: names of the parameters of the new groups; those that the state lacks start without moments.
    """
    moments = {name: state["state"][i] for i, name in enumerate(chain.from_iterable(was)) if i in state["state"]}
    names = list(chain.from_iterable(groups))
    place = {name: i for i, name in enumerate(names)}
    shared = settings_of(state["param_groups"][0])
    return {
        "state": {i: moments[name] for i, name in enumerate(names) if name in moments},
        "param_groups": [shared | {"params": [place[name] for name in group]} for group in groups],
    }


def apply_settings(optimizer: Any, scheduler: Any, settings: list[dict[str, Any]]) -> None:
    """Let these settings decide, in place of those that came with an optimizer's state.

    Args:
        optimizer: with restored moments.
        scheduler: a restored ``LambdaLR`` of it.
        settings: of each group, before the schedule was applied.
    """
    for group, said in zip(optimizer.param_groups, settings, strict=True):
        group |= said | {"initial_lr": said["lr"]}
    scheduler.base_lrs = [said["lr"] for said in settings]
    factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    for group, base, factor in zip(optimizer.param_groups, scheduler.base_lrs, factors, strict=True):
        group["lr"] = base * factor
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
