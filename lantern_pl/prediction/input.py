"""The rows of a data set of any size, shard by shard: read where they stand, never all at once."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from lantern_pl.data.row_files import jsonl_rows, read_rows
from lantern_pl.errors import UserError

Kind = Literal["jsonl", "parquet", "saved"]
_BLOCK = 1 << 20
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class InputFile:
    """One file of the input, known by its content."""

    path: Path
    bytes: int
    sha256: str
    rows: int


@dataclass(frozen=True)
class Start:
    """Where a shard begins: in which of the files, and there at which byte and line, or at which row."""

    file: int
    offset: int
    line: int


@dataclass(frozen=True)
class Input:
    """A data set that was read through once, to know its content and where each shard begins.

    path: as the user gave it. starts: of each shard. shard_rows: rows of each shard, but for the last. rows: of all.
    """

    path: Path
    kind: Kind
    files: list[InputFile]
    starts: list[Start]
    shard_rows: int
    rows: int

    @property
    def sha256(self) -> str:
        """Of its content: that of the one file, or of all files' hashes."""
        if len(self.files) == 1:
            return self.files[0].sha256
        return hashlib.sha256("".join(file.sha256 for file in self.files).encode()).hexdigest()

    def bounds(self, shard: int) -> tuple[int, int]:
        """The first row of a shard, and that after its last."""
        return shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows)


def data_files(path: Path) -> tuple[Kind, list[Path]]:
    """What a data set consists of. Raises UserError where it can't be one; looks at the beginning of its files at most."""
    kind: Kind = "jsonl" if path.suffix == ".jsonl" else "parquet"
    files = [path]
    if path.is_dir() and (path / "state.json").exists():
        kind = "saved"
    elif path.is_dir():
        kinds: tuple[Kind, ...] = ("parquet", "jsonl")
        kind = next((known for known in kinds if any(path.glob(f"*.{known}"))), "jsonl")
        files = sorted(path.glob(f"*.{kind}"))
    if kind == "jsonl" or not path.exists():
        next(read_rows(files[0] if files else path), None)  # whose message says what is wrong
    else:
        for file in files:
            _row_count(file, kind)
    return kind, files


def scan(path: Path, shard_rows: int, limit: int | None, advance: Callable[[int], object] = lambda read: None) -> Input:
    """Read the data set through once.

    Args:
        limit: only the first so many rows, or None for all; the hashes are of whole files all the same.
        advance: told how many bytes were read since the last time.

    Raises UserError where a file can't be read, and where there is no row.
    """
    kind, paths = data_files(path)
    files: list[InputFile] = []
    starts: list[Start] = []
    total = 0
    try:
        for number, file in enumerate(paths):
            first = (-total) % shard_rows  # the row of this file with which the next shard begins
            if kind == "jsonl":
                found, begins = _scan_lines(file, first, shard_rows, advance)
                starts += [Start(number, offset, line) for offset, line in begins]
            else:
                found = _scan_bytes(file, kind, advance)
                starts += [Start(number, row, row) for row in range(first, found.rows, shard_rows)]
            files.append(found)
            total += found.rows
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror or error}") from error
    if not total:
        raise UserError(f"{path} holds no pairs: expected at least one row with job_text and candidate_text")
    rows = total if limit is None else min(limit, total)
    return Input(path, kind, files, starts[: -(-rows // shard_rows)], shard_rows, rows)


def _scan_lines(
    path: Path, first: int, step: int, advance: Callable[[int], object]
) -> tuple[InputFile, list[tuple[int, int]]]:
    """A file of lines, and where its rows `first`, `first` + `step` and so on stand, by byte and line."""
    digest = hashlib.sha256()
    offset = rows = told = 0
    begins = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            digest.update(line)
            if line.strip():
                if rows >= first and (rows - first) % step == 0:
                    begins.append((offset, number))
                rows += 1
            offset += len(line)
            if offset - told >= _BLOCK:
                advance(offset - told)
                told = offset
    advance(offset - told)
    return InputFile(path, offset, digest.hexdigest(), rows), begins


def _scan_bytes(path: Path, kind: Kind, advance: Callable[[int], object]) -> InputFile:
    """A file that says itself how many rows it has."""
    digest = hashlib.sha256()
    size = 0
    parts = sorted(part for part in path.iterdir() if part.is_file()) if kind == "saved" else [path]
    for part in parts:
        with part.open("rb") as file:
            for block in iter(lambda file=file: file.read(_BLOCK), b""):  # type: ignore[misc]
                digest.update(block)
                size += len(block)
                advance(len(block))
    return InputFile(path, size, digest.hexdigest(), _row_count(path, kind))


def _row_count(path: Path, kind: Kind) -> int:
    if kind == "saved":
        import datasets

        return len(datasets.load_from_disk(str(path)))
    import pyarrow
    import pyarrow.parquet

    if path.suffix != ".parquet":
        next(read_rows(path))
    try:
        return int(pyarrow.parquet.read_metadata(path).num_rows)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} isn't a readable parquet file: {error}") from error


class ShardReader:
    """Reads shards of an input. One that follows the last is read on from there."""

    def __init__(self, source: Input, fields: set[str]) -> None:
        self.source = source
        self.fields = fields
        self._next = -1
        self._stream: Iterator[tuple[str, Any]] = iter(())

    def rows(self, shard: int) -> Iterator[tuple[str, Any]]:
        """Place and value of each of the shard's rows; a `BadRow` where the value can't be decoded."""
        first, last = self.source.bounds(shard)
        if first != self._next:
            self._stream = self._from(self.source.starts[shard])
        self._next = last
        yield from islice(self._stream, last - first)

    def _from(self, start: Start) -> Iterator[tuple[str, Any]]:
        for number, file in enumerate(self.source.files[start.file :]):
            at = start if number == 0 else Start(0, 0, 1 if self.source.kind == "jsonl" else 0)
            try:
                if self.source.kind == "jsonl":
                    yield from jsonl_rows(file.path, at.offset, at.line)
                elif self.source.kind == "parquet":
                    yield from _parquet_rows(file.path, at.line, self.fields)
                else:
                    yield from _saved_rows(file.path, at.line, self.fields)
            except OSError as error:
                raise UserError(f"can't read {file.path}: {error.strerror or error}") from error


def _parquet_rows(path: Path, first: int, fields: set[str]) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        # Buffered, or a whole row group is read at once, which may be all of the file.
        with pyarrow.parquet.ParquetFile(path, buffer_size=_BLOCK) as file:
            columns = [name for name in file.schema_arrow.names if name in fields]
            row, group = 0, 0
            while group < file.num_row_groups and row + file.metadata.row_group(group).num_rows <= first:
                row += file.metadata.row_group(group).num_rows
                group += 1
            groups = list(range(group, file.num_row_groups))
            for batch in file.iter_batches(_ROWS_AT_ONCE, groups, columns):
                if row + len(batch) > first:
                    skipped = max(first - row, 0)
                    for number, value in enumerate(batch.slice(skipped).to_pylist(), start=row + skipped):
                        yield f"{path}: row {number}", value
                row += len(batch)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path} isn't a readable parquet file: {error}") from error


def _saved_rows(path: Path, first: int, fields: set[str]) -> Iterator[tuple[str, Any]]:
    import datasets

    saved: Any = datasets.load_from_disk(str(path))
    saved = saved.select_columns([name for name in saved.column_names if name in fields])
    for start in range(first, len(saved), _ROWS_AT_ONCE):
        columns = saved[start : start + _ROWS_AT_ONCE]
        for number in range(min(_ROWS_AT_ONCE, len(saved) - start)):
            yield f"{path}: row {start + number}", {name: values[number] for name, values in columns.items()}
