"""Checkpoints that survive kills, power cuts and full disks: written whole or not at all, and known by their hash."""

import hashlib
import math
import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import CheckpointIO

from lantern_pl.checkpoint_content import wrong_with
from lantern_pl.errors import UserError
from lantern_pl.private_files import write_private, write_private_text

SUFFIX = ".ckpt"
_HASH_SUFFIX = ".sha256"


class DurableCheckpoints(CheckpointIO):
    """How the trainer reads and writes checkpoints.

    A checkpoint is written beside its place, on the same file system, brought to the disk, and renamed. Beside it stands
    its sha256. While a checkpoint replaces another of the same name, both hashes stand there: at no moment is what can be
    read without its own.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        for unfinished in target.parent.glob(f".*{SUFFIX}.*"):  # of runs that were killed
            unfinished.unlink(missing_ok=True)
        hashes = _hash_file(target)

        def write(file: BinaryIO) -> None:
            digest = _write_hashed(checkpoint, file)
            before = [_digest(target)] if target.is_file() else []
            write_private_text(hashes, "".join(f"{each}\n" for each in (digest, *before)))

        write_private(target, write)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """The checkpoint, after its hash was found right. Only tensors and plain values are read, whoever asks for more:
        a checkpoint must not run code."""
        if fault := fault_of(Path(path)):
            raise UserError(f"The checkpoint {str(path)!r} {fault}.")
        return read_checkpoint(Path(path), map_location)

    def remove_checkpoint(self, path: Any) -> None:
        for each in (Path(path), _hash_file(Path(path))):
            each.unlink(missing_ok=True)


def read_checkpoint(path: Path, map_location: Any | None = None) -> dict[str, Any]:
    """What a checkpoint file holds. Raises UserError for one that is damaged, isn't one, or holds more than data."""
    if not path.is_file():
        raise UserError(f"There is no checkpoint {str(path)!r}: give the path of a .ckpt file, or `last` with run_dir.")
    try:
        found = torch.load(path, weights_only=True, map_location=map_location or "cpu", mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"The checkpoint {str(path)!r} isn't one of lantern-pl, or is damaged: it holds more than tensors and plain "
            "values. Nothing in it was run."
        ) from error
    except Exception as error:  # torch has no common class for what a damaged file leads to
        raise UserError(f"The checkpoint {str(path)!r} is damaged, or isn't a checkpoint.") from error
    if not isinstance(found, dict):
        raise UserError(f"The checkpoint {str(path)!r} isn't one of lantern-pl: it holds a {type(found).__name__}.")
    if wrong := wrong_with(found):
        raise UserError(f"The checkpoint {str(path)!r} isn't one of lantern-pl, or is damaged: {wrong}.")
    return found


def newest_good(folder: Path) -> tuple[Path, list[str]]:
    """The checkpoint of a folder that is whole and the furthest on, and what is wrong with each that may be further.

    What counts is the optimizer step in the file: times of files change when a run is copied. The newer of two goes first.
    Links aren't looked at: the trainer's `last.ckpt` is one, and a kill may have come between its removal and its renewal.
    Raises UserError if none is whole.
    """
    files = [path for path in folder.glob(f"*{SUFFIX}") if path.is_file() and not path.is_symlink()]
    skipped: list[str] = []
    for path in sorted(files, key=lambda path: (_step(path), path.stat().st_mtime_ns), reverse=True):
        fault = fault_of(path)
        if fault is None:
            return path, skipped
        skipped.append(f"{path.name} {fault}")
    if skipped:
        raise UserError(f"No checkpoint in {str(folder)!r} is whole: {'; '.join(skipped)}. Start the run anew.")
    raise UserError(f"There is no checkpoint in {str(folder)!r}: give the path of a .ckpt file, or `last` with run_dir.")


def _step(path: Path) -> float:
    """How many optimizer steps a checkpoint is on; where its content doesn't say so, its name; else it goes first."""
    try:
        step = read_checkpoint(path).get("global_step")
    except UserError:
        step = None
    if isinstance(step, int):
        return step
    named = re.search(r"step=(\d+)", path.name)
    return int(named[1]) if named else math.inf


def has_hash(path: Path) -> bool:
    """Whether its sha256 stands beside a checkpoint. Without, damage that leaves it readable isn't seen."""
    return _hash_file(path).is_file()


def fault_of(path: Path) -> str | None:
    """What is wrong with a checkpoint file, or None. One without a hash beside it is tried."""
    hashes = _hash_file(path)
    if path.is_file() and has_hash(path):
        if _digest(path) in hashes.read_text(errors="replace").split():
            return None
        return f"is damaged: its content isn't what {hashes.name} says"
    try:
        read_checkpoint(path)
    except UserError as error:
        return f"can't be read ({error})"
    return None


def _hash_file(path: Path) -> Path:
    path = path.resolve()  # the trainer's last.ckpt is a link
    return path.with_name(path.name + _HASH_SUFFIX)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _HashingFile:
    """Hashes what is written, and keeps the fault of the disk, which torch hides behind one of its own."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.fault: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:
            self.fault = error
            raise
        self._hash.update(data)
        return written

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _write_hashed(checkpoint: dict[str, Any], file: BinaryIO) -> str:
    """Write a checkpoint; returns its sha256."""
    hashing = _HashingFile(file)
    try:
        torch.save(checkpoint, hashing)  # type: ignore[arg-type]  # torch needs no more than these
    except RuntimeError as error:
        raise hashing.fault or error from error
    return hashing.hexdigest()
