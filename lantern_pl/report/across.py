"""Several runs held against each other: figures with their intervals, curves laid over each other, `lantern compare`."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from lantern_pl.report import charts
from lantern_pl.report.collect import Run
from lantern_pl.report.figures import about, interval, number, verdicts
from lantern_pl.report.files import ComparisonFile, as_object
from lantern_pl.report.views import curve_names, validation

COLORS = 6
"""Runs' colours, of which a seventh run gets the first one again."""


def figures(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each figure of the students that at least two runs were tested for."""
    tested = [run.test.models["student"].figures if run.test and "student" in run.test.models else {} for run in runs]
    names = dict.fromkeys(name for each in tested for name in each)
    rows = []
    for name in names:
        of_runs = [each.get(name) for each in tested]
        if sum(figure is not None and figure.value is not None for figure in of_runs) < 2:
            continue
        told = about(name)
        cells = [
            (number(figure.value, told.share), interval(figure, told.share), verdict) if figure else ("", "", "")
            for figure, verdict in zip(of_runs, verdicts(of_runs, told.better), strict=True)
        ]
        low, high = charts.scale_of([figure for figure in of_runs if figure], 0.0, 1.0 if told.share else None)
        drawn = {run.name: (figure, color(at)) for at, (run, figure) in enumerate(zip(runs, of_runs, strict=True)) if figure}
        rows.append({"about": told, "cells": cells, "chart": charts.interval_rows(drawn, low, high)})
    return rows


def caution(runs: Sequence[Run]) -> str:
    """What stands against comparing the runs' figures, empty if nothing does."""
    tests = [run.test for run in runs if run.test]
    hashes = {str(test.data.get("sha256")) for test in tests if test.data.get("sha256")}
    if len(hashes) > 1:
        return "They were tested on different pairs: a difference may be one of the pairs, not of the students."
    if len({test.kind for test in tests}) > 1:
        return "They are of different kinds: an encoder classifies, a decoder also writes."
    return ""


def summary(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What each run is, by the row: kind, start, loss, size, steps, pairs."""

    def of(run: Run, *names: str) -> Any:
        found: Any = run.manifest
        for name in names:
            found = as_object(found).get(name)
        return found

    def loss(run: Run) -> str:
        terms = list(as_object(of(run, "student", "loss", "mixture")))
        terms += ["cross entropy"] if of(run, "student", "loss", "cross_entropy") else []
        return " + ".join(about(name).title if name != "cross entropy" else name for name in terms)

    def millions(run: Run) -> str:
        parameters = of(run, "student", "parameters")
        return f"{parameters / 1e6:,.1f}M" if isinstance(parameters, int) else ""

    rows = {
        "kind": [run.kind for run in runs],
        "started from": [of(run, "student", "started_from") for run in runs],
        "teacher": [of(run, "teacher", "model") or of(run, "teacher", "class") for run in runs],
        "loss": [loss(run) for run in runs],
        "data": [of(run, "data", "path") for run in runs],
        "training pairs": [of(run, "data", "splits", "train", "pairs") for run in runs],
        "steps": [of(run, "steps") for run in runs],
        "parameters": [millions(run) for run in runs],
        "flags of the audit": [sum(f.kind == "flag" for f in run.audit.findings) if run.audit else "" for run in runs],
    }
    return [{"name": name, "cells": ["" if c is None else c for c in cells]} for name, cells in rows.items() if any(cells)]


def curves(runs: Sequence[Run]) -> list[Markup]:
    """One chart for each loss and figure that at least two runs have, of validation where that is, else of training."""
    names = dict.fromkeys(name for run in runs for name in curve_names(run))
    found = []
    for name in names:
        lines = []
        for at, run in enumerate(runs):
            untrained = as_object(as_object((run.manifest or {}).get("metrics")).get("untrained")).get(name)
            held_out = validation(run, name, untrained)
            points = held_out or run.curves.get(f"train/{name}", [])
            if points:
                lines.append(charts.Curve(run.name, color(at), points, dots=bool(held_out)))
        if len(lines) > 1:
            found.append(charts.curves(f"{about(name).title} of {len(lines)} runs", lines, about(name).title))
    return found


def color(at: int) -> str:
    return f"run{at % COLORS + 1}"


_COMPARED = {
    "parameters": ("size", lambda value: f"{value / 1e6:,.1f}M"),
    "accuracy": ("accuracy", lambda value: number(value, True)),
    "quadratic_kappa": ("quadratic kappa", number),
    "kl_of_levels": ("KL of levels, nats", number),
    "rouge_l": ("ROUGE-L", number),
    "kl_per_token": ("KL a token, nats", number),
    "levels_per_s": ("levels a second", number),
    "explanations_per_s": ("explanations a second", number),
}


def compared(file: ComparisonFile) -> dict[str, Any]:
    """The table of `lantern compare`, each column with bars on its own scale."""
    columns = []
    for key, (title, form) in _COMPARED.items():
        values = {name: row.get(key) for name, row in file.models.items()}
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        if not numbers:
            continue
        most = max(abs(value) for value in numbers.values()) or 1.0
        cells = {name: (form(value), charts.ratio_of(max(value, 0.0) / most)) for name, value in numbers.items()}
        columns.append({"title": title, "cells": cells})
    return {"pairs": file.pairs, "count": file.count, "models": list(file.models), "columns": columns}
