"""The bench of signals on disk ends with an error where a goal is missed, after it has said and recorded everything."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support import REPOSITORY

GOOD = {
    "reading": {
        "plain": {"tokens": 1, "bytes_per_token": 162.4, "raw_tokens_per_s": 2e7, "tokens_per_s": 1.1e7},
        "packed": {"tokens": 1, "bytes_per_token": 98.4, "raw_tokens_per_s": 2e7, "tokens_per_s": 1.1e7},
    },
    "recording": {"forward_s": 5.0, "added_s": 0.1, "overhead": 0.02, "rounding": {}},
    "fit": {"online_s": 5.0, "cached_s": 3.0, "faster": 1.7, "reading_s": 0.001},
}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(REPOSITORY / "kernels" / "bench")
    import signals

    return signals


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        (None, None, None, None),
        (("reading", "plain"), "bytes_per_token", 166.0, "plain: 166.0 B a token, at most 165"),
        (("reading", "packed"), "bytes_per_token", 116.0, "packed: 116.0 B a token, at most 115"),
        (("reading", "packed"), "tokens_per_s", 9.4e6, "packed: 9.4M tokens/s read and decoded, at least 10M"),
        (("recording",), "overhead", 0.06, "recording adds 6.0% to the teacher's forward, at most 5%"),
        (("fit",), "faster", 1.5, "a training step from disk is 1.50 times faster, at least 1.6"),
    ],
)
def test_a_missed_goal_is_the_exit_status(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    part: tuple[str, ...] | None, key: str, value: float, said: str | None,
) -> None:  # fmt: skip
    results = copy.deepcopy(GOOD)
    row: Any = results
    for name in part or ():
        row = row[name]
    if part:
        row[key] = value
    monkeypatch.setattr(bench, "reading", lambda folder, packed, rounds: results["reading"]["packed" if packed else "plain"])
    monkeypatch.setattr(bench, "recording", lambda folder, rounds: results["recording"])
    monkeypatch.setattr(bench, "fit", lambda folder, rounds: results["fit"])
    monkeypatch.setattr(sys, "argv", ["signals.py", "--json", str(tmp_path / "new" / "results.json")])
    assert bench.main() == (1 if said else 0)
    assert json.loads((tmp_path / "new" / "results.json").read_text())["results"] == results
    printed = capsys.readouterr()
    assert "M tokens/s read and decoded |" in printed.out
    assert printed.err == (f"Missed: {said}\n" if said else "")
