"""The registry: presets are data, models are made from them by name."""

import difflib
import fnmatch
import importlib
import inspect
import pkgutil
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from zoo.catalog import natural_order
from zoo.choices import known_names
from zoo.module import ZooModule
from zoo.optim import Optim
from zoo.recipe_files import how_to_make
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
        """Where the shipped file is, or None for weights that have to be fetched."""
        return WEIGHTS_DIR / self.file if self.file else None


@dataclass(frozen=True)
class Preset:
    """One registered model: a class and the arguments that make it."""

    name: str
    cls: type[ZooModule]
    paper: str
    recipe: str | None
    weights: dict[str, Weights]
    init_args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelInfo:
    """What :func:`model_info` tells about a preset.

    ``num_parameters`` leaves out frozen towers, and language models whose size only their files tell.
    """

    name: str
    paper: str
    cls: type[ZooModule]
    recipe: str | None
    weights: dict[str, Weights]
    init_args: dict[str, Any]
    spec: TokenSpec | None
    num_parameters: int
    description: str


_PRESETS: dict[str, Preset] = {}


def register(
    name: str,
    cls: type[ZooModule],
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
        init_args: constructor arguments.
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"registry names are lower snake case, got {name!r}")
    if name in _PRESETS:
        raise ValueError(f"{name!r} is registered twice")
    unknown = set(init_args) - set(inspect.signature(cls.__init__).parameters)
    if unknown:
        raise ValueError(f"{name}: {cls.__name__} takes no {', '.join(sorted(unknown))}")
    _PRESETS[name] = Preset(name, cls, paper, recipe, weights or {}, init_args)


def presets() -> dict[str, Preset]:
    """All registered presets; imports the papers on first use."""
    import zoo.models

    for module in pkgutil.iter_modules(zoo.models.__path__):
        importlib.import_module(f"zoo.models.{module.name}")
    return _PRESETS


def list_models(pattern: str = "*", *, decodes: str | None = None, weights: bool = False) -> list[str]:
    """Names of the registered models.

    Args:
        pattern: shell wildcard, e.g. ``"dvae*"``.
        decodes: only those whose tokens decode to this (``"pixels"`` or ``"embedding"``).
        weights: only those with weights inside the package.
    """
    names = sorted(fnmatch.filter(presets(), pattern), key=natural_order)
    if weights:
        names = [n for n in names if any(w.file for w in presets()[n].weights.values())]
    if decodes is not None:
        names = [n for n in names if (spec := model_info(n).spec) is not None and spec.decodes == decodes]
    return names


def find(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ValueError: with the nearest names.
    """
    known = presets()
    if name in known:
        return known[name]
    of_paper = [n for n in known if n.startswith(f"{name.lower()}_")]
    close = of_paper[:3] or difflib.get_close_matches(name.lower(), known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "python -m zoo list prints them all"
    if any(c in name for c in "/\\") or Path(name).suffix:
        hint = f"for a checkpoint of ours write 'ckpt:{name}', for published weights create_model(NAME, weights=PATH)"
    raise ValueError(f"there is no model {name!r}: {hint}")


def create_model(name: str, weights: bool | str | Path | None = None, **overrides: Any) -> Any:
    """Make a model by name.

    Args:
        name: a registry name, also with its weights as in recipes (``NAME:TAG_OR_PATH``, ``NAME:random``), or
            ``ckpt:PATH`` for a checkpoint that one of our runs wrote.
        weights: None for random initialisation, True for the preset's default weights, a tag, the name of another
            model whose weights this one can start from, or a path to weights in any layout that the model reads.
        overrides: constructor arguments that differ from the preset.

    Returns:
        The :class:`ZooModule`, on the CPU, in training mode.

    Raises:
        TypeError: for a name that is no string, and for arguments that the constructor does not take.
        ValueError: for an unknown name, and for settings that cannot work.
        FileNotFoundError: for weights that are not there.
    """
    check_reference(name)
    if name.startswith("ckpt:"):
        from zoo.checkpoints.load import from_checkpoint

        if weights is not None:
            raise ValueError("a checkpoint brings its own weights; leave weights out")
        return from_checkpoint(Path(name[5:]), overrides)
    name, source = split_reference(name)
    if source is not None and weights is not None:
        raise ValueError(f"the weights are named twice, by '{name}:{source}' and by weights={weights!r}: leave one out")
    if source is not None and source != "random":
        weights = available_weights(name, source)
    preset = find(name)
    check_overrides(preset.cls, overrides)
    model = preset.cls(**_as_init_args(preset.init_args | overrides))
    model.random_on_purpose = source == "random"
    if weights is not None and weights is not False:
        model.load_weights(str(weights_path(preset, weights)))
    return model


def weights_path(preset: Preset, weights: Literal[True] | str | Path) -> Path:
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
        return locate_weights(str(weights))
    except FileNotFoundError:
        tags = ", ".join(preset.weights) or "none"
        raise FileNotFoundError(
            f"{weights} is neither a file or folder, nor a model, nor a tag of {preset.name} (its tags: {tags})"
            f"{how_to_make(str(weights).removeprefix('ckpt:'))}"
        ) from None


def locate_weights(source: str) -> Path:
    """The file or folder behind a path, ``ckpt:PATH``, or the name of a model with weights (``NAME`` or ``NAME:TAG``).

    A path may end in ``#SET``, which of several sets of weights in it is meant.

    Raises:
        FileNotFoundError: for anything else.
        ValueError: for an address.
    """
    from zoo.checkpoints.addresses import local_path
    from zoo.checkpoints.weight_sets import split_choice

    name, _, tag = source.partition(":")
    if name in presets() and not split_choice(source)[0].exists():
        return weights_path(find(name), tag or True)
    path = local_path(source.removeprefix("ckpt:"))
    if split_choice(path)[0].exists():
        return path
    if name == "ckpt":
        raise FileNotFoundError(f"there is no checkpoint {path}{how_to_make(path)}")
    raise FileNotFoundError(
        f"the weights {source!r} are neither a file, a folder nor the name of a model{how_to_make(path)}"
    )


def model_from(reference: str, **overrides: Any) -> Any:
    """Make the model that a recipe names by a string, such as ``tokenizer: dvae_emoji``.

    ``NAME`` takes its default weights, ``NAME:TAG_OR_PATH`` others, ``NAME:random`` none, ``ckpt:PATH`` a checkpoint.
    Overrides are constructor arguments that differ from the preset's or the checkpoint's.

    Raises:
        TypeError: for a reference that is no string.
    """
    check_reference(reference)
    if reference.startswith("ckpt:") or split_reference(reference)[1] is not None:
        return create_model(reference, **overrides)
    return create_model(reference, weights=available_weights(reference, None), **overrides)


def split_reference(reference: str) -> tuple[str, str | None]:
    """``NAME:SOURCE`` in two parts; the source is a tag, a path or ``random``, and None where only a name is given.

    Raises:
        ValueError: for nothing behind the colon.
    """
    name, colon, source = reference.partition(":")
    if name in presets() and colon and not source:
        raise ValueError(
            f"{reference!r} names no weights: write '{name}:PATH', '{name}:TAG', '{name}:random' or {name!r}"
        )
    return (name, source) if name in presets() and colon else (reference, None)


def available_weights(name: str, source: str | None) -> Literal[True] | str:
    """What :func:`create_model` takes as ``weights`` for a reference.

    Raises:
        ValueError: where only the name is given, and the model has no default weights.
        FileNotFoundError: for weights that nobody has downloaded.
    """
    available = find(name).weights
    if source is None and not available:
        raise ValueError(
            f"{name} has no default weights: write '{name}:PATH' for a file, '{name}:random' to use it untrained, "
            f"or 'ckpt:PATH' for a checkpoint of your own"
        )
    missing = available.get(source or next(iter(available), ""))
    if missing is not None and missing.path is None:
        raise FileNotFoundError(
            f"the weights of {name} are not in the package and are never downloaded by themselves: get them from "
            f"{missing.origin} and write '{name}:PATH', for a tokenizer tokenizer=\"{name}:PATH\""
        )
    return source or True


def check_reference(reference: Any) -> None:
    """Refuse a model itself, or nothing, where a name is wanted: checkpoints and command lines hold names.

    Raises:
        TypeError: saying what a reference looks like.
        ValueError: for a checkpoint without its path.
    """
    if not isinstance(reference, str):
        raise TypeError(
            f"a model is named by a string, not by a {type(reference).__name__}: write 'dvae_emoji', 'NAME:PATH', "
            "'NAME:random' for an untrained one, or 'ckpt:PATH' for a checkpoint of yours"
        )
    if reference == "ckpt:":
        raise ValueError("'ckpt:' names no file: write 'ckpt:PATH', such as 'ckpt:runs/dvae/last.ckpt'")


def class_of(reference: str) -> type[ZooModule]:
    """The class that :func:`model_from` makes of a reference, without making it.

    Raises:
        ValueError: for an unknown name, or a checkpoint that is none of ours.
        TypeError: for a reference that is no string.
    """
    check_reference(reference)
    if not reference.startswith("ckpt:"):
        return find(split_reference(reference)[0]).cls
    from zoo.checkpoints.load import describe

    return class_named(describe(Path(reference[5:]))["class"])


def model_info(name: str) -> ModelInfo:
    """Facts about a preset, or about the model of a checkpoint, without allocating its parameters.

    Args:
        name: as for :func:`create_model`; weights behind a colon change no fact.
    """
    import torch

    preset = _preset_of(name)
    with torch.device("meta"):
        model = preset.cls(**without_towers(preset.cls, preset.init_args))
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


def _preset_of(reference: str) -> Preset:
    check_reference(reference)
    if not reference.startswith("ckpt:"):
        return find(split_reference(reference)[0])
    from zoo.checkpoints.load import read_described

    _, cls, settings = read_described(Path(reference[5:]))
    paper = next(p.paper for p in presets().values() if p.cls is cls)
    return Preset(reference, cls, paper, None, {}, settings)


def check_overrides(cls: type, overrides: dict[str, Any]) -> None:
    """Refuse arguments that the constructor does not take, naming the nearest one."""
    known_names(cls.__name__, overrides, list(inspect.signature(cls).parameters))


def class_named(path: str) -> type[ZooModule]:
    """A registered class by its full name; classes that are not registered are refused, never imported.

    Raises:
        ValueError: for an unknown class.
    """
    classes = {f"{p.cls.__module__}.{p.cls.__qualname__}": p.cls for p in presets().values()}
    if path not in classes:
        raise ValueError(f"{path} is not a registered model class; register it before loading the checkpoint")
    return classes[path]


def without_towers(cls: type, init_args: dict[str, Any]) -> dict[str, Any]:
    """Arguments that build the model without reading weights from disk."""
    args = dict(_as_init_args(init_args))
    for name in ("tokenizer", "condition_tokenizer"):
        default = inspect.signature(cls).parameters.get(name)
        reference = args.get(name, default.default if default else None)
        if isinstance(reference, str) and not reference.startswith("ckpt:"):
            args[name] = reference.partition(":")[0] + ":random"
    return args


def _as_init_args(args: dict[str, Any]) -> dict[str, Any]:
    optim = args.get("optim")
    if optim is not None and not isinstance(optim, (dict, Optim)):
        raise TypeError(f"optim is an Optim or a dictionary of its fields, got {type(optim).__name__}")
    if isinstance(optim, dict):
        known_names("optim", optim, [f.name for f in fields(Optim)])
        args = args | {"optim": Optim(**(optim | ({"betas": tuple(optim["betas"])} if "betas" in optim else {})))}
    return args
