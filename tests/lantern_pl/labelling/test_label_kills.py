"""`lantern label` killed at random moments: every row is there in the end, once, and little was asked twice."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from http_chat import HTTPChat, RubricServer
from recording import Record
from support import REPOSITORY

from lantern_pl.data.sample import make_pairs


@pytest.fixture
def server() -> Iterator[RubricServer]:
    server = RubricServer()
    yield server
    server.close()


def start(config: Path) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(REPOSITORY / "tests"), str(REPOSITORY), str(REPOSITORY / "kernels")])
    environment = {**os.environ, "PYTHONPATH": path, "LANTERN_ALLOW_IMPORTS": "http_chat"}
    command = [sys.executable, "-m", "lantern_pl", "label", "--config", str(config), "--yes"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.parametrize(
    ("kills", "wanted"),
    [pytest.param(2, 200, id="few"), pytest.param(50, 3000, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(1500)])],
)
def test_a_killed_run_loses_nothing(tmp_path: Path, server: RubricServer, kills: int, wanted: int, record: Record) -> None:
    pairs = make_pairs(wanted, seed=7)  # of which no two ask the same question
    jobs, candidates = set(), set()
    count = 0
    while len(jobs) + len(candidates) + 2 * count < wanted:
        jobs.add(pairs[count]["job_id"])
        candidates.add(pairs[count]["candidate_id"])
        count += 1
    rows = len(jobs) + len(candidates) + 2 * count
    path, labels, config = tmp_path / "pairs.jsonl", tmp_path / "labels", tmp_path / "label.yaml"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs[:count]))
    teacher = {"class_path": "http_chat.HTTPChat", "init_args": {"url": server.url}}
    config.write_text(yaml.safe_dump({"labels": str(labels), "pairs": str(path), "teacher": teacher}))

    draw = random.Random(0)
    killed = 0
    while killed < kills:
        seen = server.asked.total()
        run = start(config)
        # In the middle of its questions, somewhere between two of its commits.
        until = seen + draw.randrange(1, 2 * rows // (kills + 1) - 10)
        with server.changed:
            asked = server.changed.wait_for(lambda until=until: server.asked.total() >= until, timeout=120)
        run.send_signal(signal.SIGKILL)
        _, said = run.communicate()
        assert asked, said.decode()
        killed += 1
    run = start(config)
    _, said = run.communicate(timeout=300)
    assert run.returncode == 0, said.decode()

    assert server.asked.total() - rows <= kills * HTTPChat.max_in_flight
    assert len(server.asked) == rows
    with sqlite3.connect(labels / "store.sqlite") as store:
        assert store.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (answers,) = store.execute("SELECT count(*) FROM answers WHERE state = 'ok'").fetchone()
        assert store.execute("SELECT count(DISTINCT key) FROM units").fetchone() == (answers,) == (rows,)
    found = pq.read_table(labels / "labels.parquet", columns=["pair_id"]).to_pylist()
    assert [row["pair_id"] for row in found] == [pair["pair_id"] for pair in pairs[:count]]
    record(
        f"SIGKILL of `lantern label` at random moments, {HTTPChat.max_in_flight} calls in flight",
        found=f"{kills} kills: {rows:,} answers, 0 lost, {server.asked.total() - rows} asked twice",
        goal="0 lost, at most those in flight asked twice",
    )


def test_interrupted_once_it_finishes_what_is_in_flight(tmp_path: Path, server: RubricServer) -> None:
    path, labels, config = tmp_path / "pairs.jsonl", tmp_path / "labels", tmp_path / "label.yaml"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in make_pairs(2000, seed=5)))
    teacher = {"class_path": "http_chat.HTTPChat", "init_args": {"url": server.url}}
    config.write_text(yaml.safe_dump({"labels": str(labels), "pairs": str(path), "teacher": teacher}))
    run = start(config)
    with server.changed:
        assert server.changed.wait_for(lambda: server.asked.total() >= 50, timeout=120)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 130, said.decode()
    with sqlite3.connect(labels / "store.sqlite") as store:
        (answers,) = store.execute("SELECT count(*) FROM answers").fetchone()
    assert 50 <= answers == server.asked.total()
    assert json.loads((labels / "report.json").read_text())["without_label"]["not asked yet"]
