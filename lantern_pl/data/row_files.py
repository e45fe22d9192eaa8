"""Rows of a data file, each with the place where it stands, so that an error can name it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lantern_pl.errors import UserError


class BadRow(Exception):
    """Why a row can't be used. Yielded in the row's place, so that a reader can go on and show all of them together."""


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Each row of a `.jsonl` or `.parquet` file, a folder of `.parquet` files, or one made by `Dataset.save_to_disk`.

    Yields its place ("file:line", or "file: row 0") and its value, a `BadRow` where the value can't be decoded.
    Raises UserError where the file as a whole can't be read.
    """
    if not path.exists():
        raise UserError(
            f"{path} isn't there. To make sample data: lantern data sample --pairs 200 --seed 0 --out {_folder(path)}"
        )
    try:
        if path.is_dir():
            yield from _folder_rows(path)
        elif path.suffix == ".jsonl":
            yield from jsonl_rows(path)
        elif path.suffix == ".parquet":
            yield from _parquet_rows(path)
        else:
            raise UserError(
                f"{path}: can't tell its format from {path.suffix or 'a name without suffix'!r}; expected a .jsonl or "
                ".parquet file, a folder of .parquet files, or a folder made by Dataset.save_to_disk"
            )
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror or error}") from error


def _folder(path: Path) -> Path:
    return path.parent if path.suffix else path


def jsonl_rows(path: Path, offset: int = 0, line: int = 1) -> Iterator[tuple[str, Any]]:
    """As `read_rows`, for a `.jsonl` file, from the byte on where a line begins; `line` is that line's number."""
    # Lines are split as bytes, so that one line that isn't UTF-8 costs only itself, and so that a line separator inside
    # a text (U+2028) doesn't split it.
    with path.open("rb") as file:
        file.seek(offset)
        for number, content in enumerate(file, start=line):
            if content.strip():
                yield f"{path}:{number}", _decode(content)


def _decode(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return BadRow(f"isn't UTF-8 (byte {error.start} of the line): save the file as UTF-8")
    except json.JSONDecodeError as error:
        return BadRow(f"isn't valid JSON ({error.msg}, column {error.colno}): expected one object a line")
    except (ValueError, RecursionError) as error:
        return BadRow(f"isn't readable JSON ({error}): expected one flat object a line")


def _folder_rows(path: Path) -> Iterator[tuple[str, Any]]:
    if (path / "dataset_dict.json").exists():
        splits = sorted(child.name for child in path.iterdir() if (child / "state.json").exists())
        raise UserError(f"{path} holds several data sets: give one of them, such as {path / (splits or ['train'])[0]}")
    if (path / "state.json").exists():
        yield from _saved_rows(path)
        return
    files = sorted(path.glob("*.parquet"))
    if not files:
        raise UserError(
            f"{path} holds neither .parquet files nor a data set made by Dataset.save_to_disk"
            + (f"; did you mean {path / 'pairs.jsonl'}?" if (path / "pairs.jsonl").exists() else "")
        )
    for file in files:
        yield from _parquet_rows(file)


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            for number, row in enumerate(rows):
                yield f"{path}: row {number}", row
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path} isn't a readable parquet file: {error}") from error


def _saved_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import datasets
    import pyarrow

    try:
        for number, row in enumerate(datasets.load_from_disk(str(path))):
            yield f"{path}: row {number}", row
    except (pyarrow.ArrowException, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} isn't a readable data set folder: {error}") from error
