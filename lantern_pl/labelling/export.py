"""What a label run leaves beside its store: labels.parquet, what has no label and why, a manifest, and a report."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.table import Table

from lantern_pl import __version__
from lantern_pl.data.pair import Pair
from lantern_pl.data.records import fingerprint
from lantern_pl.labelling.account import Tally
from lantern_pl.labelling.labels import Label, NoLabel
from lantern_pl.private_files import write_private, write_private_text
from lantern_pl.tasks.untrusted import flags

LABELS, QUARANTINE, MANIFEST, REPORT = "labels.parquet", "quarantine.jsonl", "manifest.json", "report.json"
_ROWS_AT_ONCE = 1000


def export(
    folder: Path, pairs: Sequence[Pair], labels: Iterable[Label | NoLabel], levels: Sequence[str], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the files, each beside its target and then renamed; `about` goes into the manifest. Returns what the report
    says of the labels."""
    without: list[dict[str, str]] = []
    figures = _Figures(levels)

    def rows() -> Iterator[dict[str, Any]]:
        for pair, label in zip(pairs, labels, strict=True):
            found = pair_flags(pair)
            figures.add(pair, label, found)
            if isinstance(label, NoLabel):
                # All three, by which a purge goes.
                ids = {"pair_id": pair.pair_id, "job_id": pair.job_id, "candidate_id": pair.candidate_id}
                without.append({**ids, "reason": label.reason})
            else:
                yield _row(pair, label, levels, found, str(about["teacher"]["name"]))

    write_private(folder / LABELS, lambda file: _write_parquet(file, rows(), levels))
    with (folder / LABELS).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    write_private_text(folder / QUARANTINE, "".join(json.dumps(row) + "\n" for row in without))
    manifest = {
        "kind": "labels",
        "lantern_pl": __version__,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "levels": list(levels),
        "pairs": {"count": len(pairs), "sha256": fingerprint(pairs)},
        "labels": {"count": figures.labelled, "sha256": digest},
        **about,
    }
    write_private_text(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return figures.report()


def pair_flags(pair: Pair) -> list[str]:
    """What looks like an attack or is invisible, in either text of a pair."""
    return sorted({*flags(pair.job_text), *flags(pair.candidate_text)})


class _Figures:
    def __init__(self, levels: Sequence[str]) -> None:
        self.levels = Counter(dict.fromkeys(levels, 0))
        self.without: Counter[str] = Counter()
        self.flags: Counter[str] = Counter()
        self.flagged = 0
        self.labelled = 0
        self._jobs: dict[str, tuple[int, int]] = {}

    def add(self, pair: Pair, label: Label | NoLabel, found: Sequence[str]) -> None:
        self.flags.update(found)
        self.flagged += bool(found)
        if isinstance(label, NoLabel):
            self.without[label.reason] += 1
            return
        self.labelled += 1
        self.levels[label.level] += 1
        if label.reduced_job_text:
            self._jobs[pair.job_id] = len(pair.job_text), len(label.reduced_job_text)

    def report(self) -> dict[str, Any]:
        whole, reduced = (sum(sizes) for sizes in zip(*self._jobs.values(), strict=True)) if self._jobs else (0, 0)
        return {
            "labelled": self.labelled,
            "levels": dict(self.levels),
            "without_label": dict(self.without.most_common()),
            "flagged_pairs": self.flagged,
            "flags": dict(self.flags.most_common()),
            "reduced_job_text": {
                "jobs": len(self._jobs),
                "characters": whole,
                "reduced_to": reduced,
                "shorter_by": round(1 - reduced / whole, 3) if whole else None,
            },
        }


def _row(pair: Pair, label: Label, levels: Sequence[str], found: Sequence[str], teacher: str) -> dict[str, Any]:
    return {
        "pair_id": pair.pair_id,
        "job_id": pair.job_id,
        "candidate_id": pair.candidate_id,
        "job_text": pair.job_text,
        "candidate_text": pair.candidate_text,
        "level": label.level,
        "confidence": label.confidence,
        "votes": None if label.votes is None else dict(zip(levels, label.votes, strict=True)),
        "explanation": label.explanation,
        "requirements": [
            {field: str(item.get(field, "")) for field in ("requirement", "kind", "verdict", "evidence")}
            for item in label.requirements
        ],
        "reduced_job_text": label.reduced_job_text,
        "flags": list(found),
        "teacher": teacher,
    }


def schema(levels: Sequence[str]) -> Any:
    """The pyarrow schema of labels.parquet."""
    import pyarrow as pa

    text = pa.string()
    texts = ("pair_id", "job_id", "candidate_id", "job_text", "candidate_text", "level")
    requirement = pa.struct([(field, text) for field in ("requirement", "kind", "verdict", "evidence")])
    return pa.schema(
        [
            *((name, text) for name in texts),
            ("confidence", pa.float64()),
            ("votes", pa.struct([(level, pa.float64()) for level in levels])),
            ("explanation", text),
            ("requirements", pa.list_(requirement)),
            ("reduced_job_text", text),
            ("flags", pa.list_(text)),
            ("teacher", text),
        ]
    )


def _write_parquet(file: BinaryIO, rows: Iterator[dict[str, Any]], levels: Sequence[str]) -> None:
    """Write rows, some at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(file, schema(levels), compression="zstd") as writer:
        batch: list[dict[str, Any]] = []
        for row in rows:
            batch.append(row)
            if len(batch) == _ROWS_AT_ONCE:
                writer.write_table(pa.Table.from_pylist(batch, schema(levels)))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema(levels)))


def write_report(folder: Path, tallies: Mapping[str, Tally], seconds: float, labels: Mapping[str, Any]) -> dict[str, Any]:
    """Write report.json: what was asked and what it took, by stage, and what the labels are like."""
    stages = {name: _plain(tally) for name, tally in tallies.items()}
    asked = sum(tally.asked for tally in tallies.values())
    report = {
        "stages": stages,
        "seconds": round(seconds, 2),
        "asked_per_second": round(asked / seconds, 2) if seconds else None,
        **labels,
    }
    write_private_text(folder / REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return report


def _plain(tally: Tally) -> dict[str, Any]:
    # Not dataclasses.asdict, which rebuilds a Counter from its items, as if they were what it's to count.
    return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(tally).items()}


def show_report(report: Mapping[str, Any], folder: Path, console: Console) -> None:
    """The report as a person reads it."""
    table = Table(title="Label run", title_justify="left")
    table.add_column("stage", no_wrap=True)
    columns = {heading: [figure(stage) for stage in report["stages"].values()] for heading, figure in _COLUMNS.items()}
    # Most runs have nothing in quarantine, and rules use no tokens.
    shown = {heading: cells for heading, cells in columns.items() if heading == "asked" or any(c != 0 for c in cells)}
    for heading in shown:
        table.add_column(heading, justify="right")
    for name, *cells in zip(report["stages"], *shown.values(), strict=True):
        table.add_row(name, *("unknown" if c is None else f"{c:,.4f}" if isinstance(c, float) else f"{c:,}" for c in cells))
    console.print(table)
    levels = ", ".join(f"{count} {level}" for level, count in report["levels"].items())
    _say(console, f"{report['labelled']} labels ({levels}) in {folder / LABELS}, in {report['seconds']:.1f} s.")
    for what, counts in (("Without a label", report["without_label"]), ("Flagged in texts", report["flags"])):
        if counts:
            _say(console, f"{what}: " + "; ".join(f"{count} {reason}" for reason, count in counts.items()))
    reduced = report["reduced_job_text"]
    if reduced["jobs"]:
        _say(
            console,
            f"Reduced to requirements, {reduced['jobs']} job texts are {reduced['shorter_by']:.0%} shorter: "
            f"{reduced['characters']:,} to {reduced['reduced_to']:,} characters.",
        )


_COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], int | float | None]] = {
    "asked": lambda stage: stage["asked"],
    "cached": lambda stage: stage["cached"],
    "in quarantine": lambda stage: sum(stage["quarantined"].values()),
    "blocked": lambda stage: stage["blocked"],
    "attempts": lambda stage: sum(stage["attempts"].values()),
    "tokens read": lambda stage: stage["prompt_tokens"],
    "written": lambda stage: stage["completion_tokens"],
    "cost": lambda stage: stage["cost"],
}


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False)
