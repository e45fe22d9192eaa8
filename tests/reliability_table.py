"""Writes docs/reliability.md from what the tests have recorded: reliability_table.py RECORDS PAGE"""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from lantern_kernels.bench.measure import machine

PAGE = """\
# Reliability, measured

Each line is what a test has tried and found, written by `make reliability`: a test that misses its goal fails, and the page
isn't made. The same tests run in CI, some of them with smaller counts. What stands behind the figures is in
[SECURITY.md](../SECURITY.md) for what comes from strangers, and in the tests themselves.

{tables}
Measured {when} on {cpu} ({threads} threads), Python {python}, torch {torch}.
"""
# Where a test's file is says what it is about; the first that fits.
TOPICS = {
    "test_stopping": "Stops, kills and resumes",
    "test_resume": "Stops, kills and resumes",
    "test_checkpoints": "Checkpoints",
    "test_golden_losses": "The same losses after every change",
    "test_sharded_students": "Several processes",
    "scale/": "Several processes",
    "test_hostile_files": "Configs and weights from strangers",
    "test_planted_secrets": "Secrets and personal data",
    "test_faults": "Numbers that aren't",
    "test_soak": "Long runs",
    "labelling/": "Labels",
    "signal_sets/": "Signals on disk",
    "prediction/": "Predictions",
    "serving/": "The service",
}
OTHER = "Other"


def tables(records: list[dict[str, str]]) -> str:
    """A table for each topic, in the topics' order; of records of one name, the last one counts."""
    last = {record["what"]: record for record in records}
    by_topic: dict[str, list[str]] = {topic: [] for topic in (*TOPICS.values(), OTHER)}
    for record in last.values():
        topic = next((topic for place, topic in TOPICS.items() if place in record["test"]), OTHER)
        cells = (record[name].replace("|", "\\|") for name in ("what", "found", "goal"))
        by_topic[topic].append(f"| {' | '.join(cells)} |\n")
    head = "| tried | found | goal |\n| --- | --- | --- |\n"
    return "\n".join(f"## {topic}\n\n{head}{''.join(rows)}" for topic, rows in by_topic.items() if rows)


def main(records: Path, page: Path) -> None:
    found = [json.loads(line) for line in records.read_text().splitlines()]
    here = machine()
    page.write_text(
        PAGE.format(
            tables=tables(found),
            when=f"{datetime.now(UTC):%Y-%m-%d}",
            cpu=here["cpu"],
            threads=here["threads"],
            python=here["versions"]["python"],
            torch=here["versions"]["torch"],
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
