"""Rates by group: selection and scoring with impact ratios, true and false positive rates, calibration.

Definitions: New York City's Local Law 144 (6 RCNY 5-300). The selection rate of a group is the share of it that is
selected, its scoring rate the share that scores above the median of the whole sample, and its impact ratio its rate over
that of the group with the highest one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lantern_pl.audit.answers import Levels
from lantern_pl.audit.config import AuditConfig
from lantern_pl.audit.findings import FOUR_FIFTHS, Comparison, Table
from lantern_pl.audit.groups import Grouping
from lantern_pl.audit.intervals import Floats, Mean, cluster_mean, difference, rate_ratio

SELECTION, SCORING = "selection rate", "scoring rate"
TRUE_POSITIVE, FALSE_POSITIVE, CALIBRATION = "true positive rate", "false positive rate", "score minus annotation"
_BINS = 10

Labels = NDArray[np.object_]
Rows = NDArray[np.bool_]


@dataclass(frozen=True)
class Outcomes:
    """What a model says of n pairs, and what is right.

    score [n]: 0 to 1; selected [n]; annotated [n]: the index of the right level, -1 where it isn't known; lowest: the index
    of the lowest selected level; levels: how many there are; candidates [n]: a number for each pair's candidate.
    """

    score: Floats
    selected: Rows
    annotated: NDArray[np.int64]
    lowest: int
    levels: int
    candidates: NDArray[np.int64]

    @property
    def above_median(self) -> Rows:
        return self.score > np.median(self.score)

    @property
    def is_annotated(self) -> Rows:
        return self.annotated >= 0

    @property
    def right_score(self) -> Floats:
        """The annotated level as a score."""
        return self.annotated / (self.levels - 1)


def outcomes(found: Levels, annotated: NDArray[np.int64], candidates: NDArray[np.int64], config: AuditConfig) -> Outcomes:
    """What a model says of all pairs."""
    lowest = config.selected_index
    return Outcomes(found.score, found.selected(lowest), annotated, lowest, len(config.task.levels), candidates)


def rate_comparisons(model: str, found: Outcomes, groups: Sequence[Grouping], config: AuditConfig) -> list[Comparison]:
    """All comparisons between groups of one model's rates, by the candidates' attributes."""
    comparisons: list[Comparison] = []
    everything = np.ones_like(found.is_annotated)
    for grouping in groups:
        for what, chosen in ((SELECTION, found.selected), (SCORING, found.above_median)):
            means = group_means(chosen.astype(float), everything, grouping, found.candidates)
            comparisons += _ratios((model, what, grouping.attribute), means, config.confidence)
        for what, values, rows in error_measures(found):
            comparisons += _gaps((model, what, grouping.attribute), values, rows, grouping, found.candidates, config)
    return comparisons


def error_measures(found: Outcomes) -> list[tuple[str, Floats, Rows]]:
    """What is measured against annotations: its name, its values [n], and the pairs whose mean is meant."""
    right, known = found.annotated >= found.lowest, found.is_annotated
    return [
        (TRUE_POSITIVE, found.selected.astype(float), known & right),
        (FALSE_POSITIVE, found.selected.astype(float), known & ~right),
        (CALIBRATION, found.score - found.right_score, known),
    ]


def uncompared(
    model: str, found: Outcomes, groups: Sequence[Grouping], made: Sequence[Comparison]
) -> Iterator[tuple[str, str]]:
    """What none of the comparisons is about, and why: nobody is selected, or a single group has anybody in question."""
    measures = (SELECTION, SCORING, *((TRUE_POSITIVE, FALSE_POSITIVE, CALIBRATION) if found.is_annotated.any() else ()))
    there = {one.key[:3] for one in made}
    for grouping in groups:
        for what in measures:
            if (model, what, grouping.attribute) in there:
                continue
            nobody = what == SELECTION and len(names_of(grouping)) > 1
            yield (
                f"{model}, {what} by {grouping.attribute}",
                "It selects nobody, so that nobody is selected less often."
                if nobody
                else "There are no two groups to compare.",
            )


def group_means(values: Floats, rows: Rows, grouping: Grouping, candidates: NDArray[np.int64]) -> dict[str, Mean]:
    """The mean of the values in the given rows by group, in the order of their names."""
    labels = label_array(grouping)
    inside = {name: rows & (labels == name) for name in names_of(grouping)}
    return {name: cluster_mean(values[mine], candidates[mine]) for name, mine in inside.items() if mine.any()}


def names_of(grouping: Grouping) -> list[str]:
    return sorted({label for label in grouping.labels if label is not None})


def label_array(grouping: Grouping) -> Labels:
    """[n]; the empty text where the group isn't known or is left out."""
    return np.array([label or "" for label in grouping.labels], dtype=object)


def against_others(names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each group and those it is held against. Of two groups one comparison says everything."""
    for name in names[:1] if len(names) == 2 else names:
        yield name, [other for other in names if other != name]


def _ratios(key: tuple[str, str, str], means: dict[str, Mean], confidence: float) -> list[Comparison]:
    if len(means) < 2:
        return []
    best = max(means, key=lambda name: means[name].value)
    if means[best].value == 0:
        return []
    model, what, attribute = key
    made = []
    for name, mean in means.items():
        if name == best:
            continue
        estimate = rate_ratio(mean, means[best], confidence)
        sentence = (
            f"{name}: {what} {mean.value:.3f} against {means[best].value:.3f} of {best}, an impact ratio of "
            f"{estimate.value:.2f}" + (", all of its interval below four fifths" if estimate.high < FOUR_FIFTHS else "")
        )
        made.append(
            Comparison(
                "ratio",
                f"{model}, {what} by {attribute}",
                sentence,
                estimate,
                FOUR_FIFTHS,
                (*key, name),
                # The data picked the reference: it might have been any, so that all pairs of groups are compared.
                scale=len(means) / 2,
            )
        )
    return made


def _gaps(
    key: tuple[str, str, str], values: Floats, rows: Rows, grouping: Grouping, candidates: NDArray[np.int64],
    config: AuditConfig,
) -> list[Comparison]:  # fmt: skip
    model, what, attribute = key
    labels = label_array(grouping)
    names = [name for name in names_of(grouping) if (rows & (labels == name)).any()]
    if len(names) < 2:
        return []
    made = []
    for name, others in against_others(names):
        mine, theirs = rows & (labels == name), rows & np.isin(labels, others)
        of_mine, of_theirs = (cluster_mean(values[each], candidates[each]) for each in (mine, theirs))
        estimate = difference(of_mine, of_theirs, config.confidence)
        sentence = (
            f"{name}: {what} {of_mine.value:.3f} against {of_theirs.value:.3f} of {named(others)}, "
            f"a gap of {estimate.value:+.3f}"
        )
        made.append(Comparison("gap", f"{model}, {what} by {attribute}", sentence, estimate, config.min_gap, (*key, name)))
    return made


def named(others: Sequence[str]) -> str:
    return others[0] if len(others) == 1 else "the others"


def rate_tables(
    model: str, found: Outcomes, groups: Sequence[Grouping], comparisons: Sequence[Comparison], lowest: str
) -> list[Table]:
    """Selection and scoring by group with impact ratios; where levels are annotated, errors and calibration too."""
    by_key = {each.key: each for each in comparisons}
    selection: list[list[str | float | None]] = []
    errors: list[list[str | float | None]] = []
    for grouping in groups:
        figures = figures_by_group(found, grouping)
        for name in names_of(grouping):
            of_group = figures[name]
            for what in (SELECTION, SCORING):
                each = by_key.get((model, what, grouping.attribute, name))
                best = max(one[what] for one in figures.values())
                selection.append(
                    [
                        grouping.attribute,
                        name,
                        of_group["candidates"],
                        what,
                        of_group[what],
                        of_group[what] / best if best else None,
                        *((each.estimate.low, each.estimate.high, each.adjusted) if each else (None, None, None)),
                    ]
                )
            if found.is_annotated.any():
                errors.append([grouping.attribute, name, *(of_group.get(what) for what in _ERRORS)])
    left_out = [
        f"{grouping.attribute}: {name} ({share:.1%})" for grouping in groups for name, share in grouping.small.items()
    ]
    unknown = {grouping.attribute: grouping.unknown for grouping in groups if grouping.unknown}
    note = (
        f"Selected: {lowest} or better. Scoring rate: share above the median score. Impact ratio: to the group with the "
        "highest rate. A rate says nothing of why: compare the errors by group, and swapped texts."
        + (f" Too small to compare: {', '.join(left_out)}." if left_out else "")
        + (f" Candidates without a group: {', '.join(f'{key} {n}' for key, n in unknown.items())}." if unknown else "")
    )
    columns = ["attribute", "group", "candidates", "rate", "value", "impact ratio", "low", "high", "p"]
    tables = [Table(f"{model}: selection and scoring by group", columns, selection, note)]
    if errors:
        tables.append(
            Table(
                f"{model}: errors and calibration by group",
                ["attribute", "group", *_ERRORS],
                errors,
                "Of annotated pairs. Calibration error: mean distance of score and annotated level in ten bins of scores; "
                "it is larger in small groups by chance alone.",
            )
        )
    return tables


_ERRORS = (TRUE_POSITIVE, FALSE_POSITIVE, "mean score", "mean annotation", "calibration error")


def figures_by_group(found: Outcomes, grouping: Grouping) -> dict[str, dict[str, float]]:
    """Group -> the name of a figure -> its value; those of annotated levels only where there are some."""
    from fairlearn.metrics import MetricFrame, false_positive_rate, mean_prediction, selection_rate, true_positive_rate

    labels = label_array(grouping)

    def add(rows: Rows, y_true: NDArray, y_pred: NDArray, metrics: dict) -> None:
        if rows.any():
            frame = MetricFrame(
                metrics=metrics, y_true=y_true[rows], y_pred=y_pred[rows], sensitive_features=labels[rows]
            ).by_group
            for name, figures in frame.iterrows():
                made[str(name)] |= {what: float(value) for what, value in figures.items()}

    made: dict[str, dict[str, float]] = {name: {} for name in names_of(grouping)}
    inside = labels != ""
    right = (found.annotated >= found.lowest).astype(int)
    selected, above = found.selected.astype(int), found.above_median.astype(int)
    for name in made:
        made[name]["candidates"] = len(set(found.candidates[labels == name]))
    add(inside, right, selected, {SELECTION: selection_rate})
    add(inside, right, above, {SCORING: selection_rate})
    known = inside & found.is_annotated
    add(known & (right == 1), right, selected, {TRUE_POSITIVE: true_positive_rate})
    add(known & (right == 0), right, selected, {FALSE_POSITIVE: false_positive_rate})
    add(known, found.right_score, found.score, {
        "mean score": mean_prediction, "mean annotation": lambda y_true, y_pred: y_true.mean(),
        "calibration error": calibration_error,
    })  # fmt: skip
    return made


def calibration_error(y_true: Floats, y_pred: Floats) -> float:
    """Expected calibration error of scores: |mean score - mean annotated score| of ten equally wide bins of scores,
    weighted by the share of pairs in each (Guo and others 2017)."""
    y_true, y_pred = np.asarray(y_true), np.asarray(y_pred)
    bins = np.minimum((y_pred * _BINS).astype(int), _BINS - 1)
    residuals = np.bincount(bins, y_pred - y_true, minlength=_BINS)
    return float(np.abs(residuals).sum() / len(y_pred))
