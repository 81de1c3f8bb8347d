"""Frozen networks of a model: held outside its ``state_dict``, moved with it, and recognised by their weights."""

from collections.abc import Callable
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from zoo.fingerprints import fingerprint, quick_fingerprint
from zoo.init_args import to_plain_data, value_at

#: what the weights of a model were trained on: the ids that a frozen network makes, or its vectors
Role = Literal["ids", "vectors"]


class FrozenNetworks(dict[str, nn.Module]):
    """The frozen networks of one model by name, and the roles that they had when its weights were trained.

    A network with a role must be the one that the weights were trained beside; checkpoints say which it was, and
    another one is warned of. A network without one only serves a loss.
    """

    def __init__(self) -> None:
        super().__init__()
        #: name -> role; networks that are trained in part have one, too, and are no entries
        self.roles: dict[str, Role] = {}
        self._fingerprints: dict[str, tuple[tuple[int, ...], str]] = {}

    def add(self, name: str, module: nn.Module, role: Role | None) -> None:
        """Hold a network in eval mode and without gradients.

        Networks that only its own training needs, such as a discriminator, are dropped.
        """
        for part in getattr(module, "training_only", ()):
            if isinstance(getattr(module, part, None), nn.Module):
                setattr(module, part, None)
        self[name] = module.eval().requires_grad_(False)
        if role is not None:
            self.roles[name] = role

    def move(self, fn: Callable[[Tensor], Tensor], recurse: bool) -> None:
        """Apply to all networks what :meth:`torch.nn.Module._apply` does to the model."""
        for module in self.values():
            module._apply(fn, recurse)

    def fingerprint_of(self, name: str) -> str:
        """The fingerprint of a network; computed again only after a write, as hashing a large one takes seconds."""
        writes = tuple(value._version for value in self[name].state_dict().values())
        if name not in self._fingerprints or self._fingerprints[name][0] != writes:
            self._fingerprints[name] = writes, fingerprint(self[name])
        return self._fingerprints[name][1]


def hold_partly_frozen(model: nn.Module, name: str, module: nn.Module) -> None:
    """Make a network a part of the model of which frozen parameters are not in ``state_dict``.

    Args:
        model: gets it as an attribute.
        name: of the attribute.
        module: its parameters are frozen here, and some of them may be trained afterwards.
    """

    def leave_out(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        for parameter, value in module.named_parameters(remove_duplicate=False):
            if not value.requires_grad:
                state.pop(prefix + parameter, None)

    def fill_in(module: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
        for parameter, value in module.named_parameters(remove_duplicate=False):
            if not value.requires_grad:
                state.setdefault(prefix + parameter, value)

    model.add_module(name, module.requires_grad_(False))
    module.register_state_dict_post_hook(leave_out)
    module.register_load_state_dict_pre_hook(fill_in)


def describe_frozen(model: Any) -> dict[str, Any]:
    """Describe the frozen networks of a model for its checkpoints.

    Args:
        model: a :class:`zoo.module.ZooModule`.

    Returns:
        ``NAME_fingerprint`` for each network whose ids the weights were trained on, and ``towers``, short hashes of
        those whose vectors they were trained on; nothing of random networks.
    """
    said: dict[str, Any] = {}
    for name in _names_with_role(model, "ids"):
        said[f"{name}_fingerprint"] = model.frozen.fingerprint_of(name)
    towers = {name: quick_fingerprint(_find_network(model, name)) for name in _names_with_role(model, "vectors")}
    if found := {name: value for name, value in towers.items() if value is not None}:
        said["towers"] = found
    return said


def warn_of_other_networks(model: Any, said: Any, source: str) -> None:
    """Warn where weights were trained beside other frozen networks than this model's, which load all the same.

    The same goes for settings in ``model.must_match``.

    Args:
        model: a :class:`zoo.module.ZooModule`.
        said: what the checkpoint says about its model; older ones do not name all networks.
        source: name of the checkpoint, for the message.
    """
    if not isinstance(said, dict):
        return
    args = model.migrate(said.get("init_args", {}))
    for name in (name for name, role in model.frozen.roles.items() if role == "ids"):
        theirs, ours = said.get(f"{name}_fingerprint"), model.hparams.get(name)
        own = model.frozen.fingerprint_of(name) if name in _names_with_role(model, "ids") else None
        if theirs is not None and theirs != own:
            rank_zero_warn(
                f"{source} was trained on the ids of the {name.replace('_', ' ')} {args.get(name)!r} (fingerprint "
                f"{theirs[:12]}), and this model has {ours!r} ({own[:12] if own else 'untrained'}): its ids mean other "
                f"codes there, so train further, or set {name} to the one of the checkpoint"
            )
    for name, theirs in said.get("towers", {}).items():
        own = quick_fingerprint(_find_network(model, name)) if name in _names_with_role(model, "vectors") else None
        if own is not None and own != theirs:
            rank_zero_warn(
                f"{source} was trained with the {name.replace('_', ' ')} {args.get(name)!r} ({theirs}), and this "
                f"model has {model.hparams.get(name)!r} ({own}), whose vectors mean other things: train "
                f"further, or set {name} to the one of the checkpoint"
            )
    for name in model.must_match:
        theirs, ours = value_at(args, name), to_plain_data(value_at(model.hparams, name))
        if theirs is not None and ours is not None and theirs != ours:
            rank_zero_warn(f"{source} was trained with {name} {theirs}, and this model has {ours}")


def _find_network(model: Any, name: str) -> nn.Module:
    return model.frozen[name] if name in model.frozen else getattr(model, name)


def _names_with_role(model: Any, role: Role) -> list[str]:
    """List the networks with this role, but for those that a recipe leaves out or asks to be random."""
    references = {name: str(model.hparams.get(name)) for name, given in model.frozen.roles.items() if given == role}
    return [name for name, reference in references.items() if reference != "None" and not reference.endswith("random")]


def refuse_unsaved(model: nn.Module) -> None:
    """Refuse to save a model with a part whose weights would be lost.

    Raises:
        ValueError: with the reason that the part gives in its attribute ``not_savable``.
    """
    for part in model.modules():
        if reason := getattr(part, "not_savable", None):
            raise ValueError(reason)
