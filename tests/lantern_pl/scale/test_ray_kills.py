"""Workers and machines that are lost in mid-run: it ends as if nothing had happened, and only work in hand is done twice."""

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from http_chat import HTTPChat, PricedHTTPChat, RubricServer
from recording import Record
from support import REPOSITORY, Ran

from lantern_pl.data.sample import make_pairs

Lantern = Callable[..., Ran]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def workers() -> list[int]:
    """The processes of Ray Data's workers on this machine that descend from this one."""
    import psutil

    children = psutil.Process().children(recursive=True)
    found = []
    for child in children:
        try:
            if child.name().startswith("ray::MapWorker") or "ray::MapWorker" in " ".join(child.cmdline()):
                found.append(child.pid)
        except psutil.Error:
            continue
    return found


class Harm:
    """Does harm in a thread as soon as `when`, once."""

    def __init__(self, when: Callable[[], bool], what: Callable[[], object]) -> None:
        self.done = False
        self._when, self._what = when, what
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        latest = time.monotonic() + 300
        while time.monotonic() < latest:
            if self._when():
                self._what()
                self.done = True
                return
            time.sleep(0.02)

    def join(self) -> None:
        self._thread.join(timeout=30)
        assert self.done, "the run was over before anything could be harmed"


def kill_one() -> None:
    os.kill(workers()[0], signal.SIGKILL)


@pytest.fixture
def server() -> Iterator[RubricServer]:
    server = RubricServer(latency=0.1)
    yield server
    server.close()


@pytest.fixture
def label_config(tmp_path: Path, server: RubricServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LANTERN_ALLOW_IMPORTS", "http_chat,rubric_chat")
    path, pairs = tmp_path / "label.yaml", tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(pair) + "\n" for pair in make_pairs(400, seed=7)))
    teacher = {"class_path": "http_chat.HTTPChat", "init_args": {"url": server.url}}
    keys = {"pairs": str(pairs), "labels": str(tmp_path / "labels"), "teacher": teacher}
    path.write_text(yaml.safe_dump(keys))
    return path


@pytest.mark.parametrize("lost", ["worker", "machine"])
def test_labels_are_all_there_once(
    lantern: Lantern, own_cluster: Any, label_config: Path, server: RubricServer, tmp_path: Path, lost: str, record: Record
) -> None:
    """In all four stages; in the middle of one of them a worker, or a machine with its worker, goes."""
    node = next(iter(own_cluster.worker_nodes))
    harm = Harm(
        lambda: server.asked.total() > 300 and len(workers()) > 1,
        kill_one if lost == "worker" else lambda: own_cluster.remove_node(node, allow_graceful=False),
    )
    ran = lantern("label", "--config", label_config, "--yes", "--engine=ray", f"--ray.address={own_cluster.address}")
    assert ran.code == 0, ran.err
    assert "Traceback" not in ran.out + ran.err
    harm.join()
    pairs = make_pairs(400, seed=7)
    wanted = len({pair["job_id"] for pair in pairs}) + len({pair["candidate_id"] for pair in pairs}) + 2 * len(pairs)
    labels = tmp_path / "labels"
    with sqlite3.connect(labels / "store.sqlite") as store:
        assert store.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (answers,) = store.execute("SELECT count(*) FROM answers WHERE state = 'ok'").fetchone()
        assert store.execute("SELECT count(DISTINCT key) FROM units").fetchone() == (answers,) == (wanted,)
    # What the worker had in flight is asked again, and nothing else is.
    assert 0 <= server.asked.total() - wanted <= HTTPChat.max_in_flight
    found = pq.read_table(labels / "labels.parquet", columns=["pair_id"]).to_pylist()
    assert [row["pair_id"] for row in found] == [pair["pair_id"] for pair in pairs]
    record(
        f"A {lost} of a Ray cluster is killed while `lantern label --engine ray` runs",
        found=f"{len(pairs)} pairs, {answers:,} answers: 0 lost, {server.asked.total() - wanted} asked twice",
        goal="0 lost, at most those in flight asked twice",
    )


def test_the_budget_holds_for_all_workers_and_through_a_kill(
    lantern: Lantern, own_cluster: Any, label_config: Path, server: RubricServer, tmp_path: Path
) -> None:
    """What a lost worker's questions may have cost is taken for spent: the server never answers for more than the budget."""
    harm = Harm(lambda: server.asked.total() > 60 and len(workers()) > 1, kill_one)
    command = ["label", "--config", label_config, "--engine=ray", f"--ray.address={own_cluster.address}"]
    priced = ["--teacher=http_chat.PricedHTTPChat", f"--teacher.init_args.url={server.url}", "--guide.stages=single"]
    ran = lantern(*command, *priced, "--budget=0.8")
    harm.join()
    assert ran.code == 3, ran.err
    assert "The budget of 0.8 has ended the run" in ran.out
    each = (100 + 20) * 20 / 1e6
    assert server.asked.total() * each <= 0.8
    assert server.asked.total() > 80  # it went on after the kill, with what was left
    again = lantern("label", "--config", label_config, "--engine=local", *priced, "--budget=2")
    assert again.code == 0, again.err
    assert server.asked.total() <= 400 + PricedHTTPChat.max_in_flight


def predict(student: Path, pairs: Path, out: Path) -> list[object]:
    quiet = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--prediction.shard_rows=2")
    return ["predict", "--student", student, "--pairs", pairs, "--out", out, *quiet]


@pytest.mark.parametrize("lost", ["worker", "machine"])
def test_predictions_are_all_there_once(
    lantern: Lantern, own_cluster: Any, encoder_student: Path, many_pairs: Path, tmp_path: Path, lost: str, record: Record
) -> None:
    local, out = tmp_path / "local", tmp_path / "ray"
    assert lantern(*predict(encoder_student, many_pairs, local)).code == 0
    node = next(iter(own_cluster.worker_nodes))
    harm = Harm(
        lambda: len(list(out.glob("part-*"))) > 10 and len(workers()) > 1,
        kill_one if lost == "worker" else lambda: own_cluster.remove_node(node, allow_graceful=False),
    )
    ran = lantern(*predict(encoder_student, many_pairs, out), "--engine=ray", f"--ray.address={own_cluster.address}")
    assert ran.code == 0, ran.err
    assert "Traceback" not in ran.out + ran.err
    harm.join()
    hashes = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("part-*"))}
        for folder in (local, out)
    ]
    assert len(hashes[0]) == 100
    assert hashes[0] == hashes[1]
    assert json.loads((out / "_manifest.json").read_text()) == json.loads((local / "_manifest.json").read_text())
    record(
        f"A {lost} of a Ray cluster is killed while `lantern predict --engine ray` runs",
        found=f"{len(hashes[0])} shards, byte for byte those of one process",
        goal="no row lost or answered twice",
    )


def test_signals_are_all_there_once(
    lantern: Lantern, own_cluster: Any, tiny_lm: Path, pairs_file: Path, tmp_path: Path, record: Record
) -> None:
    config = tmp_path / "cache.yaml"
    config.write_text(f"""\
teacher: {{class_path: lantern_pl.teachers.hf, init_args: {{model: {tiny_lm}}}}}
pairs: {pairs_file}
signals: {tmp_path}/local
max_length: 320
mode: hidden
batch_size: 1
pairs_per_shard: 1
""")
    assert lantern("cache", "--config", config).code == 0
    out = tmp_path / "ray"
    harm = Harm(lambda: len(list(out.glob("shard-*"))) > 4 and len(workers()) > 1, kill_one)
    ray = ("--engine=ray", f"--ray.address={own_cluster.address}")
    ran = lantern("cache", "--config", config, "--signals", out, *ray)
    assert ran.code == 0, ran.err
    harm.join()
    contents = [{path.name: path.read_bytes() for path in sorted(folder.iterdir())} for folder in (tmp_path / "local", out)]
    assert contents[0] == contents[1]
    record(
        "A worker of a Ray cluster is killed while `lantern cache --engine ray` runs",
        found=f"{len(contents[0])} files, byte for byte those of one process",
        goal="no shard lost",
    )


def test_interrupted_on_a_cluster_of_its_own_it_finishes_what_is_in_flight(
    tmp_path: Path, label_config: Path, server: RubricServer
) -> None:
    """As a user has it: a process of its own, which starts Ray itself and leaves none of its processes."""
    path = os.pathsep.join([str(REPOSITORY / "tests"), str(REPOSITORY), str(REPOSITORY / "kernels")])
    environment = {**os.environ, "PYTHONPATH": path, "LANTERN_ALLOW_IMPORTS": "http_chat"}
    command = [sys.executable, "-m", "lantern_pl", "label", "--config", str(label_config), "--yes"]
    ray = ["--engine=ray", "--ray.workers=2", "--guide.stages=single"]
    run = subprocess.Popen([*command, *ray], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with server.changed:
        assert server.changed.wait_for(lambda: server.asked.total() >= 50, timeout=200)
    run.send_signal(signal.SIGINT)
    out, said = run.communicate(timeout=200)
    assert run.returncode == 130, said
    assert "Stopping: what is in flight is waited for." in out
    assert "Traceback" not in out + said
    with sqlite3.connect(tmp_path / "labels" / "store.sqlite") as store:
        (answers,) = store.execute("SELECT count(*) FROM answers").fetchone()
    assert 50 <= answers == server.asked.total() < 400
