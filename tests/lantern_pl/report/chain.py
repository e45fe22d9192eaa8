"""Folders along the whole way from the first pairs to a student, as the commands write them, with weights of full size."""

import hashlib
import json
from pathlib import Path
from typing import Any

from report_files import LEVELS

from lantern_pl.data.records import fingerprint, read_pairs
from lantern_pl.data.sample import make_pairs
from lantern_pl.data.splits import split_pairs
from lantern_pl.model_files import weights_identity
from lantern_pl.tasks import Task

WEIGHTS = 300 << 20
"""Bytes of a model's weights, which a disk holds as a hole."""


def write_chain(folder: Path, run: Path) -> None:
    """D_base, its labels, their reviewed seed, a teacher trained on it, and `run`, whose student both have taught."""
    base, labels, teacher = folder / "base" / "pairs.jsonl", folder / "labels", folder / "teacher"
    base.parent.mkdir(parents=True)
    labels.mkdir()
    base.write_text("".join(json.dumps(row) + "\n" for row in make_pairs(400, seed=0)))
    (labels / "labels.parquet").write_bytes(b"labels" * 1000)
    (labels / "seed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_pairs(200, seed=0)))
    task = {"levels": LEVELS}
    labelled = {
        "kind": "labels",
        "pairs": {"path": str(base), "count": 400, "sha256": fingerprint(read_pairs(base, Task(), "job_text"))},
        "labels": {"count": 400, "sha256": _sha256(labels / "labels.parquet")},
        "teacher": {"name": "rubric", "identity": {"version": 1}},
        "task": task,
    }
    (labels / "manifest.json").write_text(json.dumps(labelled))
    reviewed = {
        "pairs": 200,
        "by_reviewer": {"ann": 200},
        "sha256": {"seed.jsonl": _sha256(labels / "seed.jsonl")},
        "labels": {"sha256": labelled["labels"]["sha256"]},
    }
    (labels / "seed.manifest.json").write_text(json.dumps(reviewed))
    _write_student(teacher, "decoder", labels / "seed.jsonl", None)
    identity = {"model": str(teacher / "student"), "weights": weights_identity(str(teacher / "student"))}
    _write_student(run, "decoder", labels / "seed.jsonl", {"class": "HFTeacher", **identity})


def _write_student(run: Path, kind: str, data: Path, teacher: dict[str, Any] | None) -> None:
    student = run / "student"
    student.mkdir(parents=True, exist_ok=True)
    (student / "config.json").write_text("{}")
    with (student / "model.safetensors").open("wb") as file:
        file.truncate(WEIGHTS)
    arguments = {"path": str(data), "val_fraction": 0.1, "test_fraction": 0.1, "split_seed": 0}
    train = split_pairs(read_pairs(data, Task(), "job_text"), 0.1, 0.1, 0).train
    manifest = {
        "format": 1,
        "kind": kind,
        "weights": weights_identity(str(student)),
        "student": {"started_from": "embedded:smollm2-135m", "parameters": 81_400_000},
        "teacher": teacher,
        "data": {"path": str(data), "splits": {"train": {"pairs": len(train), "sha256": fingerprint(train)}}},
        "steps": 100,
    }
    (student / "manifest.json").write_text(json.dumps(manifest))
    config = {"run_dir": str(run), "data": {"init_args": arguments}}
    (run / "config.yaml").write_text(json.dumps(config))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
