"""The files of `lantern test`: figures as JSON, and the answers of all models as Parquet. Both hold texts of persons."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from lantern_pl.data.pair import Pair
from lantern_pl.evaluation.asking import Written
from lantern_pl.evaluation.explanation_checks import ExplanationCheck
from lantern_pl.private_files import write_private, write_private_text
from lantern_pl.tasks import Task

ANSWERS = "test_answers.parquet"

_COLUMNS = pa.schema(
    {
        "model": pa.string(),
        "pair_id": pa.string(),
        "annotated_level": pa.string(),
        "level_probs": pa.list_(pa.float32()),
        "text": pa.string(),
        "valid_format": pa.bool_(),
        "level": pa.string(),
        "quotes": pa.list_(pa.string()),
        "quotes_found_in": pa.list_(pa.string()),
    }
)


class Said(Protocol):
    """What a model has said of the pairs, and of those to explain."""

    probs: Tensor | None
    answers: list[Written] | None
    checks: list[ExplanationCheck]


def write_answers(
    pairs: Sequence[Pair],
    right: Sequence[int],
    explained: Sequence[Pair],
    asked: Mapping[str, Said],
    task: Task,
    path: Path,
) -> None:
    """A row for each model and pair: what it said, and what was read from that. For their owner alone."""
    places = {pair.pair_id: at for at, pair in enumerate(explained)}
    rows = []
    for name, said in asked.items():
        for row, pair in enumerate(pairs):
            at = places.get(pair.pair_id) if said.answers is not None else None
            if said.probs is None and at is None:
                continue
            cells: dict[str, Any] = {"model": name, "pair_id": pair.pair_id, "annotated_level": task.levels[right[row]]}
            if said.probs is not None:
                cells["level_probs"] = said.probs[row].tolist()
            if said.answers is not None and at is not None:
                check = said.checks[at]
                cells |= {
                    "text": said.answers[at].text,
                    "valid_format": check.valid_format,
                    "level": check.level,
                    "quotes": [quote.text for quote in check.quotes],
                    "quotes_found_in": [quote.found_in for quote in check.quotes],
                }
            rows.append(cells)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, _COLUMNS), buffer)
    write_private(path, lambda file: file.write(buffer.getvalue()))


def write_figures(found: Mapping[str, Any], path: Path) -> None:
    """test.json, for its owner alone: it holds texts of persons. What isn't a number is null."""
    write_private_text(path, json.dumps(_finite(found), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and value - value != 0 else value
