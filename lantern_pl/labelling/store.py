"""The label store: every answer of a teacher, durable before it counts, each question's exactly once.

A SQLite file in a private folder that one process has at a time. The texts of persons are in it: see `purge`.
"""

import hashlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lantern_pl.errors import UserError
from lantern_pl.labelling.group_commits import GroupCommits
from lantern_pl.labelling.store_file import explained, lock_folder, open_file, unlock
from lantern_pl.labelling.store_queries import (
    ANSWERS,
    Entry,
    answered,
    delete_subject,
    entry,
    put_answers,
    put_decisions,
)
from lantern_pl.labelling.store_rows import (
    KINDS,
    Answered,
    Decision,
    Kind,
    Purged,
    Totals,
    check_answer,
    check_decision,
    read,
    stored,
)

if TYPE_CHECKING:
    from lantern_pl.teachers.chat import Attempt

__all__ = ["Answered", "Decision", "Kind", "LabelStore", "Purged", "Totals"]

_PAGE = 256


class LabelStore:
    """The answers, attempts and decisions in a folder. May be used from several threads.

    Args:
        folder: a store's, or one that is empty or not there yet. Only its owner may look into it afterwards.
        create: whether to make a store where there is none.

    Raises UserError where another process has the store, the folder can't be written to, holds other things, or was
    written by a newer lantern-pl.
    """

    def __init__(self, folder: Path, create: bool = True) -> None:
        self.folder = Path(folder)
        self._writing, self._reading = threading.Lock(), threading.Lock()
        self._closed = False
        self._lock = lock_folder(self.folder, create)
        try:
            self._writer, self._reader = open_file(self.folder, create)
        except BaseException:
            unlock(self._lock)
            raise
        self._queue: GroupCommits[Entry] = GroupCommits(self._write)
        try:
            self._purged = set(self._read("SELECT digest, kind FROM purged"))
        except BaseException:
            self.close()
            raise

    # Answers

    def get(self, key: str) -> Answered | None:
        """The answer to the question of this key, committed or waiting to be."""
        waiting = self._queue.find(key)  # before looking into the file: what leaves the queue meanwhile is there
        committed = next(map(answered, self._read(f"SELECT {ANSWERS} WHERE key = ?", (key,))), None)
        if waiting is None or (committed is not None and committed.state == "ok"):
            return committed
        return waiting.row

    def put(self, row: Answered, attempts: Sequence["Attempt"]) -> "Future[None]":
        """Keep an answer and the attempts that it took. Returns a future that is done once they are on the disk.

        A quarantined row gives way to any later one of its key, an ok row to none; attempts and spending add up. The
        future, and each later `put`, raises UserError once the disk refuses; what was committed before stays. Waits where
        the disk is far behind. Raises UserError for a subject that was purged, and ValueError for a row that isn't one.
        """
        check_answer(row, attempts)
        for kind, subject in zip(KINDS, (row.job_id, row.candidate_id, row.pair_id), strict=True):
            if subject is not None and self.is_purged(subject, kind):
                raise UserError(f"The {kind} {subject!r} was purged from {self.folder}: leave it out of the pairs.")
        return self._queue.put(entry(row, attempts))

    def keys(self, stage: str) -> set[str]:
        """The keys of a stage's committed answers."""
        query = "SELECT key FROM units JOIN answers ON units.id = unit WHERE stage = ?"
        return {key for (key,) in self._read(query, (stage,))}

    def rows(self, stage: str | None = None, state: str | None = None) -> Iterator[Answered]:
        """The committed answers, of one stage or state or of all, in the order in which their questions were first put."""
        query = (
            f"SELECT units.id, {ANSWERS} WHERE units.id > ?1 AND (?2 IS NULL OR stage = ?2) AND (?3 IS NULL OR state = ?3) "
            f"ORDER BY units.id LIMIT {_PAGE}"
        )
        # By pages, since a reader that stays keeps SQLite from reusing its log.
        last = 0
        while page := self._read(query, (last, stage, state)):
            yield from (answered(found[1:]) for found in page)
            last = page[-1][0]

    def attempts(self, key: str) -> list["Attempt"]:
        """Every attempt at the question of this key, also those of answers that were replaced or forgotten."""
        from lantern_pl.teachers.chat import Attempt  # that package loads torch, which reviews and purges do without

        query = "SELECT started, seconds, outcome FROM attempts JOIN units ON units.id = unit WHERE key = ?"
        return [Attempt(*found) for found in self._read(f"{query} ORDER BY attempts.id", (key,))]

    def counts(self) -> dict[tuple[str, str, str | None], int]:
        """(stage, state, reason) -> committed rows."""
        query = "SELECT stage, state, reason, count(*) FROM answers JOIN units ON units.id = unit GROUP BY 1, 2, 3"
        return {(stage, state, reason): count for stage, state, reason, count in self._read(f"{query} ORDER BY 1, 2, 3")}

    def totals(self) -> Totals:
        """What was ever spent on the committed answers."""
        ((answers, prompt, completion, cost, unpriced),) = self._read("SELECT * FROM spent")
        outcomes = self._read("SELECT outcome, count(*) FROM attempts GROUP BY 1 ORDER BY 1")
        return Totals(
            answers=answers,
            prompt_tokens=prompt,
            completion_tokens=completion,
            cost=None if answers and answers == unpriced else cost,
            unpriced=unpriced,
            attempts=dict(outcomes),
        )

    def forget_quarantined(self) -> int:
        """Take the quarantined rows out, so that their questions count as unanswered; returns how many. Attempts stay."""
        with self._transaction() as connection:
            return connection.execute("DELETE FROM answers WHERE state = 'quarantined'").rowcount

    # Reviews

    def decide(self, *decisions: Decision) -> None:
        """Add decisions, on the disk when this returns; nothing is replaced. Raises UserError for a pair that was purged."""
        for decision in decisions:
            check_decision(decision)
            if self.is_purged(decision.pair_id, "pair"):
                raise UserError(f"The pair {decision.pair_id!r} was purged from {self.folder}: leave it out.")
        with self._transaction() as connection:
            put_decisions(connection, decisions)

    def decisions(self) -> list[Decision]:
        """All decisions in the order in which they were made."""
        query = "SELECT pair_id, reviewer, verdict, level, explanation, note, at, rule FROM decisions ORDER BY id"
        return [Decision(*found) for found in self._read(query)]

    # Persons

    def kinds(self, subject: str) -> set[Kind]:
        """What this id is the id of: by the rows, the decisions and the earlier purges."""
        queries = {kind: f"SELECT 1 FROM units WHERE {kind}_id = ?1" for kind in KINDS}
        queries["pair"] += " UNION SELECT 1 FROM decisions WHERE pair_id = ?1"
        self._queue.flush()
        return {
            kind
            for kind, query in queries.items()
            if (_digest(subject), kind) in self._purged or self._read(f"{query} LIMIT 1", (stored(subject),))
        }

    def kind_of(self, subject: str, *more: Iterable[Kind]) -> Kind | None:
        """The one kind of this id, by the store and by what is known elsewhere; None for an unknown id. Raises UserError
        where there are several."""
        known = sorted(self.kinds(subject).union(*more))
        if len(known) > 1:
            raise UserError(f"{subject!r} is the id of a {' and of a '.join(known)}: say which one is to be purged.")
        return known[0] if known else None

    def purge(self, subject: str, kind: Kind | None = None, pairs: Iterable[str] = ()) -> Purged:
        """Remove all that is about a job, a candidate or a pair, so that no byte of it is left in the store's files.

        The pairs of a job or candidate go with it, and none of them can be put again: sha256 of their ids is remembered.
        Do it again where it was interrupted.

        Args:
            kind: whose id `subject` is. Without it, what the store knows the id as; raises UserError where that is
                ambiguous. An id that isn't known at all is remembered for every kind.
            pairs: ids of further pairs that it's in, which the store may hold only decisions on.

        `lantern_pl.labelling.purge` does the same with the exports beside the store.
        """
        kind = kind or self.kind_of(subject)
        self._purged.add((_digest(subject), kind or ""))  # first, so that nothing of it is put from here on
        with self._transaction() as connection:
            purged, gone = delete_subject(connection, subject, kind, pairs)
            remembered = {(_digest(subject), kind or ""), *((_digest(pair), "pair") for pair in gone)}
            connection.executemany("INSERT INTO purged VALUES (?, ?) ON CONFLICT DO NOTHING", remembered)
        self._purged |= remembered
        self._sweep()
        return purged

    def is_purged(self, subject: str, kind: Kind | None = None) -> bool:
        """Whether this id was purged: as the id of a job, a candidate or a pair, or without `kind`, as any of them."""
        if not self._purged:
            return False
        digest = _digest(subject)
        return any((digest, purged) in self._purged for purged in ("", *((kind,) if kind else KINDS)))

    # The file

    def close(self) -> None:
        """Write what waits and let go of the folder."""
        if self._closed:
            return
        self._queue.close()
        self._closed = True
        with self._writing, self._reading:
            self._reader.close()
            self._writer.close()
        unlock(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        if self._closed:
            raise RuntimeError("the label store is closed")
        with self._reading, explained(self.folder):
            return [tuple(map(read, found)) for found in self._reader.execute(query, values).fetchall()]

    def _write(self, entries: Sequence[Entry]) -> None:
        try:
            with self._committed() as connection:
                put_answers(connection, entries)
        except UserError as error:
            raise UserError(f"{error} The answers that were being written are lost, those before are kept.") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All that was put before, then what is done inside: durable at the end, or not done at all."""
        if self._closed:
            raise RuntimeError("the label store is closed")
        self._queue.flush()
        with self._committed() as connection:
            yield connection

    @contextmanager
    def _committed(self) -> Iterator[sqlite3.Connection]:
        with self._writing, explained(self.folder):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:  # SQLite itself rolls back after some errors
                    self._writer.execute("ROLLBACK")
                raise

    def _sweep(self) -> None:
        """Leave nothing of what was deleted: SQLite moves rows between pages, and its log keeps earlier pages."""
        with self._writing, self._reading, explained(self.folder):
            self._writer.execute("VACUUM")
            ((busy, *_),) = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if busy:
            raise UserError(
                f"Another program reads {self.folder}, so that traces of what was purged stay in the log: close that "
                "program, and purge again."
            )


def _digest(ident: str) -> str:
    return hashlib.sha256(ident.encode("utf-8", "surrogatepass")).hexdigest()
