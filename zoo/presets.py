"""Presets: a class, the arguments that it is built with, and the weights that there are of it, as data."""

import fnmatch
import importlib
import inspect
import pkgutil
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from zoo.checkpoints.addresses import local_path
from zoo.checkpoints.weight_sets import split_set_name
from zoo.choices import natural_order, suggest_nearest
from zoo.files.recipes import suggest_recipe
from zoo.init_args import as_init_args, class_by_path, migrate_and_say, without_weights
from zoo.tokens import TokenSpec

WEIGHTS_DIR = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Weights:
    """A set of weights for a preset.

    Args:
        file: name inside ``zoo/weights`` of weights that travel with the package.
        origin: where published weights can be downloaded; nothing is ever downloaded by itself.
        licence: of the weights.
        note: what they were trained on.
    """

    file: str | None = None
    origin: str | None = None
    licence: str = "Apache-2.0"
    note: str = ""

    @property
    def path(self) -> Path | None:
        """The shipped file; None for weights that have to be downloaded."""
        return WEIGHTS_DIR / self.file if self.file else None


@dataclass(frozen=True)
class Preset:
    """One registered model: a class and the arguments that make it."""

    name: str
    cls: type[Any]
    paper: str
    recipe: str | None
    weights: dict[str, Weights]
    init_args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelInfo:
    """Facts about a model, as :func:`zoo.model_info` returns them.

    ``num_parameters`` leaves out frozen towers, and language models whose size only their files tell.
    """

    name: str
    paper: str
    cls: type[Any]
    recipe: str | None
    weights: dict[str, Weights]
    init_args: dict[str, Any]
    spec: TokenSpec | None
    num_parameters: int
    description: str


_PRESETS: dict[str, Preset] = {}


def register(
    name: str,
    cls: type[Any],
    *,
    paper: str,
    recipe: str | None = None,
    weights: dict[str, Weights] | None = None,
    **init_args: Any,
) -> None:
    """Add a preset. Called at the end of each ``zoo/models/<paper>.py``.

    Args:
        name: ``paper[_variant]...`` in lower snake case; ``<paper>_tiny`` is the one that the contract tests run.
        cls: the LightningModule.
        paper: arXiv id.
        recipe: file in ``recipes`` that trains exactly this preset.
        weights: tag -> weights; the first is the default.
        init_args: constructor arguments; a dictionary for a settings group changes these fields of its default.
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"registry names are lower snake case, got {name!r}")
    if name in _PRESETS:
        raise ValueError(f"{name!r} is registered twice")
    init_args = migrate_and_say(cls, init_args)
    unknown = set(init_args) - set(inspect.signature(cls.__init__).parameters)
    if unknown:
        raise ValueError(f"{name}: {cls.__name__} takes no {', '.join(sorted(unknown))}")
    _PRESETS[name] = Preset(name, cls, paper, recipe, weights or {}, as_init_args(cls, init_args))


def presets() -> dict[str, Preset]:
    """List all registered presets by name; the papers are imported on first use."""
    import zoo.models

    for module in pkgutil.iter_modules(zoo.models.__path__):
        importlib.import_module(f"zoo.models.{module.name}")
    return _PRESETS


def list_models(pattern: str = "*", *, decodes: str | None = None, weights: bool = False) -> list[str]:
    """List the names of registered models.

    Args:
        pattern: shell wildcard, e.g. ``"dvae*"``.
        decodes: only those whose tokens decode to this (``"pixels"`` or ``"embedding"``).
        weights: only those with weights inside the package.
    """
    names = sorted(fnmatch.filter(presets(), pattern), key=natural_order)
    if weights:
        names = [n for n in names if any(w.file for w in presets()[n].weights.values())]
    if decodes is not None:
        specs = {name: describe_preset(find_preset(name)).spec for name in names}
        names = [name for name, spec in specs.items() if spec is not None and spec.decodes == decodes]
    return names


def find_preset(name: str) -> Preset:
    """Find the preset of a name.

    Raises:
        ValueError: with the nearest names.
    """
    known = presets()
    if name in known:
        return known[name]
    of_paper = [n for n in known if n.startswith(f"{name.lower()}_")]
    hint = f"did you mean {' or '.join(of_paper[:3])}?" if of_paper else suggest_nearest(name.lower(), known, most=3)
    hint = hint or "python -m zoo list prints them all"
    if any(c in name for c in "/\\") or Path(name).suffix:
        hint = f"for a checkpoint of ours write 'ckpt:{name}', for published weights create_model(NAME, weights=PATH)"
    raise ValueError(f"there is no model {name!r}: {hint}")


@dataclass(frozen=True)
class Reference:
    """A model named by a string, as recipes and checkpoints do it: taken apart here and nowhere else.

    Args:
        text: as it was written.
        name: of a preset; None for a checkpoint.
        source: a tag of its weights, a path or ``random``; None where only the name is given.
        checkpoint: of one of our runs, or an exported file; None for a preset.
    """

    text: str
    name: str | None = None
    source: str | None = None
    checkpoint: Path | None = None

    @classmethod
    def parse(cls, reference: Any) -> "Reference":
        """Take a reference apart; names of presets are not looked up where there is no colon.

        Raises:
            TypeError: for a model itself, or nothing, where a name is wanted.
            ValueError: for nothing behind the colon.
        """
        if not isinstance(reference, str):
            raise TypeError(
                f"a model is named by a string, not by a {type(reference).__name__}: write 'dvae_emoji', 'NAME:PATH', "
                "'NAME:random' for an untrained one, or 'ckpt:PATH' for a checkpoint of yours"
            )
        name, colon, source = reference.partition(":")
        if name == "ckpt" and colon:
            if not source:
                raise ValueError("'ckpt:' names no file: write 'ckpt:PATH', such as 'ckpt:runs/dvae/last.ckpt'")
            return cls(reference, checkpoint=Path(source))
        if not colon or name not in presets():
            return cls(reference, name=reference)
        if not source:
            raise ValueError(
                f"{reference!r} names no weights: write '{name}:PATH', '{name}:TAG', '{name}:random' or {name!r}"
            )
        return cls(reference, name, source)

    @property
    def preset(self) -> Preset:
        """The preset that is named.

        Raises:
            ValueError: for an unknown name.
        """
        assert self.name is not None
        return find_preset(self.name)

    def available_weights(self) -> Literal[True] | str:
        """Choose the ``weights`` that :func:`create_model` takes for this reference.

        Raises:
            ValueError: where only the name is given, and the model has no default weights.
            FileNotFoundError: for weights that nobody has downloaded.
        """
        name, available = self.preset.name, self.preset.weights
        if self.source is None and not available:
            raise ValueError(
                f"{name} has no default weights: write '{name}:PATH' for a file, '{name}:random' to use it untrained, "
                f"or 'ckpt:PATH' for a checkpoint of your own"
            )
        missing = available.get(self.source or next(iter(available), ""))
        if missing is not None and missing.path is None:
            raise FileNotFoundError(
                f"the weights of {name} are not in the package and are never downloaded by themselves: get them from "
                f"{missing.origin} and write '{name}:PATH', for a tokenizer tokenizer=\"{name}:PATH\""
            )
        return self.source or True


def resolve_weights(preset: Preset, weights: Literal[True] | str | Path) -> Path:
    """Resolve True, a tag or a path to a file or folder that exists.

    Raises:
        ValueError: saying which weights the preset has, or what to download.
        FileNotFoundError: for a path that is not there.
    """
    if weights == "random":
        raise ValueError("random weights are no file: leave weights out, or set them to null on the command line")
    if weights is True:
        if not preset.weights:
            with_weights = ", ".join(list_models(weights=True)) or "none"
            raise ValueError(
                f"{preset.name} has no default weights: train it or give a path (models with weights: {with_weights})"
            )
        weights = next(iter(preset.weights))
    if str(weights) in preset.weights:
        entry = preset.weights[str(weights)]
        if entry.path is None:
            raise FileNotFoundError(
                f"the weights {weights!r} of {preset.name} are not in the package and are never downloaded by "
                f"themselves: get them from {entry.origin} and pass weights=PATH"
            )
        if not entry.path.exists():
            raise FileNotFoundError(f"the shipped weights {entry.path} are missing: reinstall tokenzoo")
        return entry.path
    try:
        return find_weights(str(weights))
    except FileNotFoundError:
        tags = ", ".join(preset.weights) or "none"
        raise FileNotFoundError(
            f"{weights} is neither a file or folder, nor a model, nor a tag of {preset.name} (its tags: {tags})"
            f"{suggest_recipe(str(weights).removeprefix('ckpt:'))}"
        ) from None


def find_weights(source: str) -> Path:
    """Find the file or folder that a path, ``ckpt:PATH``, ``NAME`` or ``NAME:TAG`` of a model with weights means.

    A path may end in ``#SET``, the name of one of several sets of weights in it.

    Raises:
        FileNotFoundError: for anything else.
        ValueError: for an address.
    """
    reference = Reference.parse(source)
    if reference.name in presets() and not split_set_name(source)[0].exists():
        return resolve_weights(reference.preset, reference.source or True)
    path = local_path(source.removeprefix("ckpt:"))
    if split_set_name(path)[0].exists():
        return path
    if reference.checkpoint is not None:
        raise FileNotFoundError(f"there is no checkpoint {path}{suggest_recipe(path)}")
    raise FileNotFoundError(
        f"the weights {source!r} are neither a file, a folder nor the name of a model{suggest_recipe(path)}"
    )


def find_class(path: str) -> type[Any]:
    """Find a registered class by its full name; classes that are not registered are refused, never imported.

    Raises:
        ValueError: for an unknown class.
    """
    if (found := class_by_path(path, registered_classes())) is None:
        raise ValueError(f"{path} is not a registered model class; register it before loading the checkpoint")
    return found


def registered_classes() -> set[type[Any]]:
    """Collect the classes of all presets."""
    return {preset.cls for preset in presets().values()}


def describe_preset(preset: Preset) -> ModelInfo:
    """Describe a preset without allocating its parameters or reading weights."""
    with torch.device("meta"):
        model = preset.cls(**without_weights(preset.cls, preset.init_args))
    return ModelInfo(
        name=preset.name,
        paper=preset.paper,
        cls=preset.cls,
        recipe=preset.recipe,
        weights=preset.weights,
        init_args=preset.init_args,
        spec=model.spec,
        num_parameters=sum(p.numel() for p in model.parameters()),
        description=(inspect.getdoc(preset.cls) or "").partition("\n")[0],
    )
