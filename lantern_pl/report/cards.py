"""What a colleague wants to know of a run first: the cards on top of the page, and one sentence of how it was made."""

from dataclasses import dataclass
from typing import Any

from lantern_pl.report.collect import Run
from lantern_pl.report.costs import duration, size_of_teacher
from lantern_pl.report.figures import LEADING, about, interval, number
from lantern_pl.report.files import AuditFile, Figure, ModelFigures, as_object
from lantern_pl.report.graph import Provenance


@dataclass(frozen=True)
class Card:
    """A headline figure. command: what makes it, where it isn't there; `part` of the run's section says how. tone: good, bad
    or plain."""

    title: str
    value: str
    note: str = ""
    command: str = ""
    part: str = ""
    tone: str = "plain"


def cards(run: Run, provenance: Provenance) -> list[Card]:
    """What it is, how good, what it has kept, its size, the audit."""
    return [_what(run, provenance), _how_good(run), _kept(run), _size(run, provenance), _audited(run.audit)]


def sentence(run: Run) -> str:
    """What was trained from what, in one sentence."""
    if run.manifest is None:
        return "There is no manifest of a student: the run hasn't ended, or its folder is a part of one."
    student, teacher = as_object(run.manifest.get("student")), run.manifest.get("teacher")
    loss = as_object(student.get("loss"))
    terms = [(f"{_weight(weight)} · {about(name).title}") for name, weight in as_object(loss.get("mixture")).items()]
    if loss.get("cross_entropy"):
        terms.append(f"{_weight(loss['cross_entropy'])} · cross entropy")
    kept = as_object(student.get("layers")).get("keep")
    start = f"{kept} layers of {student.get('started_from')}" if kept else str(student.get("started_from"))
    splits = as_object(as_object(run.manifest.get("data")).get("splits"))
    pairs = as_object(splits.get("train")).get("pairs", "?")
    if isinstance(teacher, dict):
        by = f" with {teacher.get('model') or teacher.get('signals') or teacher.get('class')} as its teacher"
    else:
        by = ", learning from the annotations of the data alone"
    article = "An" if run.kind[:1] in "aeiou" else "A"
    return (
        f"{article} {run.kind}, started from {start}, trained for {run.manifest.get('steps')} steps on {pairs} pairs of "
        f"{as_object(run.manifest.get('data')).get('path')}{by}. Its loss: {' + '.join(terms) or 'not told'}."
    )


def _weight(weight: Any) -> str:
    if isinstance(weight, dict):
        return f"({weight.get('start')} to {weight.get('end')}, {weight.get('shape')})"
    return f"{weight:g}" if isinstance(weight, int | float) else str(weight)


def _what(run: Run, provenance: Provenance) -> Card:
    if run.manifest is None:
        return Card("What it is", run.kind, "no student here yet", "lantern fit", "training")
    student = as_object(run.manifest.get("student"))
    node = next((node for node in provenance.nodes.values() if node.run == run.name), None)
    sources = {e.relation: provenance.nodes[e.source].title for e in (provenance.into(node.key) if node else [])}
    learned = ", ".join(
        f"{what} {sources[key]}" for key, what in (("teaches", "taught by"), ("trains", "on")) if key in sources
    )
    does = {"encoder": "classifies the fit", "decoder": "explains the fit"}.get(run.kind, "")
    notes = [does, learned or f"started from {student.get('started_from')}"]
    return Card("What it is", run.kind.capitalize(), "; ".join(filter(None, notes)))


def _how_good(run: Run) -> Card:
    if run.test is not None and (student := run.test.models.get("student")):
        names = [name for name in LEADING if _value(student, name) is not None][:2]
        if names:
            first, *more = [(about(name), student.figures[name]) for name in names]
            told = interval(first[1], first[0].share)
            notes = [first[0].title.lower() + (f", 95 % interval {told}" if told else "")]
            notes += [f"{told.title.lower()} {_with_interval(figure, told.share)}" for told, figure in more]
            return Card(
                "How good", number(first[1].value, first[0].share), "; ".join([*notes, f"{run.test.pairs} test pairs"])
            )
    trained = as_object(as_object((run.manifest or {}).get("metrics")).get("trained"))
    names = [name for name in LEADING if isinstance(trained.get(name), int | float)][:2]
    note = "; ".join(f"{about(n).title.lower()} {number(trained[n], about(n).share)}" for n in names)
    return Card(
        "How good", "not tested", f"in validation, without intervals: {note}" if note else "", "lantern test", "test"
    )


def _with_interval(figure: Figure, share: bool) -> str:
    told = interval(figure, share)
    return number(figure.value, share) + (f" ({told})" if told else "")


def _kept(run: Run) -> Card:
    title = "Kept of its teacher"
    if run.test is None:
        return Card(title, "not measured", command="lantern test", part="test")
    for name in LEADING:
        kept = run.test.retention.get(name)
        if kept and kept.of_teacher and kept.of_teacher.value is not None:
            tone = "good" if (kept.of_teacher.low or 0) >= 0.9 else "plain"
            gap = (
                f"; {number(kept.of_gap.value, True)} of the teacher's lead"
                if kept.of_gap and kept.of_gap.value is not None
                else ""
            )
            note = f"of its {about(name).title.lower()}, interval {interval(kept.of_teacher, True)}{gap}"
            return Card(title, number(kept.of_teacher.value, True), note, tone=tone)
    why = next((kept.why for kept in run.test.retention.values() if kept.why), "no teacher was asked")
    return Card(title, "can't be said", why or "")


def _size(run: Run, provenance: Provenance) -> Card:
    parameters = as_object((run.manifest or {}).get("student")).get("parameters")
    if not isinstance(parameters, int):
        return Card("Size", "unknown")
    teacher = size_of_teacher(run, provenance)
    notes = ["parameters" + (f", {parameters / teacher:.0%} of its teacher's {teacher / 1e6:,.1f}M" if teacher else "")]
    if run.seconds:
        notes.append(f"trained in about {duration(run.seconds)}")
    return Card("Size", f"{parameters / 1e6:,.1f}M", "; ".join(notes))


def _audited(audit: AuditFile | None) -> Card:
    if audit is None:
        return Card("Audit", "not audited", "whether it treats people alike isn't known", "lantern audit", "audit")
    counts = {
        kind: sum(finding.kind == kind for finding in audit.findings) for kind in ("flag", "clear", "insufficient data")
    }
    value = f"{counts['flag']} flag{'' if counts['flag'] == 1 else 's'}"
    note = f"{counts['clear']} clear, {counts['insufficient data']} with too little data to tell"
    return Card("Audit", value, note, tone="bad" if counts["flag"] else "plain")


def _value(model: ModelFigures, name: str) -> float | None:
    return model.figures[name].value if name in model.figures else None
