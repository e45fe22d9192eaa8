"""A label store whose process is killed: what was said to be kept is kept, and nothing is there twice."""

import multiprocessing
import os
import random
import signal
import sqlite3
import time
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from recording import Record
from store_samples import ATTEMPT, answered, fork

from lantern_pl.labelling.store import LabelStore

IN_FLIGHT = 64


def _die_at_once(folder: Path, count: int) -> None:
    store = LabelStore(folder)
    futures = [store.put(answered(number), [ATTEMPT]) for number in range(count)]
    futures[-1].add_done_callback(lambda _: os.kill(os.getpid(), signal.SIGKILL))
    time.sleep(60)


@pytest.mark.parametrize("count", [1, 64, 100])
def test_a_future_is_done_only_when_the_row_is_on_the_disk(tmp_path: Path, count: int) -> None:
    process = fork(_die_at_once, tmp_path / "labels", count)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with LabelStore(tmp_path / "labels") as store:
        assert [row.key for row in store.rows()] == [f"key-{number}" for number in range(count)]
        assert store.totals().attempts == {"ok": count}


def _die_after_a_decision(folder: Path) -> None:
    from store_samples import decision

    store = LabelStore(folder)
    store.decide(decision(0))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_decision_is_on_the_disk_when_it_is_made(tmp_path: Path) -> None:
    fork(_die_after_a_decision, tmp_path / "labels").join()
    with LabelStore(tmp_path / "labels") as store:
        assert len(store.decisions()) == 1


def _answer_all(folder: Path, count: int, tell: Connection) -> None:
    """What a label run does: ask what isn't there yet, some at once; tells what was asked and what was kept."""
    with LabelStore(folder) as store:
        waiting: deque[tuple[int, object]] = deque()

        def settle() -> None:
            number, future = waiting.popleft()
            future.result()  # type: ignore[attr-defined]
            tell.send(("kept", number))

        for number in range(count):
            if store.get(f"key-{number}") is None:
                tell.send(("asked", number))
                # Long enough for several pages a row.
                waiting.append((number, store.put(answered(number, raw=f"{number} " * 1000), [ATTEMPT])))
            if len(waiting) == IN_FLIGHT:
                settle()
        while waiting:
            settle()
    tell.send(("end", 0))


def _kill_randomly(folder: Path, count: int, kills: int, seed: int) -> str:
    rng = random.Random(seed)
    asked: list[int] = []
    kept: set[int] = set()
    killed = 0
    ended = False
    while not ended:
        mine, its = multiprocessing.get_context("fork").Pipe(duplex=False)
        process = fork(_answer_all, folder, count, its)
        its.close()
        # Spread over the run by what was done rather than by time: a busy machine is slow.
        until = rng.randint(1, 2 * count // kills) if killed < kills else 10 * count
        try:
            heard = 0
            while not ended:
                what, number = mine.recv()
                if what == "asked":
                    asked.append(number)
                elif what == "kept":
                    kept.add(number)
                else:
                    ended = True
                heard += 1
                if heard == until:
                    time.sleep(rng.random() * 0.003)
                    process.kill()
                    killed += 1
        except EOFError:
            pass
        process.join()
        with sqlite3.connect(folder / "store.sqlite") as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        with LabelStore(folder) as store:
            for number in kept:
                assert store.get(f"key-{number}") == answered(number, raw=f"{number} " * 1000)
    assert killed >= kills * 0.8, killed
    with LabelStore(folder) as store:
        keys = [row.key for row in store.rows()]
        assert sorted(keys) == sorted(f"key-{number}" for number in range(count))
        assert store.totals().answers == count
        assert store.totals().attempts == {"ok": count}
    assert len(asked) - count <= killed * IN_FLIGHT
    return f"{killed} kills: {count:,} rows, 0 lost, {len(asked) - count} asked twice"


def test_four_kills_lose_nothing(tmp_path: Path) -> None:
    assert _kill_randomly(tmp_path / "labels", count=400, kills=4, seed=0)


@pytest.mark.slow
def test_fifty_kills_lose_nothing(tmp_path: Path, record: Record) -> None:
    found = _kill_randomly(tmp_path / "labels", count=3000, kills=50, seed=1)
    record(
        f"SIGKILL of a process that writes to the label store, {IN_FLIGHT} rows in flight",
        found=found,
        goal="0 lost, at most those in flight asked twice",
    )


def _make(folder: Path) -> None:
    while True:
        LabelStore(folder).close()
        for path in folder.iterdir():
            path.unlink()


def test_a_store_whose_making_was_killed_can_be_used(tmp_path: Path) -> None:
    for number in range(20):
        folder = tmp_path / str(number)
        process = fork(_make, folder)
        time.sleep(0.02 + number * 0.0013)
        process.kill()
        process.join()
        with LabelStore(folder) as store:
            store.put(answered(0), []).result()
