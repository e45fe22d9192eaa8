"""Decisions as JSONL, for other annotation tools: out with all that an annotator needs, and back in.

`--export` writes one object a line: each decision, and each pair that nobody has decided yet, with these fields.

| field | |
|---|---|
| `pair_id`, `job_id`, `candidate_id`, `job_text`, `candidate_text` | the pair |
| `label_level`, `label_explanation`, `label_confidence`, `label_requirements` | what the teacher said |
| `verdict` | "accept", "edit" or "reject"; null: not decided yet |
| `reviewer` | who |
| `level`, `explanation` | what stands after it |
| `note` | a remark |
| `at` | when, ISO 8601; without a zone it is UTC |
| `rule` | null for a person, the rules for `--auto-accept` |

`--import` reads such lines. It needs `pair_id` and `verdict`, and for an edit a `level` or an `explanation`; a line
without verdict is passed over, `reviewer` is by default the one of the command line, `at` the time of the import, and
what else is there is ignored. All lines are checked before the first is taken; a decision that is there already isn't
taken twice.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, get_args

from lantern_pl.data.row_files import BadRow, read_rows
from lantern_pl.errors import UserError, did_you_mean
from lantern_pl.labelling.review.decisions import by_pair, decide, moment
from lantern_pl.labelling.review.labelled import LabelledPair, Labels
from lantern_pl.labelling.store import Decision
from lantern_pl.labelling.store_rows import Verdict
from lantern_pl.private_files import write_private

_MAX_SHOWN = 5


def export_decisions(path: Path, labels: Labels, decisions: Sequence[Decision]) -> int:
    """Write what the module says, in the order of the labels. Returns the number of lines. Raises UserError."""
    if path.suffix != ".jsonl":
        raise UserError(f"--export {path}: give a name that ends with .jsonl")
    decided = by_pair(decisions)
    lines = [
        json.dumps(_row(pair, decision), ensure_ascii=False) + "\n"
        for pair in labels.pairs.values()
        for decision in decided.get(pair.pair_id, [None])
    ]

    def write(file: BinaryIO) -> None:
        file.writelines(line.encode() for line in lines)

    write_private(path, write)
    return len(lines)


def _row(pair: LabelledPair, decision: Decision | None) -> dict[str, Any]:
    return {
        **{name: getattr(pair, name) for name in ("pair_id", "job_id", "candidate_id", "job_text", "candidate_text")},
        "label_level": pair.level,
        "label_explanation": pair.explanation,
        "label_confidence": pair.confidence,
        "label_requirements": [vars(line) for line in pair.requirements],
        **{name: getattr(decision, name, None) for name in ("verdict", "reviewer", "level", "explanation", "note")},
        **{name: getattr(decision, name, None) for name in ("at", "rule")},
    }


def read_decisions(
    path: Path, labels: Labels, known: Collection[Decision], reviewer: str | None = None
) -> tuple[list[Decision], int]:
    """The decisions of a file that aren't among the known ones, and how many of its lines are.

    Raises UserError, naming lines and never quoting a text, where one can't be taken: then none is.
    """
    same = {identity for decision in known for identity in _identities(decision)}
    fresh: list[Decision] = []
    repeated = 0
    problems: list[str] = []
    for place, row in read_rows(path):
        try:
            if isinstance(row, BadRow):
                raise row
            decision = _decision(row, labels, reviewer)
        except BadRow as error:
            problems.append(f"{place}: {error}")
            continue
        if decision is None:
            continue
        # A line that doesn't say when is known by the rest.
        identities = _identities(decision)
        if identities[row.get("at") is None] in same:
            repeated += 1
        else:
            fresh.append(decision)
            same.update(identities)
    if problems:
        rest = len(problems) - _MAX_SHOWN
        raise UserError(
            f"nothing was imported, since {len(problems)} of the lines can't be:\n  "
            + "\n  ".join(problems[:_MAX_SHOWN])
            + (f"\n  and {rest} more" if rest > 0 else "")
        )
    return sorted(fresh, key=moment), repeated


def _identities(decision: Decision) -> tuple[Decision, Decision]:
    """A decision, its time in one form, and the same without a time: by either it is known again."""
    return replace(decision, at=moment(decision).isoformat()), replace(decision, at="")


def _decision(row: Any, labels: Labels, reviewer: str | None) -> Decision | None:
    if not isinstance(row, dict):
        raise BadRow("expected an object with fields")
    verdict = row.get("verdict")
    if verdict is None:
        return None
    if verdict not in get_args(Verdict):
        raise BadRow(f"verdict is {verdict!r:.40}, expected accept, edit or reject")
    pair = labels.pairs.get(row["pair_id"]) if isinstance(row.get("pair_id"), str) else None
    if pair is None:
        raise BadRow("pair_id isn't one of the labels'")
    level, explanation = _text(row, "level"), _text(row, "explanation")
    if level is not None and level not in labels.levels:
        raise BadRow(f"level is {level!r:.40}. {did_you_mean(level, labels.levels)}")
    if verdict == "edit" and level is None and explanation is None:
        raise BadRow("an edit needs a level or an explanation")
    name = _text(row, "reviewer") or reviewer
    if name is None:
        raise BadRow("reviewer is missing: add it, or say whose lines these are with --reviewer")
    return decide(
        pair,
        reviewer=name,
        verdict=verdict,
        level=level,
        explanation=explanation,
        note=_text(row, "note"),
        at=_at(row),
        rule=_text(row, "rule"),
    )


def _text(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadRow(f"{name} isn't text")
    return value.strip() or None


def _at(row: Mapping[str, Any]) -> str | None:
    value = _text(row, "at")
    if value is None:
        return None
    try:
        at = datetime.fromisoformat(value)
    except ValueError as error:
        raise BadRow("at isn't a time such as 2026-01-31T12:00:00+00:00") from error
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return at.astimezone(UTC).isoformat(timespec="microseconds")
