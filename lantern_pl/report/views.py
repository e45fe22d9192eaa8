"""What the page says of one run: the cards on top, curves, figures, retention, audit, speed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from lantern_pl.report import charts
from lantern_pl.report.cards import Card, cards, sentence
from lantern_pl.report.collect import Points, Run
from lantern_pl.report.figures import DIVERGENCES, About, about, interval, number
from lantern_pl.report.files import ModelFigures, as_object
from lantern_pl.report.graph import Provenance

MODELS = ("teacher", "sft", "student")
"""The order of models everywhere; each has a colour of its name."""
CALLED = {"teacher": "teacher", "sft": "fine-tuned alone", "student": "student", "annotation": "annotation"}
_SETTINGS = ("learning_rate", "tokens_per_s")


@dataclass(frozen=True)
class Row:
    """A figure of several models: name -> value and interval, and a picture of them."""

    about: About
    name: str
    cells: Mapping[str, tuple[str, str, int | None]]
    chart: Markup


@dataclass
class RunView:
    """Everything about a run that the template shows; ids of its sections begin with `anchor`."""

    run: Run
    anchor: str
    cards: list[Card]
    sentence: str
    curves: list[Markup] = field(default_factory=list)
    settings: list[Markup] = field(default_factory=list)
    learned: list[dict[str, Any]] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    divergences: list[Row] = field(default_factory=list)
    retention: list[dict[str, Any]] = field(default_factory=list)
    not_said: list[tuple[str, str]] = field(default_factory=list)
    per_level: list[dict[str, Any]] = field(default_factory=list)
    confusion: list[Markup] = field(default_factory=list)
    reliability: list[Markup] = field(default_factory=list)
    commands: dict[str, str] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)


def view(run: Run, number_of: int, provenance: Provenance) -> RunView:
    """All of it. `number_of`: which of the runs this is."""
    found = RunView(run, f"run-{number_of}", cards(run, provenance), sentence(run))
    found.commands = _commands(run)
    found.curves, found.settings = _curves(run), _schedules(run)
    found.learned = _learned(run)
    manifest = run.manifest or {}
    found.versions = as_object(manifest.get("versions"))
    found.versions |= {name: manifest[name] for name in ("python", "weights") if manifest.get(name)}
    if run.test is not None:
        models = {name: run.test.models[name] for name in MODELS if name in run.test.models}
        models |= {name: figures for name, figures in run.test.models.items() if name not in models}
        found.models = list(models)
        names = dict.fromkeys(name for figures in models.values() for name in figures.figures)
        rows = [_row(name, models) for name in names]
        found.rows = [row for row in rows if row.name not in DIVERGENCES]
        found.divergences = [row for row in rows if row.name in DIVERGENCES]
        found.retention, found.not_said = _retention(run)
        found.per_level = _per_level(models, run.test.levels)
        for name, figures in models.items():
            if figures.confusion and _is_square(figures.confusion, len(run.test.levels)):
                found.confusion.append(charts.confusion(figures.confusion, run.test.levels, CALLED.get(name, name)))
            if figures.reliability:
                found.reliability.append(charts.reliability(figures.reliability, CALLED.get(name, name), color_of(name)))
    return found


def color_of(model: str) -> str:
    return model if model in MODELS else "other"


def _is_square(matrix: list[list[int]], count: int) -> bool:
    return len(matrix) == count and all(len(row) == count for row in matrix)


def _commands(run: Run) -> dict[str, str]:
    """Which command makes what isn't there."""
    folder = run.folder
    return {
        "fit": f"lantern fit --config {folder}/config.yaml --ckpt_path last",
        "test": f"lantern test --config {folder}/config.yaml --ckpt_path last",
        "audit": f"lantern audit --config AUDIT.yaml --out {folder}/audit.json",
        "export": f"lantern export {folder} --out exported/{folder.resolve().name}",
    }


# Training


def _curves(run: Run) -> list[Markup]:
    """One chart for each loss and figure: training as a line, validation with dots, from the untrained student on."""
    untrained = as_object(as_object((run.manifest or {}).get("metrics")).get("untrained"))
    found = []
    for name in curve_names(run):
        lines = [
            charts.Curve("training", "train", run.curves.get(f"train/{name}", [])),
            charts.Curve("held out", "val", validation(run, name, untrained.get(name)), dots=True),
        ]
        found.append(charts.curves(about(name).title, lines, about(name).title))
    return found


def validation(run: Run, name: str, untrained: Any) -> Points:
    """Validation's points, the untrained student's first."""
    points = run.curves.get(f"val/{name}", [])
    if isinstance(untrained, int | float) and points and points[0][0] > 0:
        return [(0.0, float(untrained)), *points]
    return points


def curve_names(run: Run) -> list[str]:
    """What there are curves of: losses first, then the figures of validation."""
    names = dict.fromkeys(name.partition("/")[2] for name in run.curves if name.partition("/")[0] in ("train", "val"))
    schedules = {name for name in names if name in _SETTINGS or name == "temperature" or name.startswith("weight_")}
    return [name for name in names if name not in schedules]


def _schedules(run: Run) -> list[Markup]:
    names = [name.partition("/")[2] for name in run.curves if name.startswith("train/")]
    chosen = [name for name in names if name in _SETTINGS or name == "temperature" or name.startswith("weight_")]
    return [
        charts.curves(about(name).title, [charts.Curve("training", "train", run.curves[f"train/{name}"])], about(name).title)
        for name in chosen
    ]


def _learned(run: Run) -> list[dict[str, Any]]:
    """Validation before and after training."""
    metrics = as_object((run.manifest or {}).get("metrics"))
    before, after = as_object(metrics.get("untrained")), as_object(metrics.get("trained"))
    rows = []
    for name, now in after.items():
        if not isinstance(now, int | float):
            continue
        then, told = before.get(name), about(name)
        less = told.better == "less" or not told.text
        ratio = now / then if less and isinstance(then, int | float) and then > 0 else None
        rows.append(
            {
                "about": told,
                "untrained": number(then, told.share) if isinstance(then, int | float) else "",
                "trained": number(now, told.share),
                "bar": charts.ratio_bar(ratio, "student") if ratio is not None else "",
                "ratio": f"{ratio:.0%} of before" if ratio is not None else "",
            }
        )
    return rows


# Test


def _row(name: str, models: Mapping[str, ModelFigures]) -> Row:
    told = about(name)
    figures = {model: found.figures[name] for model, found in models.items() if name in found.figures}
    cells = {
        model: (number(figure.value, told.share), interval(figure, told.share), figure.n)
        for model, figure in figures.items()
    }
    most = 1.0 if told.share else None
    low, high = charts.scale_of(list(figures.values()), 0.0, most)
    drawn = {model: (figures[model], color_of(model)) for model in models if model in figures}
    return Row(told, name, cells, charts.interval_rows(drawn, low, high))


def _retention(run: Run) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """What was kept, and of which figures that can't be said, and why."""
    assert run.test is not None
    rows, not_said = [], []
    for name, kept in run.test.retention.items():
        shares = [share for share in (kept.of_teacher, kept.of_gap) if share and share.value is not None]
        if not shares:
            not_said.append((about(name).title, kept.why or "not told"))
            continue
        low, high = charts.scale_of(shares, 0.0, 1.0)
        low, high = max(low, -1.0), min(high, 2.0)  # shares of a small lead have whiskers without end
        drawn = {
            title: (share, color)
            for title, share, color in (("of the teacher", kept.of_teacher, "student"), ("of its lead", kept.of_gap, "sft"))
            if share and share.value is not None
        }
        cells = [
            (number(share.value, True), interval(share, True)) if share and share.value is not None else ("", "")
            for share in (kept.of_teacher, kept.of_gap)
        ]
        rows.append(
            {
                "about": about(name),
                "cells": cells,
                "why": kept.why or "",
                "chart": charts.interval_rows(drawn, low, high, 1.0),
            }
        )
    return rows, not_said


def _per_level(models: Mapping[str, ModelFigures], levels: list[str]) -> list[dict[str, Any]]:
    rows = []
    for level in levels:
        cells = {
            model: {
                figure: (number(found.per_level[level][figure].value, True), interval(found.per_level[level][figure], True))
                for figure in ("precision", "recall")
                if figure in found.per_level[level]
            }
            for model, found in models.items()
            if level in found.per_level
        }
        if cells:
            rows.append({"level": level, "cells": cells})
    return rows
