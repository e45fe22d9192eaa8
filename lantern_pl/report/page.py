"""The page itself: everything put into the template, with a policy that lets a browser run and fetch nothing."""

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from lantern_pl import __version__
from lantern_pl.errors import UserError
from lantern_pl.report import across, costs, evidence
from lantern_pl.report.collect import Run
from lantern_pl.report.diagram import KINDS, draw
from lantern_pl.report.figures import number
from lantern_pl.report.files import ComparisonFile, as_object
from lantern_pl.report.graph import Provenance
from lantern_pl.report.views import CALLED, MODELS, view
from lantern_pl.secret_values import without_secrets
from lantern_pl.tasks import Task

TEMPLATE, STYLE = "page.html.jinja", "page.css"


def render(
    runs: Sequence[Run],
    provenance: Provenance,
    comparison: ComparisonFile | None,
    title: str | None,
    max_samples: int,
    without_texts: bool,
) -> str:
    """The page as HTML, in UTF-8. All texts are escaped; the policy allows the page's own style sheet and nothing else."""
    folder = files("lantern_pl.report")
    style = folder.joinpath(STYLE).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    environment.filters["plain"] = _plain
    template = environment.from_string(folder.joinpath(TEMPLATE).read_text(encoding="utf-8"))
    samples = {run.name: _samples(run, max_samples) for run in runs}
    labelled = costs.labelling(provenance)
    return template.render(
        title=title or f"lantern report: {', '.join(run.name for run in runs)}",
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        style=Markup(style),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        runs=runs,
        views=[view(run, at, provenance) for at, run in enumerate(runs, start=1)],
        provenance=provenance,
        diagram=draw(provenance),
        kinds=KINDS,
        called=CALLED,
        models=MODELS,
        samples=samples,
        left_out={run.name: len(run.test.samples) - len(samples[run.name]) if run.test else 0 for run in runs},
        holds_texts=any(samples.values()),
        without_texts=without_texts,
        across=_across(runs) if len(runs) > 1 else None,
        comparison=across.compared(comparison) if comparison else None,
        labelling=labelled,
        total=sum(row["cost"] or 0 for row in labelled),
        recording=costs.recording(provenance),
        training=costs.training(runs),
        configs={run.name: yaml.safe_dump(without_secrets(run.config), sort_keys=False, allow_unicode=True) for run in runs},
    )


def _across(runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "summary": across.summary(runs),
        "figures": across.figures(runs),
        "caution": across.caution(runs),
        "curves": across.curves(runs),
        "legend": [(run.name, across.color(at)) for at, run in enumerate(runs)],
    }


def _samples(run: Run, most: int) -> list[evidence.Shown]:
    if run.test is None or not most:
        return []
    task = _task(run)
    named = {name for sample in run.test.samples for name in sample.answers}
    order = [*(name for name in MODELS if name in named), *sorted(named - set(MODELS))]
    return [evidence.show(sample, order, task) for sample in run.test.samples[:most]]


def _task(run: Run) -> Task:
    """What the answers' form is."""
    fields = as_object((run.manifest or {}).get("task"))
    try:
        return Task(**{name: fields[name] for name in ("levels", "prompt", "answer") if name in fields})
    except (UserError, TypeError, AttributeError, ValueError):
        return Task()


def _plain(value: Any) -> str:
    """A value of a table: numbers short, all else as it is."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
