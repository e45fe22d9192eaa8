"""What to export: a run's student, and the pairs to measure it on."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lantern_pl.config_file import read_config
from lantern_pl.data.pair import Pair
from lantern_pl.data.pair_data import PairDataModule
from lantern_pl.data.records import pair_of, read_pairs
from lantern_pl.data.sample import make_pairs
from lantern_pl.errors import UserError
from lantern_pl.model_files import MANIFEST
from lantern_pl.run_folder import CONFIG
from lantern_pl.tasks import Task

_MADE_UP = 256
"""Pairs of the sample generator to measure speed on, where a run has none of its own."""


@dataclass(frozen=True)
class Source:
    """A student as its folder describes it. `run` is None where only the student's folder was given."""

    student: Path
    run: Path | None
    manifest: dict[str, Any]

    @property
    def task(self) -> Task:
        """The question that it answers."""
        return Task(**self.manifest["task"])

    def file(self, name: str) -> dict[str, Any] | None:
        """test.json or audit.json of the run, or None. Raises UserError for one that can't be read."""
        path = None if self.run is None else self.run / name
        if path is None or not path.is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"can't read {path}: {error}. Make it anew, or move it away.") from error
        return found


def read_source(path: Path) -> Source:
    """A run's folder, or a student's. Raises UserError for anything else."""
    student = path / "student" if (path / "student").is_dir() else path
    manifest_path = student / MANIFEST
    if not manifest_path.is_file():
        what = "is no folder" if not path.is_dir() else f"has neither student/{MANIFEST} nor {MANIFEST}"
        raise UserError(f"{str(path)!r} {what}: give the folder of a run of `lantern fit` (run_dir) that came to its end.")
    try:
        manifest = json.loads(manifest_path.read_text())
        kind, _ = manifest["kind"], (manifest["task"], manifest["data"]["max_length"], manifest["weights"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{manifest_path} isn't what `lantern fit` writes: {error!r}. Train or copy the student anew."
        ) from error
    if kind not in ("encoder", "decoder"):
        raise UserError(f"{manifest_path} says kind {kind!r}: encoder or decoder is needed.")
    run = path if student != path else path.parent if (path.parent / CONFIG).is_file() else None
    return Source(student, run, manifest)


def pairs_to_measure(source: Source, given: Path | None, limit: int) -> tuple[list[Pair], str]:
    """At most `limit` pairs, and where they are from: `given`, else the run's test split, else made up.

    Raises UserError where `given` can't be read, or holds no pair.
    """
    if given is not None:
        pairs = read_pairs(str(given), source.task)
        if not pairs:
            raise UserError(f"{given} holds no pair.")
        return pairs[:limit], str(given)
    try:
        pairs = _test_split(source)
    except UserError:
        pairs = []
    if pairs:
        return pairs[:limit], "the run's test split"
    rows = ({name: row[name] for name in _TEXTS} for row in make_pairs(min(limit, _MADE_UP), seed=0))
    made = [pair_of(row, source.task, "job_text") for row in rows]
    return made, "the sample generator (the run's test pairs can't be read: give --pairs FILE)"


_TEXTS = ("pair_id", "job_id", "candidate_id", "job_text", "candidate_text")


def _test_split(source: Source) -> list[Pair]:
    if source.run is None or not (source.run / CONFIG).is_file():
        return []
    data = read_config(str(source.run / CONFIG)).get("data") or {}
    if data.get("class_path") not in ("lantern_pl.data.PairDataModule", "lantern_pl.data.pair_data.PairDataModule"):
        return []
    try:
        return PairDataModule(**{**data["init_args"], "task": source.task}).read_splits()["test"]
    except (TypeError, KeyError) as error:  # a config of another version
        raise UserError(f"{source.run / CONFIG}: {error}") from error
