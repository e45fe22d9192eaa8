"""A label store's rows as SQL: how they go into the tables, come out of them, and are deleted."""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Any

from lantern_pl.labelling.store_rows import Answered, Decision, Kind, Purged, stored

if TYPE_CHECKING:
    from lantern_pl.teachers.chat import Attempt

ANSWERS = (
    "key, stage, subject, job_id, candidate_id, pair_id, sample, state, reason, raw, parsed, finish_reason, "
    "prompt_tokens, completion_tokens, cost, repairs, teacher, seconds FROM answers JOIN units ON units.id = unit"
)
_PARSED = [field.name for field in fields(Answered)].index("parsed")
_PUT_UNITS = "INSERT INTO units SELECT NULL, * FROM (VALUES {rows}) WHERE TRUE ON CONFLICT (key) DO NOTHING"
_PUT_ANSWERS = """
INSERT INTO answers
SELECT id, column2, column3, column4, column5, column6, column7, column8, column9, column10, column11, column12
FROM (VALUES {rows}) CROSS JOIN units ON key = column1 WHERE TRUE
ON CONFLICT (unit) DO UPDATE SET
    state = excluded.state, reason = excluded.reason, raw = excluded.raw, parsed = excluded.parsed,
    finish_reason = excluded.finish_reason, prompt_tokens = excluded.prompt_tokens,
    completion_tokens = excluded.completion_tokens, cost = excluded.cost, repairs = excluded.repairs,
    teacher = excluded.teacher, seconds = excluded.seconds
WHERE answers.state = 'quarantined'
"""
_PUT_ATTEMPTS = """
INSERT INTO attempts SELECT NULL, id, column2, column3, column4 FROM (VALUES {rows}) CROSS JOIN units ON key = column1
"""
_SPEND = """
UPDATE spent SET answers = answers + ?, prompt_tokens = prompt_tokens + ?, completion_tokens = completion_tokens + ?,
    cost = cost + ?, unpriced = unpriced + ?
"""
_AT_ONCE = 500
"""Rows of one statement. SQLite takes 32,766 values, and our rows have at most 12."""
_PUT_DECISION = "INSERT INTO decisions VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True)
class Entry:
    """A row on its way, and the same as values of the tables' columns."""

    row: Answered
    unit: tuple[Any, ...]
    answer: tuple[Any, ...]
    attempts: list[tuple[Any, ...]]

    @property
    def key(self) -> str:
        return self.row.key

    def replaces(self, waiting: "Entry") -> bool:
        return waiting.row.state == "quarantined"


def entry(row: Answered, attempts: Sequence["Attempt"]) -> Entry:
    """Raises ValueError for NaN and infinities in what was parsed."""
    unit = (row.key, row.stage, row.subject, row.job_id, row.candidate_id, row.pair_id, row.sample)
    spent = (row.prompt_tokens, row.completion_tokens, row.cost)
    answer = (row.state, row.reason, row.raw, row.parsed, row.finish_reason, *spent, row.repairs, row.teacher, row.seconds)
    return Entry(
        row=row,
        unit=tuple(map(stored, unit)),
        answer=tuple(map(stored, (row.key, *answer))),
        attempts=[(row.key, tried.started, tried.seconds, stored(tried.outcome)) for tried in attempts],
    )


def answered(found: Sequence[Any]) -> Answered:
    """A row as `ANSWERS` lists its columns."""
    values = list(found)
    if values[_PARSED] is not None:
        values[_PARSED] = json.loads(values[_PARSED])
    return Answered(*values)


def put_answers(connection: sqlite3.Connection, entries: Sequence[Entry]) -> None:
    """Add each answer where its question has no ok one yet, and its attempts and spending in any case."""
    _insert(connection, _PUT_UNITS, [entry.unit for entry in entries])
    _insert(connection, _PUT_ANSWERS, [entry.answer for entry in entries])
    _insert(connection, _PUT_ATTEMPTS, [tried for entry in entries for tried in entry.attempts])
    rows = [entry.row for entry in entries]
    costs = [row.cost for row in rows if row.cost is not None]
    tokens = sum(row.prompt_tokens for row in rows), sum(row.completion_tokens for row in rows)
    connection.execute(_SPEND, (len(rows), *tokens, sum(costs), len(rows) - len(costs)))


def _insert(connection: sqlite3.Connection, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Many rows a statement: after each one Python's lock has to be had again from the threads that ask meanwhile."""
    for start in range(0, len(rows), _AT_ONCE):
        some = rows[start : start + _AT_ONCE]
        places = ", ".join(["(" + ", ".join("?" * len(some[0])) + ")"] * len(some))
        connection.execute(statement.format(rows=places), [value for row in some for value in row])


def put_decisions(connection: sqlite3.Connection, decisions: Iterable[Decision]) -> None:
    """Add decisions."""
    connection.executemany(_PUT_DECISION, (tuple(map(stored, astuple(decision))) for decision in decisions))


def delete_subject(
    connection: sqlite3.Connection, subject: str, kind: Kind | None, pairs: Iterable[str]
) -> tuple[Purged, set[str]]:
    """Delete the questions about a subject and about its pairs, with all that hangs on them, and the decisions on its pairs.
    Returns what that was, and the ids of its pairs: those given, and those found."""
    of_subject = f"{kind}_id = :subject" if kind else "FALSE"
    values = {"subject": stored(subject)}
    found = connection.execute(f"SELECT DISTINCT pair_id FROM units WHERE {of_subject} AND pair_id IS NOT NULL", values)
    pairs = {*pairs, *(pair for (pair,) in found), *([subject] if kind == "pair" else [])}

    values["pairs"] = json.dumps(sorted(pairs))
    of_pairs = "pair_id IN (SELECT value FROM json_each(:pairs))"
    count = "SELECT count(*) FROM {table} JOIN units ON units.id = unit " + f"WHERE {of_subject} OR {of_pairs}"
    (answers,) = connection.execute(count.format(table="answers"), values).fetchone()
    (attempts,) = connection.execute(count.format(table="attempts"), values).fetchone()
    connection.execute(f"DELETE FROM units WHERE {of_subject} OR {of_pairs}", values)
    decisions = connection.execute(f"DELETE FROM decisions WHERE {of_pairs}", values).rowcount
    return Purged(answers, attempts, decisions), pairs
