"""Whether a student makes its teacher's gaps larger, on the same pairs and the same swapped texts.

A fair teacher proves nothing about its student, so what counts is the difference of the two, pair by pair. It is positive
where the student's gap is the larger one. A student that turns a gap round has made one of its own: it counts whole, since
the teacher has none in that direction.
"""

from collections.abc import Sequence

import numpy as np

from lantern_pl.audit.answers import Levels
from lantern_pl.audit.config import AuditConfig
from lantern_pl.audit.findings import Comparison, Table
from lantern_pl.audit.groups import Grouping
from lantern_pl.audit.intervals import Estimate, Floats, sign_test_least, t_estimate
from lantern_pl.audit.rates import (
    SELECTION,
    Outcomes,
    Rows,
    against_others,
    error_measures,
    label_array,
    named,
    names_of,
)
from lantern_pl.audit.swaps import SwapPlan, contrasts, shifts, varied

ABOUT = "student minus teacher"


def of_swaps(plan: SwapPlan, student: Levels, teacher: Levels, config: AuditConfig) -> list[Comparison]:
    """By how much the student's shift of each group exceeds the teacher's."""
    planned = contrasts(plan.swap)
    weights = np.stack([each[-1] for each in planned])
    scores = [plan.by_group(found.score) for found in (student, teacher)]
    # The mean of differences, pair by pair: candidates and words are drawn anew for both at once.
    differences = shifts(plan, scores[0] - scores[1], weights, config)
    own = shifts(plan, scores[0], weights, config)
    gaps = [(each @ weights.T).mean(0) for each in scores]
    return [
        _comparison((varied(plan.swap, attribute), name), others, of_both, either, config.min_effect)
        for (attribute, name, others, _), of_both, either in zip(
            planned, zip(*(gap.tolist() for gap in gaps), strict=True), zip(differences, own, strict=True), strict=True
        )
    ]


def of_rates(student: Outcomes, teacher: Outcomes, groups: Sequence[Grouping], config: AuditConfig) -> list[Comparison]:
    """By how much the student's gap in the selection rate, and where pairs are annotated in its errors, exceeds the
    teacher's, for each group against the others."""
    rng = np.random.default_rng(config.seed)
    made = []
    candidates = student.candidates
    for what, values, among in _measures(student, teacher):
        for grouping in groups:
            labels = label_array(grouping)
            names = [name for name in names_of(grouping) if (among & (labels == name)).any()]
            for name, others in against_others(names):
                if not others:
                    continue
                rows = [among & (labels == name), among & np.isin(labels, others)]
                gaps = [float(each[rows[0]].mean() - each[rows[1]].mean()) for each in values]
                units = [len(set(candidates[mine].tolist())) for mine in rows]
                freedom, least_p = float(min(units) - 1), sign_test_least(min(units))
                either = []
                for gap, of_pairs in ((gaps[0] - gaps[1], values[0] - values[1]), (gaps[0], values[0])):
                    variance = sum(
                        _bootstrap_variance(of_pairs[mine], candidates[mine], config.bootstrap, rng) for mine in rows
                    )
                    either.append(t_estimate(gap, variance, freedom, min(units), config.confidence, least_p))
                key = (f"{what}: {grouping.attribute}", name)
                made.append(_comparison(key, others, (gaps[0], gaps[1]), (either[0], either[1]), config.min_gap))
    return made


def _measures(student: Outcomes, teacher: Outcomes) -> list[tuple[str, tuple[Floats, Floats], Rows]]:
    """The name of each, its values [n] by student and teacher, and the pairs whose mean is meant."""
    selected = (student.selected.astype(float), teacher.selected.astype(float))
    errors = zip(error_measures(student), error_measures(teacher), strict=True)
    return [
        (SELECTION, selected, np.ones_like(student.is_annotated)),
        *((what, (mine, theirs), rows) for (what, mine, rows), (_, theirs, _) in errors),
    ]


def _bootstrap_variance(values: Floats, candidates: np.ndarray, draws: int, rng: np.random.Generator) -> float:
    """The variance of a mean, candidates drawn anew with all of their pairs."""
    _, index = np.unique(candidates, return_inverse=True)
    sums, sizes = np.bincount(index, values), np.bincount(index)
    units = len(sizes)
    times = rng.multinomial(units, np.full(units, 1 / units), size=draws)
    return float(((times @ sums) / (times @ sizes)).var() * units / max(units - 1, 1))


def _comparison(
    key: tuple[str, str], others: Sequence[str], gaps: tuple[float, float], estimates: tuple[Estimate, Estimate],
    threshold: float,
) -> Comparison:  # fmt: skip
    """gaps: the student's and the teacher's. estimates: of their difference, and of the student's gap alone, which counts
    where it's turned round; either is turned so that it is positive where the student's gap is the larger one."""
    student, teacher = gaps
    turned_round = student * teacher < 0
    estimate = estimates[1] if turned_round else estimates[0]
    if (student or teacher) < 0:
        estimate = Estimate(-estimate.value, -estimate.high, -estimate.low, estimate.p, estimate.units, estimate.error)
    what, name = key
    change = "amplified by" if estimate.value > 0 else "reduced by"
    sentence = (
        f"{name} against {named(others)}: the student's gap is {student:+.3f}, the teacher's {teacher:+.3f}, "
        f"{'the other way round, ' if turned_round else ''}{change} {abs(estimate.value):.3f}"
    )
    return Comparison("amplification", f"{ABOUT}, {what}", sentence, estimate, threshold, (ABOUT, *key), gaps=gaps)


def amplification_table(comparisons: Sequence[Comparison]) -> Table:
    """The gaps of both, and their difference."""
    rows: list[list[str | float | None]] = []
    for each in comparisons:
        found = each.estimate
        rows.append([*each.key[1:], *each.gaps, found.value, found.low, found.high, each.adjusted])
    return Table(
        "Amplification: the student's gap minus the teacher's",
        ["measure", "group", "student", "teacher", "amplified", "low", "high", "p"],
        rows,
        "Gaps of both on the same pairs and texts, by a paired bootstrap over candidates. amplified: by how much the "
        "student's gap is the larger one; below 0 it is the smaller one, and one that is turned round counts whole. p: "
        "corrected for all comparisons of the audit (Holm).",
    )
