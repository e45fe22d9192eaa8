"""What it took: questions, tokens and money of labelling, steps and time of training, and how large models are."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from lantern_pl import embedded
from lantern_pl.report.collect import Run
from lantern_pl.report.files import as_object
from lantern_pl.report.graph import LABELS, MODEL, SIGNALS, STUDENT, Node, Provenance

_LARGEST_HEADER = 64 << 20


def labelling(provenance: Provenance) -> list[dict[str, Any]]:
    """A row for each folder of labels. What its store has ever spent, else what its last run did; None: not known."""
    rows = []
    for node in provenance.nodes.values():
        if node.kind != LABELS or not node.about:
            continue
        stages = [as_object(stage) for stage in as_object(node.about["report"].get("stages")).values()]
        spent = node.about["spent"] or {
            "answers": sum(_whole(stage.get("asked")) + _whole(stage.get("cached")) for stage in stages),
            "prompt_tokens": sum(_whole(stage.get("prompt_tokens")) for stage in stages),
            "completion_tokens": sum(_whole(stage.get("completion_tokens")) for stage in stages),
            "cost": None,
            "unpriced": 0,
        }
        quarantined = sum(sum(map(_whole, as_object(stage.get("quarantined")).values())) for stage in stages)
        teacher = as_object(node.about["manifest"].get("teacher")).get("name")
        rows.append({"title": node.title, "where": node.where, "teacher": teacher, "quarantined": quarantined, **spent})
    return rows


def recording(provenance: Provenance) -> list[dict[str, Any]]:
    """A row for each signal set."""
    return [
        {"title": node.title, "facts": ", ".join(node.facts), "bytes": node.about["bytes"]}
        for node in provenance.nodes.values()
        if node.kind == SIGNALS and node.about
    ]


def training(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each run."""
    rows = []
    for run in runs:
        speeds = [value for _, value in run.curves.get("train/tokens_per_s", [])]
        manifest = run.manifest or {}
        rows.append(
            {
                "name": run.name,
                "steps": manifest.get("steps"),
                "parameters": as_object(manifest.get("student")).get("parameters"),
                "tokens_per_s": median(speeds) if speeds else None,
                "time": duration(run.seconds) if run.seconds else None,
            }
        )
    return rows


def size_of_teacher(run: Run, provenance: Provenance) -> int | None:
    """Parameters of the model that taught a run's student, where it's in this machine's folders."""
    node = next((node for node in provenance.nodes.values() if node.run == run.name), None)
    for edge in provenance.into(node.key) if node else []:
        if edge.relation == "teaches":
            return _size(provenance, provenance.nodes[edge.source])
    return None


def _size(provenance: Provenance, node: Node) -> int | None:
    if node.kind == STUDENT:
        parameters = as_object(as_object(node.about.get("manifest")).get("student")).get("parameters")
        return parameters if isinstance(parameters, int) else None
    if node.kind == SIGNALS:
        recorded = [edge for edge in provenance.into(node.key) if edge.relation == "recorded"]
        return _size(provenance, provenance.nodes[recorded[0].source]) if recorded else None
    if node.kind != MODEL:
        return None
    if not node.title.startswith(embedded.PREFIX):
        return parameters_in(Path(node.where)) if node.where and Path(node.where).is_dir() else None
    # Only where it was made ready before: making it ready takes half a minute.
    ready = sorted((embedded.cache_folder() / "models").glob(f"{node.title.removeprefix(embedded.PREFIX)}-*"))
    return parameters_in(ready[-1]) if ready else None


def parameters_in(folder: Path) -> int | None:
    """How many numbers a folder's safetensors files hold, read from their heads."""
    total = 0
    try:
        for path in folder.glob("*.safetensors"):
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > _LARGEST_HEADER:
                    return None
                head = json.loads(file.read(length))
            for name, tensor in head.items():
                if name != "__metadata__":
                    count = 1
                    for side in tensor["shape"]:
                        count *= side
                    total += count
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError):
        return None
    return total or None


def duration(seconds: float) -> str:
    """In the unit that a person would use."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0
