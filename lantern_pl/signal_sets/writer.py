"""Writes a signal set shard by shard: each is whole before it counts, and the manifest comes last."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from lantern_pl.errors import UserError
from lantern_pl.private_files import write_private, write_private_text
from lantern_pl.signal_sets.manifest import MANIFEST, UNFINISHED, Manifest, Shard, dump, file_digest

_LEFTOVER = re.compile(r"\.(shard-|head|manifest|unfinished).+")
"""What `write_private` calls a file until it's whole."""


_SHARD = re.compile(r"shard-\d{5,}\.safetensors")


def reopen(folder: Path, manifest: Manifest, settings: Mapping[str, Any]) -> None:
    """Make a finished set an unfinished one, of which a run with these settings makes what was damaged anew."""
    extra = {"head": manifest.head.model_dump()} if manifest.head else {}
    _write_state(folder, settings, manifest.shards, extra)
    (folder / MANIFEST).unlink()


class SetWriter:
    """A signal set in the making.

    Until it is finished there is no manifest, but a file of what was done so far, with which the same run goes on.

    Args:
        folder: where; made if it's missing.
        settings: all that the signals depend on, as JSON values: only a run with the same goes on.

    Raises:
        UserError: where the folder holds a set with other settings, or other files.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.settings = json.loads(json.dumps(settings))
        self.done: dict[int, Shard] = {}
        self.extra: dict[str, Any] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for path in folder.iterdir():
                if _LEFTOVER.fullmatch(path.name):
                    path.unlink()
            found = sorted(path.name for path in folder.iterdir())
        except OSError as error:
            raise UserError(f"signals is {str(folder)!r}, which can't be a folder: {error.strerror}.") from error
        if UNFINISHED in found:
            self._go_on()
        elif found:
            raise UserError(f"signals is {str(folder)!r}, which holds other things already: choose a folder of its own.")
        else:
            self._note()

    def _go_on(self) -> None:
        state = self._read_state()
        if different := differences(state["settings"], self.settings):
            raise UserError(
                f"{str(self.folder)!r} holds an unfinished signal set with other settings: {'; '.join(different)}. Choose "
                "another folder for signals, or delete that one."
            )
        for shard in state["shards"]:
            if is_whole(self.folder, shard):  # or it's made again
                self.done[int(shard.file[len("shard-") : -len(".safetensors")])] = shard
        head = state["extra"].get("head")
        if head is not None and is_whole(self.folder, Shard.model_validate(head)):
            self.extra["head"] = head

    def _read_state(self) -> dict[str, Any]:
        path = self.folder / UNFINISHED
        try:
            state = json.loads(path.read_text())
            shards = [Shard.model_validate(shard) for shard in state["shards"]]
            if not all(_SHARD.fullmatch(shard.file) for shard in shards):
                raise ValueError
            return {"settings": dict(state["settings"]), "shards": shards, "extra": dict(state["extra"])}
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"{path} can't be read: delete that folder, and start anew.") from error

    @property
    def shards(self) -> list[Shard]:
        """Those that are written, in their order."""
        return [shard for _, shard in sorted(self.done.items())]

    def add(self, number: int, arrays: Mapping[str, Tensor], examples: int, tokens: int, pairs: int) -> None:
        """Write a shard, in any order. Raises UserError where the disk is full: what was written before stays."""
        self.done[number] = self._write(f"shard-{number:05}.safetensors", arrays, examples, tokens, pairs)
        self._note()

    def add_head(self, arrays: Mapping[str, Tensor]) -> None:
        """Write the output head of hidden states."""
        self.extra["head"] = self._write("head.safetensors", arrays, 0, 0, 0).model_dump()
        self._note()

    def finish(self, manifest: Manifest) -> None:
        """Put the manifest in place: from now on it's a signal set."""
        write_private_text(self.folder / MANIFEST, dump(manifest))
        (self.folder / UNFINISHED).unlink()

    def _write(self, name: str, arrays: Mapping[str, Tensor], examples: int, tokens: int, pairs: int) -> Shard:
        path = self.folder / name
        content = save({key: tensor.contiguous() for key, tensor in arrays.items()})
        write_private(path, lambda file: file.write(content))
        return Shard(file=name, sha256=file_digest(path), bytes=len(content), examples=examples, tokens=tokens, pairs=pairs)

    def _note(self) -> None:
        _write_state(self.folder, self.settings, self.shards, self.extra)


def _write_state(folder: Path, settings: Mapping[str, Any], shards: Sequence[Shard], extra: Mapping[str, Any]) -> None:
    state = {"settings": settings, "shards": [shard.model_dump() for shard in shards], "extra": extra}
    write_private_text(folder / UNFINISHED, json.dumps(state, indent=2) + "\n")


def is_whole(folder: Path, shard: Shard) -> bool:
    path = folder / shard.file
    return path.is_file() and file_digest(path) == shard.sha256


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What two settings differ in, for a person."""
    found = []
    for name in sorted({*there, *here}):
        old, new = there.get(name), here.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += [f"{name}.{line}" for line in differences(old, new)]
        elif old != new:
            found.append(f"{name} there is {_short(old)}, here {_short(new)}")
    return found


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
