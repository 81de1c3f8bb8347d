"""ZooModule, the one shallow base class: plumbing between a paper's mathematics and Lightning."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from lightning.pytorch.utilities.parsing import AttributeDict
from torch import Tensor, nn

from zoo.optim import Optim, can_fuse, lr_factor, parameter_groups, settings_of
from zoo.tokens import NotInvertible, Tokens, TokenSpec, ids_in_float32

Batch = dict[str, Any]


class ZooModule(pl.LightningModule):
    """Base of every paper. Constructor arguments are plain data and :class:`Optim`; nothing else.

    A subclass builds its networks in ``__init__`` and ends it with ``self.load_weights(weights)``; it implements
    ``losses`` and, where it has tokens, ``encode``, ``decode`` and ``embed``.

    Args:
        optim: optimizer and schedule.
    """

    #: published layouts that :meth:`load_weights` recognises, see ``zoo.checkpoints``
    formats: ClassVar[tuple[Any, ...]] = ()
    #: attributes that only training needs: they decide no token, and weights need not hold them
    training_only: ClassVar[tuple[str, ...]] = ()
    #: whether ``encode`` is that of the frozen tokenizer, and needs none of the model's own weights
    encodes_by_tokenizer: ClassVar[bool] = False
    #: settings that decide what the weights compute and that no tensor shows: another value is warned of
    in_no_tensor: ClassVar[tuple[str, ...]] = ()
    spec: TokenSpec | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "encode" in vars(cls):
            cls.encode = ids_in_float32(vars(cls)["encode"])  # type: ignore[method-assign]

    def __init__(self, optim: Optim = Optim()):
        super().__init__()
        self.optim_settings = optim
        self.frozen: dict[str, nn.Module] = {}
        #: prefix of parameters that the loaded weights do not hold -> why
        self.absent: dict[str, str] = {}
        #: prefix of parameters that the loaded weights left as they were, to be trained -> why
        self.fresh: dict[str, str] = {}
        self.started_from_weights = self.weights_loaded = self.trained_here = self.random_on_purpose = False
        self._fingerprint: tuple[tuple[int, ...], str] | None = None
        self.save_hyperparameters()
        for name, value in constructor_arguments(self).items():
            self.hparams.setdefault(name, value)
        for name in ("weights", "text_init"):
            if self.hparams.get(name) is not None:
                self.hparams[name] = None  # a checkpoint holds its own weights and must not ask for these again

    # ------------------------------------------------------------------ tokens

    def encode(self, images: Tensor) -> Tokens:
        raise NotImplementedError(f"{type(self).__name__} has no tokens")

    def decode(self, tokens: Tokens) -> Tensor:
        raise NotInvertible(f"{type(self).__name__} does not decode its tokens")

    def embed(self, ids: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no token embeddings")

    # ------------------------------------------------------------------ training

    @property
    def trainer(self) -> pl.Trainer:
        """The trainer, which from the moment it meets this module reads checkpoints safely."""
        return super().trainer

    @trainer.setter
    def trainer(self, trainer: pl.Trainer | None) -> None:
        from zoo.checkpoints.io import read_safely

        pl.LightningModule.trainer.fset(self, trainer)
        if isinstance(trainer, pl.Trainer):
            read_safely(trainer)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """All mathematics of the paper: ``loss`` to minimise, and every term to look at."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        if str(self.trainer.precision).endswith("-true") and self.trainer.precision != "32-true":
            raise ValueError(
                f"--trainer.precision={self.trainer.precision} would keep weights in another precision than float32, "
                "where ids change: use bf16-mixed, or 32"
            )
        if stage != "predict":
            from zoo.second_stage import check_classes

            check_classes(self, getattr(self.trainer, "datamodule", None))
        for tower in self.frozen.values():  # FSDP moves registered modules alone
            tower.to(self.trainer.strategy.root_device)

    def configure_callbacks(self) -> list[pl.Callback]:
        """What every run has: noise that depends on the place in the run alone, and checkpoints that say the place."""
        from zoo.resuming import Resuming

        there = self._trainer is not None and any(isinstance(c, Resuming) for c in self._trainer.callbacks)
        return [] if there else [Resuming()]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.trained_here = True
        return self._log_losses("train", batch)

    def on_validation_start(self) -> None:
        if self.trainer.state.fn != "fit":
            self._say_untrained("measures")

    def on_test_start(self) -> None:
        self._say_untrained("measures")

    def on_predict_start(self) -> None:
        if not self.encodes_by_tokenizer:
            self._say_untrained("predicts")

    def _say_untrained(self, does: str) -> None:
        from zoo.untrained import say_untrained  # here, where a checkpoint has been restored

        say_untrained(self, does)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._log_losses("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._log_losses("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tokens:
        """Tokens of the tokenizer's own view where the data has one, so that a second stage can train on them."""
        return self.encode(batch["token_image"] if "token_image" in batch else batch["image"])

    def _log_losses(self, stage: str, batch: Batch) -> Tensor:
        terms = self.losses(batch)
        size = len(batch["image"] if "image" in batch else batch["ids"])  # token shards may come without images
        self.log_dict(
            {f"{stage}/{name}": value.detach() for name, value in terms.items()},
            batch_size=size,
            sync_dist=stage != "train",
        )
        if stage == "train":
            self.log("loss", terms["loss"].detach(), prog_bar=True, logger=False, batch_size=size)
        return terms["loss"]

    def no_decay(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether a matrix-shaped parameter is exempt from weight decay."""
        return False

    def layer_of(self, name: str) -> int:
        """Layer index of a parameter for layer-wise learning rates, 0 at the input."""
        raise ValueError(f"{type(self).__name__} has no layers for optim.layer_decay; set it to 1")

    def lr_scale(self, name: str) -> float:
        """Factor of the learning rate of a parameter, for parts that learn slower or faster than the others."""
        return 1.0

    @property
    def num_layers(self) -> int:
        """Index of the topmost layer group of :meth:`layer_of`."""
        return 0

    def configure_optimizers(self) -> Any:
        optim, groups = self.optim_settings, self.parameter_groups(self.optim_settings)
        # In mixed precision Lightning refuses to clip the gradients of a fused optimizer, even without a scaler.
        clipped_mixed = bool(self.trainer.gradient_clip_val) and str(self.trainer.precision).endswith("-mixed")
        fused = not clipped_mixed and can_fuse(p for group in groups for p in group["params"])
        optimizer = torch.optim.AdamW(
            groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=fused or None
        )
        self.group_settings = [settings_of(group) for group in optimizer.param_groups]
        total = optim.total_steps or self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError("the run has no end: set trainer.max_steps, trainer.max_epochs or optim.total_steps")
        if optim.schedule == "cosine" and 0 < optim.lr < optim.min_lr:
            rank_zero_info(
                f"optim.lr {optim.lr:g} is below optim.min_lr {optim.min_lr:g}: the rate stays at {optim.lr:g}"
            )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(optim, int(total)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}

    def parameter_groups(self, optim: Optim) -> list[dict[str, Any]]:
        """The trained parameters in groups, as these settings divide them."""
        return parameter_groups(
            self.named_parameters(), optim, self.no_decay, self.layer_of, self.num_layers, self.lr_scale
        )

    @property
    def lr(self) -> float:
        """Peak learning rate, where Lightning's search for one reads and writes it."""
        return self.optim_settings.lr

    @lr.setter
    def lr(self, value: float) -> None:
        self.optim_settings = self.hparams["optim"] = dataclasses.replace(self.optim_settings, lr=float(value))

    # ------------------------------------------------------------------ weights

    @_restricted_classmethod  # type: ignore[untyped-decorator]
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **overrides: Any,
    ) -> Any:
        """Lightning's way to read a checkpoint of a run, which never runs what the file asks for.

        Args:
            checkpoint_path: path, or an open file; an address is refused.
            map_location: device of the module.
            hparams_file: YAML or CSV with constructor arguments in place of the file's.
            strict: whether the names of the weights must be the module's.
            weights_only: not used; nothing but tensors and plain data is ever read.
            overrides: constructor arguments that differ from the file's.
        """
        from zoo.checkpoints.io import load_from_checkpoint

        return load_from_checkpoint(cls, checkpoint_path, map_location, hparams_file, strict, **overrides)

    def load_weights(self, weights: str | None) -> None:
        """Start from weights: a registry name, or a file or folder in any layout of ``formats``.

        Raises:
            ValueError: naming missing and unexpected keys; nothing is loaded in part unless the layout is known to
                be a part (``absent`` then says which).
        """
        if weights is not None:
            from zoo.checkpoints.load import load_weights

            load_weights(self, weights)
            self.started_from_weights = True

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As in torch; notes that the weights are no longer random."""
        found = super().load_state_dict(*args, **kwargs)
        self.weights_loaded, self.fresh = True, {}
        return found

    def set_absent(self, absent: dict[str, str]) -> None:
        """Note what the weights that were just loaded do not hold; a model that then decodes nothing changes its spec.

        Args:
            absent: prefix of parameters -> why.
        """
        self.absent = dict(absent)

    def add_tower(self, name: str, module: nn.Module) -> None:
        """Hold a tower that is not trained: eval mode, no gradients, not in ``state_dict``, moves with the model.

        Networks that only its own training needs, such as a discriminator, are dropped.
        """
        for part in getattr(module, "training_only", ()):
            if isinstance(getattr(module, part, None), nn.Module):
                setattr(module, part, None)
        self.frozen[name] = module.eval().requires_grad_(False)

    def add_partly_frozen(self, name: str, module: nn.Module) -> None:
        """Hold a network of which a part is trained: parameters that need no gradient are not in ``state_dict``.

        Args:
            name: of the attribute.
            module: its parameters may be frozen later.
        """

        def leave_out(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
            for parameter, value in module.named_parameters(remove_duplicate=False):
                if not value.requires_grad:
                    state.pop(prefix + parameter, None)

        def fill_in(module: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
            for parameter, value in module.named_parameters(remove_duplicate=False):
                if not value.requires_grad:
                    state.setdefault(prefix + parameter, value)

        self.add_module(name, module.requires_grad_(False))
        module.register_state_dict_post_hook(leave_out)  # type: ignore[no-untyped-call]
        module.register_load_state_dict_pre_hook(fill_in)  # type: ignore[no-untyped-call]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ZooModule":
        for module in self.frozen.values():
            module._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)

    def compile_networks(self, **options: Any) -> None:
        """Compile every network in place, so that parameter names stay as they are; those of towers too.

        What is compiled is the call of a network, ``self.network(x)``, and none of its other methods.
        """
        for child in [*self.children(), *self.frozen.values()]:
            if isinstance(child, ZooModule):
                child.compile_networks(**options)
            elif any(True for _ in child.parameters()):
                child.compile(**options)

    def init_args(self) -> dict[str, Any]:
        """The constructor arguments as plain, JSON-able data."""
        names = inspect.signature(type(self).__init__).parameters
        return {name: plain(value) for name, value in self.hparams.items() if name in names}

    @property
    def hparams_initial(self) -> Any:
        """What loggers write down: plain data, because they refuse frozen dataclasses."""
        return AttributeDict(plain(dict(super().hparams_initial)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        from zoo import __version__

        if getattr(getattr(self, "language_model", None), "merged", False):
            raise ValueError("LoRA was merged into weights that are not saved: save the model before merging")
        checkpoint["zoo"] = {
            "class": f"{type(self).__module__}.{type(self).__qualname__}",
            "init_args": self.init_args(),
            "version": __version__,
        }
        if (own := self.tokenizer_fingerprint()) is not None:
            checkpoint["zoo"]["tokenizer_fingerprint"] = own
        if found := self.tower_sketches():
            checkpoint["zoo"]["towers"] = found

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.warn_of_other_parts(checkpoint.get("zoo"), "the checkpoint")

    def warn_of_other_parts(self, said: Any, source: str) -> None:
        """Warn where weights were trained beside other frozen networks than this model's, which load all the same.

        Args:
            said: what the checkpoint says about its model.
            source: name of the checkpoint, for the message.
        """
        self.warn_of_another_tokenizer(said, source)
        self.warn_of_other_towers(said, source)

    def tower_sketches(self) -> dict[str, str]:
        """Short hashes of the frozen networks whose vectors the weights were trained on, but for untrained ones."""
        from zoo.token_shards import sketch

        parts = dict(self.frozen)
        if isinstance(language := getattr(self, "language_model", None), nn.Module):
            parts["language_model"] = language  # frozen in part
        found: dict[str, str] = {}
        for name in ("vision", "language_model", "tokenizer"):
            reference = str(self.hparams.get(name))
            spec = getattr(parts.get(name), "spec", None)
            discrete = name == "tokenizer" and spec is not None and spec.vocab_size
            if name not in parts or discrete or reference == "None" or reference.endswith("random"):
                continue
            if (own := sketch(parts[name])) is not None:
                found[name] = own
        return found

    def warn_of_other_towers(self, said: Any, source: str) -> None:
        """Warn where weights were trained with other frozen networks or another scale of LoRA, which load all the same.

        Args:
            said: what the checkpoint says about its model.
            source: name of the checkpoint, for the message.
        """
        if not isinstance(said, dict):
            return
        stored, args = said.get("towers", {}), said.get("init_args", {})
        own = self.tower_sketches() if stored else {}
        for name, theirs in stored.items():
            if own.get(name, theirs) != theirs:
                rank_zero_warn(
                    f"{source} was trained with the {name.replace('_', ' ')} {args.get(name)!r} ({theirs}), and this "
                    f"model has {self.hparams.get(name)!r} ({own[name]}), whose vectors mean other things: train "
                    f"further, or set {name} to the one of the checkpoint"
                )
        for name in ("lora_rank", "lora_alpha", *self.in_no_tensor):
            theirs, ours = args.get(name), plain(self.hparams.get(name))
            if theirs is not None and ours is not None and theirs != ours:
                rank_zero_warn(f"{source} was trained with {name} {theirs}, and this model has {ours}")

    def tokenizer_fingerprint(self) -> str | None:
        """Of the frozen tokenizer whose ids the model predicts; None without one, or for a random one."""
        tower = self.frozen.get("tokenizer")
        spec = getattr(tower, "spec", None)
        untrained = str(self.hparams.get("tokenizer")).endswith(":random")
        if tower is None or spec is None or not spec.vocab_size or untrained:
            return None
        from zoo.token_shards import fingerprint

        # computed again only after a write: hashing a large tokenizer at every checkpoint would take seconds
        writes = tuple(value._version for value in tower.state_dict().values())
        if self._fingerprint is None or self._fingerprint[0] != writes:
            self._fingerprint = writes, fingerprint(tower)
        return self._fingerprint[1]

    def warn_of_another_tokenizer(self, said: Any, source: str) -> None:
        """Warn where weights were trained on the ids of another tokenizer, which load all the same.

        Args:
            said: what the checkpoint says about its model; older ones do not name the tokenizer's weights.
            source: name of the checkpoint, for the message.
        """
        stored = said.get("tokenizer_fingerprint") if isinstance(said, dict) else None
        if stored is None or "tokenizer" not in self.frozen or stored == (own := self.tokenizer_fingerprint()):
            return
        theirs, ours = said.get("init_args", {}).get("tokenizer"), self.hparams.get("tokenizer")
        rank_zero_warn(
            f"{source} was trained on the ids of the tokenizer {theirs!r} (fingerprint {stored[:12]}), and this model "
            f"has {ours!r} ({own[:12] if own else 'untrained'}): its ids mean other codes there, so train further, or "
            f"set tokenizer to the one of the checkpoint"
        )


def constructor_arguments(module: nn.Module) -> dict[str, Any]:
    """Arguments of the constructors that are running for ``module``, the most specific class winning.

    Lightning's own search ends at a constructor that is wrapped in a decorator, such as the shape checks of the tests.
    """
    arguments: dict[str, Any] = {}
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__init__" and frame.f_locals.get("self") is module:
            names = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
            arguments |= {name: frame.f_locals[name] for name in names if name in frame.f_locals}
        frame = frame.f_back
    return arguments


def plain(value: Any) -> Any:
    """Dataclasses as dicts and tuples as lists, recursively: what JSON and ``weights_only`` can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "items"):  # jsonargparse.Namespace
        return {str(k): plain(v) for k, v in value.items()}
    raise TypeError(f"constructor arguments must be plain data, got {type(value).__name__}: {value!r}")
