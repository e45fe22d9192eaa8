"""Labels folders for the tests of reviews."""

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from lantern_pl.labelling.review.labelled import LabelledPair, Labels, Requirement
from lantern_pl.labelling.store import Decision, LabelStore

LEVELS = ["low", "medium", "high"]

MET = Requirement("Python", "must", "met", "five years of Python")
UNMET = Requirement("Kafka", "nice", "unmet", None)
GOOD = LabelledPair(
    pair_id="p1",
    job_id="j1",
    candidate_id="c1",
    job_text="We look for a developer with Python and Kafka.",
    candidate_text="I bring five years\nof Python, and led a team.",
    level="medium",
    explanation="Knows Python, not Kafka.",
    confidence=0.9,
    votes={"low": 0.0, "medium": 4.0, "high": 1.0},
    requirements=[MET, UNMET],
    reduced_job_text="- Python (must)",
    teacher="litellm:teacher",
)


def labelled(pair_id: str, **changes: Any) -> LabelledPair:
    """GOOD under another name, with changes."""
    number = pair_id.lstrip("p")
    return replace(GOOD, pair_id=pair_id, **{"job_id": f"j{number}", "candidate_id": f"c{number}"} | changes)


def labels_of(*pairs: LabelledPair) -> Labels:
    return Labels(LEVELS, {pair.pair_id: pair for pair in pairs})


def write_labels(folder: Path, pairs: Iterable[LabelledPair], manifest: bool = True) -> Path:
    """A folder as `lantern label` leaves it: store, labels.parquet, manifest."""
    with LabelStore(folder):
        pass
    text = pa.string()
    requirement = pa.struct([(name, text) for name in ("requirement", "kind", "verdict", "evidence")])
    kinds = {
        "confidence": pa.float64(),
        "votes": pa.struct([(level, pa.float64()) for level in LEVELS]),
        "requirements": pa.list_(requirement),
        "flags": pa.list_(text),
    }
    rows = [asdict(pair) for pair in pairs]
    for row in rows:
        # Missing parts are written as blanks.
        row["requirements"] = [{name: said or "" for name, said in line.items()} for line in row["requirements"]]
        row["flags"] = list(row["flags"])
    schema = pa.schema([(name, kinds.get(name, text)) for name in LabelledPair.__dataclass_fields__])
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows, schema), folder / "labels.parquet")
    if manifest:
        (folder / "manifest.json").write_text(json.dumps({"kind": "labels", "levels": LEVELS}))
    return folder


def decision(
    pair_id: str, reviewer: str, verdict: str, level: str | None = None, minute: int = 0, **changes: Any
) -> Decision:
    """A decision of a person, at a minute past noon."""
    fields = {"explanation": None, "note": None, "rule": None, "at": f"2026-01-31T12:{minute:02}:00.000000+00:00"} | changes
    return Decision(pair_id=pair_id, reviewer=reviewer, verdict=verdict, level=level, **fields)


def decisions_in(folder: Path) -> list[Decision]:
    with LabelStore(folder, create=False) as store:
        return store.decisions()
