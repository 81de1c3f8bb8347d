"""The validations of a run that a callback takes part in, when it should not in all of them."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer


class EveryFewValidations:
    """Counts the validations of a run, beside ``Callback``; a run that goes on counts on.

    Its heirs set ``every_n_validations``, and ask at the start of a validation whether it :meth:`is_due`.
    """

    every_n_validations: int
    _validations = 0

    def is_due(self, trainer: Trainer) -> bool:
        """Return whether the validation that begins is one of every ``every_n_validations``, the first one included."""
        return not trainer.sanity_checking and self._validations % self.every_n_validations == 0

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validations += not trainer.sanity_checking  # one that a signal cuts short is done again

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]
