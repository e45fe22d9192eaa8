"""How much of the teacher a student has kept: student / teacher, and (student − SFT) / (teacher − SFT)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lantern_pl.evaluation.bootstrap import FEWEST, Estimate, estimate, ratio

MORE_IS_BETTER = (
    *("accuracy", "macro_f1", "quadratic_kappa", "auroc"),
    *("rouge_1", "rouge_2", "rouge_l", "valid_format", "level_right", "level_consistent", "evidence_verbatim"),
    "skills_named",
)
_TOO_FEW = f"it rests on fewer than {FEWEST} jobs or candidates, so that it has no interval"
LESS_IS_BETTER = ("ece", "brier")
"""Errors: the share of the gap that the student has closed is as sensible for them, but their ratio to the teacher's isn't a
share that was kept. Figures that are in neither list, such as length, entropy or the distance to the teacher, have none."""


def retention(
    student: Mapping[str, Estimate], teacher: Mapping[str, Estimate] | None, sft: Mapping[str, Estimate] | None
) -> dict[str, dict[str, Any]]:
    """For each figure `of_teacher` and `of_gap` with their intervals, on the same resamples; None with the reason in `why`
    where one of the two can't be said.

    A denominator must be above 0 by its own interval: a share of next to nothing would be any number.
    """
    found = {}
    for name in (*MORE_IS_BETTER, *LESS_IS_BETTER):
        if name not in student or student[name].value is None:
            continue
        ours, theirs, base = student[name], (teacher or {}).get(name), (sft or {}).get(name)
        of_teacher, why_teacher = _of_teacher(name, ours, theirs)
        of_gap, why_gap = _of_gap(name, ours, theirs, base)
        why = "; ".join(dict.fromkeys(reason for reason in (why_teacher, why_gap) if reason))
        found[name] = {
            "of_teacher": None if of_teacher is None else of_teacher.as_json(),
            "of_gap": None if of_gap is None else of_gap.as_json(),
            **({"why": why} if why else {}),
        }
    return found


def _of_teacher(name: str, student: Estimate, teacher: Estimate | None) -> tuple[Estimate | None, str | None]:
    if teacher is None or teacher.value is None:
        return None, "the teacher has no such figure"
    if name in LESS_IS_BETTER:
        return None, "less is better, so that a ratio to the teacher isn't a share that was kept"
    if teacher.low is None:
        return None, _TOO_FEW
    if teacher.low <= 0:
        return None, "the teacher's own figure isn't above 0 by its interval"
    assert student.value is not None
    value = student.value / teacher.value
    n, units = min(student.n, teacher.n), min(student.units, teacher.units)
    return estimate(value, ratio(student.draws, teacher.draws), n, units), None


def _of_gap(
    name: str, student: Estimate, teacher: Estimate | None, sft: Estimate | None
) -> tuple[Estimate | None, str | None]:
    if teacher is None or teacher.value is None:
        return None, "the teacher has no such figure"
    if sft is None or sft.value is None:
        return None, "there is no student without the teacher to hold against it (evaluation.sft)"
    assert student.value is not None
    sign = -1 if name in LESS_IS_BETTER else 1
    n, units = (min(getattr(each, name) for each in (student, teacher, sft)) for name in ("n", "units"))
    gap = estimate(sign * (teacher.value - sft.value), sign * (teacher.draws - sft.draws), n, units)
    if gap.low is None:
        return None, _TOO_FEW
    if gap.low <= 0:
        return None, "the teacher isn't better than the student without it by the interval of their difference"
    gained = sign * (student.draws - sft.draws)
    value = (student.value - sft.value) / (teacher.value - sft.value)
    return estimate(value, ratio(gained, np.asarray(gap.draws)), n, units), None
