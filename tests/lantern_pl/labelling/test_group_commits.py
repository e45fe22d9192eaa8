"""Rows share commits, wait for room, and hear of a failure."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from store_samples import answered

from lantern_pl.errors import UserError
from lantern_pl.labelling import group_commits
from lantern_pl.labelling.group_commits import GROUP, ROOM, GroupCommits
from lantern_pl.labelling.store import LabelStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "labels"


@pytest.fixture
def slow_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows wait for their commit until something hurries it."""
    monkeypatch.setattr(group_commits, "WINDOW", 60.0)


def test_rows_share_commits_and_keep_their_order(slow_groups: None) -> None:
    groups: list[list[str]] = []
    queue: GroupCommits[Any] = GroupCommits(lambda rows: groups.append([row.key for row in rows]))
    futures = [queue.put(_Row(str(number))) for number in range(3 * GROUP + 1)]
    queue.flush()
    assert all(future.done() for future in futures)
    assert len(set(futures)) == 4  # who waits for a commit is woken once, however many rows are in it
    assert [key for group in groups for key in group] == [str(number) for number in range(3 * GROUP + 1)]
    assert [len(group) for group in groups] == [GROUP, GROUP, GROUP, 1]
    queue.close()


def test_a_lone_row_does_not_wait_for_others(folder: Path) -> None:
    with LabelStore(folder) as store:
        store.put(answered(0), []).result(timeout=60)


def test_who_puts_faster_than_the_disk_writes_has_to_wait() -> None:
    go_on = threading.Event()
    queue: GroupCommits[Any] = GroupCommits(lambda rows: go_on.wait())
    count = 0

    def put() -> None:
        nonlocal count
        for number in range(2 * ROOM):
            queue.put(_Row(str(number)))
            count += 1

    thread = threading.Thread(target=put)
    thread.start()
    deadline = time.monotonic() + 60
    while count < ROOM and time.monotonic() < deadline:
        time.sleep(0.01)
    thread.join(0.5)  # the time in which one who doesn't wait would put the rest
    assert ROOM <= count <= ROOM + GROUP
    go_on.set()
    thread.join(120)
    assert count == 2 * ROOM
    queue.close()


def test_a_fault_in_writing_is_told_without_its_words() -> None:
    def write(rows: object) -> None:
        raise RuntimeError("SECRET")

    queue: GroupCommits[Any] = GroupCommits(write)
    with pytest.raises(UserError, match="RuntimeError") as caught:
        queue.put(_Row("a")).result()
    assert "SECRET" not in str(caught.value)
    with pytest.raises(UserError, match="RuntimeError"):
        queue.put(_Row("b"))
    assert queue.find("a") is None
    queue.close()


def test_after_a_failure_nothing_more_is_written() -> None:
    go_on = threading.Event()
    groups = []

    def write(rows: object) -> None:
        groups.append(rows)
        go_on.wait()
        if len(groups) == 1:
            raise UserError("the disk is full")

    queue: GroupCommits[Any] = GroupCommits(write)
    futures = [queue.put(_Row(str(number))) for number in range(2 * GROUP)]
    go_on.set()
    assert {str(future.exception(timeout=120)) for future in futures} == {"the disk is full"}
    assert len(groups) == 1
    with pytest.raises(UserError, match="the disk is full"):
        queue.put(_Row("later"))
    queue.close()


class _Row:
    def __init__(self, key: str) -> None:
        self.key = key

    def replaces(self, waiting: object) -> bool:
        return True
