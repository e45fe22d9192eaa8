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
_PUT_UNIT = "INSERT INTO units VALUES (NULL, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING"
_PUT_ANSWER = """
INSERT INTO answers SELECT id, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ? FROM units WHERE key = ?
ON CONFLICT (unit) DO UPDATE SET
    state = excluded.state, reason = excluded.reason, raw = excluded.raw, parsed = excluded.parsed,
    finish_reason = excluded.finish_reason, prompt_tokens = excluded.prompt_tokens,
    completion_tokens = excluded.completion_tokens, cost = excluded.cost, repairs = excluded.repairs,
    teacher = excluded.teacher, seconds = excluded.seconds
WHERE answers.state = 'quarantined'
"""
_PUT_ATTEMPT = "INSERT INTO attempts SELECT NULL, id, ?, ?, ? FROM units WHERE key = ?"
_SPEND = """
UPDATE spent SET answers = answers + 1, prompt_tokens = prompt_tokens + ?1, completion_tokens = completion_tokens + ?2,
    cost = cost + ifnull(?3, 0), unpriced = unpriced + (?3 IS NULL)
"""
_PUT_DECISION = "INSERT INTO decisions VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True)
class Entry:
    """A row on its way, and the same as values of the tables' columns."""

    row: Answered
    unit: tuple[Any, ...]
    answer: tuple[Any, ...]
    spent: tuple[Any, ...]
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
        answer=tuple(map(stored, (*answer, row.key))),
        spent=spent,
        attempts=[(tried.started, tried.seconds, stored(tried.outcome), row.key) for tried in attempts],
    )


def answered(found: Sequence[Any]) -> Answered:
    """A row as `ANSWERS` lists its columns."""
    values = list(found)
    if values[_PARSED] is not None:
        values[_PARSED] = json.loads(values[_PARSED])
    return Answered(*values)


def put_answers(connection: sqlite3.Connection, entries: Sequence[Entry]) -> None:
    """Add each answer where its question has no ok one yet, and its attempts and spending in any case."""
    connection.executemany(_PUT_UNIT, (entry.unit for entry in entries))
    connection.executemany(_PUT_ANSWER, (entry.answer for entry in entries))
    connection.executemany(_PUT_ATTEMPT, (tried for entry in entries for tried in entry.attempts))
    connection.executemany(_SPEND, (entry.spent for entry in entries))


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
