"""A run that was stopped and resumed is the uninterrupted one: weights, moments, averages, rows of the log."""

import copy
import dataclasses
import os
import signal
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from command_line import fit
from lightning.pytorch.callbacks import EarlyStopping, TQDMProgressBar
from lightning.pytorch.tuner import Tuner
from resumed_runs import CONSTANT, Noisy, NoisyData, Plain, Rows, assert_goes_on, content, equal, run

from zoo.callbacks.interrupt import StopOnSignal
from zoo.optim import Optim, lr_factor, names_by_group

SETTINGS = {
    "epochs": {},
    "accumulated": {"accumulate_grad_batches": 2},
    "validated_within": {"val_check_interval": 2},
    "validated_within_accumulated": {"val_check_interval": 3, "accumulate_grad_batches": 2},
    "every_second_epoch": {"check_val_every_n_epoch": 2},
    "over_epochs": {"val_check_interval": 4, "check_val_every_n_epoch": None},
    "steps": {"max_epochs": -1, "max_steps": 11},
    "limited": {"limit_train_batches": 3, "log_every_n_steps": 2},
    "never_validated": {"limit_val_batches": 0},
    "the_same_batches": {"overfit_batches": 4, "limit_val_batches": 0},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You requested to overfit")
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_resumed_run_is_the_uninterrupted_one_from_wherever_it_was_saved(setting, tmp_path):
    options = SETTINGS[setting]
    whole = run(NoisyData(), folder=tmp_path, **options)
    assert len(whole[2]) > 8
    every = 1 if setting == "validated_within_accumulated" else 3
    assert_goes_on(whole, whole[2], tmp_path, NoisyData, every, **options)


@pytest.mark.parametrize("parts", [(1, 2, 3, 4, 5, 6, 7, 8, 9, 10), (3, 5, 8, 10)])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_parts_that_max_steps_ends_make_the_whole(parts, accumulated, tmp_path):
    options = {"max_epochs": -1, "accumulate_grad_batches": accumulated, "val_check_interval": 2}
    trainer, model, _ = run(NoisyData(), max_steps=10, **options)
    end, seen, rows, path = content(trainer, tmp_path / "end.ckpt"), [], [], None
    for steps in parts:
        again, other, saved = run(NoisyData(), path, tmp_path, seed=steps if path else 0, max_steps=steps, **options)
        path = saved[-1][0]  # at the end of the epoch, which is not its end
        seen, rows = seen + other.seen, rows + again.logger.rows
    assert seen == model.seen
    assert sorted(seen[:20]) == sorted(set(seen[:20]))
    equal(rows, trainer.logger.rows)
    equal(end, content(again, tmp_path / "again.ckpt"))


def test_what_trains_on_is_the_rest_of_the_images(tmp_path):
    seen, path = [], None
    for steps in (4, 8, 12, 16, 20, 21):
        options = {"max_epochs": -1, "max_steps": steps, "limit_val_batches": 0, "model": Plain()}
        _, model, saved = run(NoisyData(21, 1), path, tmp_path, seed=steps, **options)
        seen, path = seen + model.seen, saved[-1][0]
    assert sorted(seen) == list(range(21))
    assert seen != sorted(seen)


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4), (4, 8)])
def test_another_batch_size_goes_on_after_the_images_that_were_seen(before, after, tmp_path):
    options = {"max_epochs": -1, "limit_val_batches": 0}
    _, first, saved = run(NoisyData(22, before), folder=tmp_path, max_steps=12 // before, **options)
    trainer, second, _ = run(NoisyData(22, after), saved[-1][0], max_steps=12 // before + 8 // after, **options)
    assert len(first.seen) == 12
    assert len(second.seen) == 8
    assert not set(first.seen) & set(second.seen)
    assert trainer.current_epoch == 1


def test_workers_change_nothing(tmp_path):
    whole = run(NoisyData(), folder=tmp_path, max_epochs=2)
    persistent = run(NoisyData(num_workers=2), max_epochs=2)
    equal(dict(whole[1].state_dict()), dict(persistent[1].state_dict()))
    assert_goes_on(whole, whole[2][3:9:5], tmp_path, lambda: NoisyData(num_workers=2), max_epochs=2)


def test_a_changed_seed_of_the_data_waits_for_the_next_epoch(tmp_path):
    options = {"limit_val_batches": 0}
    trainer, model, saved = run(NoisyData(seed=1), folder=tmp_path, max_epochs=2, **options)
    _, other, _ = run(NoisyData(seed=2), saved[2][0], max_epochs=2, **options)
    assert other.seen[:8] == model.seen[12:20]
    assert other.seen[8:] != model.seen[20:]


def test_validation_in_between_changes_no_training(tmp_path):
    states = [run(NoisyData(), max_epochs=2, **options)[1].state_dict() for options in
              ({"val_check_interval": 1}, {"limit_val_batches": 0}, {"num_sanity_val_steps": 0})]  # fmt: skip
    equal(dict(states[0]), dict(states[1]))
    equal(dict(states[0]), dict(states[2]))


def test_the_bar_of_a_resumed_epoch_knows_its_length(tmp_path):
    _, _, saved = run(NoisyData(), folder=tmp_path, max_epochs=1)
    bars = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            bar = trainer.progress_bar_callback.train_progress_bar
            bars.append((bar.n, bar.total))

    run(NoisyData(), saved[2][0], max_epochs=1, enable_progress_bar=True, callbacks=[TQDMProgressBar(), Watch()])
    assert bars == [(4, 5), (5, 5)]


OTHER = Optim(
    lr=3e-3, betas=(0.5, 0.6), eps=1e-5, weight_decay=0.2, decay="all", warmup_steps=1, schedule="cosine", min_lr=1e-5,
    total_steps=40, layer_decay=0.5,
)  # fmt: skip


class Layered(Noisy):
    """Has two layers of its own learning rate."""

    def layer_of(self, name):
        return 0 if name.startswith("net.0") else 1

    num_layers = 1


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Optim)] + ["all of them"])
def test_settings_of_the_optimizer_are_those_of_recipe_and_flags_and_moments_those_of_the_checkpoint(field, tmp_path):
    every = dataclasses.asdict(OTHER)
    changed = dataclasses.replace(CONSTANT, **(every if field == "all of them" else {field: every[field]}))
    options = {"max_epochs": -1, "limit_val_batches": 0}
    _, model, saved = run(NoisyData(), folder=tmp_path, model=Layered(), max_steps=4, **options)
    moments = by_name(model, torch.load(saved[-1][0], weights_only=True)["optimizer_states"][0])

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step > 4:
                return
            fresh = module.parameter_groups(changed)
            factor = lr_factor(changed, changed.total_steps or 6)(4)
            for group, said in zip(trainer.optimizers[0].param_groups, fresh, strict=True):
                assert group["lr"] == pytest.approx(said["lr"] * factor, rel=1e-12)
                assert group["weight_decay"] == said["weight_decay"]
                assert group["name"] == said["name"]
                assert (tuple(group["betas"]), group["eps"]) == (changed.betas, changed.eps)
            equal(moments, by_name(module, trainer.optimizers[0].state_dict()))

    trainer, _, _ = run(
        NoisyData(), saved[-1][0], model=Layered(optim=changed), max_steps=6, callbacks=[Look()], seed=9, **options
    )
    factor = lr_factor(changed, changed.total_steps or 6)(6)
    lrs = [group["lr"] * factor for group in trainer.lightning_module.parameter_groups(changed)]
    assert trainer.lr_scheduler_configs[0].scheduler.get_last_lr() == pytest.approx(lrs, rel=1e-12)


def by_name(module, state):
    """Moments by the name of their parameter, whatever the groups."""
    groups = module.parameter_groups(module.optim_settings)
    names = [name for group in names_by_group(module, groups) for name in group]
    return {name: state["state"][i] for i, name in enumerate(names)}


def test_checkpoints_without_names_keep_moments_with_their_parameters(tmp_path):
    options = {"max_epochs": -1, "limit_val_batches": 0}
    _, model, saved = run(NoisyData(), folder=tmp_path, model=Layered(), max_steps=2, **options)
    content = torch.load(saved[-1][0], weights_only=True)
    del content["zoo_run"]
    torch.save(content, tmp_path / "older.ckpt")
    moments = by_name(model, content["optimizer_states"][0])
    seen = {}

    class Look(pl.Callback):
        def on_train_start(self, trainer, module):
            seen.update(copy.deepcopy(by_name(module, trainer.optimizers[0].state_dict())))

    other = Layered(optim=dataclasses.replace(CONSTANT, decay="all", layer_decay=0.5))
    run(NoisyData(), tmp_path / "older.ckpt", model=other, max_steps=3, callbacks=[Look()], **options)
    equal(moments, seen)


def test_what_changes_against_the_checkpoint_is_said_in_one_line(tmp_path, caplog):
    options = {"max_epochs": -1, "limit_val_batches": 0}
    _, _, saved = run(NoisyData(), folder=tmp_path, max_steps=2, **options)
    run(NoisyData(), saved[-1][0], max_steps=3, **options)
    assert "other settings" not in caplog.text
    assert "seed_everything" not in caplog.text
    run(NoisyData(), saved[-1][0], max_steps=3, seed=7, **options)
    assert "the seed that it began with, 0: seed_everything 7 is left out" in caplog.text
    changed = Noisy(optim=dataclasses.replace(CONSTANT, lr=1e-5))
    run(NoisyData(batch_size=2), saved[-1][0], model=changed, max_steps=3, gradient_clip_val=1.0, **options)
    lines = [record.message for record in caplog.records if "other settings" in record.message]
    assert lines == [
        "Going on with other settings than the checkpoint's: optim.lr 1e-05 (was 0.01), batch_size 2 (was 4), "
        "gradient_clip_val 1.0 (was None)"
    ]


def test_patience_is_that_of_the_recipe(tmp_path):
    def stopping(patience):
        return [EarlyStopping("val/loss", patience=patience)]

    _, _, saved = run(NoisyData(), folder=tmp_path, max_epochs=1, callbacks=stopping(3))
    for path in (saved[0][0], saved[-2][0]):  # after a validation: what it measured is there for who looks at it
        trainer, _, _ = run(NoisyData(), path, max_epochs=2, callbacks=stopping(7))
        assert trainer.early_stopping_callback.patience == 7


def test_a_run_that_leaves_the_averages_out_goes_on_with_the_trained_weights(tmp_path):
    _, _, saved = run(NoisyData(), folder=tmp_path, max_epochs=1)
    raw = torch.load(saved[2][0], weights_only=True)["current_model_state"]
    seen = {}

    class Look(pl.Callback):
        def on_train_start(self, trainer, module):
            seen.update({name: value.clone() for name, value in module.state_dict().items()})

    with pytest.warns(UserWarning, match="EMA"):
        run(NoisyData(), saved[2][0], max_epochs=1, averaged=False, callbacks=[Look()])
    equal(dict(raw), seen)


# ---------------------------------------------------------------- searches


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["power", "binsearch"])
@pytest.mark.parametrize("count", [22, 64])
def test_the_search_for_a_batch_size_ends_at_the_number_of_images_and_leaves_no_file(mode, count, tmp_path):
    trainer = pl.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    model, data = Noisy(), NoisyData(count)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = Tuner(trainer).scale_batch_size(model, datamodule=data, mode=mode, margin=0)
    assert found == data.batch_size == data.hparams["batch_size"] == count
    assert list(tmp_path.iterdir()) == []
    equal(before, dict(model.state_dict()))
    trainer.fit(model, data)
    assert trainer.global_step == 1
    assert sorted(model.seen[-count:]) == list(range(count))


def test_a_search_that_begins_above_the_number_of_images_ends_and_leaves_no_file(tmp_path):
    trainer = pl.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    model, data = Noisy(), NoisyData()
    Tuner(trainer).scale_batch_size(model, datamodule=data, init_val=64)
    assert data.batch_size == 22
    assert list(tmp_path.iterdir()) == []


def test_the_search_for_a_learning_rate_sets_that_of_the_optimizer(tmp_path):
    trainer = pl.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    model = Noisy()
    found = Tuner(trainer).lr_find(model, datamodule=NoisyData(88), num_training=30, early_stop_threshold=None)
    suggested = found.suggestion()
    assert model.lr == model.optim_settings.lr == model.init_args()["optim"]["lr"] == suggested != CONSTANT.lr
    assert list(tmp_path.iterdir()) == []
    trainer.fit(model, NoisyData())
    assert trainer.optimizers[0].param_groups[0]["lr"] == suggested
    assert trainer.global_step == 10


# ---------------------------------------------------------------- from the command line


@pytest.mark.slow
@pytest.mark.parametrize("logs", [1, 2])
def test_the_parts_of_a_run_write_the_metrics_of_the_whole_into_one_file(logs, run_cli, recipe):
    shared = (
        "--data.count=22", "--model.optim.schedule=constant", f"--trainer.log_every_n_steps={logs}",
        "--trainer.val_check_interval=2",
    )  # fmt: skip
    fit(run_cli, *shared, "--trainer.max_steps=12", "--trainer.default_root_dir=whole")
    path = Path("parts/last.ckpt")
    for steps in (3, 5, 8, 12):
        resumed = [f"--ckpt_path={path}"] if path.exists() else []
        fit(run_cli, *shared, *resumed, f"--trainer.max_steps={steps}", "--trainer.default_root_dir=parts")
    assert Path("parts/metrics.csv").read_text() == Path("whole/metrics.csv").read_text()
    assert len(list(Path("parts").glob("metrics*.csv"))) == 1
    ends = [torch.load(f"{run}/last.ckpt", weights_only=True) for run in ("whole", "parts")]
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "ToyData"):
        equal(ends[0][key], ends[1][key], key)


def test_rows_after_the_checkpoint_are_written_again_and_not_twice(run_cli, recipe):
    options = ("--data.count=22", "--model.optim.schedule=constant", "--trainer.max_steps=12")
    fit(run_cli, *options)
    metrics = Path("runs/toy/metrics.csv").read_text()
    folder = Path("runs/toy")
    early = torch.load(folder / "last.ckpt", weights_only=True)
    assert early["global_step"] == 12
    fit(run_cli, *options, "--trainer.max_steps=7", "--trainer.default_root_dir=killed")
    (folder / "last.ckpt").write_bytes(Path("killed/last.ckpt").read_bytes())  # as if the run had been killed later
    fit(run_cli, *options, "--ckpt_path=runs/toy/last.ckpt")
    assert (folder / "metrics.csv").read_text() == metrics
    equal(early["state_dict"], torch.load(folder / "last.ckpt", weights_only=True)["state_dict"])


@pytest.mark.parametrize("when", ["step 2", "step 4", "validation"])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_run_that_was_told_to_stop_goes_on_as_if_it_had_not(when, accumulated, tmp_path):
    class Tell(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if when == f"step {batch_idx}" and trainer.current_epoch == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
            if when == "validation" and trainer.current_epoch == 1 and batch_idx == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    options = {"max_epochs": 2, "val_check_interval": 4, "accumulate_grad_batches": accumulated}
    trainer, model, _ = run(NoisyData(), **options)
    end, rows = content(trainer, tmp_path / "end.ckpt"), Rows()
    with pytest.raises(SystemExit) as stopped:
        run(NoisyData(), callbacks=[Tell(), StopOnSignal()], default_root_dir=tmp_path, logger=rows, **options)
    assert stopped.value.code == 128 + signal.SIGTERM
    again, other, _ = run(NoisyData(), tmp_path / "last.ckpt", seed=99, **options)
    assert other.seen == model.seen[len(model.seen) - len(other.seen) :]
    assert len(other.seen) < 20
    equal(rows.rows + again.logger.rows, trainer.logger.rows)
    equal(end, content(again, tmp_path / "again.ckpt"))


def test_tensorboard_hides_what_was_written_after_the_checkpoint(run_cli, recipe):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = ("--data.count=22", "--trainer.max_steps=6", "--model.optim.schedule=constant")
    fit(run_cli, *options, "--trainer.max_steps=3", "--trainer.default_root_dir=early")
    fit(run_cli, *options)
    Path("runs/toy/last.ckpt").write_bytes(Path("early/last.ckpt").read_bytes())
    fit(run_cli, *options, "--ckpt_path=runs/toy/last.ckpt")
    steps = [event.step for event in EventAccumulator("runs/toy").Reload().Scalars("train/loss")]
    assert steps == list(range(6))
