"""`lantern fit|validate|test|predict`: LightningCLI with our students, run folder, resume and import rules."""

import os
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info

from lantern_pl.errors import UserError
from lantern_pl.evaluation.comparison import ComparisonTable
from lantern_pl.progress import ProgressBar, quiet_libraries
from lantern_pl.run_folder import CONFIG_KEY, PredictionFile, RunFolder
from lantern_pl.students.student import Student

# What a config may name: nothing else is imported because a config says so. Plugins are let in one by one as they load.
ALLOWED_IMPORTS = ["lantern_pl", "lightning.pytorch", "torch.optim"]
ALLOW_VARIABLE = "LANTERN_ALLOW_IMPORTS"

TRAINER_DEFAULTS = {
    "max_epochs": 1,
    "log_every_n_steps": 1,
    # The whole validation set once before the first step: the figures of the untrained student.
    "num_sanity_val_steps": -1,
    # Our batch sampler shares the batches out among the ranks itself.
    "use_distributed_sampler": False,
    "enable_model_summary": False,
}


class LanternArgumentParser(LightningArgumentParser):
    """Errors end with what to do about them, and leave out the usage line of some hundred options."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        if "is not allowed, denied by" in message:
            message = message.split(" Add the import path")[0] + (
                f"\nA config may name classes of {', '.join(ALLOWED_IMPORTS)} and installed plugins. To allow a package of "
                f"your own: {ALLOW_VARIABLE}=my_package lantern ..."
            )
        raise UserError(message) from ex


class LanternCLI(LightningCLI):
    """One parser for all four subcommands; the config is that of LightningCLI plus `run_dir`."""

    def __init__(self, arguments: list[str]) -> None:
        self.checkpoint_config: dict[str, Any] = {}
        super().__init__(
            Student,
            LightningDataModule,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_class=LanternArgumentParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=arguments,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        # weights_only isn't for the user to turn off: a checkpoint must not run code.
        return {name: skipped | {"weights_only"} for name, skipped in LightningCLI.subcommands().items()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir",
            type=str,
            default="runs/unnamed",
            help="Folder for the resolved config, logs, checkpoints and the student. An earlier run in it is moved aside, "
            "never overwritten; a resumed run goes on in it.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """The checkpoint's own config is the lowest layer: config files and the command line win over it."""
        arguments = list(args)
        path = _checkpoint_argument(arguments)
        if path is not None:
            self.checkpoint_config = _config_of_checkpoint(path)
            for section in ("data", "model"):
                if section in self.checkpoint_config:
                    value = yaml.safe_dump(self.checkpoint_config[section], default_flow_style=True, width=10**9)
                    arguments.insert(1, f"--{section}={value}")
        # LightningCLI warns when it gets arguments while sys.argv holds some; here they are the same.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().parse_arguments(parser, arguments)

    def _parse_ckpt_path(self) -> None:
        """Lightning lets the checkpoint's hyper-parameters win over what the user gives; here it's the other way round
        (see `parse_arguments`), and what differs is said."""
        settings = self.config[self.config.subcommand]
        ckpt_path = settings.get("ckpt_path")
        if ckpt_path is None:
            return
        if ckpt_path == "last":
            ckpt_path = str(Path(settings.run_dir) / "checkpoints" / "last.ckpt")
            settings.ckpt_path = ckpt_path
        if not Path(ckpt_path).is_file():
            raise UserError(f"There is no checkpoint {ckpt_path!r}: give the path of a .ckpt file, or `last` with run_dir.")
        saved = self.checkpoint_config or _config_of_checkpoint(ckpt_path)
        now = yaml.safe_load(self.parser.dump(self.config))[self.config.subcommand]
        for key, before, after in _differences(
            {k: saved.get(k) for k in ("model", "data")}, {k: now.get(k) for k in ("model", "data")}
        ):
            rank_zero_info(f"{key}: the checkpoint has {before!r}, this run uses {after!r}.")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        run_dir = Path(self._get(self.config_init, "run_dir"))
        given = config.get("callbacks") or []
        given = list(given) if isinstance(given, list) else [given]
        resume = self._get(self.config_init, "ckpt_path") is not None
        own_logger = config.get("logger") in (None, True)
        if own_logger:
            # RunFolder adds the loggers once the folder is ready; Lightning would make their folders ahead of that.
            config["logger"] = False
        ours: list[Callback] = [ComparisonTable(), RunFolder(run_dir, self._resolved_config(), resume, own_logger)]
        if config.get("enable_progress_bar") is not False and not _has(given, RichProgressBar):
            ours.append(ProgressBar())
        if config.get("enable_checkpointing") is not False and not _has(given, ModelCheckpoint):
            ours.append(ModelCheckpoint(run_dir / "checkpoints", save_last=True, save_on_exception=True))
        if self.subcommand == "predict":
            ours.append(PredictionFile(run_dir))
        return super().instantiate_trainer(callbacks=[*given, *ours], **kwargs)

    def _resolved_config(self) -> str:
        whole = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
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
    set_parsing_settings(
        docstring_parse_attribute_docstrings=True,
        import_path_denylist=["*"],
        import_path_allowlist=[*ALLOWED_IMPORTS, *extra],
    )
    quiet_libraries()
    LanternCLI(arguments)
    return 0


def _checkpoint_argument(arguments: list[str]) -> str | None:
    """The checkpoint file on the command line, if one is given there."""
    for i, argument in enumerate(arguments):
        if argument.startswith("--ckpt_path="):
            value = argument.partition("=")[2]
        elif argument == "--ckpt_path" and i + 1 < len(arguments):
            value = arguments[i + 1]
        else:
            continue
        return value if Path(value).is_file() else None
    return None


def _config_of_checkpoint(path: str) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:
        raise UserError(f"The checkpoint {path!r} can't be read: {error}") from error
    config: dict[str, Any] = yaml.safe_load(checkpoint.get(CONFIG_KEY, "{}"))
    return config


def _differences(before: Any, after: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(k for k in after if k not in before)]
        return [d for k in keys for d in _differences(before.get(k), after.get(k), f"{key}.{k}" if key else k)]
    return [] if before == after else [(key, before, after)]


def _has(callbacks: list[Callback], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)
