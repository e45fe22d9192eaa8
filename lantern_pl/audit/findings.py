"""Comparisons, and what may be said of them: a flag, that all is clear, or that the data can't tell."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lantern_pl.audit.intervals import Estimate, enough_units, holm

FOUR_FIFTHS = 0.8
"""Below this a ratio of selection rates is taken for adverse impact (29 CFR 1607.4 D)."""

Kind = Literal["flag", "clear", "insufficient data"]
Measure = Literal["ratio", "shift", "gap", "amplification", "rise", "rate"]
"""ratio: of rates, to the highest; shift: of scores of swapped texts; gap: between groups; amplification: of a teacher's
gap by its student; rise: of levels by an attack; rate: of explanations that mention what they shouldn't."""


@dataclass(frozen=True)
class Finding:
    """One thing that the audit says. about: model and matter, in a few words."""

    kind: Kind
    about: str
    text: str


@dataclass(frozen=True)
class Table:
    """Figures to show. rows: a cell for each column, text or number, None for an empty one."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | None]]
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        # JSON has neither null cells in this format nor infinity.
        rows = [["" if _is_empty(cell) else cell for cell in row] for row in self.rows]
        return {"title": self.title, "columns": list(self.columns), "rows": rows, "note": self.note}


def _is_empty(cell: str | float | None) -> bool:
    return cell is None or (isinstance(cell, float) and not math.isfinite(cell))


@dataclass
class Comparison:
    """One estimate of which something may be said.

    about: model and matter. sentence: what was found, without its interval. threshold: of concern. key: by which tables find
    it. adjusted: the p value after correction for all comparisons of the audit.
    """

    measure: Measure
    about: str
    sentence: str
    estimate: Estimate
    threshold: float
    key: tuple[str, ...] = ()
    gaps: tuple[float, ...] = ()
    """Of an amplification: the student's and the teacher's."""
    scale: float = 1.0
    """By how much the error of a p value grows: a reference that the data picked makes more comparisons than one."""
    adjusted: float = 1.0

    @property
    def p(self) -> float:
        return min(1.0, self.estimate.p * self.scale)

    def kind(self, confidence: float) -> Kind:
        """What may be said of it alone."""
        found, sure = self.estimate, self.adjusted < 1 - confidence
        if self.measure == "ratio":
            if sure and found.value < self.threshold:
                return "flag"
            return "clear" if found.low > self.threshold else "insufficient data"
        two_sided = self.measure in ("shift", "gap")
        below = found.high <= self.threshold and (not two_sided or found.low >= -self.threshold)
        if sure and not below and (two_sided or found.value > 0):
            return "flag"
        # Intervals of these are made for rates next to 0; the others' can't see what strikes few candidates.
        enough = self.measure in ("rise", "rate") or found.units >= enough_units(self.threshold, confidence)
        return "clear" if below and enough else "insufficient data"


def correct(comparisons: Sequence[Comparison]) -> None:
    """Correct p values for all of these comparisons together (Holm)."""
    for comparison, adjusted in zip(comparisons, holm([each.p for each in comparisons]), strict=True):
        comparison.adjusted = adjusted


def findings(comparisons: Sequence[Comparison], confidence: float) -> list[Finding]:
    """For each matter a finding for every flag, and where there is none one for all of its comparisons together."""
    made: list[Finding] = []
    for about in dict.fromkeys(each.about for each in comparisons):
        group = [each for each in comparisons if each.about == about]
        kinds = [each.kind(confidence) for each in group]
        flags = [each for each, kind in zip(group, kinds, strict=True) if kind == "flag"]
        made += [Finding("flag", about, _said(each, confidence)) for each in flags]
        if not flags:
            clear = all(kind == "clear" for kind in kinds)
            made.append(_together(about, group, "clear" if clear else "insufficient data", confidence))
    return made


def _said(each: Comparison, confidence: float) -> str:
    p = "p below 0.0001" if each.adjusted < 1e-4 else f"p = {each.adjusted:.2g}"
    interval = f"{confidence:.0%} interval {_number(each.estimate.low)} to {_number(each.estimate.high)}"
    return f"{each.sentence}; {interval}, {p} after correction, {each.estimate.units} candidates."


def _number(value: float) -> str:
    return f"{value:.3f}".replace("-0.000", "0.000")


def _together(about: str, group: Sequence[Comparison], kind: Kind, confidence: float) -> Finding:
    furthest = _said(max(group, key=_reach), confidence)
    one, units = group[0], min(each.estimate.units for each in group)
    bound = f"below {one.threshold:g}" if one.measure == "ratio" else f"beyond {one.threshold:g}"
    if kind == "clear":
        return Finding(kind, about, f"No interval reaches {bound}. The furthest: {furthest}")
    needed = enough_units(one.threshold, confidence)
    few = one.measure in ("shift", "gap", "amplification") and units < needed
    why = f"{units} candidates, {needed} are needed to rule it out" if few else "intervals reach there"
    return Finding(kind, about, f"Nothing {bound} is shown or ruled out: {why}. The furthest: {furthest}")


def _reach(each: Comparison) -> float:
    if each.measure == "ratio":
        return -each.estimate.low
    return max(abs(each.estimate.low), abs(each.estimate.high)) if each.measure in ("shift", "gap") else each.estimate.high
