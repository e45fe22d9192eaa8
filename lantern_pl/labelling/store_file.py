"""The file of a label store: its folder, its lock, its tables, and what is said when one of them is in the way."""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lantern_pl.errors import UserError

FILE = "store.sqlite"
LOCK = "lock"

_APPLICATION = 0x4C4E5452  # "LNTR", by which a file is known as a label store
_FORMAT = 1
_TABLES = """
-- A question, and whom it is about.
CREATE TABLE units (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, stage TEXT NOT NULL, subject TEXT NOT NULL,
    job_id TEXT, candidate_id TEXT, pair_id TEXT, sample INTEGER NOT NULL
);
CREATE TABLE answers (
    unit INTEGER PRIMARY KEY REFERENCES units ON DELETE CASCADE, state TEXT NOT NULL, reason TEXT, raw TEXT NOT NULL,
    parsed TEXT, finish_reason TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    cost REAL, repairs INTEGER NOT NULL, teacher TEXT NOT NULL, seconds REAL NOT NULL
);
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY, unit INTEGER NOT NULL REFERENCES units ON DELETE CASCADE,
    started REAL NOT NULL, seconds REAL NOT NULL, outcome TEXT NOT NULL
);
CREATE INDEX attempts_of_unit ON attempts (unit);
CREATE TABLE decisions (
    id INTEGER PRIMARY KEY, pair_id TEXT NOT NULL, reviewer TEXT NOT NULL, verdict TEXT NOT NULL, level TEXT,
    explanation TEXT, note TEXT, at TEXT NOT NULL, rule TEXT
);
-- One row: all that was ever spent.
CREATE TABLE spent (
    answers INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    cost REAL NOT NULL, unpriced INTEGER NOT NULL
);
INSERT INTO spent VALUES (0, 0, 0, 0.0, 0);
-- sha256 of an id that was purged, and of which kind the id is; '' where that isn't known.
CREATE TABLE purged (digest TEXT NOT NULL, kind TEXT NOT NULL, PRIMARY KEY (digest, kind)) WITHOUT ROWID;
"""


def lock_folder(folder: Path, create: bool) -> int:
    """Make the folder a private one and take its lock; returns the lock's file descriptor, which `unlock` takes.

    Raises UserError where the folder can't be a label store's or another process has it.
    """
    _check_folder(folder, create)
    with explained(folder):
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True)
            _sync_folder(folder.absolute().parent)
        # What is there may have been copied without its permissions. Others' are taken away; the owner's stay.
        folder.chmod(folder.stat().st_mode & 0o700)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace") or "of unknown number"
        os.close(descriptor)
        raise UserError(
            f"The label store {folder} is in use by process {holder}: wait until that has ended, or stop it."
        ) from None
    except OSError as error:
        os.close(descriptor)
        raise UserError(cannot(folder, error)) from error
    return descriptor


def unlock(descriptor: int) -> None:
    """Let go of the lock, also on behalf of processes that were forked meanwhile."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def open_file(folder: Path, create: bool) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """A connection that writes and one that reads. Raises UserError where the file isn't a label store of this format."""
    path = folder / FILE
    with explained(folder):
        # SQLite gives its -wal and -shm files the permissions of this one.
        os.close(os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600))
        path.chmod(0o600)
        _sync_folder(folder)
        writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        with explained(folder):
            if _is_blank(writer, path):
                if not create:
                    raise UserError(_no_store(folder))
                _make_tables(writer)
            for setting in ("synchronous = FULL", "secure_delete = ON", "foreign_keys = ON"):
                writer.execute(f"PRAGMA {setting}")
            reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            reader.execute("PRAGMA query_only = ON")
    except BaseException:
        writer.close()
        raise
    return writer, reader


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """What the system or SQLite says against it, as a UserError."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise UserError(cannot(folder, error)) from error


def cannot(folder: Path, error: Exception) -> str:
    """The sentence for an error of the system or of SQLite."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    name = getattr(error, "sqlite_errorname", "") or ""
    advice = "look at the disk, the folder and its permissions"
    if name == "SQLITE_NOTADB":
        return f"{folder / FILE} isn't a label store ({said}): give a folder that `lantern label` wrote, or a new one."
    if name.startswith("SQLITE_CORRUPT"):
        return f"The label store {folder / FILE} is damaged ({said}): restore it from a copy, or begin in a new folder."
    if name == "SQLITE_FULL":
        advice = "make room on the disk"
    elif isinstance(error, PermissionError) or name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN")):
        advice = "make it writable for you, or give another folder"
    elif name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        advice = "another program has the file open: close that"
    return f"The label store {folder} can't be used ({said}): {advice}."


def _check_folder(folder: Path, create: bool) -> None:
    with explained(folder):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file, but a label store is a folder: give another one.")
        found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if FILE not in found and not create:
        raise UserError(_no_store(folder))
    if FILE not in found and found - {LOCK}:
        raise UserError(
            f"{folder} holds other things than a label store, such as {sorted(found - {LOCK})[0]}: give a folder of its own."
        )
    if found and not os.access(folder, os.W_OK):
        raise UserError(f"{folder} can't be written to: make it writable for you, or give another folder.")


def _no_store(folder: Path) -> str:
    return f"{folder} holds no label store: give a folder that `lantern label` wrote."


def _is_blank(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether there is nothing in the file yet: it's new, or its making was cut short. UserError where it isn't ours."""
    application, version = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    )
    if application != _APPLICATION:
        if application or version or connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise UserError(f"{path} isn't a label store, but another program's database: give another folder.")
        return True
    if version > _FORMAT:
        raise UserError(
            f"{path} has format {version}, and this lantern-pl knows formats up to {_FORMAT}: it was written by a newer "
            "one. Install that, or label into a new folder."
        )
    return False


def _make_tables(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(
        f"BEGIN; {_TABLES} PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {_FORMAT}; COMMIT;"
    )


def _sync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
