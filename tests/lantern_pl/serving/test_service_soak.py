"""A service under load keeps its memory and its open files."""

import asyncio
import time
from pathlib import Path

import pytest
from recording import Record
from serving_support import running

from lantern_pl.data.sample import make_pairs
from lantern_pl.serving.load import MemorySampler, load

TEXTS = [{name: row[name] for name in ("job_text", "candidate_text")} for row in make_pairs(40, seed=3)]
CLIENTS = 64


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.parametrize(
    ("warm", "requests", "most_growth_mb"),
    [
        pytest.param(1000, 2000, 20, id="short"),
        # The model's libraries keep what they made for a batch's shape: it takes thousands until all shapes were there.
        pytest.param(10_000, 20_000, 5, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(3000)]),
    ],
)
def test_memory_and_handles_stay_flat_under_load(
    students: dict[str, str], tmp_path: Path, warm: int, requests: int, most_growth_mb: int, record: Record
) -> None:
    with running(tmp_path / "service.log", "--encoder", students["encoder"], "--threads", 1) as service:
        pid = service.process.pid
        asyncio.run(load(service.url, TEXTS, CLIENTS, warm))
        time.sleep(1)  # its connections are closed
        sampler, before = MemorySampler(pid), open_files(pid)
        figures = asyncio.run(load(service.url, TEXTS, CLIENTS, requests, often=sampler.sample))
        time.sleep(1)
        after = open_files(pid)
    memory = sampler.figures()
    growth = memory["last_quarter_mb"] - memory["first_quarter_mb"]
    assert figures["statuses"] == {"200": requests}
    assert growth < most_growth_mb, memory
    assert abs(after - before) <= 2
    record(
        f"Memory and open files of `lantern serve` under {CLIENTS} clients (a tiny encoder)",
        found=f"{requests:,} requests after {warm:,}, {figures['pairs_a_second']:.0f} a second: {growth:+.1f} MiB from the "
        f"first to the last quarter, {before} and {after} open files",
        goal=f"less than {most_growth_mb} MiB more, files flat",
    )
