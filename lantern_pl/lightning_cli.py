"""`lantern fit|validate|test|predict`: LightningCLI with our students, run folder, resume and import rules."""

import math
import typing
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lantern_pl.checkpoint_content import comes_from_restoring
from lantern_pl.checkpoint_layer import DEFAULT_RUN_DIR, checkpoint_layer
from lantern_pl.checkpoints import DurableCheckpoints
from lantern_pl.config_errors import ConfigError, explain, explain_all
from lantern_pl.config_file import read_config
from lantern_pl.config_parser import HOW_TO_ALLOW, ConfigParser, restrict_imports
from lantern_pl.data.pair_data import read_as_it_goes  # and help names the data modules that are imported
from lantern_pl.errors import UserError
from lantern_pl.evaluation.comparison import ComparisonTable, FinalValidation
from lantern_pl.evaluation.full_test import SeenPairs, open_others, test_fully
from lantern_pl.evaluation.settings import Evaluation
from lantern_pl.prediction.callback import Predictions
from lantern_pl.prediction.settings import PredictionSettings
from lantern_pl.prediction.student_folder import USAGE, as_config
from lantern_pl.progress import ProgressBar, quiet_libraries
from lantern_pl.resume import FitLoop
from lantern_pl.run_folder import CHECKPOINTS, CONFIG, PREDICTIONS, RunFolder, check_trained
from lantern_pl.secret_values import without_secrets
from lantern_pl.stopping import StopBetweenBatches
from lantern_pl.students.student import Student

TRAINER_DEFAULTS = {
    "max_epochs": 1,
    "log_every_n_steps": 1,
    # The whole validation set once before the first step: the figures of the untrained student.
    "num_sanity_val_steps": -1,
    # Our batch sampler shares the batches out among the ranks itself.
    "use_distributed_sampler": False,
    "enable_model_summary": False,
}

CKPT_PATH_HELP = (
    "A checkpoint (.ckpt file) to go on from, or `last`: the last one of run_dir. Its config serves as the lowest layer: "
    "config files and the command line win over it. Without run_dir, the run goes on in the checkpoint's folder."
)


class LanternArgumentParser(ConfigParser, LightningArgumentParser):
    """LightningCLI's parser with our errors and help."""


class SavedOnceTrained(ModelCheckpoint):
    """Of a run that ends by an exception before its first batch nothing is saved: it would be an untrained student, or half
    of what another checkpoint holds."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if math.isfinite(trainer.num_training_batches):
            super().on_exception(trainer, pl_module, exception)


class LanternCLI(LightningCLI):
    """The config is that of LightningCLI plus `run_dir`.

    Args:
        arguments: the command and its options.
        names_student: whether they come of `--student`, and the model is one for that alone.
    """

    def __init__(self, arguments: list[str], names_student: bool = False) -> None:
        self.command = arguments[0]
        self.names_student = names_student
        self.checkpoint_config: dict[str, Any] = {}
        usage = f"lantern {self.command} --config FILE [--KEY VALUE ...]"
        super().__init__(
            Student,
            LightningDataModule,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={self.command: {"usage": USAGE if self.command == "predict" else usage}},
            parser_class=LanternArgumentParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=arguments,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        # The one that was given: a parser of some hundred options takes its time.
        # weights_only isn't for the user to turn off: a checkpoint must not run code.
        return {self.command: LightningCLI.subcommands()[self.command] | {"weights_only"}}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """As LightningCLI's, but data comes before the model: a bad file is found before any weights are loaded."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        for action in parser._actions:
            if {int, float} <= set(typing.get_args(getattr(action, "_typehint", None))):
                # typing takes unions for equal in any order and keeps the first that any library has made: where that was
                # float first, limit_train_batches=1 would be read as 1.0, which is all batches and not one.
                action._typehint = int | float | None  # type: ignore[attr-defined]
        parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER_DEFAULTS.items()})
        parser.add_lightning_class_args(self._datamodule_class, "data", subclass_mode=True)
        parser.add_lightning_class_args(self._model_class, "model", subclass_mode=True)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir",
            type=str,
            default=DEFAULT_RUN_DIR,
            help="Folder for the resolved config, logs, checkpoints and the student. An earlier run in it is moved aside, "
            "never overwritten; a resumed run goes on in it.",
        )
        parser.add_argument(
            "--checkpoint_minutes",
            type=float,
            default=10.0,
            help="A checkpoint is saved this often, besides that at the end of each epoch: what a kill may cost. Of those "
            "in between, the newest is kept.",
        )
        # In all subcommands, so that they take each other's configs.
        parser.add_class_arguments(Evaluation, "evaluation")
        parser.add_class_arguments(PredictionSettings, "prediction")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        for action in parser._actions:
            if action.dest == "ckpt_path":
                action.help = CKPT_PATH_HELP
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """The checkpoint's own config is the lowest layer: config files and the command line win over it."""
        arguments = list(args)
        given = _given(arguments[1:], ("ckpt_path", "run_dir"))
        with checkpoint_layer(given) as layer:
            if layer is not None:
                arguments[1:] = ["--config", str(layer.file), *arguments[1:], "--ckpt_path", layer.path]
                self.checkpoint_config = layer.config
            # LightningCLI warns when it gets arguments while sys.argv holds some; here they are the same.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                super().parse_arguments(parser, arguments)
        for key, alias in (layer.lost if layer else {}).items():
            # A student predicts without its teacher; to train it without needs to be said.
            if self.command == "fit" and not _gives_of_model(arguments[3:], key):
                raise UserError(
                    f"model.{key}: the checkpoint was written with {alias}, which isn't installed under that name now. "
                    f"Install that again or, if it has another name, give model.init_args.{key} anew with that name."
                )

    def _parse_ckpt_path(self) -> None:
        """Lightning lets the checkpoint's hyper-parameters win over what the user gives; here it's the other way round
        (see `parse_arguments`), and what differs is said."""
        if self.checkpoint_config:
            now = yaml.safe_load(self._resolved_config())
            for part in ("evaluation", "prediction"):  # of which nothing is in the checkpoint's weights
                now[part] = self.checkpoint_config.get(part)
            for key, before, after in _differences(self.checkpoint_config, now):
                rank_zero_info(f"{key}: the checkpoint has {before!r}, this run uses {after!r}.")

    def before_instantiate_classes(self) -> None:
        model = self._get(self.config, "model.init_args.model")
        untrained = self._get(self.config, "ckpt_path") is None and not self.names_student
        if self.command != "fit" and untrained and isinstance(model, str):
            check_trained(self.command, model, Path(self._get(self.config, "run_dir")))

    def instantiate_classes(self) -> None:
        with explain_all(HOW_TO_ALLOW), read_as_it_goes() if self.command == "predict" else nullcontext():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        run_dir = Path(self._get(self.config_init, "run_dir"))
        given = config.get("callbacks") or []
        given = list(given) if isinstance(given, list) else [given]
        checkpoint = self._get(self.config_init, "ckpt_path")
        # From a checkpoint of elsewhere a new run starts, and whatever is in run_dir is another one.
        goes_on = checkpoint is not None and Path(checkpoint).resolve().is_relative_to(run_dir.resolve())
        own_logger = config.get("logger") in (None, True)
        if own_logger:
            # RunFolder adds the loggers once the folder is ready; Lightning would make their folders ahead of that.
            config["logger"] = False
        folder = RunFolder(run_dir, self._resolved_config(), goes_on, own_logger)
        go_on = f"lantern fit --config {run_dir / CONFIG} --ckpt_path last"
        ours: list[Callback] = [FinalValidation(), ComparisonTable(), folder, StopBetweenBatches(go_on)]
        show = config.get("enable_progress_bar") is not False
        if self.subcommand == "predict":
            config["enable_progress_bar"] = False  # Predictions has its own, of rows in place of batches
            if self._get(self.config_init, "prediction").engine == "ray" and config.get("devices") == "auto":
                config["devices"] = 1  # this process only keeps what workers answer
        elif show and not _has(given, RichProgressBar):
            ours.append(ProgressBar())
        if config.get("fast_dev_run") and not _has(given, ModelCheckpoint):
            config["enable_checkpointing"] = False  # a trial leaves nothing; Lightning would save at its end
        if config.get("enable_checkpointing") is not False and not _has(given, ModelCheckpoint):
            kept: dict[str, Any] = {"save_last": "link", "save_on_exception": True, "enable_version_counter": False}
            ours.append(SavedOnceTrained(run_dir / CHECKPOINTS, **kept))
            often = timedelta(minutes=self._get(self.config_init, "checkpoint_minutes"))
            ours.append(ModelCheckpoint(run_dir / CHECKPOINTS, "between-{step}", train_time_interval=often))
        if self.subcommand == "predict" and not config.get("fast_dev_run"):
            ours.append(Predictions(self._get(self.config_init, "prediction"), run_dir / PREDICTIONS, show))
        self.seen_pairs = SeenPairs()
        if self.subcommand == "test":
            ours.append(self.seen_pairs)
        given_plugins = config.get("plugins") or []
        given_plugins = list(given_plugins) if isinstance(given_plugins, list) else [given_plugins]
        if SLURMEnvironment.detect() and not any(isinstance(each, ClusterEnvironment) for each in given_plugins):
            # Lightning would answer SLURM's signal by saving where nothing is looked for, and requeue the job by itself.
            given_plugins.append(SLURMEnvironment(auto_requeue=False))
        config["plugins"] = [*given_plugins, DurableCheckpoints()]
        try:
            trainer = super().instantiate_trainer(callbacks=[*given, *ours], **kwargs)
        except (ValueError, MisconfigurationException) as error:
            raise UserError(f"trainer: {error}") from error
        FitLoop.put_into(trainer)
        return trainer

    def before_test(self) -> None:
        """What the student is held against is found, or not, before anything is measured."""
        self.others = open_others(self._get(self.config_init, "evaluation"), self.model, self.datamodule)

    def after_test(self) -> None:
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            settings, run_dir = (self._get(self.config_init, key) for key in ("evaluation", "run_dir"))
            test_fully(self.trainer, self.model, self.datamodule, settings, self.others, self.seen_pairs, Path(run_dir))

    def _resolved_config(self) -> str:
        whole = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        settings = whole[self.config.subcommand]
        settings.pop("config", None)
        settings.pop("ckpt_path", None)
        # None is given, but a class may have one for a default.
        return str(yaml.safe_dump(without_secrets(settings), sort_keys=False, allow_unicode=True))

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand) | {"weights_only": True}
        return kwargs | ({"return_predictions": False} if subcommand == "predict" else {})


def run(arguments: list[str]) -> int:
    """Run one of the four subcommands. Raises UserError for what the user can put right."""
    restrict_imports()
    quiet_libraries()
    try:
        with as_config(arguments) if arguments[0] == "predict" else nullcontext(arguments) as whole:
            names_student = any(word.partition("=")[0] == "--student" for word in arguments)
            LanternCLI(whole, names_student)
    except ConfigError as error:
        raise UserError(explain(error, HOW_TO_ALLOW)) from error
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except UserError:
        raise
    except Exception as error:
        if not comes_from_restoring(error):
            raise
        raise UserError(
            f"The checkpoint of --ckpt_path doesn't fit this run, or was changed ({type(error).__name__}: {error}). Go on "
            "from another, or start the run anew."
        ) from error
    return 0


def _given(arguments: list[str], keys: tuple[str, ...]) -> dict[str, str]:
    """The values that config files and the command line give to these top-level keys; what comes later wins.

    Raises UserError for a config file that isn't there or isn't YAML with keys.
    """
    values: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option in ("-c", "--config", *(f"--{key}" for key in keys)):
            value = value if equals else next(words, "")
            values |= read_config(value) if option in ("-c", "--config") else {option[2:]: value}
    return {key: str(values[key]) for key in keys if values.get(key) is not None}


def _gives_of_model(arguments: list[str], key: str) -> bool:
    """Whether config files or the command line say something of an argument of the model, be it null."""
    options = (f"--model.{key}", f"--model.init_args.{key}")
    if any(word.partition("=")[0].startswith(options) for word in arguments):
        return True
    files = (read_config(path) for path in _config_files(arguments))
    return any(key in ((config.get("model") or {}).get("init_args") or {}) for config in files)


def _config_files(arguments: list[str]) -> Iterator[str]:
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option in ("-c", "--config"):
            yield value if equals else next(words, "")


def _differences(before: Any, after: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(k for k in after if k not in before)]
        return [d for k in keys for d in _differences(before.get(k), after.get(k), f"{key}.{k}" if key else k)]
    return [] if before == after else [(key, before, after)]


def _has(callbacks: list[Callback], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)
