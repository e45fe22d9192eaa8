"""Whether files are still what a manifest has recorded. Torch-free, and within a budget of bytes: a report comes at once."""

import hashlib
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lantern_pl.data.pair import Pair
from lantern_pl.data.records import fingerprint, read_pairs
from lantern_pl.data.splits import split_pairs
from lantern_pl.errors import UserError
from lantern_pl.tasks import Task

State = Literal["same", "changed", "unchecked", "missing"]
"""same: as it was then, by its hash. changed: it isn't. unchecked: nothing to compare, or too much. missing: not found."""
Compared = tuple[State, str]
"""And why that is thought."""

BUDGET = 1 << 30
"""Bytes that are read to check hashes: some three seconds' worth."""
MAX_PAIRS = 64 << 20
"""Bytes of a file of pairs, beyond which its pairs aren't parsed and split again."""


@dataclass
class Checker:
    """Hashes files while its budget lasts, none twice.

    everything: whether to check files of any size.
    """

    everything: bool = False
    left: int = BUDGET
    _digests: dict[tuple[Path, ...], str] = field(default_factory=dict)
    _pairs: dict[tuple[Path, str, str], list[Pair]] = field(default_factory=dict)

    def file_digest(self, path: Path) -> str | None:
        """sha256 of a file in hex, None where it's too large for what is left of the budget, or can't be read."""
        return self._digest((path,), lambda: _sha256(path).hex())

    def weights(self, folder: Path) -> str | None:
        """`lantern_pl.model_files.weights_identity` of a folder, None where its files are too large for the budget."""
        paths = tuple(sorted(folder.glob("*.safetensors")))
        return self._digest(paths, lambda: f"sha256 {hashlib.sha256(b''.join(map(_sha256, paths))).hexdigest()[:16]}")

    def pairs(self, path: Path, task: Task, job_text: str) -> list[Pair] | None:
        """The pairs of a file, None where it's too large or can't be read as pairs."""
        key = (path, repr(task), job_text)
        if key not in self._pairs:
            if not self.everything and _size(path) > MAX_PAIRS:
                return None
            try:
                self._pairs[key] = read_pairs(path, task, job_text)
            except UserError:
                return None
        return self._pairs[key]

    def _digest(self, paths: tuple[Path, ...], digest: Any) -> str | None:
        if paths not in self._digests:
            size = sum(map(_size, paths))
            if not self.everything and size > self.left:
                return None
            self.left -= size
            try:
                self._digests[paths] = digest()
            except OSError:
                return None
        return self._digests[paths]


def same_splits(pairs: list[Pair], config: Mapping[str, Any], recorded: Mapping[str, Mapping[str, Any]]) -> bool | None:
    """Whether these pairs give the training split that a student's manifest has recorded.

    config: the data module's arguments, as in a run's config.yaml. None where they don't split these pairs.
    """
    val, test = (
        0.0 if config.get(f"{name}_path") else float(config.get(f"{name}_fraction", 0.1)) for name in ("val", "test")
    )
    try:
        train = split_pairs(pairs, val, test, int(config.get("split_seed", 0))).train
    except UserError:
        return None
    return fingerprint(train) == recorded.get("train", {}).get("sha256")


def compared(now: str | None, recorded: Any, what: str) -> Compared:
    """A hash as it is now, None where it wasn't read, with the recorded one."""
    if not recorded:
        return "unchecked", f"no hash of {what} was recorded"
    if now is None:
        return "unchecked", f"{what} wasn't read: it isn't there, or large (--check_all reads it)"
    if now == recorded:
        return "same", f"{what}: the same hash, {_shorter(now)}"
    return "changed", f"{what}: has changed since, {_shorter(str(recorded))} then, {_shorter(now)} now"


def _shorter(digest: str) -> str:
    return f"{digest.removeprefix('sha256 ')[:12]}…"


def same_pairs(pairs: Sequence[Pair] | None, recorded: Mapping[str, Any]) -> Compared:
    """Pairs, None where they weren't read, with the fingerprint that a manifest has recorded."""
    if pairs is None:
        return "unchecked", "its pairs weren't read: too many for a report, or of another form"
    return compared(fingerprint(pairs), recorded.get("sha256"), "its pairs")


def spent(labels: Path) -> dict[str, Any] | None:
    """What a label store has ever spent: answers, prompt_tokens, completion_tokens, cost, unpriced. None without one."""
    store = labels / "store.sqlite"
    if not store.is_file():
        return None
    columns = ("answers", "prompt_tokens", "completion_tokens", "cost", "unpriced")
    try:
        connection = sqlite3.connect(f"{store.absolute().as_uri()}?mode=ro", uri=True, timeout=1)
        try:
            row = connection.execute(f"SELECT {', '.join(columns)} FROM spent").fetchone()
        finally:
            connection.close()
    except sqlite3.Error:
        return None
    return dict(zip(columns, row, strict=True)) if row else None


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _size(path: Path) -> int:
    try:
        return sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
    except OSError:
        return 0
