"""The exports beside a label store, as a purge sees them: rows with ids."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lantern_pl.errors import UserError
from lantern_pl.labelling.store_rows import Kind
from lantern_pl.private_files import write_private

_FIELDS: Mapping[str, Kind] = {"job_id": "job", "candidate_id": "candidate", "resume_id": "candidate", "pair_id": "pair"}
_UNFINISHED = re.compile(r".+\.part|\..+\.(jsonl|parquet)\..+")
"""What lantern-pl calls a file until it's whole."""

_OF_SIGNALS = re.compile(
    r"(?:shard-\d{5,}|head)\.safetensors|(?:manifest|unfinished)\.json|\.(?:shard-|head|manifest|unfinished).+"
)
"""The files of a signal set, and what they're called until they're whole."""

Ids = Mapping[Kind, str]


def exports_in(folder: Path) -> list[Path]:
    """The exports in a folder and the folders of it."""
    return [path for path in _files(folder) if path.suffix in (".jsonl", ".parquet") and not path.name.startswith(".")]


def delete_unfinished(folder: Path) -> None:
    """Delete what interrupted exports have left."""
    for path in _files(folder):
        if _UNFINISHED.fullmatch(path.name):
            path.unlink()


def delete_signal_set(folder: Path) -> int:
    """Delete what `lantern cache` has written into a folder, and the folder if nothing else is in it; returns how many files
    that was. Raises UserError where other files of these kinds could be meant."""
    if not folder.is_dir():
        return 0
    own = [path for path in folder.iterdir() if _OF_SIGNALS.fullmatch(path.name)]
    states = [path for path in own if path.suffix == ".json"]
    if (not states and own) or not all(_tells_of_signals(path) for path in states):
        raise UserError(f"{folder} holds no signal set, of `lantern cache`: nothing is deleted there.")
    # The states last: where this is interrupted, it's still known what the rest is.
    for path in sorted(own, key=lambda path: path.suffix == ".json"):
        path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
    return len(own)


def _tells_of_signals(path: Path) -> bool:
    try:
        state = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(state, dict) and {"teacher", "shards"} <= ({*state, *state.get("settings", {})})


class Export:
    """A `.jsonl` or `.parquet` file.

    Attributes:
        unread: places of what can't be read, "file:line" or the file, once its rows were gone through.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unread: list[str] = []

    def kinds(self, subject: str) -> set[Kind]:
        """What `subject` is the id of, by this file's rows."""
        return {kind for ids in self._ids() for kind, ident in ids.items() if ident == subject}

    def pairs(self, is_gone: Callable[[Ids], bool]) -> set[str]:
        """The pairs of the rows for whose ids `is_gone`."""
        return {ids["pair"] for ids in self._ids() if "pair" in ids and is_gone(ids)}

    def drop(self, is_gone: Callable[[Ids], bool]) -> int:
        """Write the file anew without the rows for whose ids `is_gone`; returns how many these are. A file without such rows
        isn't touched. Raises UserError where it can't be written; it stays then."""
        count = sum(map(is_gone, self._ids()))
        if count:
            write_private(self.path, lambda file: self._write_without(is_gone, file))
        return count

    def _ids(self) -> Iterator[Ids]:
        self.unread = []
        if self.path.suffix == ".parquet":
            yield from self._parquet_ids()
            return
        for number, line in enumerate(self._lines(), start=1):
            ids = _ids_of_line(line)
            if ids is None:
                self.unread.append(f"{self.path}:{number}")
            else:
                yield ids

    def _lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            yield from file

    def _parquet_ids(self) -> Iterator[Ids]:
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                columns = [name for name in file.schema_arrow.names if name in _FIELDS]
                # Without columns there would be no rows.
                for batch in file.iter_batches(columns=columns) if columns else ():
                    yield from map(_ids, batch.to_pylist())
        except (pyarrow.ArrowException, UnicodeDecodeError):
            self.unread.append(str(self.path))

    def _write_without(self, is_gone: Callable[[Ids], bool], target: BinaryIO) -> None:
        if self.path.suffix == ".parquet":
            self._write_parquet_without(is_gone, target)
            return
        for line in self._lines():
            ids = _ids_of_line(line)
            if ids is None or not is_gone(ids):
                target.write(line)

    def _write_parquet_without(self, is_gone: Callable[[Ids], bool], target: BinaryIO) -> None:
        import pyarrow
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(self.path) as source:
            codec = source.metadata.row_group(0).column(0).compression
            codec = "NONE" if codec == "UNCOMPRESSED" else codec
            with pyarrow.parquet.ParquetWriter(target, source.schema_arrow, compression=codec) as writer:
                for group in range(source.num_row_groups):
                    table = source.read_row_group(group)
                    columns = [name for name in table.column_names if name in _FIELDS]
                    kept = [not is_gone(_ids(row)) for row in table.select(columns).to_pylist()]
                    writer.write_table(table.filter(pyarrow.array(kept, pyarrow.bool_())))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _ids_of_line(line: bytes) -> Ids | None:
    """The ids of a line; None where it can't be read."""
    try:
        row = json.loads(line.decode("utf-8-sig")) if line.strip() else {}
    except (ValueError, RecursionError):
        return None
    return _ids(row) if isinstance(row, dict) else None


def _ids(row: Mapping[str, Any]) -> Ids:
    """Ids may be numbers: see `data.records`."""
    return {kind: str(row[name]) for name, kind in _FIELDS.items() if row.get(name) is not None}
