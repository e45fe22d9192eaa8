"""`lantern fit|validate|test|predict`: LightningCLI with our students, run folder, resume and import rules."""

import argparse
import dataclasses
import os
import typing
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import lantern_pl.data.pair_data  # noqa: F401  help names the data modules that are imported
from lantern_pl import plugins
from lantern_pl.checkpoint_layer import DEFAULT_RUN_DIR, checkpoint_layer
from lantern_pl.config_errors import ConfigError, explain, innermost, name_options
from lantern_pl.errors import UserError
from lantern_pl.evaluation.comparison import ComparisonTable, FinalValidation
from lantern_pl.progress import ProgressBar, quiet_libraries
from lantern_pl.run_folder import CHECKPOINTS, PredictionFile, RunFolder
from lantern_pl.students.student import Student

# What a config may name: nothing else is imported because a config says so. Plugins are let in one by one as they load.
ALLOWED_IMPORTS = ["lantern_pl", "lightning", "torch.optim"]
ALLOW_VARIABLE = "LANTERN_ALLOW_IMPORTS"
HOW_TO_ALLOW = (
    f"A config may name classes of {', '.join(ALLOWED_IMPORTS)} and, by their aliases, plugins. To allow a package of your "
    f"own: {ALLOW_VARIABLE}=my_package lantern ..."
)

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


class LanternArgumentParser(LightningArgumentParser):
    """Errors are raised, and name the options that may be meant; help goes on to what an option's value consists of."""

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        parts = [super().format_help(formatter)]
        for action in self._actions:
            if action.dest.endswith(".help"):
                continue
            for part in _dataclasses(getattr(action, "_typehint", None), "lantern_pl"):
                parser = type(self)(description="", usage=argparse.SUPPRESS, add_help=False)
                parser.add_class_arguments(part, action.dest)
                parser._remove_action(next(a for a in parser._actions if a.dest == action.dest))
                parts.append(parser.format_help())
        if any(action.dest == "model" for action in self._actions):
            parts.append(_plugins_by_kind())
        return "\n".join(parts)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        parsers = [self, *(parser for action in self._actions for parser in _subparsers(action))]
        raise ConfigError(name_options(message, [action.dest for parser in parsers for action in parser._actions])) from ex


def _plugins_by_kind() -> str:
    """The aliases of all installed plugins, for help; none is imported."""
    lines = ["Installed plugins, for class_path (`lantern plugins show NAME` says what one takes):"]
    for kind, group in plugins.KINDS.items():
        lines.append(f"  {kind}s: {', '.join(f'{group}.{name}' for name in plugins.usable(group))}")
    return "\n".join(lines) + "\n"


def _dataclasses(typehint: Any, package: str) -> list[type]:
    """Dataclasses of a package that a value of this type consists of."""
    if isinstance(typehint, type) and dataclasses.is_dataclass(typehint):
        return [typehint] if typehint.__module__.partition(".")[0] == package else []
    return [found for part in typing.get_args(typehint) for found in _dataclasses(part, package)]


def _subparsers(action: Any) -> list[Any]:
    choices = action.choices if isinstance(getattr(action, "choices", None), dict) else {}
    return [parser for parser in choices.values() if hasattr(parser, "_actions")]


class LanternCLI(LightningCLI):
    """The config is that of LightningCLI plus `run_dir`."""

    def __init__(self, arguments: list[str]) -> None:
        self.command = arguments[0]
        self.checkpoint_config: dict[str, Any] = {}
        super().__init__(
            Student,
            LightningDataModule,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={self.command: {"usage": f"lantern {self.command} --config FILE [--KEY VALUE ...]"}},
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
            for key, before, after in _differences(self.checkpoint_config, now):
                rank_zero_info(f"{key}: the checkpoint has {before!r}, this run uses {after!r}.")

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            # What a constructor raises comes wrapped in jsonargparse's own error. A ValueError is about a value that
            # the config gives; anything else is a bug somewhere, and shows where.
            cause = innermost(error)
            if isinstance(cause, (UserError, ValueError)):
                raise UserError(explain(error, HOW_TO_ALLOW)) from error
            raise cause from None

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
        ours: list[Callback] = [FinalValidation(), ComparisonTable(), folder]
        if config.get("enable_progress_bar") is not False and not _has(given, RichProgressBar):
            ours.append(ProgressBar())
        if config.get("fast_dev_run") and not _has(given, ModelCheckpoint):
            config["enable_checkpointing"] = False  # a trial leaves nothing; Lightning would save at its end
        if config.get("enable_checkpointing") is not False and not _has(given, ModelCheckpoint):
            kept: dict[str, Any] = {"save_last": "link", "save_on_exception": True, "enable_version_counter": False}
            ours.append(ModelCheckpoint(run_dir / CHECKPOINTS, **kept))
        if self.subcommand == "predict":
            ours.append(PredictionFile(run_dir))
        try:
            return super().instantiate_trainer(callbacks=[*given, *ours], **kwargs)
        except (ValueError, MisconfigurationException) as error:
            raise UserError(f"trainer: {error}") from error

    def _resolved_config(self) -> str:
        whole = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        settings = whole[self.config.subcommand]
        settings.pop("config", None)
        settings.pop("ckpt_path", None)
        return str(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand) | {"weights_only": True}
        return kwargs | ({"return_predictions": False} if subcommand == "predict" else {})


def run(arguments: list[str]) -> int:
    """Run one of the four subcommands. Raises UserError for what the user can put right."""
    extra = [package for package in os.environ.get(ALLOW_VARIABLE, "").split(",") if package]
    try:
        set_parsing_settings(
            docstring_parse_attribute_docstrings=True,
            import_path_denylist=["*"],
            import_path_allowlist=[*ALLOWED_IMPORTS, *extra],
        )
    except ValueError as error:
        raise UserError(f"{ALLOW_VARIABLE}={os.environ[ALLOW_VARIABLE]}: {error}") from error
    if _let_in not in plugins.on_load:
        plugins.on_load.append(_let_in)
    quiet_libraries()
    try:
        LanternCLI(arguments)
    except ConfigError as error:
        raise UserError(explain(error, HOW_TO_ALLOW)) from error
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    return 0


def _let_in(plugin: Any) -> None:
    """Allow a plugin's class, and dataclasses of its own that its arguments consist of."""
    try:
        hints = typing.get_type_hints(plugin.__init__).values()
    except Exception:  # annotations hold what they like; a plugin without dataclasses needs none of them
        hints = {}.values()
    parts = [part for hint in hints for part in _dataclasses(hint, plugin.__module__.partition(".")[0])]
    set_parsing_settings(import_path_allowlist=[f"{cls.__module__}.{cls.__qualname__}" for cls in (plugin, *parts)])


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
            values |= _read_config(value) if option in ("-c", "--config") else {option[2:]: value}
    return {key: str(values[key]) for key in keys if values.get(key) is not None}


def _gives_of_model(arguments: list[str], key: str) -> bool:
    """Whether config files or the command line say something of an argument of the model, be it null."""
    options = (f"--model.{key}", f"--model.init_args.{key}")
    if any(word.partition("=")[0].startswith(options) for word in arguments):
        return True
    files = (_read_config(path) for path in _config_files(arguments))
    return any(key in ((config.get("model") or {}).get("init_args") or {}) for config in files)


def _config_files(arguments: list[str]) -> Iterator[str]:
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option in ("-c", "--config"):
            yield value if equals else next(words, "")


def _read_config(path: str) -> dict[str, Any]:
    try:
        config = yaml.safe_load(Path(path).read_text())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"The config {path!r} isn't valid YAML{where}: {error.problem}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"The config {path!r} isn't a text file in UTF-8.") from error
    except OSError as error:
        raise UserError(f"The config {path!r} can't be read: {error.strerror}.") from error
    if not isinstance(config, dict):
        raise UserError(f"The config {path!r} holds no keys; expected run_dir, model, data and trainer.")
    return config


def _differences(before: Any, after: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(k for k in after if k not in before)]
        return [d for k in keys for d in _differences(before.get(k), after.get(k), f"{key}.{k}" if key else k)]
    return [] if before == after else [(key, before, after)]


def _has(callbacks: list[Callback], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)
