"""The mathematics is as before the redesign: losses, tokens, samples and texts of all tiny presets and of variants.

Weights are those that the names of the parameters decide (`observed.fill`), whatever the order in which they are drawn.
"""

import observed
import pytest

import zoo

BEFORE = observed.read("numbers.json.gz")
TINY = [name for name, facts in BEFORE.items() if name == facts["preset"]]


def test_every_tiny_preset_of_then_has_its_numbers():
    assert TINY
    assert set(TINY) <= set(zoo.list_models("*_tiny"))


@pytest.fixture(params=BEFORE)
def before(request):
    return BEFORE[request.param] | {"name": request.param}


def test_losses_tokens_samples_and_steps_are_the_same(before, tmp_path):
    cls = zoo.model_info(before["preset"]).cls
    init_args = observed.migrated(cls, before["init_args"])
    found = observed.numbers(before["preset"], init_args, tmp_path)
    for part, numbers in found.items():
        rel = 1e-4 if part == "trained" else 1e-5
        lines = observed.number_differences(numbers, before[part], rel)
        assert not lines, observed.said(f"{before['name']}: {part}", lines)


def test_new_models_have_the_arguments_of_then_and_start_alike(before):
    cls = zoo.model_info(before["preset"]).cls
    model = zoo.create_model(before["preset"], **observed.tupled(observed.migrated(cls, before["init_args"])))
    lines = observed.argument_differences(cls, model.init_args(), before["init_args"])
    assert not lines, observed.said(f"init_args of {before['name']}", lines)
    lines = observed.initial_differences(observed.initial(model), before["initial"])
    assert not lines, observed.said(f"the first weights of {before['name']}", lines)


@pytest.mark.parametrize("name", TINY)
def test_the_preset_alone_has_the_arguments_of_then(name):
    cls = zoo.model_info(name).cls
    lines = observed.argument_differences(cls, zoo.create_model(name).init_args(), BEFORE[name]["init_args"])
    assert not lines, observed.said(f"init_args of {name}", lines)
