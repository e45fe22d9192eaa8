"""D_seed: the labels that persons, or rules in their stead, have let pass. What an in-house teacher is trained on.

`seed.jsonl` and `seed.parquet` hold the same rows, which `data.records.read_pairs` reads, with further fields:

| field | |
|---|---|
| `verdict` | "accept" or "edit" |
| `reviewers` | who stands behind it; the first is who decided first |
| `decided_at` | when the last of them decided, ISO 8601, UTC |
| `rule` | null where a person decided, else the rules that did |
| `teacher`, `requirements`, `reduced_job_text`, `flags` | as in labels.parquet |

`votes` and `confidence` are the teacher's and speak of its own level: they are null where a person has changed that. Where
the labels were made anew since, what was accepted stays, `teacher` is null, and `requirements` has none: they aren't its.
`seed.manifest.json` says how many pairs there are and from whom, what was left out and why, and how far the reviewers
agree.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lantern_pl import __version__
from lantern_pl.labelling.review.agreement import agreements
from lantern_pl.labelling.review.decisions import Standing, is_of_label, standings
from lantern_pl.labelling.review.labelled import LABELS, LabelledPair, Labels
from lantern_pl.labelling.store import Decision
from lantern_pl.private_files import write_private, write_private_text

SEED = "seed"


def write_seed(folder: Path, labels: Labels, decisions: Sequence[Decision]) -> dict[str, Any]:
    """Write the three files into the labels' folder. Returns the manifest. Raises UserError.

    Where nothing has passed, no rows are written and those of an earlier review are removed: `pairs` is 0 then.
    """
    stands = standings(labels, decisions)
    rows = [_row(labels.pairs[pair_id], found) for pair_id, found in stands.items() if found.level is not None]
    jsonl = folder / f"{SEED}.jsonl"
    parquet = folder / f"{SEED}.parquet"
    if rows:
        lines = [(json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows]
        write_private(jsonl, lambda file: file.writelines(lines))
        write_private(parquet, lambda file: _write_parquet(file, rows, labels.levels))
    else:
        for path in (jsonl, parquet):
            path.unlink(missing_ok=True)
    manifest = {
        "kind": "seed",
        "lantern_pl": __version__,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "levels": list(labels.levels),
        "labels": {"count": len(labels.pairs), "sha256": _sha256(folder / LABELS)},
        "pairs": len(rows),
        "sha256": {path.name: _sha256(path) for path in (jsonl, parquet) if rows},
        **_figures(labels, decisions, stands),
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    write_private_text(folder / f"{SEED}.manifest.json", text)
    return manifest


def _row(pair: LabelledPair, stands: Standing) -> dict[str, Any]:
    own = stands.state == "edit" or is_of_label(stands.level, stands.explanation, pair)
    kept = own and stands.level == pair.level
    return {
        **{name: getattr(pair, name) for name in ("pair_id", "job_id", "candidate_id", "job_text", "candidate_text")},
        "level": stands.level,
        "explanation": stands.explanation,
        "votes": dict(pair.votes) if kept and pair.votes else None,
        "confidence": pair.confidence if kept else None,
        "requirements": [asdict(line) for line in pair.requirements] if own else [],
        "reduced_job_text": pair.reduced_job_text,
        "flags": list(pair.flags),
        "teacher": pair.teacher if own else None,
        "verdict": stands.state,
        "reviewers": [decision.reviewer for decision in stands.decided],
        "decided_at": stands.decided[-1].at,
        "rule": stands.decided[-1].rule,
    }


def _write_parquet(file: Any, rows: Sequence[Mapping[str, Any]], levels: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    text, texts = pa.string(), pa.list_(pa.string())
    kinds = {
        "votes": pa.struct([(level, pa.float64()) for level in levels]),
        "confidence": pa.float64(),
        "requirements": pa.list_(pa.struct([(name, text) for name in ("requirement", "kind", "verdict", "evidence")])),
        "flags": texts,
        "reviewers": texts,
    }
    schema = pa.schema([(name, kinds.get(name, text)) for name in rows[0]])
    pyarrow.parquet.write_table(pa.Table.from_pylist(list(rows), schema), file, compression="zstd")


def _figures(labels: Labels, decisions: Sequence[Decision], stands: Mapping[str, Standing]) -> dict[str, Any]:
    passed = [found for found in stands.values() if found.level is not None]
    states = Counter(found.state for found in stands.values())
    by_level = Counter(found.level for found in passed)
    by_rule = Counter(found.decided[-1].rule for found in passed if found.decided[-1].rule)
    return {
        "by_level": {level: by_level[level] for level in labels.levels},
        "by_verdict": {verdict: states[verdict] for verdict in ("accept", "edit")},
        "by_reviewer": dict(Counter(decision.reviewer for found in passed for decision in found.decided).most_common()),
        "by_rule": dict(by_rule.most_common()),
        "left_out": {
            "rejected": states["reject"],
            "disputed": states["disputed"],
            "not decided": len(labels.pairs) - len(stands),
        },
        "agreement": [
            asdict(found)
            for found in agreements(decisions, {pair.pair_id: pair.level for pair in labels.pairs.values()}, labels.levels)
        ],
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
