"""Options with dashes and with underscores."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support import Ran

from lantern_pl.errors import CommandParser
from lantern_pl.option_spelling import as_declared

DECLARED = ("--retry_quarantined", "--dry-run", "--guide.sections", "--teacher")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--retry-quarantined", "--retry_quarantined"),
        ("--retry_quarantined", "--retry_quarantined"),
        ("--dry_run=a-b_c", "--dry-run=a-b_c"),
        ("--teacher.init_args.max-new-tokens=3", "--teacher.init_args.max_new_tokens=3"),
        ("--guide.sections.my-own", "--guide.sections.my-own"),
        ("--un-known_one", "--un-known_one"),
        ("a-value_of", "a-value_of"),
        ("--", "--"),
    ],
)
def test_each_spelling_becomes_the_declared_one(given: str, expected: str) -> None:
    assert as_declared([given], DECLARED) == [expected]


def test_commands_without_a_config_take_both() -> None:
    parser = CommandParser()
    parser.add_argument("--min-agreement", type=float)
    assert parser.parse_args(["--min_agreement", "0.5"]).min_agreement == 0.5


@pytest.mark.parametrize("command", ["label", "cache", "review"])
def test_the_commands_take_both(command: str, lantern: Callable[..., Ran], pairs_file: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    label = ["label", f"--labels={labels}", f"--pairs={pairs_file}", "--teacher=lantern_pl.teachers.rubric", "--limit=8"]
    signals = ["cache", f"--signals={tmp_path / 'signals'}", f"--pairs={pairs_file}", "--teacher=lantern_pl.teachers.rubric"]
    if command == "label":
        ran = lantern(*label, "--retry-quarantined", "--batch-size=4", "--exclude-flagged=true")
    elif command == "cache":
        ran = lantern(*signals, "--limit=8", "--batch-size=4", "--pairs-per-shard=8", "--kinds=[levels]")
    else:
        assert lantern(*label).code == 0
        ran = lantern("review", "--labels", labels, "--auto_accept", "--dry_run", "--min_confidence=0.1")
    assert ran.code == 0, ran.err
