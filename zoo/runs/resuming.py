"""Resuming exactly where a checkpoint was written: place in the epoch, noise, validation that is due, settings.

Lightning restores weights, moments and counters. What it leaves to chance is done here, so that a run that was stopped
and resumed is the uninterrupted one.
"""

import os
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import SequentialSampler

from zoo.distributed import get_rng_states, seed_generators, set_rng_states
from zoo.optim import Optim, apply_settings, names_by_group, regroup_state
from zoo.tokens.abilities import EntersEpochs, StartsAnew

#: where a checkpoint says it
KEY = "zoo_run"
TRAINING, VALIDATION = 0, 1  # uses of noise


def find_place(trainer: Trainer) -> tuple[int, int]:
    """Find the epoch, and how many of its batches the last optimizer step has used.

    Batches after it are left out, because the gradients that they have left are in no checkpoint. An epoch that ended
    early, by ``max_steps`` or a stop, is not over.
    """
    epoch, batches = trainer.fit_loop.epoch_progress.current, trainer.fit_loop.epoch_loop.batch_progress.current
    if epoch.started < epoch.ready or not epoch.ready:
        return epoch.processed, 0
    if epoch.processed == epoch.started and _is_over(trainer):
        return epoch.processed, 0
    return epoch.started - 1, batches.processed - _count_since_step(trainer)


def _is_over(trainer: Trainer) -> bool:
    """Tell whether all batches of the epoch were processed."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    last = progress.is_last_batch and progress.current.ready == progress.current.processed
    return last or progress.current.processed >= trainer.num_training_batches


def _count_since_step(trainer: Trainer) -> int:
    """Count the batches since the last optimizer step; the last batch of an epoch always ends with one."""
    if _is_over(trainer) or trainer.strategy.handles_gradient_accumulation:
        return 0
    return trainer.fit_loop.epoch_loop.batch_progress.current.processed % trainer.accumulate_grad_batches


class Resuming(Callback):
    """Every training step draws noise of its own, from the seed and its place; checkpoints say where to go on.

    Hence neither validation nor loading nor another callback changes what a step draws, and nothing has to be gathered
    from other ranks. :class:`zoo.module.ZooModule` adds it to every run.
    """

    def __init__(self) -> None:
        self.seed: int | None = None
        self._loaded: dict[str, Any] | None = None
        self._validated: tuple[int, int] | None = None
        self._buffers: dict[str, Tensor] = {}
        self._since_step: list[int] = []
        self._skipped: list[int] = []
        self._aside: Any = None
        self._restored = False

    # ------------------------------------------------------------------ noise

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.seed = self._loaded = self._validated = self._aside = None
            self._restored = False
            self._buffers, self._since_step, self._skipped = {}, [], []
            if isinstance(trainer.datamodule, StartsAnew):
                trainer.datamodule.start_anew()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.seed is None:
            self.seed = trainer.strategy.broadcast(torch.initial_seed())
        settings = getattr(pl_module, "group_settings", None)
        if self._restored and settings and len(trainer.lr_scheduler_configs) == len(trainer.optimizers) == 1:
            apply_settings(trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler, settings)
        self._restored = False
        if (said := self._loaded) is not None:
            self._loaded = None
            self._enter(trainer, pl_module, said)
        elif trainer.global_rank:  # all ranks start from the same seed
            seed_generators(self.seed, trainer.global_rank)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        epoch_loop = trainer.fit_loop.epoch_loop
        if pl_module.automatic_optimization:  # after a validation that was skipped Lightning counts one too many
            epoch_loop._batches_that_stepped = trainer.global_step
        if trainer.accumulate_grad_batches > 1 and batch_idx % trainer.accumulate_grad_batches == 0:
            self._buffers = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}
            self._since_step = []
        self._seed(trainer, batch_idx, TRAINING)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._skipped and batch_idx + 1 >= self._skipped[0]:
            self._skipped.pop(0)
            trainer.fit_loop.epoch_loop._skip_next_val = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._validated = None
            self._aside = get_rng_states()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._aside is not None:
            step = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            self._seed(trainer, step, VALIDATION, batch_idx, dataloader_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._aside is not None:
            self._validated = _current_batch(trainer)
            self._since_step.append(self._validated[1])
            set_rng_states(self._aside)  # not by a context: one that an error leaves open would end at any time
            self._aside = None

    def _seed(self, trainer: Trainer, *place: int) -> None:
        if self.seed is not None:
            seed_generators(self.seed, trainer.global_rank, trainer.current_epoch, *place)

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        epoch, batches = find_place(trainer)
        checkpoint[KEY] = {
            "seed": torch.initial_seed() if self.seed is None else self.seed,
            "epoch": epoch,
            "batches": batches,
            "since_step": _count_since_step(trainer),
            "global_step": trainer.global_step,
            "validation_due": self._validation_due(trainer, batches),
            "validated": [batch for batch in self._since_step if batch > batches] if _count_since_step(trainer) else [],
            "row": _pending_row(trainer),
            "metrics": _monitored_metrics(trainer),
            "noise": get_rng_states(),
            "trainer": _trainer_settings(trainer),
            "parameters": [names_by_group(pl_module, optimizer.param_groups) for optimizer in trainer.optimizers],
        }
        if _count_since_step(trainer):  # then these are of the last step as well
            state = checkpoint.get("current_model_state", checkpoint["state_dict"])
            state.update({name: buffer for name, buffer in self._buffers.items() if name in state})

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._restored = True
        _let_settings_decide(trainer, pl_module, checkpoint)
        if (said := checkpoint.get(KEY)) is None:
            return
        self._loaded, self.seed = said, said["seed"]
        _rewrite_progress(checkpoint["loops"]["fit_loop"], said)
        self._restore_noise(trainer, said)

    def _restore_noise(self, trainer: Trainer, said: dict[str, Any]) -> None:
        if trainer.global_rank:
            seed_generators(said["seed"], trainer.global_rank, said["epoch"], said["batches"])
        else:
            set_rng_states(said["noise"])

    def _validation_due(self, trainer: Trainer, batches: int) -> bool:
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        if trainer.sanity_checking or not batches == progress.processed == progress.ready:
            return False
        if self._validated == _current_batch(trainer):
            return False
        return bool(trainer.validating) or _should_validate(trainer)

    def _enter(self, trainer: Trainer, pl_module: LightningModule, said: dict[str, Any]) -> None:
        """Put Lightning's loops where the checkpoint was written, which by themselves skip or repeat what is due there.

        They are about to begin the epoch, and have taken the progress from the checkpoint.
        """
        fit_loop = trainer.fit_loop
        epoch_loop, step = fit_loop.epoch_loop, trainer.global_step
        if said["global_step"] != step:
            return  # a search that counts its trials from 0
        fit_loop._restarting = False
        epoch_loop._batches_that_stepped = step
        if (row := said["row"]) is not None and trainer.loggers:
            values = {name: value for name, value in row.items() if name != "step"}
            trainer._logger_connector.log_metrics(values, step=row["step"])
        for name, value in said["metrics"].items():  # what callbacks monitor
            trainer._logger_connector._callback_metrics[name] = torch.tensor(value)
        if not said["batches"]:
            fit_loop._restart_stage = "none"
            epoch_loop.restarting = False
            self._skipped = list(said["validated"])
            return
        progress = epoch_loop.batch_progress
        done = _count_skipped(trainer, said)
        for name in ("ready", "started", "processed", "completed"):
            setattr(progress.current, name, done)
        progress.is_last_batch = done >= trainer.num_training_batches
        fit_loop._restart_stage = "restarted_mid_epoch"
        epoch_loop.restarting = True
        epoch_loop._restart_stage = "restarted_on_last"
        self._skipped = list(said["validated"]) if done == said["batches"] else []
        if not said["validation_due"]:
            self._validated = _current_batch(trainer)
        if _should_validate(trainer):
            epoch_loop._batches_that_stepped = step - 1
            if said["validation_due"]:
                epoch_loop.val_loop._restart_stage = "restarted_mid_evaluation"
        elif progress.is_last_batch and fit_loop._data_fetcher is not None:
            fit_loop._data_fetcher.iterator = iter(())  # only the end of the epoch is left
        if isinstance(_find_sampler(trainer), SequentialSampler) and not progress.is_last_batch:  # it begins anew
            for _ in range(done):
                next(fit_loop._data_fetcher.iterator)
        if (bar := trainer.progress_bar_callback) is not None:
            bar.on_train_epoch_start(trainer, pl_module)  # where it learns how long an epoch is
        self._restore_noise(trainer, said)


def _current_batch(trainer: Trainer) -> tuple[int, int]:
    loop = trainer.fit_loop
    return loop.epoch_progress.current.ready, loop.epoch_loop.batch_progress.current.ready


def _should_validate(trainer: Trainer) -> bool:
    loop = trainer.fit_loop
    return loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def _count_skipped(trainer: Trainer, said: dict[str, Any]) -> int:
    """Count the batches of the epoch that are done; of another size they are as many as hold the same images."""
    sampler = _find_sampler(trainer)
    return sampler.skipped(said["epoch"]) if isinstance(sampler, EntersEpochs) else said["batches"]


def _find_sampler(trainer: Trainer) -> Any:
    loader = trainer.fit_loop._combined_loader
    return getattr(loader.flattened[0], "sampler", None) if loader is not None else None


def _is_in_hook(trainer: Trainer) -> bool:
    """Tell whether a checkpoint is written by a hook at the end of a step, before the step's metrics are."""
    progress = trainer.fit_loop.epoch_loop.batch_progress.current
    return bool(trainer.training) and progress.completed < progress.processed == progress.ready


def _monitored_metrics(trainer: Trainer) -> dict[str, float]:
    """Metrics that callbacks monitor."""
    connector = trainer._logger_connector
    values = connector._callback_metrics | (connector.metrics["callback"] if _is_in_hook(trainer) else {})
    return {name: float(value) for name, value in values.items()}


def _pending_row(trainer: Trainer) -> dict[str, float] | None:
    """Metrics of the step that are still to be written."""
    connector = trainer._logger_connector
    if not _is_in_hook(trainer) or trainer.fit_loop._should_accumulate() or not connector.should_update_logs:
        return None
    values = {name: float(value) for name, value in connector.metrics["log"].items()}
    if not values:
        return None
    return {"epoch": trainer.current_epoch} | values | {"step": trainer.fit_loop.epoch_loop._batches_that_stepped}


def _rewrite_progress(loops: dict[str, Any], said: dict[str, Any]) -> None:
    """Write the place into the progress of a checkpoint, where Lightning notes it differently in every hook."""
    epoch, batches = said["epoch"], said["batches"]
    for scope in ("total", "current"):
        begun = epoch + (batches > 0)
        loops["epoch_progress"][scope] |= {"ready": begun, "started": begun, "processed": epoch, "completed": epoch}
    progress = loops["epoch_loop.batch_progress"]
    total = progress["total"]["processed"] - said["since_step"]
    for scope, count in (("total", total), ("current", batches)):
        progress[scope] |= dict.fromkeys(("ready", "started", "processed", "completed"), count)
    progress["is_last_batch"] = False
    validation = loops["epoch_loop.val_loop.batch_progress"]
    for scope in ("total", "current"):
        validation[scope] |= dict.fromkeys(("ready", "started", "processed", "completed"), 0)
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = said["global_step"]


def _trainer_settings(trainer: Trainer) -> dict[str, Any]:
    return {
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "precision": str(trainer.precision),
        "processes": trainer.world_size,
    }


def _let_settings_decide(trainer: Trainer, model: Any, checkpoint: dict[str, Any]) -> None:
    """Take from a checkpoint what a run has reached, and from recipe and flags what it is told; say what changes."""
    for callback in trainer.callbacks:
        if isinstance(callback, EarlyStopping) and (state := checkpoint.get("callbacks", {}).get(callback.state_key)):
            state["patience"] = callback.patience
    raw = checkpoint.get("current_model_state")
    if raw is not None and not any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):
        model.load_state_dict(raw)  # what was trained, not its average
    run, args = checkpoint.get(KEY, {}), model.migrate(checkpoint.get("zoo", {}).get("init_args", {}))
    _regroup_moments(model, checkpoint, args.get("optim"), run.get("parameters"))
    data = getattr(trainer.datamodule, "hparams", {})
    pairs = [
        (args, model.init_args()),
        (_to_plain_values(checkpoint.get("datamodule_hyper_parameters", {})), _to_plain_values(data)),
        (run.get("trainer", {}), _trainer_settings(trainer)),
    ]
    changed = [text for was, now in pairs for text in _list_differences(was, now)]
    asked = os.environ.get("PL_GLOBAL_SEED")
    if asked is not None and run and int(asked) != run["seed"]:
        kept = f"The run goes on with the seed that it began with, {run['seed']}"
        rank_zero_info(f"{kept}: seed_everything {asked} is left out")
    if changed:
        rank_zero_info(f"Going on with other settings than the checkpoint's: {', '.join(changed)}")


def _regroup_moments(model: Any, checkpoint: dict[str, Any], optim: dict[str, Any] | None, names: Any) -> None:
    """Give each parameter its moments where other settings divide the parameters into other groups."""
    states = checkpoint.get("optimizer_states", [])
    if len(states) != 1 or not all(isinstance(key, int) for key in states[0]["state"]):
        return
    if names is None:  # of an older version, which noted the settings alone
        names = (
            [names_by_group(model, model.parameter_groups(Optim(**optim | {"betas": tuple(optim["betas"])})))]
            if optim
            else [[]]
        )
    groups = names_by_group(model, model.parameter_groups(model.optim_settings))
    sizes = [len(group["params"]) for group in states[0]["param_groups"]]
    if names[0] != groups and [len(group) for group in names[0]] == sizes:
        states[0] = regroup_state(states[0], names[0], groups)


def _to_plain_values(arguments: Any) -> dict[str, Any]:
    return {k: v if isinstance(v, bool | int | float | str | None) else str(v) for k, v in dict(arguments).items()}


def _list_differences(was: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in (name for name in was if name in now and not name.startswith("_") and was[name] != now[name]):
        if isinstance(was[name], dict) and isinstance(now[name], dict):
            found += _list_differences(was[name], now[name], f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name} {now[name]} (was {was[name]})")
    return found
