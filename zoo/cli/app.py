"""The commands that train and evaluate: LightningCLI with the zoo's settings, run folder, loggers and messages."""

import contextlib
import importlib
import logging
import os
import pkgutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from omegaconf.errors import OmegaConfBaseException

import zoo
import zoo.callbacks
from zoo.callbacks.record import RunRecord
from zoo.cli.old_names import with_names_of_today
from zoo.cli.parser import ZooParser
from zoo.cli.precision import DTYPES_SAY, RECIPES_SAY, explain_language_dtype, explain_precision, register_with_recipes
from zoo.cli.recipes import resolve_arguments
from zoo.cli.resume import find_checkpoint
from zoo.cli.sentences import end_with_sentence
from zoo.cli.settings import check_groups, check_run_folder, check_trainer
from zoo.cli.yaml_text import dump_yaml
from zoo.files.lock import FolderLock
from zoo.files.recipe_header import parse_header
from zoo.module import ZooModule
from zoo.runs.loggers import RunCSVLogger, RunTensorBoardLogger
from zoo.runs.untrained import refuse_lost_predictions, refuse_untrained

DESCRIPTION = "Train and evaluate visual tokenizers. Also: list [PATTERN], recipes, copy RECIPE [TARGET]."
Precision = Literal["highest", "high", "medium"]


def run(arguments: list[str]) -> None:
    """Run a command of the Trainer.

    Args:
        arguments: as on the command line, without the program's name.
    """
    # Lightning 2.6 calls what jsonargparse 5 will drop; the bounds in pyproject.toml say so
    os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = os.environ.get("JSONARGPARSE_DEPRECATION_WARNINGS") or "off"
    jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    jsonargparse.set_dumper("yaml", dump_yaml)
    register_with_recipes()
    try:
        with _hide_noise():
            ZooCLI(arguments)
    except Exception as error:
        end_with_sentence(error)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning ends with 1 where it did not train yet
            raise stop.__context__ from None
        raise


class ZooCLI(LightningCLI):
    """LightningCLI with the zoo's settings, run directory, loggers and messages.

    Args:
        arguments: command and options, as on the command line.
    """

    def __init__(self, arguments: list[str]):
        from zoo.presets import presets

        presets()  # imports the papers, so that recipes can say BEiT for zoo.BEiT
        for module in pkgutil.iter_modules(zoo.callbacks.__path__):  # likewise --trainer.callbacks+=EMA
            importlib.import_module(f"zoo.callbacks.{module.name}")
        #: configuration files, as typed -> as found
        self.recipes: dict[str, Path] = {}
        self.arguments = arguments
        with contextlib.ExitStack() as self.held:
            self._run(arguments)

    def _run(self, arguments: list[str]) -> None:
        import datamodules

        super().__init__(
            ZooModule,
            datamodules.ZooDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,  # Optim belongs to the model; Lightning's groups step per epoch
            save_config_callback=RunRecord,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_class=ZooParser,
            parser_kwargs={
                "parser_mode": "omegaconf+",  # plain "omegaconf" resolves before command-line overrides
                "version": f"tokenzoo {zoo.__version__}",
                "description": DESCRIPTION,
            },
            args=with_names_of_today(resolve_arguments(arguments, self.recipes)),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that are no constructor arguments."""

        def flag(name: str, says: str) -> None:
            parser.add_argument(f"--{name}", type=bool, default=False, nargs="?", const=True, help=says)

        flag("compile", "torch.compile in place")
        parser.add_argument(
            "--matmul_precision",
            type=Precision,
            default="high",
            help="float32 products on CUDA: 'high' uses TF32, 'highest' does not",
        )
        flag("untrained", "let validate, test and predict take a model of random weights")
        flag("oversubscribe", "let --trainer.devices start more processes than there are CPUs")
        flag(
            "fetch_checkpoint",
            "let --ckpt_path be an address (https://, s3://): the file is downloaded, then read as any other",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse without Lightning's warning about arguments given from Python."""
        try:
            self.config = parser.parse_args(args)
        except OmegaConfBaseException as error:  # a ${...} that leads nowhere
            parser.error(str(error).partition("\n")[0])

    def _parse_ckpt_path(self) -> None:
        """Do nothing: recipe and flags decide, ``--ckpt_path`` only restores state.

        Lightning would let the hyper-parameters stored in the checkpoint win over both.
        """

    def before_instantiate_classes(self) -> None:
        """Refuse what the Trainer cannot do before a model is built, which may take minutes."""
        config = self._get(self.config, "trainer")
        check_trainer(config, str(self.subcommand), bool(self._get(self.config, "oversubscribe")))
        check_run_folder(config["default_root_dir"])
        check_groups(self._get(self.config, "model"))

    def after_instantiate_classes(self) -> None:
        """Apply the options that are no constructor arguments."""
        if torch.cuda.is_available():
            torch.set_float32_matmul_precision(self._get(self.config, "matmul_precision"))
        if self._get(self.config, "compile"):
            self.model.compile_networks()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add what every run has, unless the recipe brings its own: run directory, loggers, checkpoint, guards."""
        config = self._get(self.config_init, "trainer")
        name = next((path.stem for path in self.recipes.values()), type(self.model).__name__.lower())
        run_dir = Path(os.path.expanduser(config["default_root_dir"] or Path("runs") / name))  # as the Trainer does
        fetch = bool(self._get(self.config, "fetch_checkpoint"))
        ckpt_path = find_checkpoint(self._get(self.config, "ckpt_path"), self.subcommand, run_dir, fetch)
        if ckpt_path is not None:
            self.config_init[str(self.subcommand)]["ckpt_path"] = ckpt_path  # of what was downloaded
        measures = self.subcommand in ("validate", "test", "predict") and not config["fast_dev_run"]
        self.model.random_on_purpose = bool(self._get(self.config, "untrained"))
        if measures and ckpt_path is None and not self.model.random_on_purpose:
            refuse_untrained(self.model, str(self.subcommand))
        # into the configuration that the run writes down, which is then a recipe of the same folder
        self.config[str(self.subcommand)]["trainer"]["default_root_dir"] = str(run_dir)
        log_dir = run_dir if self.subcommand == "fit" else run_dir / str(self.subcommand)
        if config["logger"] in (None, True):
            loggers = (RunCSVLogger, RunTensorBoardLogger)
            kwargs["logger"] = [logger(log_dir, name="", version="") for logger in loggers]
        elif config["logger"]:
            given = config["logger"] if isinstance(config["logger"], list) else [config["logger"]]
            kwargs["logger"] = [RunCSVLogger.of(logger) for logger in given]
        given = config["callbacks"] or []
        callbacks: list[Callback] = list(given) if isinstance(given, list) else [given]
        if measures and self.subcommand == "predict":
            refuse_lost_predictions(callbacks)
        callbacks += self._missing_callbacks(callbacks, run_dir, config)
        if not any(isinstance(c, ModelSummary) for c in callbacks):
            kwargs["enable_model_summary"] = False  # ours is shorter
        trainer = super().instantiate_trainer(default_root_dir=str(run_dir), callbacks=callbacks, **kwargs)
        writes = self.subcommand == "fit" or (self.subcommand != "predict" and trainer.loggers)
        if trainer.is_global_zero and writes and not config["fast_dev_run"]:
            remedy = "wait until it has ended, or give this one a folder of its own, --trainer.default_root_dir=FOLDER"
            lock = FolderLock(log_dir, remedy)
            lock.acquire()
            self.held.callback(lock.release)
        return trainer

    def _missing_callbacks(self, given: list[Callback], run_dir: Path, config: Any) -> list[Callback]:
        """Make what every run has and the recipe does not bring: guards, the last checkpoint, what the terminal shows.

        Args:
            given: the callbacks of the recipe.
            run_dir: gets ``last.ckpt``.
            config: the part ``trainer`` of the configuration.
        """
        from zoo.callbacks.divergence import DivergenceGuard
        from zoo.callbacks.interrupt import StopOnSignal
        from zoo.callbacks.last_checkpoint import LastCheckpoint
        from zoo.callbacks.progress import RunProgress, RunStart
        from zoo.callbacks.summary import RunSummary

        fit = self.subcommand == "fit"
        #: whether this run has it, what a recipe may bring in its place, and how it is made
        table: tuple[tuple[bool, tuple[type[Callback], ...], Callable[[], Callback]], ...] = (
            (fit, (DivergenceGuard,), DivergenceGuard),
            (fit, (RunSummary,), lambda: RunSummary(list(self.recipes))),
            (True, (StopOnSignal,), lambda: StopOnSignal(self.arguments)),
            (config["enable_checkpointing"] is not False, (ModelCheckpoint,), lambda: LastCheckpoint(run_dir)),
            (fit and config["enable_model_summary"] is not False, (ModelSummary, RunStart), RunStart),
            (config["enable_progress_bar"] is not False, (ProgressBar,), RunProgress),
        )
        return [make() for has, kinds, make in table if has and not any(isinstance(one, kinds) for one in given)]

    def before_fit(self) -> None:
        """Print title and expected result of the recipe, and remarks on precision."""
        header = next(filter(None, map(parse_header, self.recipes.values())), {})
        if self.trainer.is_global_zero:
            for key in ("title", "expect"):
                if key in header:
                    print(f"{key:>6}: {header[key]}".replace("\n", "\n" + 8 * " "))
            settings = self._get(self.config, "trainer")
            recipes = "".join(path.read_text(encoding="utf-8") for path in self.recipes.values())
            accelerator = str(settings["accelerator"])
            dtype = self.model.hparams.get("language_dtype")
            for said in (
                explain_precision(str(settings["precision"]), accelerator, RECIPES_SAY in recipes),
                explain_language_dtype(dtype, accelerator, DTYPES_SAY in recipes),
            ):
                if said:
                    print(f"precision: {said}")


@contextlib.contextmanager
def _hide_noise() -> Iterator[None]:
    """Hide advertising tips, and warnings about old run folders and frozen trunks, which are meant."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")

    def no_tips(record: logging.LogRecord) -> bool:
        return "Tip:" not in record.getMessage()

    logger.addFilter(no_tips)
    with warnings.catch_warnings():
        for message in (
            "exists and is not empty",
            "dirpath has changed",
            "not have many workers",
            "LeafSpec",
            "in eval mode",
        ):
            warnings.filterwarnings("ignore", f".*{message}")
        try:
            yield
        finally:
            logger.removeFilter(no_tips)
