"""What `lantern test` prints."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

ABOUT = {
    "accuracy": "right levels",
    "macro_f1": "F1, mean over levels",
    "quadratic_kappa": "agreement by distance",
    "auroc": "one level or another",
    "ece": "calibration error",
    "brier": "squared error",
    "rouge_1": "the annotation's words",
    "rouge_2": "its pairs of words",
    "rouge_l": "its words in order",
    "valid_format": "answers of the form",
    "ended": "answers with an end",
    "level_right": "level as annotated",
    "level_consistent": "level as the encoder's",
    "quoting": "answers that quote",
    "evidence_verbatim": "quotes found in texts",
    "skills_named": "of those the job asks",
    "words": "length",
    "tokens": "length",
    "distinct_1": "different words",
    "distinct_2": "different word pairs",
    "entropy": "nats a token",
    "kl": "nats, to the teacher",
    "js": "nats, to the teacher",
    "tvd": "0 to 1, to the teacher",
}
"""Figure: what it says, short enough for a column beside two models."""


def report(found: Mapping[str, Any]) -> RenderableType:
    """The figures of all models, what was kept of the teacher, and the judge's verdicts."""
    parts: list[RenderableType] = [figures_table(found)]
    if any(kept["of_teacher"] or kept["of_gap"] for kept in found["retention"].values()):
        parts.append(retention_table(found["retention"]))
    if verdict := found.get("judge"):
        parts.append(Text(_judged(verdict)))
    return Group(*parts)


def figures_table(found: Mapping[str, Any]) -> Table:
    """A row for each figure, a column for each model."""
    explained = found["data"]["explained"]
    title = (
        f"Test on {found['pairs']} pairs of {found['data']['jobs']} job{'s' * (found['data']['jobs'] > 1)}"
        f"{f', {explained} of them explained' if explained else ''}, with 95 % intervals"
    )
    table = _table(title)
    table.add_column("figure", no_wrap=True)
    for name in found["models"]:
        table.add_column(name, justify="right", no_wrap=True)
    # Three models leave no room for it on a terminal of 80 columns.
    explains = len(found["models"]) < 3
    if explains:
        table.add_column("what it is")
    names = dict.fromkeys(name for model in found["models"].values() for name in model["figures"])
    for name in sorted(names, key=list(ABOUT).index):
        cells = (_cell(model["figures"].get(name)) for model in found["models"].values())
        table.add_row(name, *cells, *([ABOUT[name]] if explains else []))
    return table


def retention_table(kept: Mapping[str, Any]) -> Table:
    """What the student has kept of the teacher, for each figure of which that can be said."""
    table = _table("Kept of the teacher")
    for heading in ("figure", "student / teacher", "(student − SFT) / (teacher − SFT)"):
        table.add_column(heading, justify="left" if heading == "figure" else "right", no_wrap=heading == "figure")
    for name, shares in kept.items():
        if shares["of_teacher"] or shares["of_gap"]:
            table.add_row(name, _cell(shares["of_teacher"]), _cell(shares["of_gap"]))
    return table


def _judged(verdict: Mapping[str, Any]) -> str:
    if "failed" in verdict:
        return f"The judge: {verdict['failed']}"
    wins = ", ".join(f"{name} {count}" for name, count in verdict["wins"].items())
    return (
        f"Judge ({verdict['judge']}), {verdict['pairs']} pairs in both orders: {wins}. "
        f"Win rate {_cell(verdict['win_rate'])}; {verdict['inconsistent']} turned with the order, "
        f"{verdict['unreadable']} couldn't be read; the first place was preferred {_cell(verdict['first_preferred'])}."
    )


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure["value"] is None:
        return ""
    if figure["low"] is None:
        return _short(figure["value"])
    return f"{_short(figure['value'])} ({_short(figure['low'])} to {_short(figure['high'])})"


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
