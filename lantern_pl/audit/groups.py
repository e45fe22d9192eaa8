"""Which groups candidates belong to: from columns beside the pairs, or from a table of candidates."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from lantern_pl.data.pair import Pair
from lantern_pl.data.records import ALIASES
from lantern_pl.data.row_files import BadRow, read_rows
from lantern_pl.errors import UserError, did_you_mean

CROSSED = " × "
_ID = "candidate_id"


@dataclass(frozen=True)
class Grouping:
    """An attribute, or two crossed, and each pair's group by it: None for one that isn't known or is too small.

    small: groups that are too small to compare, with their share of the candidates. unknown: candidates without a value.
    """

    attribute: str
    labels: Sequence[str | None]
    small: Mapping[str, float]
    unknown: int


def read_groups(groups: str | list[str], rows: Sequence[tuple[Pair, dict[str, Any]]]) -> dict[str, list[str | None]]:
    """Attribute -> each pair's value. Raises UserError where a column isn't there or no candidate has a value."""
    if isinstance(groups, str):
        table = _table(Path(groups))
        attributes = [name for name in next(iter(table.values())) if name not in (_ID, ALIASES[_ID])]
        if not attributes:
            raise UserError(f"{groups} has no column beside {_ID}: expected one for each attribute, such as sex.")
        found = [table.get(pair.candidate_id, {}) for pair, _ in rows]
        if not any(found):
            raise UserError(
                f"None of the pairs' candidates is in {groups}: its {_ID} must be the pairs', such as "
                f"{rows[0][0].candidate_id!r}."
            )
    else:
        if not groups:
            raise UserError("groups is an empty list: name columns of the pairs, or leave it out.")
        columns = {name for _, row in rows for name in row}
        for name in groups:
            if name not in columns:
                raise UserError(f"groups names {name!r}, which isn't a column of the pairs. {did_you_mean(name, columns)}")
        attributes, found = groups, [row for _, row in rows]
    return {name: [_value(row.get(name)) for row in found] for name in attributes}


def groupings(attributes: Mapping[str, Sequence[str | None]], pairs: Sequence[Pair], smallest: float) -> list[Grouping]:
    """Each attribute, and each two of them crossed. Groups below the share `smallest` of the candidates are left out."""
    crossed = {
        f"{first}{CROSSED}{second}": [
            None if a is None or b is None else f"{a}{CROSSED}{b}"
            for a, b in zip(attributes[first], attributes[second], strict=True)
        ]
        for first, second in combinations(attributes, 2)
    }
    made = []
    for attribute, labels in {**attributes, **crossed}.items():
        by_candidate = {pair.candidate_id: label for pair, label in zip(pairs, labels, strict=True)}
        counts = Counter(label for label in by_candidate.values() if label is not None)
        total = sum(counts.values())
        small = {label: count / total for label, count in sorted(counts.items()) if count / total < smallest}
        kept = [None if label in small else label for label in labels]
        made.append(Grouping(attribute, kept, small, len(by_candidate) - total))
    return made


def _value(value: Any) -> str | None:
    return None if value is None or not str(value).strip() else str(value).strip()


def _table(path: Path) -> dict[str, dict[str, Any]]:
    """candidate_id -> its row."""
    table: dict[str, dict[str, Any]] = {}
    for place, row in _csv_rows(path) if path.suffix == ".csv" else read_rows(path):
        if isinstance(row, BadRow) or not isinstance(row, dict):
            raise UserError(f"{place}: {row if isinstance(row, BadRow) else 'expected an object with fields'}")
        name = _value(row.get(_ID, row.get(ALIASES[_ID])))
        if name is None:
            raise UserError(f"{place}: {_ID} is missing; found {', '.join(map(str, list(row)[:8]))}.")
        if table.setdefault(name, row) != row:
            raise UserError(f"{place}: the candidate {name!r} is there twice, with other groups.")
    if not table:
        raise UserError(f"{path} holds no rows.")
    return table


def _csv_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [(f"{path}:{number}", dict(row)) for number, row in enumerate(csv.DictReader(file), start=2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"can't read {path}: {error}") from error
