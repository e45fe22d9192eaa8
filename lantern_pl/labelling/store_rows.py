"""The rows of a label store: what its callers give and get."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    # That package loads torch, which reviews and purges do without.
    from lantern_pl.teachers.chat import Attempt

State = Literal["ok", "quarantined"]
Kind = Literal["job", "candidate", "pair"]
Verdict = Literal["accept", "edit", "reject"]

KINDS: tuple[Kind, ...] = get_args(Kind)

_MAX_INTEGER = 2**63 - 1  # SQLite's
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


@dataclass(frozen=True)
class Answered:
    """The answer to one question: a label when `state` is "ok", else kept with the reason why it isn't one.

    key: sha256 of the canonical request. Questions about different subjects need different keys, also where their texts
        are the same: a purge goes by the ids that are stored with the key.
    subject: the id of what was asked about, one of the three ids. A question about a pair holds all three.
    raw: the answer as it came; parsed: what was read from it.
    prompt_tokens, completion_tokens, cost: of all turns; `cost` is None where it isn't known.
    repairs: how often the teacher was asked again for a better form.
    teacher: the teacher's cache key.
    """

    key: str
    stage: str
    subject: str
    job_id: str | None
    candidate_id: str | None
    pair_id: str | None
    sample: int
    state: State
    reason: str | None
    raw: str
    parsed: dict[str, Any] | None
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    repairs: int
    teacher: str
    seconds: float


@dataclass(frozen=True)
class Decision:
    """What a reviewer, or a rule in a reviewer's name, says about a pair's label.

    level, explanation: what stands after the decision, where the verdict is "edit"; None leaves the label's own.
    at: when, ISO 8601 in UTC.
    rule: the rule that decided; None for a person.
    """

    pair_id: str
    reviewer: str
    verdict: Verdict
    level: str | None
    explanation: str | None
    note: str | None
    at: str
    rule: str | None


@dataclass(frozen=True)
class Totals:
    """What was ever spent on a store's answers, those included that were replaced, forgotten or purged since.

    answers: how many were put.
    cost: sum of the known costs; None where there are answers and no cost is known.
    unpriced: how many answers have no known cost; where there are any, `cost` is less than what was spent.
    attempts: outcome -> how many of the attempts that are still in the store.
    """

    answers: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    unpriced: int
    attempts: Mapping[str, int]


@dataclass(frozen=True)
class Purged:
    """What a purge removed: counts of the store's rows, file -> rows of each export that was rewritten, and folder -> files
    of each signal set that was deleted."""

    answers: int
    attempts: int
    decisions: int
    files: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        removed = [f"{self.answers} answers", f"{self.attempts} attempts", f"{self.decisions} decisions"]
        return ", ".join(removed + [f"{count} rows of {name}" for name, count in self.files.items()]) + " removed"


def check_answer(row: Answered, attempts: Sequence["Attempt"]) -> None:
    """Raise ValueError for what couldn't be stored, found again or purged."""
    if row.state not in get_args(State) or (row.state == "ok") != (row.reason is None):
        raise ValueError(f"state {row.state!r} with reason {row.reason!r}: a quarantined row has a reason, an ok row none")
    if row.state == "ok" and row.parsed is None:
        raise ValueError("an ok row needs what was parsed from it")
    ids = (row.job_id, row.candidate_id, row.pair_id)
    if row.subject not in ids or (row.pair_id is not None and None in ids):
        raise ValueError("a row's subject is one of its ids, and a row about a pair has all three ids")
    for name in ("sample", "prompt_tokens", "completion_tokens", "repairs"):
        if not 0 <= getattr(row, name) <= _MAX_INTEGER:
            raise ValueError(f"{name} is {getattr(row, name)}, expected a count")
    times = [row.seconds, *(time for attempt in attempts for time in (attempt.started, attempt.seconds))]
    if not all(map(math.isfinite, [*times, row.cost or 0.0])):
        raise ValueError("seconds, cost and the attempts' times must be finite")


def check_decision(decision: Decision) -> None:
    """Raise ValueError for a decision that says nothing."""
    if decision.verdict not in get_args(Verdict):
        raise ValueError(f"verdict is {decision.verdict!r}, expected one of {get_args(Verdict)}")
    if decision.verdict == "edit" and decision.level is None and decision.explanation is None:
        raise ValueError("an edit needs a level or an explanation")


def stored(value: Any) -> Any:
    """A value as SQLite takes it; an object becomes JSON.

    Halves of surrogate pairs, which a garbled answer may hold, have no UTF-8: such a text goes as bytes. Raises ValueError
    for NaN and infinities in an object, which JSON doesn't have.
    """
    if isinstance(value, dict):
        value = _JSON.encode(value)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-8", "surrogatepass")
    return value


def read(value: Any) -> Any:
    """The inverse of `stored`, but for JSON, which stays text."""
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value
