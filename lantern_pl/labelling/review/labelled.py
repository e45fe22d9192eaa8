"""The labels that a review is about: a labels folder's labels.parquet, read and checked."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lantern_pl.data.row_files import read_rows
from lantern_pl.errors import UserError, did_you_mean
from lantern_pl.tasks import Task

LABELS, MANIFEST = "labels.parquet", "manifest.json"


@dataclass(frozen=True)
class Requirement:
    """One line of a teacher's reasons; what it doesn't say is None.

    requirement: what the job asks; where there is no verdict, the teacher's own words for its evidence.
    verdict: "met", "partly" or "unmet".
    """

    requirement: str | None = None
    kind: str | None = None
    verdict: str | None = None
    evidence: str | None = None


@dataclass(frozen=True)
class LabelledPair:
    """A pair and what the teacher has said about it.

    votes: level -> samples, or probability; None where the teacher said only the level.
    confidence: the teacher's own, 0 to 1.
    """

    pair_id: str
    job_id: str
    candidate_id: str
    job_text: str
    candidate_text: str
    level: str
    explanation: str | None = None
    confidence: float | None = None
    votes: Mapping[str, float] | None = None
    requirements: Sequence[Requirement] = ()
    reduced_job_text: str | None = None
    flags: Sequence[str] = ()
    teacher: str | None = None

    @property
    def agreement(self) -> float | None:
        """The level's share of the votes; None without votes, and for a single one, which agrees with nothing."""
        votes = [count for count in (self.votes or {}).values() if count > 0]
        if not votes or (len(votes) == 1 and votes[0] <= 1):
            return None
        return (self.votes or {}).get(self.level, 0.0) / sum(votes)

    @property
    def entropy(self) -> float:
        """Of the votes, in nats: 0 where all are for one level, and where there are none."""
        votes = [count for count in (self.votes or {}).values() if count > 0]
        return sum(-count / sum(votes) * math.log(count / sum(votes)) for count in votes)

    def evidence(self) -> Iterator[str]:
        """What the teacher has given as evidence: quotes, and its own words where it gave no verdicts."""
        for line in self.requirements:
            said = line.evidence or (line.requirement if line.verdict is None else None)
            if said is not None:
                yield said


@dataclass(frozen=True)
class Labels:
    """All labelled pairs of a folder, by id in the file's order, and the task's levels, worst first."""

    levels: Sequence[str]
    pairs: Mapping[str, LabelledPair] = field(default_factory=dict)


def read_labels(folder: Path, levels: Sequence[str] | None = None) -> Labels:
    """The labels of a folder.

    The levels' order is what is given, else the manifest's, else job-fit's own.
    Raises UserError where there is no such file, where it lacks what a label needs, and where the levels' order can't
    be told. Never quotes a text.
    """
    path = folder / LABELS
    if not path.exists():
        raise UserError(f"{path} isn't there: give the folder that `lantern label` wrote its labels to.")
    pairs: dict[str, LabelledPair] = {}
    for place, row in read_rows(path):
        pair = _pair(place, row)
        if pair.pair_id in pairs:
            raise UserError(f"{place}: pair_id {pair.pair_id!r} is there twice. Write the labels anew: lantern label.")
        pairs[pair.pair_id] = pair
    if not pairs:
        raise UserError(f"{path} holds no labels yet: let `lantern label` answer some pairs first.")
    known = list(levels or _levels_of(folder) or Task().levels)
    for pair in pairs.values():
        if pair.level not in known:
            raise UserError(
                f"pair {pair.pair_id} has the level {pair.level!r}, which isn't one of {known}. "
                f"{did_you_mean(pair.level, known)} Or name all levels, worst first: --levels low,medium,high."
            )
    return Labels(known, pairs)


def _levels_of(folder: Path) -> Sequence[str] | None:
    try:
        levels = json.loads((folder / MANIFEST).read_bytes())["levels"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return levels if isinstance(levels, list) and all(isinstance(level, str) for level in levels) else None


def _pair(place: str, row: Mapping[str, Any]) -> LabelledPair:
    for name in ("pair_id", "job_id", "candidate_id", "job_text", "candidate_text", "level"):
        if not isinstance(row.get(name), str):
            raise UserError(f"{place}: {name} isn't text. Write the labels anew: lantern label.")
    votes = row.get("votes")
    same = ("pair_id", "job_id", "candidate_id", "job_text", "candidate_text", "level", "explanation", "confidence")
    said: dict[str, Any] = {name: row.get(name) for name in (*same, "reduced_job_text", "teacher")}
    return LabelledPair(
        **said,
        votes=None if not votes else {level: float(count or 0) for level, count in votes.items()},
        requirements=[_requirement(line) for line in row.get("requirements") or () if line],
        flags=tuple(row.get("flags") or ()),
    )


def _requirement(line: Mapping[str, str | None]) -> Requirement:
    said = {name: (line.get(name) or "").strip() or None for name in Requirement.__dataclass_fields__}
    return Requirement(**said)
