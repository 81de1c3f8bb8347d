"""What others import, type and list is there as before the redesign; more may be added, with defaults."""

import importlib

import observed
import pytest

import datamodules
import zoo
import zoo.callbacks
import zoo.cli
from zoo.presets import find_class

BEFORE = observed.read("names.json")
LISTS = observed.read("lists.json")
RECIPES = observed.read("recipes.json.gz")


def parameter_differences(found, before, migrated=None):
    """One line per parameter that is gone, moved, became required, or has another default."""
    before_defaults = before["defaults"] if migrated is None else observed.plain(migrated(before["defaults"]))
    lines = observed.differences({n: v for n, v in found["defaults"].items() if n in before_defaults}, before_defaults)
    lines += [f"{name} is required now" for name in found["required"] if name not in before["required"]]
    if migrated is None:
        old = [name for name in found["names"] if name in before["names"]]
        lines += [f"{name} is gone" for name in before["names"] if name not in found["names"]]
        lines += [f"the order is {old} (was {before['names']})"] if old != before["names"] else []
        lines += observed.differences(found["kinds"], before["kinds"])
    return lines


def test_zoo_exports_the_same_names():
    assert set(BEFORE["zoo"]) <= set(zoo.__all__), f"gone: {sorted(set(BEFORE['zoo']) - set(zoo.__all__))}"
    for name in BEFORE["zoo"]:
        assert getattr(zoo, name) is not None, f"zoo.{name}"
        assert name in dir(zoo), f"zoo.{name}"


@pytest.mark.parametrize("name", BEFORE["modules"])
def test_modules_that_zoo_gives_when_asked_are_there(name):
    assert getattr(zoo, name) is importlib.import_module(f"zoo.{name}")


def test_optim_is_where_checkpoints_name_it():
    from zoo.optim import Optim

    assert Optim is zoo.Optim
    assert f"{Optim.__module__}.{Optim.__qualname__}" == "zoo.optim.Optim"


@pytest.mark.parametrize("place", BEFORE["models"])
def test_model_classes_are_where_checkpoints_name_them_with_the_same_arguments(place):
    module, _, name = place.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    assert getattr(zoo, name) is cls
    assert find_class(place) is cls  # the name in checkpoints, whether the class is still there or has moved on
    found = observed.parameters(cls)
    lines = parameter_differences(found, BEFORE["models"][place], lambda given: observed.migrated(cls, given))
    assert not lines, observed.said(f"the constructor of {place}", lines)


@pytest.mark.parametrize("name", BEFORE["callbacks"])
def test_callbacks_have_the_same_arguments(name):
    assert name in zoo.callbacks.__all__
    lines = parameter_differences(observed.parameters(getattr(zoo.callbacks, name)), BEFORE["callbacks"][name])
    assert not lines, observed.said(f"the constructor of zoo.callbacks.{name}", lines)


@pytest.mark.parametrize("name", BEFORE["data"])
def test_data_modules_have_the_same_arguments(name):
    assert name in datamodules.__all__
    lines = parameter_differences(observed.parameters(getattr(datamodules, name)), BEFORE["data"][name])
    assert not lines, observed.said(f"the constructor of datamodules.{name}", lines)


@pytest.mark.parametrize("kind", ["functions", "dataclasses"])
def test_public_functions_and_dataclasses_have_the_same_parameters(kind):
    for name, before in BEFORE[kind].items():
        lines = parameter_differences(observed.parameters(getattr(zoo, name)), before)
        assert not lines, observed.said(f"zoo.{name}", lines)


def test_the_commands_are_the_same():
    assert observed.scripts() == BEFORE["scripts"] == {"lightning": "zoo.cli:main", "tokenzoo": "zoo.cli:main"}
    assert callable(zoo.cli.main)


# ---------------------------------------------------------------- lists


@pytest.mark.parametrize("command", ["list", "recipes"])
def test_lists_of_the_command_line_have_the_same_rows(command):
    found = {line.split("  ")[0]: line.split() for line in observed.printed(command).splitlines()}
    for line in LISTS[command]:  # compared without the widths of the columns, which a longer name changes
        name = line.split("  ")[0]
        assert name in found, f"lightning {command} lacks {name}"
        assert found[name] == line.split(), f"lightning {command} says {' '.join(found[name])}\nbefore: {line}"


def test_models_are_listed_as_before():
    found = {
        "list_models": zoo.list_models(),
        "with_weights": zoo.list_models(weights=True),
        **{decodes: zoo.list_models("*_emoji", decodes=decodes) for decodes in ("pixels", "embedding")},
    }
    for name, models in found.items():
        kept = [model for model in models if model in LISTS[name]]
        assert kept == LISTS[name], f"{name}: gone or in another order, {sorted(set(LISTS[name]) - set(kept))}"


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_parse_to_the_same_configuration(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found, before = observed.parsed(observed.recipes()[name]), RECIPES[name]
    assert found["model"]["class_path"] == before["model"]["class_path"]
    cls = getattr(zoo, before["model"]["class_path"].rpartition(".")[2])
    lines = observed.argument_differences(cls, found["model"].pop("init_args"), before["model"].pop("init_args"))
    lines = [f"model.{line}" for line in lines] + observed.differences(found, before)
    assert not lines, observed.said(f"the configuration of recipes/{name}.yaml", lines)
