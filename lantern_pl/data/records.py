"""Reads (candidate, job) pairs from a file: the schema of lantern-pl's data, and its checks.

A row is an object with these fields; others are allowed and ignored.

| field | |
|---|---|
| `job_text`, `candidate_text` | required text, not blank |
| `level` | one of the task's levels |
| `explanation` | text |
| `pair_id`, `job_id`, `candidate_id` | text or whole numbers, one text each; made from a hash of the texts where missing |
| `votes` | how many annotators, or how much of a probability, chose each level, `{"low": 1, "high": 3}` |
| `confidence` | probability of `level`, 0 to 1; the rest is spread evenly over the other levels |

`resume_text`, `resume_id` and `fit` are read as `candidate_text`, `candidate_id` and `level`. A null is the same as a
missing field, and so is a blank explanation: there is nothing in it to learn. Votes, and where there are none the
confidence, become `Pair.level_probs`. Where `level` is missing, it's the one with the most votes, of equals the lower.
A confidence below that of a blind guess (1/K for K levels) would speak for the other levels, so it is read as that
guess.
"""

import hashlib
import json
import math
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

from lantern_pl.data.pair import Pair
from lantern_pl.data.row_files import BadRow, read_rows
from lantern_pl.errors import UserError, did_you_mean
from lantern_pl.tasks.task import Task

ALIASES = {"candidate_text": "resume_text", "candidate_id": "resume_id", "level": "fit"}
"""Field -> another name that it may have."""

_MAX_SHOWN = 5


def read_pairs(path: str | Path, task: Task, job_text: str = "job_text") -> list[Pair]:
    """The pairs of a `.jsonl` file, a `.parquet` file or a folder of them, or a folder made by `Dataset.save_to_disk`.

    `job_text` names the field of the job's text, such as `reduced_job_text` in what `lantern label` writes.

    Raises UserError, naming file and row, where a row isn't as the module says; the first few are shown together, so
    that they can be put right together. Never quotes the texts: they are about persons.
    """
    return [pair for pair, _ in read_labelled(path, task, job_text)]


def read_labelled(path: str | Path, task: Task, job_text: str = "job_text") -> list[tuple[Pair, dict[str, Any]]]:
    """As `read_pairs`, each with the row that it came from, whose further fields may say more."""
    pairs: list[tuple[Pair, dict[str, Any]]] = []
    problems: list[str] = []
    seen: dict[str, str] = {}
    texts: dict[tuple[str, str], tuple[str, str]] = {}
    for place, row in read_rows(Path(path)):
        try:
            if isinstance(row, BadRow):
                raise row
            pair = pair_of(row, task, job_text)
            if seen.setdefault(pair.pair_id, place) != place:
                same = "pair_id" if row.get("pair_id") is not None else "job and candidate"
                raise BadRow(f"has the same {same} as {seen[pair.pair_id]}; to tell of several annotators, use votes")
            _check_one_text(pair, place, texts)
            pairs.append((pair, row))
        except BadRow as error:
            problems.append(f"{place}: {error}")
    if problems:
        shown = "\n  ".join(problems[:_MAX_SHOWN])
        rest = len(problems) - _MAX_SHOWN
        raise UserError(
            f"{len(problems)} of the rows can't be read:\n  {shown}" + (f"\n  and {rest} more" if rest > 0 else "")
        )
    if not pairs:
        raise UserError(f"{path} holds no pairs: expected at least one row with job_text and candidate_text")
    return pairs


def _check_one_text(pair: Pair, place: str, texts: dict[tuple[str, str], tuple[str, str]]) -> None:
    """Raise BadRow where an id stands for two texts; `texts` is what each id stood for in earlier rows, and where."""
    for name, ident, text in (
        ("job_id", pair.job_id, pair.job_text),
        ("candidate_id", pair.candidate_id, pair.candidate_text),
    ):
        digest = _digest(normalised(text))
        known, earlier = texts.setdefault((name, ident), (digest, place))
        if known != digest:
            raise BadRow(
                f"has the same {name} as {earlier}, but another text: what is read once for each id would be taken for "
                "both. Give each text an id of its own, or leave the ids out"
            )


def fingerprint(pairs: Iterable[Pair]) -> str:
    """sha256 of the pairs' content; the same for the same pairs in any order, from any kind of file."""
    rows = sorted(json.dumps(astuple(pair), ensure_ascii=False) for pair in pairs)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def normalised(text: str) -> str:
    """Text by which jobs and candidates are told apart: blind to case, white space and forms of a character."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def pair_of(row: Any, task: Task, job_field: str) -> Pair:
    """The pair that a row holds. Raises BadRow where the row isn't as the module says; never quotes the texts."""
    if not isinstance(row, dict):
        raise BadRow(f"expected an object with fields, found {_kind(row)}")
    row = _without_aliases(row)
    job_text, candidate_text = _required_text(row, job_field), _required_text(row, "candidate_text")
    job_id = _id(row, "job_id") or f"job-{_digest(normalised(job_text))}"
    candidate_id = _id(row, "candidate_id") or f"candidate-{_digest(normalised(candidate_text))}"
    votes = _votes(row, task)
    level = _text(row, "level")
    if level is not None and level not in task.levels:
        raise BadRow(f"level {_short(level)} isn't one of the task's levels. {did_you_mean(level, task.levels)}")
    if level is None and votes is not None:
        level = task.levels[votes.index(max(votes))]
    return Pair(
        pair_id=_id(row, "pair_id") or f"pair-{_digest(json.dumps([job_id, candidate_id]))}",
        job_id=job_id,
        candidate_id=candidate_id,
        job_text=job_text,
        candidate_text=candidate_text,
        level=level,
        explanation=_explanation(row),
        level_probs=votes or _confidence(row, level, task),
    )


def _without_aliases(row: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: value for name, value in row.items() if value is not None}
    for name, alias in ALIASES.items():
        if alias in row:
            if name in row and row[name] != row[alias]:
                raise BadRow(f"{name} and its other name {alias} have different values: keep one of them")
            row[name] = row[alias]
    return row


def _text(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadRow(f"{name} is {_kind(value)}, expected text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise BadRow(f"{name} holds half of a surrogate pair, which no file can hold: write the character itself")
    return value


def _explanation(row: Mapping[str, Any]) -> str | None:
    explanation = _text(row, "explanation")
    return explanation if explanation and not explanation.isspace() else None


def _required_text(row: Mapping[str, Any], name: str) -> str:
    value = _text(row, name)
    if value is None:
        names = f"{name} (or {ALIASES[name]})" if name in ALIASES else name
        found = ", ".join(_short(field) for field in list(row)[:8]) or "no fields"
        raise BadRow(f"{names} is missing; found {found}")
    if not value.strip():
        raise BadRow(f"{name} is blank")
    return value


def _id(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    value = _text(row, name)
    if value is not None and not value.strip():
        raise BadRow(f"{name} is blank: leave it out, and one is made from the text")
    return value


def _votes(row: Mapping[str, Any], task: Task) -> tuple[float, ...] | None:
    votes = row.get("votes", {})
    if not isinstance(votes, dict):
        raise BadRow(f"votes is {_kind(votes)}, expected an object like {{{task.levels[0]!r}: 1}}")
    # A column of a parquet file has every level in every row, and null for no vote.
    votes = {level: count for level, count in votes.items() if count is not None}
    if not votes:
        return None
    for level, count in votes.items():
        if level not in task.levels:
            raise BadRow(f"votes has the unknown level {_short(level)}. {did_you_mean(level, task.levels)}")
        if not (_is_number(count) and 0 <= count < math.inf):
            raise BadRow(f"votes for {level} is {_short(count)}, expected a count of 0 or more")
    counts = [votes.get(level, 0) for level in task.levels]
    if not sum(counts):
        raise BadRow("votes are all zero: leave them out")
    return tuple(count / sum(counts) for count in counts)


def has_votes(row: Mapping[str, Any]) -> bool:
    """Whether a row that could be read gives votes, rather than a confidence or nothing."""
    return any(count is not None for count in (row.get("votes") or {}).values())


def _confidence(row: Mapping[str, Any], level: str | None, task: Task) -> tuple[float, ...] | None:
    value = row.get("confidence")
    if value is None:
        return None
    if not (_is_number(value) and 0 <= value <= 1):
        raise BadRow(f"confidence is {_short(value)}, expected a number from 0 to 1")
    if level is None:
        raise BadRow("confidence without a level: say of which level it is the probability")
    count = len(task.levels)
    if value <= 1 / count:
        return (1 / count,) * count
    return tuple(value if name == level else (1 - value) / (count - 1) for name in task.levels)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    kinds = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else kinds.get(type(value), f"a {type(value).__name__}")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
