"""What a run's folder holds, read into plain values; what is missing or can't be read is named."""

import csv
import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lantern_pl.config_file import read_config
from lantern_pl.errors import UserError
from lantern_pl.report.files import AuditFile, ExportFile, Form, TestFile, read_form, read_json

MANIFEST = "manifest.json"
"""A student's manifest: `lantern_pl.model_files.MANIFEST`, which can't be had without torch."""

Points = list[tuple[float, float]]
"""(optimizer steps made, value)"""


@dataclass
class Run:
    """A run's folder.

    name: the shortest tail of its path that tells it from the other runs.
    curves: "train/kl", "val/kl" and so on -> its points.
    problems: files that are there and can't be read, each as a sentence.
    """

    folder: Path
    name: str
    manifest: dict[str, Any] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Points] = field(default_factory=dict)
    seconds: float | None = None
    test: TestFile | None = None
    audit: AuditFile | None = None
    export: dict[str, Any] | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return str((self.manifest or {}).get("kind") or (self.test.kind if self.test else "") or "student")


def read_runs(folders: list[Path]) -> list[Run]:
    """Raises UserError where one isn't a run's folder, or is given twice."""
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} isn't a folder: give a run's, such as runs/quickstart (`run_dir` of its config).")
        if folder.name == "student" and not (folder / "config.yaml").exists() and (folder.parent / "config.yaml").exists():
            raise UserError(f"{folder} is a run's student: give the run itself, {folder.parent}.")
        if not any((folder / name).exists() for name in ("config.yaml", "student", "test.json", "csv")):
            raise UserError(
                f"{folder} holds no run: expected config.yaml, student, csv or test.json, as `lantern fit` leaves."
            )
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        twice = next(folder for folder in resolved if resolved.count(folder) > 1)
        raise UserError(f"{twice} is given twice: give each run once.")
    return [_read(folder, name) for folder, name in zip(folders, _names(resolved), strict=True)]


def _names(folders: list[Path]) -> list[str]:
    for parts in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths have different parts")


def _read(folder: Path, name: str) -> Run:
    run = Run(folder, name)
    run.manifest = _object(run, folder / "student" / MANIFEST)
    run.config = _config(run, folder / "config.yaml")
    run.curves = _curves(run, folder / "csv")
    run.seconds = _seconds(folder / "tensorboard")
    run.test = _form(run, folder / "test.json", TestFile, "lantern test")
    run.audit = _form(run, folder / "audit.json", AuditFile, "lantern audit")
    exported = _form(run, folder / "export.json", ExportFile, "lantern export")
    run.export = exported.model_dump() if exported else None
    return run


def _form(run: Run, path: Path, form: type[Form], command: str) -> Form | None:
    if not path.exists():
        return None
    try:
        return read_form(path, form)
    except UserError as error:
        run.problems.append(f"{error} Run `{command}` again.")
        return None


def _object(run: Run, path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        found = read_json(path)
        if not isinstance(found, dict):
            raise UserError(f"{path} holds no object.")
    except UserError as error:
        run.problems.append(str(error))
        return None
    return found


def _config(run: Run, path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return read_config(str(path))
    except UserError as error:
        run.problems.append(str(error))
        return {}


def _curves(run: Run, folder: Path) -> dict[str, Points]:
    """Those of all parts of a run that was resumed; where two have the same step, the later part's."""
    found: dict[str, dict[float, float]] = defaultdict(dict)
    for path in sorted(folder.glob("version_*/metrics.csv"), key=lambda path: _number(path.parent.name)):
        try:
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    step = _value(row.get("step"))
                    for name, text in row.items():
                        value = _value(text)
                        if step is not None and value is not None and name and "/" in name:
                            found[name][step + 1] = value
        except (OSError, csv.Error, UnicodeDecodeError) as error:
            run.problems.append(f"{path} can't be read as CSV: {error}.")
    return {name: sorted(points.items()) for name, points in found.items()}


def _number(name: str) -> int:
    digits = name.rpartition("_")[2]
    return int(digits) if digits.isdecimal() else -1


def _value(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _seconds(folder: Path) -> float | None:
    """How long training took: each TensorBoard log has its beginning in its name, and was last written at its end."""
    total = 0.0
    for path in folder.glob("version_*/events.out.tfevents.*"):
        began = path.name.split(".")[3]
        lasted = path.stat().st_mtime - int(began) if began.isdecimal() else -1.0
        if not 0 <= lasted < 90 * 86_400:  # a copy has other times
            return None
        total += lasted
    return total or None
