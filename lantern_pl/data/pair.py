"""A (candidate, job) pair: the unit of data of every command."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pair:
    """One candidate and one job, and what is known about their fit.

    Texts and ids are always there; `level`, `explanation` and `level_probs` only where somebody has annotated the pair.
    `level_probs` is in the order of the task's levels and sums to 1.
    """

    pair_id: str
    job_id: str
    candidate_id: str
    job_text: str
    candidate_text: str
    level: str | None = None
    explanation: str | None = None
    level_probs: tuple[float, ...] | None = None
