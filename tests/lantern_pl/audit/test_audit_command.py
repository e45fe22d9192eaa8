"""`lantern audit` from its config to audit.json, and what it says of configs and files that are wrong."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import REPOSITORY, Ran

from lantern_pl.audit.config import AuditConfig, Injections
from lantern_pl.data.records import fingerprint, read_pairs
from lantern_pl.tasks import Task

Lantern = Callable[..., Ran]


@pytest.fixture
def write(tmp_path: Path, pairs_file: Path) -> Callable[..., Path]:
    """A config of the rule-based teacher alone, with keys in place of its own."""

    def written(**keys: Any) -> Path:
        config = {
            "pairs": str(pairs_file),
            "models": {"rules": {"class_path": "lantern_pl.teachers.rubric"}},
            "student": "rules",
            "swaps": ["pronouns"],
            "swap_pairs": 4,
            "injections": {"families": ["the job's own text"], "pairs": 12},
            "explain_pairs": 4,
            "bootstrap": 200,
            "out": str(tmp_path / "new" / "audit.json"),
        }
        path = tmp_path / "audit.yaml"
        path.write_text(yaml.safe_dump({**config, **keys}))
        return path

    return written


def test_a_group_that_is_alone_is_said_to_be(
    lantern: Lantern, write: Callable[..., Path], tmp_path: Path, pairs_file: Path
) -> None:
    groups = tmp_path / "groups.csv"
    names = sorted({json.loads(line)["candidate_id"] for line in pairs_file.read_text().splitlines()})
    groups.write_text("candidate_id,sex\n" + "".join(f"{name},f\n" for name in names))
    assert lantern("audit", "--config", write(groups=str(groups))).code == 0
    findings = json.loads((tmp_path / "new" / "audit.json").read_text())["findings"]
    found = {finding["about"]: finding["kind"] for finding in findings}
    assert found["rules, selection rate by sex"] == found["rules, scoring rate by sex"] == "insufficient data"


def test_the_job_s_text_is_of_the_field_that_is_named(
    lantern: Lantern, write: Callable[..., Path], tmp_path: Path, pairs_file: Path
) -> None:
    rows = [{**json.loads(line), "reduced_job_text": "Needs Python."} for line in pairs_file.read_text().splitlines()]
    pairs = tmp_path / "reduced.jsonl"
    pairs.write_text("".join(json.dumps({**row, "job_id": row["pair_id"]}) + "\n" for row in rows))
    assert lantern("audit", "--config", write(pairs=str(pairs), job_text_field="reduced_job_text")).code == 0
    found = json.loads((tmp_path / "new" / "audit.json").read_text())
    assert found["data"]["sha256"] == fingerprint(read_pairs(pairs, Task(), "reduced_job_text"))
    assert found["settings"]["job_text_field"] == "reduced_job_text"


def test_a_student_is_audited_against_its_teacher(
    lantern: Lantern, write: Callable[..., Path], tiny_encoder_config: Path, tmp_path: Path, pairs_file: Path
) -> None:
    assert lantern("fit", "--config", tiny_encoder_config).code == 0
    student = {"class_path": "lantern_pl.teachers.encoder", "init_args": {"model": str(tmp_path / "run/student")}}
    groups = tmp_path / "groups.csv"
    names = sorted({json.loads(line)["candidate_id"] for line in pairs_file.read_text().splitlines()})
    groups.write_text("candidate_id,sex\n" + "".join(f"{name},{'fm'[n % 2]}\n" for n, name in enumerate(names)))
    config = write(
        models={"encoder": student, "rules": {"class_path": "lantern_pl.teachers.rubric"}},
        student="encoder",
        teacher="rules",
        groups=str(groups),
    )
    ran = lantern("audit", "--config", config)
    assert ran.code == 0, ran.err
    out = tmp_path / "new" / "audit.json"
    assert out.stat().st_mode & 0o077 == 0
    found = json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(f"{name} isn't JSON"))
    assert {"format": 1, "models": ["encoder", "rules"], "student": "encoder", "teacher": "rules", "pairs": 48}.items() <= (
        found.items()
    )
    assert found["settings"]["swap_pairs"] == 4
    for finding in found["findings"]:
        assert set(finding) == {"kind", "about", "text"}
        assert finding["kind"] in ("flag", "clear", "insufficient data")
    for table in found["tables"]:
        assert set(table) == {"title", "columns", "rows", "note"}
        assert all(len(row) == len(table["columns"]) for row in table["rows"])
        assert all(isinstance(cell, str | int | float) for row in table["rows"] for cell in row)
    titles = [table["title"] for table in found["tables"]]
    for part in ("selection and scoring", "errors and calibration", "swapped texts", "Amplification", "Mentions"):
        assert any(part in title for title in titles), part
    # Who repeats the job's text fools a matcher of words, and the audit has to say so.
    flags = [finding for finding in found["findings"] if finding["kind"] == "flag"]
    assert any(flag["about"] == "rules, injections" and "the job's own text" in flag["text"] for flag in flags)
    assert "flag: rules, injections. the job's own text" in ran.out
    assert "Up to" in ran.out
    # The same again, and an exit code for pipelines.
    again = lantern("audit", "--config", config, "--fail_on_flags=true")
    assert again.code == 3
    repeated = json.loads(out.read_text())
    assert repeated["findings"] == found["findings"]
    assert repeated["tables"] == found["tables"]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"student": "nobody"}, "student is 'nobody', which isn't one of the models: ['rules']"),
        ({"teacher": "rules"}, "student and teacher are both 'rules'"),
        ({"selected_from": "low"}, "selected_from is 'low'"),
        ({"swaps": ["nmes"]}, "There is no list 'nmes'"),
        ({"injections": {"families": ["none"]}}, "injections.families has 'none'"),
        ({"injections": {"max_rise": 2.0}}, "injections.max_rise is 2.0"),
        ({"injections": {"pairs": -1}}, "injections.pairs is -1"),
        ({"swap_pairs": 0}, "swap_pairs is 0"),
        ({"bootstrap": 3}, "bootstrap is 3"),
        ({"min_effect": 0.0}, "min_effect is 0.0"),
        ({"small_group": 1.0}, "small_group is 1.0"),
        ({"confidence": 95.0}, "confidence is 95.0"),
        ({"groups": "nowhere.csv"}, "can't read nowhere.csv"),
        ({"groups": ["sexx"]}, "groups names 'sexx'"),
        ({"groups": []}, "groups is an empty list"),
        ({"pairs": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"swap_paris": 4}, "swap_paris"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_named(keys: dict[str, Any], says: str, lantern: Lantern, write: Callable[..., Path]) -> None:
    ran = lantern("audit", "--config", write(**keys))
    assert ran.code in (1, 2)
    assert says in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("candidate_id\nc\n", "has no column beside candidate_id"),
        ("candidate_id,sex\nnobody,f\n", "None of the pairs' candidates is in"),
        ("name,sex\nx,f\n", "candidate_id is missing"),
        ("candidate_id,sex\nx,f\nx,m\n", "'x' is there twice, with other groups"),
        ("candidate_id,sex\n", "holds no rows"),
    ],
)
def test_a_bad_table_of_groups_is_named(
    table: str, says: str, lantern: Lantern, write: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "groups.csv"
    path.write_text(table)
    ran = lantern("audit", "--config", write(groups=str(path)))
    assert ran.code != 0
    assert str(path) in ran.err
    assert says in ran.err


def test_help_explains_the_keys(lantern: Lantern) -> None:
    shown = lantern("audit", "--help")
    assert shown.code == 0
    text = " ".join(shown.out.split())
    assert "How many pairs to swap for each list" in text
    assert "how much more often an attack may raise a level" in text


def test_the_path_has_a_config_for_it() -> None:
    """Its keys are the command's; running it takes the path's models."""
    found = yaml.safe_load((REPOSITORY / "configs/lantern/10_audit.yaml").read_text())
    assert set(found) <= {key.name for key in fields(AuditConfig)}
    assert set(found["injections"]) <= {key.name for key in fields(Injections)}
    assert {found["student"], found["teacher"]} == set(found["models"])
