"""What a label run comes to: one label a pair, or why there is none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Label:
    """What a teacher has said about one pair.

    votes: how many samples, or how much probability, each level got, in the order of the task's levels; None where the
        teacher said only the level. confidence: the teacher's own, 0 to 1. requirements: see
        `tasks.task.RequirementVerdict`. reduced_job_text: the job's requirements alone.
    """

    level: str
    explanation: str | None = None
    votes: tuple[float, ...] | None = None
    confidence: float | None = None
    requirements: Sequence[Mapping[str, Any]] = field(default_factory=list)
    reduced_job_text: str | None = None


@dataclass(frozen=True)
class NoLabel:
    """Why a pair has no label: a reason from quarantine, or that it wasn't asked about yet."""

    reason: str


NOT_ASKED = NoLabel("not asked yet")


def majority(levels: Sequence[str], votes: Sequence[float]) -> str:
    """The level with the most votes, of equals the lower."""
    return levels[list(votes).index(max(votes))]
