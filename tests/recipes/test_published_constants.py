"""Presets and paper recipes against the constants of the files that the authors published.

``tests/fixtures/published_constants.json`` holds, with the file that each was read from, lines of
``[name there, our setting, value]``; a line that we deviate from on purpose goes on with our value and the reason.
"""

import dataclasses
import inspect
import json
from pathlib import Path

import pytest
import yaml

from zoo import registry

RECIPES = Path(__file__).parents[2] / "recipes"
CONSTANTS = json.loads((Path(__file__).parents[1] / "fixtures" / "published_constants.json").read_text())
MULTIPLE = ", a multiple of"  # the published rate is for one image of one GPU


def settings_of(name):
    """Every constructor argument of a preset, fields of settings groups as ``optim.lr`` and so on."""
    preset = registry.find_preset(name)
    defaults = {n: p.default for n, p in inspect.signature(preset.cls).parameters.items()}
    found = defaults | preset.init_args
    groups = {name: dataclasses.asdict(value) for name, value in found.items() if dataclasses.is_dataclass(value)}
    return found | {f"{name}.{n}": value for name, fields in groups.items() for n, value in fields.items()}


def constants_of(name):
    entry = CONSTANTS["presets"][name]
    return [fact for group in entry.get("groups", []) for fact in CONSTANTS["groups"][group]["facts"]] + entry["facts"]


def plain(value):
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def differences(facts, ours):
    for there, setting, published, *deviation in facts:
        expected = deviation[0] if deviation else published
        if setting.endswith(MULTIPLE):
            times = ours[setting.removesuffix(MULTIPLE)] / published
            if times < 1 or abs(times - round(times)) > 1e-9:
                yield f"{setting} {published}, not {times} times that ({there})"
        elif plain(ours[setting]) != expected:
            yield f"{setting} is {ours[setting]!r}, published as {published!r} ({there})"


@pytest.mark.parametrize("name", CONSTANTS["presets"])
def test_a_preset_has_the_constants_of_its_publication(name):
    assert list(differences(constants_of(name), settings_of(name))) == []


def test_every_preset_of_a_published_model_is_compared():
    published = {name for name in registry.presets() if not name.endswith("_tiny") and "_emoji" not in name}
    assert published == set(CONSTANTS["presets"])


def test_sources_and_deviations_are_named():
    for kind in ("groups", "presets", "recipes"):
        for name, entry in CONSTANTS[kind].items():
            assert entry["source"], name
            for fact in entry["facts"]:
                assert len(fact) == 3 or (len(fact) == 5 and fact[2] != fact[3] and fact[4]), (name, fact)


def numbers_of(path):
    """The numbers of a recipe: ``trainer.x``, ``data.x``, ``batch`` over all GPUs, ``EMA.decay``."""
    recipe = yaml.safe_load(path.read_text())
    trainer, data = recipe["trainer"], recipe["data"]["init_args"]
    found = {"trainer.gradient_clip_val": None}
    found |= {f"trainer.{n}": v for n, v in trainer.items()} | {f"data.{n}": v for n, v in data.items()}
    gpus = trainer.get("devices", 1) * trainer.get("num_nodes", 1)
    found["batch"] = data["batch_size"] * gpus * trainer.get("accumulate_grad_batches", 1)
    for callback in trainer.get("callbacks", []):
        if callback["class_path"].endswith("EMA"):
            found["EMA.decay"] = callback["init_args"]["decay"]
    return found


@pytest.mark.parametrize("name", CONSTANTS["recipes"])
def test_a_paper_recipe_has_the_numbers_of_its_publication(name):
    assert list(differences(CONSTANTS["recipes"][name]["facts"], numbers_of(RECIPES / name))) == []


def test_every_paper_recipe_is_compared():
    assert {f"paper/{path.name}" for path in (RECIPES / "paper").glob("*.yaml")} == set(CONSTANTS["recipes"])
