"""The folder that a run leaves: resolved config, logs, checkpoints, and the student with its manifest."""

import importlib.metadata
import itertools
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lantern_pl.errors import UserError
from lantern_pl.evaluation.comparison import draw_curves
from lantern_pl.model_files import MANIFEST, weights_identity
from lantern_pl.plugins import describe, discover, loaded
from lantern_pl.private_files import write_private_text
from lantern_pl.students.student import Student

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
CONFIG_KEY = "lantern_config"
PLUGINS_KEY = "lantern_plugins"
FIGURES = "test.json"
PREDICTIONS = "predictions"
SAMPLE = "sample.json"
STUDENT = "student"
# By any of these a folder is known as a run's: only such a one is moved aside or added to.
_MARKS = {CONFIG, CHECKPOINTS, FIGURES, PREDICTIONS}
_VERSIONS = ("lantern-pl", "torch", "triton", "lightning", "transformers", "peft", "torchmetrics", "tokenizers")


def start_folder(folder: Path) -> Path | None:
    """Make an empty run folder. What is already there is moved aside to `NAME.1`, `NAME.2`, ...; returns where to."""
    moved = move_aside(folder) if folder.exists() and any(folder.iterdir()) else None
    folder.mkdir(parents=True, exist_ok=True)
    return moved


def move_aside(path: Path) -> Path:
    """Rename a folder, or a file before its suffix, to the first free of `NAME.1`, `NAME.2`, ...; returns where to."""
    path = path if path.name else path.absolute()
    suffix = path.suffix if path.is_file() else ""
    names = (f"{path.name.removesuffix(suffix)}.{number}{suffix}" for number in itertools.count(1))
    return path.rename(next(aside for name in names if not (aside := path.with_name(name)).exists()))


def check_folder(folder: Path) -> None:
    """Raise UserError unless this may become a run's folder: writable, and empty, not there yet or an earlier run's."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise UserError(f"run_dir is {str(folder)!r}, but {existing} isn't a folder that can be written to.")
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if found and not found & _MARKS:
        raise UserError(f"run_dir is {str(folder)!r}, which holds other things than a run: choose a folder of its own.")


def check_inputs(config: Mapping[str, Any], folder: Path, goes_on: bool) -> None:
    """Raise UserError where the run would take away what it reads: a model, a teacher or data in its own folder.

    A new run moves an earlier one aside, with all that lies in it; one that goes on writes its student anew.
    """
    lost = (folder / STUDENT if goes_on else folder).resolve()
    for section in ("model", "data"):
        for key, text in _texts(config.get(section), section):
            if os.path.exists(text) and Path(text).resolve().is_relative_to(lost):
                raise UserError(
                    f"{key} is {text!r}, which lies in this run's own folder: the run would "
                    f"{'write over it' if goes_on else 'move it aside'}. Give another run_dir, or copy it elsewhere."
                )


def check_trained(command: str, model: str, folder: Path) -> None:
    """Of a command that measures a student or has it answer, given no checkpoint: raise UserError where the run's folder
    holds some, and warn elsewhere, unless the model is a student that was saved."""
    if Path(model, MANIFEST).is_file():
        return
    if any((folder / CHECKPOINTS).glob("*.ckpt")):
        raise UserError(
            f"Without --ckpt_path, lantern {command} takes the model {model!r} as it is, not what was trained in "
            f"{str(folder)!r}: give --ckpt_path last. For the model as it is, give another run_dir."
        )
    rank_zero_warn(
        f"Without --ckpt_path, lantern {command} takes the model {model!r} as it is: what isn't in it, such as an encoder's "
        "head, is untrained. Give the --ckpt_path of a fit, or its student's folder as model."
    )


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """All texts of a config, by their keys."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _texts(each, f"{key}.{name}")
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each, key)


class RunFolder(Callback):
    """Keeps the run's folder.

    Args:
        folder: where.
        config: the resolved config as YAML; also put into each checkpoint.
        goes_on: whether the run goes on in a folder that is already there; else what is there is moved aside.
        log: whether to keep CSV and TensorBoard logs in it.
    """

    def __init__(self, folder: Path, config: str, goes_on: bool, log: bool) -> None:
        self.folder = folder
        self.config = config
        self.goes_on = goes_on
        self.log = log
        self._teacher: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage in ("fit", "test"):  # the others write nothing of it
            check_folder(self.folder)
        if stage == "fit" and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            check_inputs(yaml.safe_load(self.config), self.folder, self.goes_on)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # By now models, data and checkpoint were found to be right: a mistake leaves an earlier run's folder untouched.
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if trainer.is_global_zero:
            student: Any = pl_module
            # Before training, too: what lies on disk may be another's by its end.
            self._teacher = teacher_identity(student)
            if not self.goes_on and (moved := start_folder(self.folder)):
                rank_zero_info(f"{self.folder} held an earlier run: moved to {moved}.")
            self.folder.mkdir(parents=True, exist_ok=True)
            config = self.folder / CONFIG
            if config.exists() and config.read_text() != self.config:
                move_aside(config)
            write_private_text(config, self.config)
            if self.goes_on and getattr(student, "generate_pairs", None):
                student.sample = _read_sample(self.folder / SAMPLE)
        trainer.strategy.barrier()
        if self.log:
            trainer.loggers = [CSVLogger(self.folder, name="csv"), TensorBoardLogger(self.folder, name="tensorboard")]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sample = getattr(pl_module, "sample", None)
        fits = trainer.state.fn == TrainerFn.FITTING and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if sample and fits and trainer.is_global_zero:
            # Beside the checkpoints and not in them: these are given to others, and hold no texts.
            write_private_text(self.folder / SAMPLE, json.dumps(sample, indent=2, ensure_ascii=False) + "\n")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG_KEY] = self.config
        checkpoint[PLUGINS_KEY] = loaded()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        assert isinstance(pl_module, Student)
        weights = pl_module.whole_weights()
        if not trainer.is_global_zero:
            return
        self._write_student(trainer, pl_module, weights)
        csv_logger = next((logger for logger in trainer.loggers if isinstance(logger, CSVLogger)), None)
        if csv_logger is not None:
            csv_logger.save()
            draw_curves(Path(csv_logger.log_dir) / "metrics.csv", self.folder / "curves.png", pl_module.untrained_metrics)
        rank_zero_info(f"Student, manifest, curves, logs and checkpoints are in {self.folder}.")

    def _write_student(self, trainer: Trainer, student: Student, weights: dict[str, Tensor] | None) -> None:
        folder = self.folder / STUDENT
        folder.mkdir(parents=True, exist_ok=True)
        student.write(folder, weights)
        found = manifest(trainer, student, folder, self._teacher)
        (folder / MANIFEST).write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")


def teacher_identity(student: LightningModule) -> dict[str, Any] | None:
    """What the manifest says of the student's teacher."""
    teacher = getattr(student, "teacher", None)
    if teacher is None:
        return None
    return {"class": type(teacher).__name__, "cache_key": teacher.cache_key(), **teacher.identity()}


def manifest(trainer: Trainer, student: Student, folder: Path, teacher: dict[str, Any] | None) -> dict[str, Any]:
    """What a student is and how it came about, in plain JSON values; `teacher` is the `teacher_identity` it began with."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return {
        "format": 1,
        "kind": student.kind,
        "weights": weights_identity(str(folder)),
        "student": student.describe(),
        "teacher": teacher,
        "task": {"levels": student.task.levels, "prompt": student.task.prompt, "answer": student.task.answer},
        "data": {"path": data.paths["train"], "max_length": data.max_length, "splits": data.fingerprints()},
        "steps": trainer.global_step,
        "metrics": {"untrained": _finite(student.untrained_metrics), "trained": _finite(student.metrics)},
        "versions": {name: version for name in _VERSIONS if (version := _version(name))},
        "python": platform.python_version(),
        "plugins": {
            group: {name: [describe(entry) for entry in entries] for name, entries in discover(group).items()}
            for group in ("lantern_pl.teachers", "lantern_pl.divergences")
        },
    }


def _read_sample(path: Path) -> dict[str, str]:
    """The answers that an earlier part of the run has shown, by their names; none where there's no such file."""
    if not path.is_file():
        return {}
    try:
        sample = json.loads(path.read_text(encoding="utf-8"))
        return {name: text for name, text in sample.items() if isinstance(text, str)}
    except (OSError, ValueError, AttributeError):
        rank_zero_warn(f"{path} can't be read: what the untrained student said won't be shown.")
        return {}


def _finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Figures as JSON has them: what isn't a number, such as a kappa of one level alone, is null."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
