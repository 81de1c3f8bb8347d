"""Schedules at their steps, and parameter groups by hand."""

import dataclasses
import inspect
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from zoo.optim import Optim, can_fuse, cosine, lr_factor, parameter_groups


@pytest.mark.parametrize(
    ("step", "value"), [(-3, 2.0), (0, 2.0), (25, 2 - 1.5 * 0.146447), (50, 1.25), (100, 0.5), (999, 0.5)]
)
def test_cosine_at_its_steps(step, value):
    assert cosine(step, 2.0, 0.5, 100) == pytest.approx(value, rel=1e-5)


def test_cosine_without_steps_is_at_its_end():
    assert cosine(0, 1.0, 0.25, 0) == 0.25


def test_warm_up_then_cosine_down_to_min_lr():
    factor = lr_factor(Optim(lr=2.0, warmup_steps=4, min_lr=0.5), total_steps=12)
    assert [factor(s) for s in range(5)] == [0, 0.25, 0.5, 0.75, 1.0]
    assert factor(8) == pytest.approx((1 + 0.25) / 2)
    assert factor(12) == factor(1000) == pytest.approx(0.25)
    assert all(a > b for a, b in pairwise([factor(s) for s in range(4, 13)]))


def test_a_rate_that_is_set_below_min_lr_stays_where_it_was_set():
    factor = lr_factor(Optim(lr=1e-5, warmup_steps=2, min_lr=4e-5), total_steps=10)
    assert [factor(s) for s in (0, 1, 2, 5, 10, 50)] == [0, 0.5, 1, 1, 1, 1]


def test_constant_schedule():
    factor = lr_factor(Optim(warmup_steps=2, schedule="constant"), total_steps=10)
    assert [factor(s) for s in (1, 2, 500)] == [0.5, 1.0, 1.0]


def test_schedule_drives_the_learning_rate_of_torch():
    optim = Optim(lr=0.1, warmup_steps=2)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=optim.lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(optim, 4))
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0, 0.05, 0.1, 0.1 * (1 + math.cos(math.pi / 2)) / 2, 0])


def net():
    module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 1, bias=False))
    module.register_parameter("table", nn.Parameter(torch.zeros(3, 2)))
    return module


def names(groups, module):
    by_id = {id(p): n for n, p in module.named_parameters()}
    return {g["name"]: [by_id[id(p)] for p in g["params"]] for g in groups}


def test_only_matrices_decay_and_the_model_may_exempt_more():
    module = net()
    groups = parameter_groups(module.named_parameters(), Optim(weight_decay=0.3), lambda name, p: name == "table")
    assert names(groups, module) == {
        "layer0_decay": ["0.weight", "2.weight"],
        "layer0_no_decay": ["table", "0.bias", "1.weight", "1.bias"],
    }
    assert [g["weight_decay"] for g in sorted(groups, key=lambda g: g["name"])] == [0.3, 0.0]


def test_all_decays_everything():
    groups = parameter_groups(net().named_parameters(), Optim(decay="all", weight_decay=0.1), lambda name, p: True)
    assert len(groups) == 1
    assert groups[0]["weight_decay"] == 0.1


def test_frozen_parameters_are_left_out():
    module = net()
    module[0].requires_grad_(False)
    named = names(parameter_groups(module.named_parameters(), Optim()), module)
    assert not any(n.startswith("0.") for group in named.values() for n in group)


def test_layer_decay_changes_lr_itself():
    module = net()
    layer = {"0": 0, "1": 1, "2": 3, "table": 3}
    groups = parameter_groups(
        module.named_parameters(), Optim(lr=1.0, layer_decay=0.5), layer_of=lambda n: layer[n.partition(".")[0]],
        num_layers=3,
    )  # fmt: skip
    rates = {name: g["lr"] for g in groups for name in names([g], module)[g["name"]]}
    assert rates == {
        "0.weight": 0.125, "0.bias": 0.125, "1.weight": 0.25, "1.bias": 0.25, "2.weight": 1.0, "table": 1.0,
    }  # fmt: skip


def test_optim_survives_weights_only_loading(tmp_path):
    torch.save({"optim": Optim(lr=0.5)}, tmp_path / "x.pt")
    assert torch.load(tmp_path / "x.pt", weights_only=True)["optim"] == Optim(lr=0.5)


@pytest.mark.parametrize(("name", "value"), [("schedule", "linear"), ("decay", "matrix")])
def test_settings_that_do_not_exist_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} cannot be '{value}'"):
        inspect.unwrap(Optim.__init__)(Optim.__new__(Optim), **{name: value})  # beartype checks before it does


def test_only_floating_parameters_on_cpu_or_cuda_are_fused():
    assert can_fuse([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))])
    assert not can_fuse([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, device="meta"))])
    assert not can_fuse([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("lr", [-1, -1e-9, float("nan"), float("inf"), "1e-3", None, True]),
        ("betas", [(0.9,), (0.9, 0.99, 0.999), (1.0, 0.9), (0.9, 1.5), (-0.1, 0.9), 0.9, ("a", "b"), None]),
        ("eps", [-1e-8, float("nan"), "x"]),
        ("weight_decay", [-0.05, float("inf"), None]),
        ("warmup_steps", [-1, 1.5, None, "10"]),
        ("min_lr", [-1e-6, float("inf"), float("nan")]),
        ("total_steps", [0, -5, 1.5]),
        ("layer_decay", [0, -0.5, float("nan")]),
        ("schedule", ["cosin", ""]),
        ("decay", ["none", "matrix"]),
    ],
)
def test_every_field_refuses_what_cannot_work_and_names_itself(field, values):
    for value in values:
        with pytest.raises((ValueError, TypeError), match=field) as caught:
            Optim(**{field: value})
        assert "\n" not in str(caught.value) or "Type-check" in str(caught.value)  # the annotations of the tests


def test_every_field_is_checked():
    tried = test_every_field_refuses_what_cannot_work_and_names_itself.pytestmark[0].args[1]
    assert {field.name for field in dataclasses.fields(Optim)} == {name for name, _ in tried}


def test_the_ends_of_the_ranges_are_settings_too():
    Optim(lr=0, betas=(0.0, 0.0), eps=0.0, weight_decay=0, min_lr=0, warmup_steps=0, total_steps=1, layer_decay=1)
    Optim(lr=1e-3, min_lr=1e-3)
    Optim(lr=1e-3, min_lr=1.0, schedule="constant")  # not used
