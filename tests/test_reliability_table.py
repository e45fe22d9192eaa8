"""The page of recorded figures is made of the tests' own records."""

import json
from pathlib import Path

import pytest
import reliability_table

pytest_plugins = ["pytester"]


def test_records_become_tables_and_the_last_of_a_name_counts(tmp_path: Path) -> None:
    records, page = tmp_path / "records.jsonl", tmp_path / "page.md"
    rows = [
        {"what": "kills", "found": "10, 0 lost", "goal": "0 lost", "test": "tests/lantern_pl/test_checkpoints.py::a"},
        {"what": "requests", "found": "a|b", "goal": "c", "test": "tests/lantern_pl/serving/test_service.py::b"},
        {"what": "kills", "found": "100, 0 lost", "goal": "0 lost", "test": "tests/lantern_pl/test_checkpoints.py::c"},
        {"what": "else", "found": "d", "goal": "e", "test": "tests/elsewhere.py::d"},
    ]
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reliability_table.main(records, page)
    text = page.read_text()
    assert "| kills | 100, 0 lost | 0 lost |" in text
    assert "10, 0 lost | " not in text.replace("100, 0 lost", "")
    assert "| requests | a\\|b | c |" in text
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == ["## Checkpoints", "## The service", "## Other"]


def test_a_test_that_records_is_marked_and_writes_only_when_asked_to(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytester.makeini("[pytest]\nmarkers = reliability: recorded")
    source = Path(__file__).with_name("recording.py").read_text()
    pytester.makepyfile(recording=source)
    pytester.makeconftest("from recording import pytest_collection_modifyitems, record")
    it = "def test_it(record):\n    record('kills', found='0 lost', goal='0 lost')\n"
    pytester.makepyfile(it + "def test_other():\n    pass\n")
    kept = tmp_path / "kept.jsonl"
    monkeypatch.setenv("LANTERN_RECORD", str(kept))
    assert pytester.runpytest_inprocess("-m", "reliability").parseoutcomes() == {"passed": 1, "deselected": 1}
    (line,) = kept.read_text().splitlines()
    assert json.loads(line) == {"what": "kills", "found": "0 lost", "goal": "0 lost", "test": json.loads(line)["test"]}
    monkeypatch.delenv("LANTERN_RECORD")
    assert pytester.runpytest_inprocess().parseoutcomes() == {"passed": 2}
    assert len(kept.read_text().splitlines()) == 1
