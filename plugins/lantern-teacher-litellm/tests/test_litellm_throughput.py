"""The benchmark: that it runs, and, among the slow tests, what it finds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parent.parent / "bench" / "throughput.py"


def bench(folder: Path, *arguments: object) -> dict[str, Any]:
    """The figures of a run."""
    path = folder / "figures.json"
    command = [sys.executable, str(BENCH), "--json", str(path), *map(str, arguments)]
    subprocess.run(command, check=True, timeout=1500, stdout=subprocess.DEVNULL)
    figures: dict[str, Any] = json.loads(path.read_text())
    return figures


def test_the_benchmark_runs(tmp_path: Path) -> None:
    figures = bench(tmp_path, "--requests", 64, "--rounds", 2, "--in-flight", 16, "--latency", 0.5, "--memory", 80)
    assert figures["ratio"] > 0
    assert figures["ratio of CPU"] > 0
    assert figures["most open"] == 16
    assert len(figures["memory in MiB"]) == 10


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(1600)
def test_the_store_and_the_retries_cost_little_and_memory_stays_flat(tmp_path: Path) -> None:
    figures = bench(tmp_path, "--rounds", 5, "--memory", 20_000)
    memory = figures["memory in MiB"]
    assert max(memory[1:]) - memory[0] < 20, memory
    # 0.9 is the goal, met on a quiet machine (README). What else a machine does moves the rates by a tenth either way.
    assert max(figures["ratio"], figures["ratio of CPU"]) >= 0.8
