"""The folder of `lantern predict`: shards of answers, each whole before it counts, and a manifest of what made them.

While a run is under way, each process notes its finished shards in a journal of its own. The next run takes what is noted
there into the manifest, and so does the end of a run.
"""

import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from lantern_pl.errors import UserError
from lantern_pl.prediction.answers import Answer
from lantern_pl.private_files import write_private, write_private_text
from lantern_pl.signal_sets.manifest import file_digest
from lantern_pl.signal_sets.writer import differences

# Readers of Parquet folders pass over names that begin so.
MANIFEST, REJECTS = "_manifest.json", "_rejects.jsonl"
_JOURNAL = "_done-{rank}.jsonl"
_PART = "part-{shard:05}.parquet"
_OWN = re.compile(r"part-\d{5,}\.parquet|_manifest\.json|_rejects\.jsonl|_done-\d+\.jsonl")
_LEFTOVER = re.compile(r"\.(part-|_manifest|_rejects).+")
"""What `write_private` calls a file until it's whole."""


@dataclass(frozen=True)
class Done:
    """A finished shard: which rows of the input it answers, how many answers it holds, and which rows were left out."""

    shard: int
    first: int
    last: int
    sha256: str
    answers: int
    rejects: list[dict[str, Any]] = field(default_factory=list)


def schema(kind: Literal["encoder", "decoder"], levels: Sequence[str]) -> pa.Schema:
    """The columns of the answers."""
    columns = [
        pa.field("row", pa.int64(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("pair_id", "job_id", "candidate_id")),
        pa.field("level", pa.string()),
        pa.field("level_probs", pa.struct([pa.field(level, pa.float32()) for level in levels])),
        pa.field("score", pa.float32()),
    ]
    if kind == "decoder":
        columns += [
            pa.field("text", pa.string()),
            pa.field("explanation", pa.string()),
            pa.field("valid_format", pa.bool_()),
        ]
    return pa.schema(columns)


class PredictionFolder:
    """The answers to an input.

    Args:
        path: where.
        pairs: the input's path, for a person to read.
        made_from: all that the answers depend on, as JSON values: only a run with the same goes on.
        bounds: first row of each shard, and that after its last.
    """

    def __init__(self, path: Path, pairs: str, made_from: Mapping[str, Any], bounds: Sequence[tuple[int, int]]) -> None:
        self.path = path
        self.pairs = pairs
        self.made_from = json.loads(json.dumps(made_from))
        self.bounds = bounds

    def open(self) -> tuple[list[int], list[str]]:
        """Make the folder, or go on in it. For one process, before any other writes there.

        Returns the shards that are still to do, and for a person what was found damaged. Raises UserError where the folder
        holds other answers, or other files.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            for path in self.path.iterdir():
                if _LEFTOVER.fullmatch(path.name):
                    path.unlink()
            found = {path.name for path in self.path.iterdir()}
        except OSError as error:
            raise UserError(f"prediction.out is {str(self.path)!r}, which can't be a folder: {error.strerror}.") from error
        if others := sorted(name for name in found if not _OWN.fullmatch(name)):
            raise UserError(
                f"prediction.out is {str(self.path)!r}, which holds other things already, such as {others[0]!r}: choose a "
                "folder of its own."
            )
        noted = self._noted() if MANIFEST in found else {}
        whole, damaged = {}, []
        for shard, done in sorted(noted.items()):
            part = self.path / _PART.format(shard=shard)
            if part.is_file() and file_digest(part) == done.sha256:
                whole[shard] = done
            else:
                state = "isn't what was written" if part.is_file() else "is gone"
                damaged.append(f"{part} {state}: it is made again.")
        self._write_manifest(whole.values(), finished=False)
        self._remove_journals()
        return [shard for shard in range(len(self.bounds)) if shard not in whole], damaged

    def _noted(self) -> dict[int, Done]:
        """What earlier runs have finished. Raises UserError where they weren't about the same."""
        path = self.path / MANIFEST
        try:
            manifest = json.loads(path.read_text())
            pairs, there, shards = manifest["pairs"], manifest["made_from"], [Done(**shard) for shard in manifest["shards"]]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"{path} can't be read: delete that folder, or give another --prediction.out.") from error
        if different := differences(there, self.made_from):
            raise UserError(
                f"{str(self.path)!r} holds answers about {pairs!r} that were made otherwise: {'; '.join(different)}. Give "
                "another folder by --prediction.out, or delete that one."
            )
        return {done.shard: done for done in [*shards, *self._journalled()]}

    def _journalled(self) -> list[Done]:
        found = []
        for path in sorted(self.path.glob(_JOURNAL.format(rank="*"))):
            for line in path.read_bytes().splitlines():
                try:
                    found.append(Done(**json.loads(line)))
                except (ValueError, TypeError):  # the last line of a process that was killed: its shard is made again
                    continue
        return found

    def add(self, rank: int, shard: int, table: pa.Table, rejects: list[dict[str, Any]]) -> None:
        """Write a shard, then note it. Raises UserError where the disk is full: what was written before stays."""
        path = self.path / _PART.format(shard=shard)
        content = io.BytesIO()
        pq.write_table(table, content, compression="zstd")
        write_private(path, lambda file: file.write(content.getbuffer()))
        done = Done(shard, *self.bounds[shard], file_digest(path), table.num_rows, rejects)
        journal = self.path / _JOURNAL.format(rank=rank)
        try:
            descriptor = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "a") as file:
                file.write(json.dumps(asdict(done)) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"can't write {journal}: {error.strerror or error}. What was written before stays.") from error

    def finish(self) -> tuple[int, int]:
        """Put the list of all shards into the manifest, and all rejects into one file. For one process, after all others.

        Returns how many answers there are, and how many rejects.
        """
        done = [shard for _, shard in sorted(self._noted().items())]
        rejects = [reject for shard in done for reject in shard.rejects]
        if rejects:
            lines = "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects)
            write_private_text(self.path / REJECTS, lines)
        self._write_manifest(done, finished=len(done) == len(self.bounds))
        self._remove_journals()
        return sum(shard.answers for shard in done), len(rejects)

    def _write_manifest(self, done: Iterable[Done], finished: bool) -> None:
        manifest = {
            "format": 1,
            "kind": "predictions",
            "finished": finished,
            "pairs": self.pairs,
            "made_from": self.made_from,
            "shards": [asdict(shard) for shard in done],
        }
        write_private_text(self.path / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")

    def _remove_journals(self) -> None:
        for path in self.path.glob(_JOURNAL.format(rank="*")):
            path.unlink(missing_ok=True)


def table_of(answers: Iterable[Answer], columns: pa.Schema) -> pa.Table:
    """The answers in the order of their rows."""
    return pa.Table.from_pylist(sorted(answers, key=lambda answer: answer["row"]), columns)
