"""The mathematics is as before the redesign: losses, tokens, samples and texts of all tiny presets and of variants.

Weights are those that the names of the parameters decide (`observed.fill`), whatever the order in which they are drawn.
"""

import observed
import pytest

import zoo

BEFORE = observed.read("numbers.json.gz")
TINY = [name for name, facts in BEFORE.items() if name == facts["preset"]]


def test_every_tiny_preset_of_then_has_its_numbers():
    assert TINY and set(TINY) <= set(zoo.list_models("*_tiny"))


@pytest.fixture(params=BEFORE)
def before(request):
    return BEFORE[request.param] | {"name": request.param}


def test_losses_tokens_and_samples_are_the_same(before):
    cls = zoo.model_info(before["preset"]).cls
    model = zoo.create_model(before["preset"], **observed.tupled(observed.migrated(cls, before["init_args"])))
    lines = observed.argument_differences(cls, model.init_args(), before["init_args"])
    assert not lines, observed.said(f"init_args of {before['name']}", lines)
    found = observed.numbers(observed.fill(model))
    for part, numbers in found.items():
        lines = observed.number_differences(numbers, before[part])
        assert not lines, observed.said(f"{before['name']}: {part}", lines)


@pytest.mark.parametrize("name", TINY)
def test_the_preset_alone_has_the_arguments_of_then(name):
    cls = zoo.model_info(name).cls
    lines = observed.argument_differences(cls, zoo.create_model(name).init_args(), BEFORE[name]["init_args"])
    assert not lines, observed.said(f"init_args of {name}", lines)
