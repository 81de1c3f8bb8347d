"""ZooModule, the one shallow base class: plumbing between a paper's mathematics and Lightning."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.utilities.parsing import AttributeDict
from torch import Tensor, nn

from zoo.checkpoints.format import Format
from zoo.checkpoints.load import load_weights
from zoo.frozen import FrozenNetworks, Role, describe_frozen, hold_partly_frozen, refuse_unsaved, warn_of_other_networks
from zoo.init_args import Moved, constructor_arguments, migrate, to_plain_data, without_classes
from zoo.optim import Optim
from zoo.presets import find_weights, registered_classes
from zoo.runs.module import RunModule
from zoo.tokens import NotInvertible, Tokens, TokenSpec
from zoo.tokens.batch import Batch, batch_size_of, check_classes, token_images_of
from zoo.tokens.precision import check_precision, ids_in_float32
from zoo.version import __version__


class ZooModule(RunModule):
    """Base of every paper. Constructor arguments are plain data and frozen dataclasses of it, such as :class:`Optim`.

    A subclass builds its networks in ``__init__`` and ends it with ``self.load_weights(weights)``; it implements
    ``losses`` and, where it has tokens, ``encode``, ``decode`` and ``embed``.

    Args:
        optim: optimizer and schedule.
    """

    #: published layouts that :meth:`load_weights` recognises, see :mod:`zoo.checkpoints`
    formats: ClassVar[tuple[Format, ...]] = ()
    #: attributes that only training needs: they decide no token, and weights need not hold them
    training_only: ClassVar[tuple[str, ...]] = ()
    #: arguments that name what training starts from, and that a checkpoint must not ask for again
    start_only: ClassVar[tuple[str, ...]] = ("weights",)
    #: settings that decide what the weights compute and that no tensor shows: another value is warned of
    must_match: ClassVar[tuple[str, ...]] = ()
    #: flat arguments of older versions, and the settings groups that hold them now
    moved: ClassVar[tuple[Moved, ...]] = ()
    migrate = classmethod(migrate)
    #: whether ``encode`` is that of the frozen tokenizer, and needs none of the model's own weights
    encodes_by_tokenizer: ClassVar[bool] = False
    spec: TokenSpec | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "encode" in vars(cls):
            cls.encode = ids_in_float32(vars(cls)["encode"])  # type: ignore[method-assign]

    def __init__(self, optim: Optim = Optim()):
        super().__init__()
        self.optim_settings = optim
        self.frozen = FrozenNetworks()
        #: prefix of parameters that the loaded weights do not hold -> why
        self.not_in_file: dict[str, str] = {}
        #: prefix of parameters that the loaded weights left as they were, to be trained -> why
        self.newly_initialised: dict[str, str] = {}
        self.started_from_weights = self.weights_loaded = self.trained_here = self.random_on_purpose = False
        self.save_hyperparameters()
        for name, value in constructor_arguments(self).items():
            self.hparams.setdefault(name, value)
        for name in self.start_only:
            if self.hparams.get(name) is not None:
                self.hparams[name] = None

    # ------------------------------------------------------------------ tokens

    def encode(self, images: Tensor) -> Tokens:
        raise NotImplementedError(f"{type(self).__name__} has no tokens")

    def decode(self, tokens: Tokens) -> Tensor:
        raise NotInvertible(f"{type(self).__name__} does not decode its tokens")

    def embed(self, ids: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no token embeddings")

    # ------------------------------------------------------------------ training

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """All mathematics of the paper: ``loss`` to minimise, and every term to look at."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        check_precision(str(self.trainer.precision))
        if stage != "predict":
            check_classes(self, getattr(self.trainer, "datamodule", None))
        for network in self.frozen.values():  # FSDP moves registered modules alone
            network.to(self.trainer.strategy.root_device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.trained_here = True
        return self._log_losses("train", batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._log_losses("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._log_losses("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tokens:
        """Tokens of the tokenizer's own view where the data has one, so that a second stage can train on them."""
        return self.encode(token_images_of(batch, self))

    def _log_losses(self, stage: str, batch: Batch) -> Tensor:
        terms, size = self.losses(batch), batch_size_of(batch)
        logged = {f"{stage}/{name}": value.detach() for name, value in terms.items()}
        self.log_dict(logged, batch_size=size, sync_dist=stage != "train")
        if stage == "train":
            self.log("loss", terms["loss"].detach(), prog_bar=True, logger=False, batch_size=size)
        return terms["loss"]

    # ------------------------------------------------------------------ networks

    def add_frozen(self, name: str, module: nn.Module, role: Role | None = None) -> None:
        """Hold a network that is not trained: eval mode, no gradients, not in ``state_dict``, moves with the model.

        Args:
            name: of the network; with a role also of the argument that names it.
            module: the network.
            role: what the weights are trained on: its ``ids``, its ``vectors``, or neither.
        """
        self.frozen.add(name, module, role)

    def add_partly_frozen(self, name: str, module: nn.Module, role: Role | None = None) -> None:
        """Hold a network of which a part is trained: parameters that need no gradient are not in ``state_dict``."""
        hold_partly_frozen(self, name, module)
        if role is not None:
            self.frozen.roles[name] = role

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ZooModule":
        self.frozen.move(fn, recurse)
        return super()._apply(fn, recurse)

    def compile_networks(self, **options: Any) -> None:
        """Compile the call of every network in place, frozen ones too; parameter names stay as they are."""
        for child in [*self.children(), *self.frozen.values()]:
            if isinstance(child, ZooModule):
                child.compile_networks(**options)
            elif any(True for _ in child.parameters()):
                child.compile(**options)

    # ------------------------------------------------------------------ weights

    def load_weights(self, weights: str | Path | None) -> None:
        """Start from weights: a registry name, or a file or folder in any layout of ``formats``.

        Raises:
            ValueError: naming missing and unexpected keys; nothing is loaded in part unless the layout is known to
                be a part (``not_in_file`` then says which).
        """
        if weights is not None:
            load_weights(self, find_weights(str(weights)), registered_classes())
            self.started_from_weights = True

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state dict as torch does, and note that the weights are no longer random."""
        found = super().load_state_dict(*args, **kwargs)
        self.weights_loaded, self.newly_initialised = True, {}
        return found

    def take_open_settings(self, settings: Mapping[str, Any], source: str) -> tuple[str, ...]:
        """Take from weights what the constructor left open (None).

        Args:
            settings: constructor arguments that the weights' description says, or that their shapes show.
            source: of the weights, for messages.

        Returns:
            Notes about what was taken.
        """
        return ()

    def set_not_in_file(self, parts: dict[str, str]) -> None:
        """Note what the loaded weights do not hold, prefix -> why; a model that then cannot decode changes its spec."""
        self.not_in_file = dict(parts)

    def init_args(self) -> dict[str, Any]:
        """The constructor arguments as plain, JSON-able data."""
        names = inspect.signature(type(self).__init__).parameters
        return {name: to_plain_data(value) for name, value in self.hparams.items() if name in names}

    @property
    def hparams_initial(self) -> Any:
        """Settings that loggers write down: plain data, because they refuse frozen dataclasses."""
        return AttributeDict(to_plain_data(dict(super().hparams_initial)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        refuse_unsaved(self)
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        described = {"class": name, "init_args": self.init_args(), "version": __version__}
        checkpoint["zoo"] = described | describe_frozen(self)
        if (key := self.CHECKPOINT_HYPER_PARAMS_KEY) in checkpoint:  # files name no classes
            checkpoint[key] = without_classes(checkpoint[key])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        warn_of_other_networks(self, checkpoint.get("zoo"), "the checkpoint")
