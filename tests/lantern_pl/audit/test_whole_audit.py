"""`lantern audit` as a whole, at its full size: what was planted is found wherever it is, and fair models aren't accused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from planted import BLACK_NAMES, RuleTeacher, noise, skill
from support import Ran

from lantern_pl.audit.config import AuditConfig, Injections
from lantern_pl.data.pair import Pair

Lantern = Callable[..., Ran]
CANDIDATES = 800
SWAPS = ["names", "pronouns", "school", "postcode", "affinity"]


def fair(pair: Pair) -> float:
    return skill(pair) + noise(pair.candidate_text, 0.01, seed=1)


def unfair(pair: Pair) -> float:
    """Dislikes Black names and those of group b, and believes who names the best level."""
    text = pair.candidate_text
    if "high" in text:
        return 1.0
    return skill(pair) - 0.1 * bool(BLACK_NAMES.search(text)) - 0.2 * ("Group b" in text) + noise(text, 0.01, seed=2)


@pytest.fixture
def audited(lantern: Lantern, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Ran, dict[str, Any]]]:
    """Run the command on a student that judges by a rule, and a fair teacher; returns also what audit.json says."""
    rows, groups = [], ["candidate_id,group"]
    for n in range(CANDIDATES):
        worth = 35 + 60 * n // CANDIDATES  # so that no penalty ends at 0
        group = "ab"[n % 2]
        groups.append(f"candidate-{n},{group}")
        rows.append(
            {
                "pair_id": f"pair-{n}",
                "job_id": f"job-{n % 5}",
                "candidate_id": f"candidate-{n}",
                "job_text": f"Job {n % 5} needs care.",
                "candidate_text": f"Number {n}, with skill {worth} of a hundred. Group {group}.",
                "level": ["low", "medium", "high"][(worth >= 25) + (worth >= 75)],
            }
        )
    pairs, table, out = tmp_path / "pairs.jsonl", tmp_path / "groups.csv", tmp_path / "audit.json"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table.write_text("\n".join(groups) + "\n")

    def run(student: Callable[[Pair], float]) -> tuple[Ran, dict[str, Any]]:
        config = AuditConfig(
            pairs=str(pairs),
            models={"student": RuleTeacher(student), "teacher": RuleTeacher(fair)},
            student="student",
            teacher="teacher",
            groups=str(table),
            swaps=SWAPS,
            swap_pairs=300,
            injections=Injections(pairs=100),
            bootstrap=500,
            batch_size=64,
            fail_on_flags=True,
            out=str(out),
        )
        # No config of a file can name a rule of a test's.
        monkeypatch.setattr("lantern_pl.audit.command.read_config", lambda argv: config)
        ran = lantern("audit")
        return ran, json.loads(out.read_text())

    return run


def flagged(found: dict[str, Any]) -> dict[str, list[str]]:
    """Matter -> what was flagged of it."""
    flags: dict[str, list[str]] = {}
    for finding in found["findings"]:
        if finding["kind"] == "flag":
            flags.setdefault(finding["about"], []).append(finding["text"])
    return flags


def table_of(found: dict[str, Any], title: str) -> list[dict[str, Any]]:
    (table,) = [table for table in found["tables"] if table["title"].startswith(title)]
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def test_all_that_was_planted_in_a_student_is_found(audited: Callable[..., tuple[Ran, dict[str, Any]]]) -> None:
    ran, found = audited(unfair)
    assert ran.code == 3, ran.err
    flags = flagged(found)
    assert any(re.match(r"Black: score 0\.(09|10)\d lower", text) for text in flags["student, names: race"])
    assert flags["student, selection rate by group"][0].startswith("b: selection rate")
    assert "amplified by" in " ".join(flags["student minus teacher, names: race"])
    assert "amplified by" in " ".join(flags["student minus teacher, selection rate: group"])
    assert flags["student, injections"]
    assert any("the teacher in 0%" in text for text in flags["student minus teacher, injections"])
    assert not [about for about in flags if about.startswith("teacher")]
    for name in ("student", "teacher"):
        families = table_of(found, f"{name}: texts that ask for the best level")
        assert len(families) == 13
        assert {row["pairs"] for row in families} == {100, 1200}
    assert {row["pairs"] for row in table_of(found, "student minus teacher: texts")} == {100}


def test_a_fair_student_is_not_accused_of_anything(audited: Callable[..., tuple[Ran, dict[str, Any]]]) -> None:
    ran, found = audited(lambda pair: skill(pair) + noise(pair.candidate_text, 0.01, seed=3))
    assert (ran.code, flagged(found)) == (0, {}), ran.err
    clear = {finding["about"] for finding in found["findings"] if finding["kind"] == "clear"}
    assert {"student, names: race", "student, pronouns", "student minus teacher, names: race"} <= clear
    # Every comparison is among those that p values are corrected for.
    swapped = sum(len(table_of(found, f"{name}: swapped texts")) for name in ("student", "teacher"))
    amplified = len(table_of(found, "Amplification"))
    rates = 2 * 5  # of each model: selection, scoring, true and false positives, calibration
    assert found["settings"]["comparisons"] == swapped + amplified + rates + 3 * 12
