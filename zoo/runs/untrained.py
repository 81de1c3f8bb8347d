"""Guards against networks that nobody trained, whose measurements, ids and pictures would mean nothing."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn


def find_untrained_parts(model: Any) -> list[str]:
    """Say in words which parts of a model are still random; nothing where it was loaded, or trained here.

    Args:
        model: a :class:`zoo.module.ZooModule`.
    """
    learns = any(p.requires_grad for p in model.parameters())
    if not learns or model.trained_here or any(p.grad is not None for p in model.parameters()):
        return []
    if not model.weights_loaded:
        return ["its weights are random"]
    return [
        f"{name.rstrip('.')} is random ({reason})"
        for name, reason in model.newly_initialised.items()
        if not name.startswith(model.training_only)
    ]


def refuse_untrained(model: Any, subcommand: str) -> None:
    """Refuse to measure random weights, or to write their ids.

    Args:
        model: built by a command without a checkpoint.
        subcommand: ``validate``, ``test`` or ``predict``.

    Raises:
        ValueError: naming the flags that give it weights, and the one that means it.
    """
    if subcommand == "predict" and model.encodes_by_tokenizer:
        return
    if parts := find_untrained_parts(model):
        weights = ", or weights with --model.init_args.weights=NAME_OR_PATH" if "weights" in model.hparams else ""
        raise ValueError(
            f"{subcommand} has no trained {type(model).__name__}: {parts[0]}; give the checkpoint of a run with "
            f"--ckpt_path=runs/NAME/last.ckpt{weights}; --untrained takes random weights on purpose"
        )


def refuse_lost_predictions(callbacks: Sequence[Callback]) -> None:
    """Refuse to compute predictions that nothing takes.

    Raises:
        ValueError: naming the callback to add.
    """
    hooks = ("on_predict_batch_end", "on_predict_epoch_end")  # which Lightning's BasePredictionWriter fills, too
    if all(getattr(type(callback), hook) is getattr(Callback, hook) for callback in callbacks for hook in hooks):
        raise ValueError(
            "predict would throw everything away, as no callback takes it: add --trainer.callbacks+=TokenDump "
            "--trainer.callbacks.out_dir=FOLDER, or a BasePredictionWriter of your own"
        )


def warn_if_untrained(model: Any, does: str) -> None:
    """Warn once where an untrained model is put to use, unless its name asked for random weights.

    Args:
        model: a :class:`zoo.module.ZooModule`.
        does: what it does, as a verb: ``writes``.
    """
    if model.random_on_purpose or not (parts := find_untrained_parts(model)):
        return
    model.random_on_purpose = True
    rank_zero_warn(
        f"this {type(model).__name__} is untrained, {parts[0]}, so what it {does} means nothing: take "
        "create_model(NAME, weights=...) or 'ckpt:PATH', or train it first",
        stacklevel=3,
    )


class UntrainedWarning(Callback):
    """Says once that a model with random weights measures or predicts; asked where a checkpoint has been restored."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            warn_if_untrained(pl_module, "measures")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        warn_if_untrained(pl_module, "measures")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not pl_module.encodes_by_tokenizer:
            warn_if_untrained(pl_module, "predicts")
