"""D_seed, and decisions that go out to other annotation tools and come back."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from review_labels import GOOD, decision, labelled, labels_of, write_labels

from lantern_pl.data.records import read_pairs
from lantern_pl.data.row_files import read_rows
from lantern_pl.errors import UserError
from lantern_pl.labelling.review.exchange import export_decisions, read_decisions
from lantern_pl.labelling.review.labelled import read_labels
from lantern_pl.labelling.review.seed import write_seed
from lantern_pl.labelling.store import Decision
from lantern_pl.tasks import Task

PAIRS = [labelled(f"p{number}") for number in range(1, 7)]
DECIDED = [
    decision("p1", "ann", "accept", "medium", 1),
    decision("p2", "ann", "edit", "high", 2, explanation="Knows a lot: “Python”."),
    decision("p2", "ben", "edit", "high", 3),
    decision("p3", "ann", "reject", None, 4),
    decision("p4", "ann", "accept", "medium", 5),
    decision("p4", "ben", "edit", "low", 6),
    decision("p5", "rules", "accept", "medium", 7, rule="valid_format, min_agreement=0.8"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_labels(tmp_path / "labels", PAIRS)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(path)]


def test_the_seed_holds_what_passed_with_who_and_when(folder: Path) -> None:
    manifest = write_seed(folder, read_labels(folder), DECIDED)
    rows = {row["pair_id"]: row for row in rows_of(folder / "seed.jsonl")}
    assert list(rows) == ["p1", "p2", "p5"]
    assert rows == {row["pair_id"]: row for row in rows_of(folder / "seed.parquet")}
    accepted, edited, ruled = rows.values()
    assert (accepted["level"], accepted["explanation"], accepted["verdict"]) == ("medium", GOOD.explanation, "accept")
    assert (accepted["reviewers"], accepted["decided_at"], accepted["rule"]) == (["ann"], DECIDED[0].at, None)
    assert accepted["votes"] == {"low": 0, "medium": 4, "high": 1}
    assert accepted["confidence"] == 0.9
    assert accepted["requirements"][0] == {
        "requirement": "Python",
        "kind": "must",
        "verdict": "met",
        "evidence": "five years of Python",
    }
    assert accepted["reduced_job_text"] == "- Python (must)"
    assert (edited["level"], edited["explanation"], edited["verdict"]) == ("high", "Knows a lot: “Python”.", "edit")
    assert (edited["reviewers"], edited["decided_at"]) == (["ann", "ben"], DECIDED[2].at)
    # What the teacher thought of its own level says nothing of a person's.
    assert edited["votes"] is None
    assert edited["confidence"] is None
    assert (ruled["reviewers"], ruled["rule"]) == (["rules"], "valid_format, min_agreement=0.8")
    assert manifest["pairs"] == 3
    assert manifest["by_level"] == {"low": 0, "medium": 2, "high": 1}
    assert manifest["by_verdict"] == {"accept": 2, "edit": 1}
    assert manifest["by_reviewer"] == {"ann": 2, "ben": 1, "rules": 1}
    assert manifest["left_out"] == {"rejected": 1, "disputed": 1, "not decided": 1}
    assert manifest["agreement"][0]["reviewers"] == ("ann", "ben")
    assert manifest["sha256"]["seed.jsonl"] == hashlib.sha256((folder / "seed.jsonl").read_bytes()).hexdigest()
    assert json.loads((folder / "seed.manifest.json").read_text())["pairs"] == 3
    for name in ("seed.jsonl", "seed.parquet", "seed.manifest.json"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["seed.jsonl", "seed.parquet"])
def test_the_seed_is_training_data(folder: Path, name: str) -> None:
    write_seed(folder, read_labels(folder), DECIDED)
    first, second, _ = read_pairs(folder / name, Task())
    assert first.level_probs == (0.0, 0.8, 0.2)
    assert (second.level, second.explanation, second.level_probs) == ("high", "Knows a lot: “Python”.", None)
    assert (first.job_text, first.candidate_text) == (GOOD.job_text, GOOD.candidate_text)


def test_a_seed_of_nothing_is_no_file(folder: Path) -> None:
    labels = read_labels(folder)
    write_seed(folder, labels, DECIDED)
    assert write_seed(folder, labels, [decision("p1", "ann", "reject")])["pairs"] == 0
    assert not (folder / "seed.jsonl").exists()
    assert not (folder / "seed.parquet").exists()


def test_labels_are_read_as_lantern_label_leaves_them(folder: Path) -> None:
    labels = read_labels(folder)
    assert labels.levels == ["low", "medium", "high"]
    assert labels.pairs["p1"] == GOOD


def test_levels_are_the_manifests_or_what_is_given(tmp_path: Path) -> None:
    graded = write_labels(tmp_path / "graded", [labelled("p1", level="B", votes=None)], manifest=False)
    with pytest.raises(UserError, match=r"'B'.*--levels"):
        read_labels(graded)
    assert read_labels(graded, ["B", "A"]).levels == ["B", "A"]
    (graded / "manifest.json").write_text(json.dumps({"levels": ["C", "B", "A"]}))
    assert read_labels(graded).levels == ["C", "B", "A"]


def test_a_folder_without_labels_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lantern label"):
        read_labels(tmp_path)
    with pytest.raises(UserError, match="holds no labels"):
        read_labels(write_labels(tmp_path / "empty", []))


def test_decisions_go_out_and_come_back(tmp_path: Path) -> None:
    labels = labels_of(*PAIRS)
    path = tmp_path / "out.jsonl"
    assert export_decisions(path, labels, DECIDED) == 8  # p2 and p4 twice, p6 undecided
    rows = rows_of(path)
    assert rows[0] == {
        "pair_id": "p1",
        "job_id": "j1",
        "candidate_id": "c1",
        "job_text": GOOD.job_text,
        "candidate_text": GOOD.candidate_text,
        "label_level": "medium",
        "label_explanation": GOOD.explanation,
        "label_confidence": 0.9,
        "label_requirements": [vars(line) for line in GOOD.requirements],
        "verdict": "accept",
        "reviewer": "ann",
        "level": "medium",
        "explanation": None,
        "note": None,
        "at": DECIDED[0].at,
        "rule": None,
    }
    assert rows[-1]["pair_id"] == "p6"
    assert rows[-1]["verdict"] is None
    assert path.stat().st_mode & 0o777 == 0o600
    # All are known already, but for what an export completes; into an empty store all come.
    back, repeated = read_decisions(path, labels, [])
    assert repeated == 0
    assert [(made.pair_id, made.reviewer, made.verdict, made.rule) for made in back] == [
        (made.pair_id, made.reviewer, made.verdict, made.rule) for made in DECIDED
    ]
    export_decisions(path, labels, back)
    assert read_decisions(path, labels, back) == ([], len(DECIDED))


def imported(tmp_path: Path, *rows: Any, known: list[Decision] | None = None, reviewer: str | None = None) -> list[Decision]:
    path = tmp_path / "in.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return read_decisions(path, labels_of(*PAIRS), known or [], reviewer)[0]


def test_another_tools_lines_need_little(tmp_path: Path) -> None:
    accept, edit, reject = imported(
        tmp_path,
        {"pair_id": "p1", "verdict": "accept", "at": "2026-02-01T10:00:00+02:00", "colour": "green"},
        {"pair_id": "p2", "verdict": "edit", "level": "high", "reviewer": "ben", "at": "2026-02-01T08:30:00"},
        {"pair_id": "p3", "verdict": "reject", "level": "high", "note": " no ", "at": "2026-02-01T09:00:00Z"},
        {"pair_id": "p4", "verdict": None},
        {"pair_id": "p5"},
        reviewer="ann",
    )
    assert accept == Decision(
        "p1", "ann", "accept", "medium", GOOD.explanation, None, "2026-02-01T08:00:00.000000+00:00", None
    )
    assert (edit.reviewer, edit.level, edit.explanation) == ("ben", "high", GOOD.explanation)
    assert (reject.level, reject.explanation, reject.note) == (None, None, "no")


def test_lines_without_a_time_are_taken_once(tmp_path: Path) -> None:
    line = {"pair_id": "p1", "verdict": "edit", "level": "high"}
    once = imported(tmp_path, line, line, reviewer="ann")
    assert len(once) == 1
    assert imported(tmp_path, line, known=once, reviewer="ann") == []
    assert len(imported(tmp_path, line, known=once, reviewer="ben")) == 1
    assert len(imported(tmp_path, {**line, "level": "low"}, known=once, reviewer="ann")) == 1


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"pair_id": "gone", "verdict": "accept"}, "pair_id"),
        ({"pair_id": 7, "verdict": "accept"}, "pair_id"),
        ({"verdict": "accept"}, "pair_id"),
        ({"pair_id": "p1", "verdict": "ok"}, "accept, edit or reject"),
        ({"pair_id": "p1", "verdict": ["accept"]}, "accept, edit or reject"),
        ({"pair_id": "p1", "verdict": "edit"}, "an edit needs"),
        ({"pair_id": "p1", "verdict": "edit", "level": "hihg"}, "Did you mean 'high'"),
        ({"pair_id": "p1", "verdict": "edit", "explanation": 3}, "explanation isn't text"),
        ({"pair_id": "p1", "verdict": "accept", "at": "yesterday"}, "at isn't a time"),
        ('{"pair_id": "p1", ', "JSON"),
        ("[1]", "object"),
    ],
)
def test_a_line_that_cannot_be_taken_stops_all(tmp_path: Path, row: Any, problem: str) -> None:
    with pytest.raises(UserError, match=problem) as error:
        imported(tmp_path, {"pair_id": "p1", "verdict": "accept"}, row, reviewer="ann")
    assert "in.jsonl:2" in str(error.value)
    assert "nothing was imported" in str(error.value)


def test_a_reviewer_must_be_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--reviewer"):
        imported(tmp_path, {"pair_id": "p1", "verdict": "accept"})


def test_errors_quote_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        imported(tmp_path, {"pair_id": "p1", "verdict": "edit", "explanation": ["CANARY"], "note": "CANARY"}, reviewer="a")
    assert "CANARY" not in str(error.value)
