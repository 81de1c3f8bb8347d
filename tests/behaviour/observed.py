"""What the code does at this moment, as plain data: written by `make_fixtures.py`, compared by the tests beside it."""

import contextlib
import dataclasses
import gzip
import inspect
import io
import json
import math
import random
import shutil
import tomllib
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import datamodules
import zoo
import zoo.callbacks

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "fixtures" / "before_redesign"
#: tokenizers of other models, which are built without their weights
REFERENCES = ("tokenizer", "condition_tokenizer")


def migrated(cls: type, init_args: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments as they were before the redesign, as they are called now.

    Args:
        cls: of the model, as it is now.
        init_args: plain data, all arguments or some.
    """
    migrate = getattr(cls, "migrate", None)  # nothing has it yet: settings groups will bring it
    return init_args if migrate is None else migrate(dict(init_args))


# ---------------------------------------------------------------- plain data


def plain(value: Any) -> Any:
    """What JSON holds of dataclasses, tuples and mappings; floats that JSON lacks are texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return value.as_posix() if isinstance(value, Path) else repr(value)


def flat(value: Any, where: str = "") -> dict[str, Any]:
    """Dotted name -> leaf; how long a list is stands beside its entries."""
    if isinstance(value, dict) and value:
        entries = [flat(v, f"{where}.{k}".lstrip(".")) for k, v in value.items()]
    elif isinstance(value, list) and value:
        entries = [{f"{where}.length": len(value)}, *(flat(v, f"{where}.{i}") for i, v in enumerate(value))]
    else:
        return {where: value}
    return {k: v for entry in entries for k, v in entry.items()}


def differences(found: Any, before: Any, more: bool = True) -> list[str]:
    """One line per entry that is gone or has another value.

    Args:
        found: plain data of today.
        before: plain data of the fixture.
        more: whether there may be entries that were not there before.
    """
    found, before = flat(found), flat(before)
    lines = [f"{name} is gone (was {value!r})" for name, value in before.items() if name not in found]
    lines += [
        f"{name} is {found[name]!r} (was {value!r})"
        for name, value in before.items()
        if name in found and (found[name] != value or isinstance(found[name], bool) != isinstance(value, bool))
    ]
    lines += [] if more else [f"{name} is new ({value!r})" for name, value in found.items() if name not in before]
    return lines


def argument_differences(cls: type, found: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """As :func:`differences` of constructor arguments; new ones are fine where they have their default."""
    before, defaults = plain(migrated(cls, before)), parameters(cls)["defaults"]
    new = {name: value for name, value in found.items() if name not in before}
    lines = differences({n: v for n, v in found.items() if n in before}, before, more=True)
    return lines + [f"the new {line}" for line in differences(new, {n: defaults.get(n, "required") for n in new})]


def said(what: str, lines: list[str], most: int = 12) -> str:
    """A message for an assertion: what differs, with its first lines."""
    more = f"\n  and {len(lines) - most} more" if len(lines) > most else ""
    return f"{what} is not as it was before the redesign:\n  " + "\n  ".join(lines[:most]) + more


def read(name: str) -> Any:
    """A fixture, from JSON as it is or packed."""
    path = FOLDER / name
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return json.loads(text)


def write(name: str, data: Any) -> None:
    """A fixture; the same data make the same bytes."""
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, indent=None if path.suffix == ".gz" else 1, ensure_ascii=False, allow_nan=False) + "\n"
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0) if path.suffix == ".gz" else text.encode())


# ---------------------------------------------------------------- names


def parameters(function: Any) -> dict[str, Any]:
    """Names of parameters in their order, those without a default, and the defaults of the others."""
    found = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    return {
        "names": [p.name for p in found],
        "kinds": {p.name: p.kind.name.lower() for p in found},
        "required": [p.name for p in found if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)],
        "defaults": {p.name: plain(p.default) for p in found if p.default is not p.empty},
    }


def model_classes() -> dict[str, type]:
    """Class of every registered model, by the place that checkpoints name."""
    classes = {zoo.model_info(name).cls for name in zoo.list_models()}
    return {f"{cls.__module__}.{cls.__qualname__}": cls for cls in sorted(classes, key=lambda c: c.__qualname__)}


def scripts() -> dict[str, str]:
    """Commands that the package installs."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]


def public_names() -> dict[str, Any]:
    """What others import, with its parameters."""
    functions = ("create_model", "list_models", "model_info", "reconstruct", "register")
    settings = ("Optim", "Segment", "TokenSpec", "Tokens", "Weights")
    return {
        "zoo": sorted(zoo.__all__),
        "modules": ["module", "optim", "registry", "tokens"],
        "zoo.callbacks": sorted(zoo.callbacks.__all__),
        "datamodules": sorted(datamodules.__all__),
        "scripts": scripts(),
        "functions": {name: parameters(getattr(zoo, name)) for name in functions},
        "dataclasses": {name: parameters(getattr(zoo, name)) for name in settings},
        "models": {place: parameters(cls) for place, cls in model_classes().items()},
        "callbacks": {name: parameters(getattr(zoo.callbacks, name)) for name in sorted(zoo.callbacks.__all__)},
        "data": {name: parameters(getattr(datamodules, name)) for name in sorted(datamodules.__all__)},
    }


def printed(*arguments: Any) -> str:
    """What a command prints, which must end well."""
    from zoo.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code or 0
    assert code == 0, f"lightning {' '.join(map(str, arguments))}: {err.getvalue()}"
    return out.getvalue()


def recipes() -> dict[str, Path]:
    """Name of every recipe -> its file."""
    folder = ROOT / "recipes"
    return {p.relative_to(folder).with_suffix("").as_posix(): p for p in sorted(folder.glob("**/*.yaml"))}


def parsed(path: Path) -> dict[str, Any]:
    """The configuration that `fit` makes of a file."""
    import yaml

    return yaml.safe_load(printed("fit", "--config", path, "--print_config"))


# ---------------------------------------------------------------- presets


def without_weights(name: str) -> dict[str, str]:
    """References of a preset to other models, with random weights."""
    info = zoo.model_info(name)
    args = parameters(info.cls)["defaults"] | info.init_args
    named = {key: args[key] for key in REFERENCES if isinstance(args.get(key), str)}
    return {key: f"{value.partition(':')[0]}:random" for key, value in named.items()}


def preset(name: str) -> dict[str, Any]:
    """Facts about a preset, and name, type and shape of every entry of its state, by the parts of the model."""
    info = zoo.model_info(name)
    with torch.device("meta"):
        state = zoo.create_model(name, **without_weights(name)).state_dict()
    parts: dict[str, dict[str, str]] = {}
    for entry, value in sorted(state.items()):
        shape = "x".join(map(str, value.shape)) or "scalar"
        parts.setdefault(entry.partition(".")[0], {})[entry] = f"{str(value.dtype)[6:]} {shape}"
    return {
        "class": f"{info.cls.__module__}.{info.cls.__qualname__}",
        "paper": info.paper,
        "recipe": info.recipe,
        "weights": {tag: plain(w) for tag, w in info.weights.items()},
        "init_args": plain(info.init_args),
        "spec": spec_of(info.spec),
        "num_parameters": info.num_parameters,
        "state": parts,
    }


def spec_of(spec: zoo.TokenSpec | None) -> dict[str, Any] | None:
    """What a specification says."""
    if spec is None:
        return None
    names = ("dim", "order", "vocabulary", "decodes", "num_tokens", "vocab_size", "grid_shape")
    return {"segments": plain(spec.segments)} | {name: plain(getattr(spec, name)) for name in names}


# ---------------------------------------------------------------- numbers


def pictures(count: int, size: int) -> Tensor:
    """Coloured discs on gradients, made by arithmetic alone: uint8, the same on every machine."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    images = []
    for i in range(count):
        far = (x - size * (3 + i % 4) // 9) ** 2 + (y - size * (5 - i % 3) // 9) ** 2
        disc = (far * 16 < size**2 * (1 + i % 3))[None]
        ground = torch.stack([(x * 200 // size + 40 * i) % 256, (y * 180 // size + 70) % 256, (x + y) * 90 // size])
        colour = torch.tensor([230 - 50 * (i % 5), 60 + 60 * (i % 4), 30 + 70 * (i % 3)])[:, None, None]
        images.append(torch.where(disc, colour, ground))
    return torch.stack(images).to(torch.uint8)


def batch_for(model: Any, count: int = 4) -> dict[str, Any]:
    """A batch with images, labels and captions."""
    size, classes = model.hparams.get("image_size", 32), getattr(model, "num_classes", 9) or 9
    more = {"condition": pictures(count, 32)} if getattr(model, "condition_tokens", 0) else {}
    words = ("a red disc", "a green disc on blue", "nothing much", "two words more")
    return {
        "image": pictures(count, size),
        "label": torch.arange(count) * 2 % classes,
        "caption": [words[i % len(words)] for i in range(count)],
        "index": torch.arange(count),
    } | more


#: frozen networks that had another name then
NAMED_THEN = {"condition_tokenizer": "condition"}


def fill(model: Any, where: str = "") -> Any:
    """Give each parameter values that its name alone decides, and those of its tokenizers likewise.

    In whatever order networks are built, the weights are then the same. Other frozen networks are always the same.
    """
    stored = model.state_dict()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in stored and parameter.ndim:
                parameter.copy_(_drawn(where + name, parameter.shape))
        for name, value in model.named_buffers():
            if name.endswith("cluster_size"):
                value.fill_(1)
            elif name.endswith((".embed", ".embed_avg")):
                value.copy_(_drawn(where + name.removesuffix("_avg"), value.shape))
    fill_tokenizers(model, where)
    model.weights_loaded = True
    return model


def fill_tokenizers(model: Any, where: str = "") -> None:
    """Fill what a checkpoint does not hold where a tokenizer is ``NAME:random``."""
    for name, tower in model.frozen.items():
        if isinstance(tower, zoo.ZooModule):
            fill(tower, f"{where}{NAMED_THEN.get(name, name)}.")


def _drawn(name: str, shape: torch.Size) -> Tensor:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if len(shape) > 1:
        return noise / math.sqrt(math.prod(shape[1:]))
    return 1 + noise / 10 if name.endswith("weight") else noise / 50


def losses(model: Any, training: bool) -> dict[str, float]:
    """Every term for the batch of :func:`batch_for`."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - timm draws from it
    torch.manual_seed(0)
    terms = model.train(training).losses(batch_for(model))
    return {name: float(value.detach()) for name, value in terms.items()}


def tokens_of(model: Any) -> dict[str, Any]:
    """What the images of the batch become, and what the tokens become: ids, and of vectors a few numbers."""
    if model.spec is None:
        return {}
    with torch.no_grad():
        tokens = model.eval().encode(batch_for(model)["image"])
        found = {"ids": tokens.ids.tolist()} if tokens.ids is not None else {"vectors": few(tokens.embeddings)}
        if model.spec.decodes is not None:
            found["decoded"] = few(model.decode(tokens))
    return found


def numbers(preset: str, init_args: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Tokens, samples, texts and losses of a model, and what two steps of training make of its weights.

    Args:
        preset: whose class it is.
        init_args: all constructor arguments, as plain data and as they are called now.
        folder: for the trainer.
    """
    arguments = tupled(init_args) | {"optim": zoo.create_model(preset).hparams["optim"]}
    model = fill(zoo.create_model(preset, **arguments))
    found = {"tokens": tokens_of(model), "written": written(model)}
    found |= {"eval": losses(model, False), "train": losses(model, True)}  # the last one changes running means
    model = fill(zoo.create_model(preset, **arguments | {"optim": steady(preset)}))
    trained(model, folder, 2)
    return found | {"trained": by_part(model.state_dict())}


def steady(preset: str) -> zoo.Optim:
    """Settings with which a step is proportional to the gradient, so that rounding stays rounding.

    AdamW makes a step of full size of the smallest gradient, and of none where it is zero but for rounding.
    """
    optim = zoo.create_model(preset).hparams["optim"]
    more = {"layer_decay": 0.7} if "classifier" in preset else {}
    return dataclasses.replace(optim, lr=0.05, eps=1.0, weight_decay=0.1, warmup_steps=0, **more)


def initial(model: Any) -> dict[str, list[float]]:
    """Mean, deviation and number of the values of each entry that a new model has, to four digits."""
    state = {n: v.double() for n, v in model.state_dict().items() if v.is_floating_point()}
    return {n: [float(f"{v.mean():.4g}"), float(f"{v.std(correction=0):.4g}"), v.numel()] for n, v in state.items()}


def initial_differences(found: dict[str, list[float]], before: dict[str, list[float]]) -> list[str]:
    """One line per entry that is drawn from another distribution; another draw from the same is fine."""
    lines = []
    for name, (mean, std, count) in before.items():
        if name not in found or found[name][2] != count:
            lines.append(f"{name} is gone, or of another size")
            continue
        if count < 8 and (std or mean not in (0, 1)):  # a few values of chance tell nothing
            continue
        far = 7 * max(std, found[name][1]) / math.sqrt(count) + 2e-4 * abs(mean)
        if abs(found[name][0] - mean) > 1.5 * far or abs(found[name][1] - std) > far + 2e-4 * std:
            lines.append(f"{name} has mean and deviation {found[name][:2]} (was {[mean, std]})")
    return lines


def tupled(value: Any) -> Any:
    """Tuples in the place of the lists that JSON made of them."""
    if isinstance(value, dict):
        return {k: tupled(v) for k, v in value.items()}
    return tuple(tupled(v) for v in value) if isinstance(value, list) else value


def few(values: Tensor) -> list[float]:
    """Mean, deviation and the first, middle and last of the values."""
    v = values.detach().flatten()
    return [float(x) for x in (v.mean(), v.std(correction=0), v[0], v[len(v) // 2], v[-1])]


def written(model: Any) -> dict[str, Any]:
    """Seeded samples, completions and texts, of a model that makes any."""
    model.eval()
    images = batch_for(model)["image"][:2]
    short = {"max_new_tokens": 12}
    made: dict[str, Any] = {}
    if type(model).__name__ in ("MaskGIT", "ARTransformer"):
        options: dict[str, Any] = {"labels": [1, 3]} if model.num_classes else {"num_images": 2}
        if getattr(model, "condition_tokens", 0):
            options = {"condition": pictures(2, 32)}
        made["generate"] = model.generate(**options, as_tokens=True, seed=3).ids.tolist()
    if type(model).__name__ == "BEiT":
        mask = torch.arange(2 * math.prod(model.grid)).reshape(2, *model.grid) % 3 == 0
        made["complete"] = model.complete(images, mask).ids.tolist()
    if type(model).__name__ in ("BLIP2Stage2", "MiniGPT4", "LLaVA", "SEEDLLM"):
        made["caption"] = model.caption(images, **short)
        if getattr(model, "conversation", "") != "plain":
            made["answer"] = model.answer(images, ["what is red?", "how many?"], **short)
    if type(model).__name__ == "SEEDLLM":
        made["generate"] = model.generate_images(["a disc", "two"], as_tokens=True, seed=3).ids.tolist()
    return made


def number_differences(found: dict[str, Any], before: dict[str, Any], rel: float = 1e-5, least: float = 1e-6) -> list:
    """As :func:`differences`, where floats may differ by rounding."""
    found, before = flat(found), flat(before)
    close = {
        name: before[name]
        for name, value in found.items()
        if isinstance(value, float) and name in before and math.isclose(value, before[name], rel_tol=rel, abs_tol=least)
    }
    return differences(found | close, before)


# ---------------------------------------------------------------- runs


def write_pictures(folder: Path, count: int = 12, size: int = 32) -> None:
    """A folder of small PNG files, which the runs of the command line were trained on."""
    from PIL import Image

    for i, image in enumerate(pictures(count, size)):
        path = folder / f"class_{i % 3}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


class Repeated(torch.utils.data.Dataset):
    """The samples of the batch of a model, four times per epoch.

    Args:
        model: that is trained.
    """

    def __init__(self, model: Any):
        self.batch = batch_for(model)

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[index % 4] for name, values in self.batch.items()}


def trained(model: Any, folder: Path, steps: int, checkpoint: Path | None = None) -> Any:
    """The trainer after so many steps on :class:`Repeated`."""
    import lightning.pytorch as pl

    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, default_root_dir=folder,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(Repeated(model), batch_size=4)
    trainer.fit(model, loader, loader, ckpt_path=checkpoint)
    return trainer


def by_part(state: dict[str, Tensor]) -> dict[str, list[float]]:
    """A few numbers of the floats in each part of a state."""
    parts: dict[str, list[Tensor]] = {}
    for name, value in sorted(state.items()):
        if value.is_floating_point():
            parts.setdefault(name.partition(".")[0], []).append(value.detach().flatten())
    return {part: few(torch.cat(values)) for part, values in parts.items()}


def pack(checkpoint: Path, to: Path) -> None:
    """Store a checkpoint of many small tensors, for each of which it has a kilobyte of padding."""
    to.parent.mkdir(parents=True, exist_ok=True)
    to.with_name(f"{to.name}.gz").write_bytes(gzip.compress(checkpoint.read_bytes(), 9, mtime=0))


def unpack(name: str, folder: Path) -> Path:
    """A stored checkpoint, in a folder.

    Args:
        name: below the fixtures, without ``.gz``.
        folder: gets the file.
    """
    path = folder / Path(name).name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.decompress((FOLDER / f"{name}.gz").read_bytes()))
    return path


def lay_out(run: str, folder: Path) -> Path:
    """Put a run of the command line, with what it was trained on, where its paths lead; its folder."""
    write_pictures(folder / "images")
    place = folder / "runs" / run
    unpack(f"command_line/{run}/last.ckpt", place)
    shutil.copy(FOLDER / "command_line" / run / "config.yaml", place)
    return place
