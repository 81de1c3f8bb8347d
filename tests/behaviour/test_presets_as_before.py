"""Every preset is the same model as before the redesign: arguments, tokens, size, and each entry of its state."""

import observed
import pytest

import zoo
from zoo.presets import find_class

BEFORE = observed.read("presets.json.gz")


@pytest.mark.parametrize("name", BEFORE)
def test_preset_is_the_same_model(name):
    found, before = observed.preset(name), BEFORE[name]
    cls = zoo.model_info(name).cls
    lines = observed.argument_differences(cls, found["init_args"], before["init_args"])
    assert find_class(before["class"]) is cls  # by the name of before, wherever the class is defined now
    for key in ("paper", "recipe", "weights", "spec", "num_parameters"):
        lines += observed.differences({key: found[key]}, {key: before[key]})
    assert not lines, observed.said(name, lines)
    assert list(found["state"]) == list(before["state"]), f"{name} has other parts than before"
    for part, entries in before["state"].items():
        theirs = found["state"][part]
        lines = [f"{entry} is gone ({kind})" for entry, kind in entries.items() if entry not in theirs]
        lines += [f"{entry} is new ({kind})" for entry, kind in theirs.items() if entry not in entries]
        lines += [f"{e} is {theirs[e]} (was {kind})" for e, kind in entries.items() if theirs.get(e, kind) != kind]
        assert not lines, observed.said(f"the state of {name}, part {part},", lines)
