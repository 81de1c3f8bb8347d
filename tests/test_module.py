"""ZooModule: hyper-parameters as plain data, frozen towers, optimizers, checkpoints."""

import json

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from toys import Toy, ToyData

from zoo.init_args import to_plain_data
from zoo.module import ZooModule
from zoo.optim import Optim, can_fuse
from zoo.tokens import NotInvertible, Segment, Tokens, TokenSpec

GRID = TokenSpec((Segment("grid", (2, 2), 0, 4),), dim=1)


class Towered(Toy):
    """Toy with a frozen tower."""

    def __init__(self, image_size: int = 8, weights: str | None = None, optim: Optim = Optim()):
        super().__init__(image_size, optim=optim)
        self.add_frozen("teacher", nn.Linear(2, 2))


def fit(model, **options):
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1, **({"max_steps": 4, "limit_val_batches": 0} | options),
    )  # fmt: skip
    trainer.fit(model, ToyData(model.image_size))
    return trainer


def test_plain_data():
    value = to_plain_data({"optim": Optim(lr=0.5), "sizes": (1, (2, 3)), "name": None})
    assert value["optim"]["lr"] == 0.5
    assert value["sizes"] == [1, [2, 3]]
    assert json.loads(json.dumps(value)) == value


@pytest.mark.parametrize("value", [nn.Linear(1, 1), len, Toy, {"x": torch.zeros(1)}])
def test_objects_are_no_constructor_arguments(value):
    with pytest.raises(TypeError, match="plain data"):
        to_plain_data(value)


def test_init_args_hold_every_argument():
    model = Toy(image_size=4, optim=Optim(lr=0.25))
    assert model.init_args() == {
        "image_size": 4, "width": 4, "tokenizer": "none", "optim": to_plain_data(Optim(lr=0.25)),
    }  # fmt: skip


def test_frozen_tower_is_outside_the_state_but_moves_with_the_model():
    model = Towered()
    teacher = model.frozen["teacher"]
    assert set(model.state_dict()) == {f"net.{i}.{n}" for i in (0, 1) for n in ("weight", "bias")}
    assert not any(p is q for p in model.parameters() for q in teacher.parameters())
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    model.train().double()
    assert teacher.weight.dtype == torch.float64
    assert not teacher.training


def test_weights_are_not_asked_for_again_by_a_checkpoint(monkeypatch):
    monkeypatch.setattr(ZooModule, "load_weights", lambda self, weights: None)
    assert Towered(weights="somewhere").hparams["weights"] is None


def test_what_a_model_lacks_is_said():
    with pytest.raises(NotImplementedError, match="Toy has no tokens"):
        Toy().encode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(NotInvertible, match="Toy"):
        Toy().decode(Tokens(None, None, GRID))
    with pytest.raises(ValueError, match="layer_decay"):
        Toy().layer_of("net.0.weight")


def test_learning_rate_is_stepped_per_optimizer_step_over_the_whole_run():
    model = Toy(optim=Optim(lr=1.0, warmup_steps=1))
    trainer = fit(model, max_steps=4)
    scheduler = trainer.lr_scheduler_configs[0]
    assert scheduler.interval == "step"
    assert scheduler.scheduler.last_epoch == 4
    assert scheduler.scheduler.get_last_lr() == pytest.approx([0.0, 0.0], abs=1e-9)


def test_accumulation_counts_optimizer_steps():
    trainer = fit(Toy(optim=Optim(warmup_steps=1)), max_steps=2, accumulate_grad_batches=2)
    assert trainer.global_step == 2
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 2


def test_a_run_without_an_end_is_refused():
    with pytest.raises(ValueError, match="the run has no end"):
        fit(Toy(), max_steps=-1, max_epochs=-1)
    assert fit(Toy(optim=Optim(total_steps=3)), max_steps=-1, max_epochs=1).global_step == 2


def test_log_names():
    trainer = fit(Toy(), max_epochs=1, limit_val_batches=1)
    assert {"train/loss", "val/loss"} <= set(trainer.callback_metrics)


def test_checkpoint_says_what_it_is(tmp_path):
    model = Toy(image_size=4)
    trainer = fit(model)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    block = torch.load(tmp_path / "x.ckpt", weights_only=True)["zoo"]
    assert block["class"] == "toys.Toy"
    assert block["init_args"] == model.init_args()
    again = Toy.load_from_checkpoint(tmp_path / "x.ckpt")
    assert again.init_args() == model.init_args()
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


def test_compiling_in_place_keeps_the_names():
    model = Towered()
    names = list(model.state_dict())
    model.compile_networks(backend="eager")
    assert list(model.state_dict()) == names
    assert model.net._compiled_call_impl is not None
    batch = {"image": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}
    torch.testing.assert_close(model.losses(batch)["loss"], model.net._call_impl(torch.zeros(2, 192)).square().mean())


class FirstDraw(Toy):
    """Records the first random number of each run."""

    def losses(self, batch):
        self.first = getattr(self, "first", None) or torch.rand(()).item()
        return super().losses(batch)


def test_a_resumed_run_has_noise_of_its_own(tmp_path):
    drawn = []
    for ckpt_path in (None, None, tmp_path / "half.ckpt"):
        pl.seed_everything(3, verbose=False)
        model = FirstDraw()
        trainer = pl.Trainer(
            max_steps=4 if ckpt_path else 2, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(model, ToyData(model.image_size), ckpt_path=ckpt_path)
        if not ckpt_path:
            trainer.save_checkpoint(tmp_path / "half.ckpt")
        drawn.append(model.first)
    assert drawn[0] == drawn[1] != drawn[2]


def test_half_precision_weights_are_refused():
    with pytest.raises(ValueError, match="use bf16-mixed"):
        fit(Toy(), precision="bf16-true")


@pytest.mark.parametrize(
    ("options", "fused"),
    [({}, True), ({"gradient_clip_val": 1.0}, True), ({"precision": "bf16-mixed"}, True),
     ({"precision": "bf16-mixed", "gradient_clip_val": 1.0}, None)],
)  # fmt: skip
def test_the_optimizer_is_fused_unless_lightning_refuses_it(options, fused):
    trainer = fit(Toy(), **options)
    assert trainer.global_step == 4
    assert [group["fused"] for group in trainer.optimizers[0].param_groups] == [fused] * 2


def test_a_fused_optimizer_takes_the_steps_of_the_other(monkeypatch):
    results = []
    for fused in (True, False):
        monkeypatch.setattr("zoo.runs.module.can_fuse", lambda parameters, fused=fused: fused and can_fuse(parameters))
        pl.seed_everything(0, verbose=False)
        trainer = fit(model := Toy(optim=Optim(lr=0.05)))
        assert trainer.optimizers[0].param_groups[0]["fused"] is (fused or None)
        results.append(dict(model.state_dict()))
    torch.testing.assert_close(*results)
