"""Who may use a label store, and what is said when its folder, its file or the disk is in the way."""

import os
import re
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from recording import Record
from store_samples import ATTEMPT, answered, as_nobody, decision, fork, fork_and_hear
from support import REPOSITORY

from lantern_pl.errors import UserError
from lantern_pl.labelling import group_commits
from lantern_pl.labelling.store import LabelStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "labels"


@pytest.fixture
def slow_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows wait for their commit until something hurries it."""
    monkeypatch.setattr(group_commits, "WINDOW", 60.0)


def test_closing_writes_what_waits_and_ends_it(folder: Path, slow_groups: None) -> None:
    store = LabelStore(folder)
    future = store.put(answered(0), [])
    store.close()
    store.close()
    assert future.done()
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "store.sqlite"]
    for use in (lambda: store.put(answered(1), []), lambda: store.get("key-0"), lambda: store.decide(decision(0))):
        with pytest.raises(RuntimeError, match="closed"):
            use()


def test_nobody_else_may_look_into_it(folder: Path) -> None:
    before = os.umask(0)
    try:
        with LabelStore(folder) as store:
            store.put(answered(0), []).result()
            assert {path.name for path in folder.iterdir()} == {
                "lock",
                "store.sqlite",
                "store.sqlite-wal",
                "store.sqlite-shm",
            }
            assert _modes(folder) == {0o600}
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o755)
    (folder / "store.sqlite").chmod(0o644)
    with LabelStore(folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert _modes(folder) == {0o600}


def _modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def test_each_commit_waits_for_the_disk_and_deleted_rows_are_overwritten(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No test can cut the power: the settings that make SQLite wait for the disk are asserted themselves.
    opened = []
    connect = sqlite3.connect

    def spy(*arguments: Any, **options: Any) -> sqlite3.Connection:
        opened.append(connect(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", spy)
    for _ in range(2):
        with LabelStore(folder):
            writer = opened[-2]
            values = [writer.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
            assert values == ["wal", 2]
            assert writer.execute("PRAGMA secure_delete").fetchone()[0] == 1


def test_a_second_use_is_refused_until_the_first_has_ended(folder: Path) -> None:
    def second() -> str:
        try:
            LabelStore(folder).close()
        except UserError as error:
            return str(error)
        return "opened"

    with LabelStore(folder) as store:
        future = store.put(answered(0), [])
        for message in (second(), fork_and_hear(second)):
            assert f"in use by process {os.getpid()}" in message
        future.result()
    assert fork_and_hear(second) == "opened"
    with LabelStore(folder) as store:
        assert store.get("key-0") == answered(0)


def test_a_process_that_was_forked_meanwhile_does_not_keep_the_lock(folder: Path) -> None:
    store = LabelStore(folder)
    child = fork(time.sleep, 60)
    try:
        store.close()
        LabelStore(folder).close()
    finally:
        child.kill()
        child.join()


def test_a_folder_that_cannot_be_written_to() -> None:
    top = Path(tempfile.mkdtemp(dir="/tmp"))  # which nobody may enter, as pytest's folders not
    try:
        top.chmod(0o755)
        with LabelStore(top / "labels") as store:
            store.put(answered(0), []).result()
        for path in (top / "labels", *(top / "labels").iterdir()):
            os.chown(path, 65534 if os.geteuid() == 0 else -1, -1)
        (top / "labels").chmod(0o500)

        def refusal(folder: Path) -> str:
            as_nobody()
            with pytest.raises(UserError) as caught:
                LabelStore(folder)
            return str(caught.value)

        message = fork_and_hear(refusal, top / "labels")
        assert message == f"{top}/labels can't be written to: make it writable for you, or give another folder."
        top.chmod(0o555)
        message = fork_and_hear(refusal, top / "new")
        assert message.startswith(f"The label store {top}/new can't be used (Permission denied): make it writable for you")
        with LabelStore(top / "labels") if os.geteuid() == 0 else _writable(top / "labels") as store:
            assert store.get("key-0") == answered(0)
    finally:
        top.chmod(0o755)
        (top / "labels").chmod(0o700)
        shutil.rmtree(top)


def _writable(folder: Path) -> LabelStore:
    folder.chmod(0o700)
    return LabelStore(folder)


def _foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE things (name)")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: folder.write_text("x"), "is a file, but a label store is a folder"),
        (
            lambda folder: (folder / "notes.txt").write_text("x"),
            r"holds other things than a label store, such as notes\.txt",
        ),
        (lambda folder: (folder / "store.sqlite").write_text("no database" * 1000), "isn't a label store"),
        (lambda folder: _foreign(folder / "store.sqlite"), "another program's database"),
    ],
    ids=["file", "other things", "no database", "other database"],
)
def test_what_is_not_a_store_is_refused_and_left_alone(folder: Path, prepare: Any, message: str) -> None:
    if "is a file" not in message:
        folder.mkdir()
    prepare(folder)
    before = _content(folder)
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            LabelStore(folder)
    assert _content(folder) == before


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder, *folder.glob("*")) if path.is_file() and path.name != "lock"}


def test_a_store_that_must_be_there_already(folder: Path) -> None:
    with pytest.raises(UserError, match="holds no label store"):
        LabelStore(folder, create=False)
    assert not folder.exists()
    folder.mkdir()
    with pytest.raises(UserError, match="holds no label store"):
        LabelStore(folder, create=False)
    assert list(folder.iterdir()) == []


def test_a_store_of_a_newer_format(folder: Path) -> None:
    LabelStore(folder).close()
    with sqlite3.connect(folder / "store.sqlite") as connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(UserError, match="has format 2, and this lantern-pl knows formats up to 1"):
        LabelStore(folder)


@pytest.mark.parametrize("cut", ["no file", "empty file", "journal mode only"])
def test_a_store_whose_making_was_cut_short_is_made(folder: Path, cut: str) -> None:
    folder.mkdir()
    (folder / "lock").touch()
    if cut != "no file":
        (folder / "store.sqlite").touch()
    if cut == "journal mode only":
        with sqlite3.connect(folder / "store.sqlite") as connection:
            connection.execute("PRAGMA journal_mode = WAL")
    with pytest.raises(UserError, match="holds no label store"):
        LabelStore(folder, create=False)
    with LabelStore(folder) as store:
        store.put(answered(0), []).result()


def test_a_damaged_store_is_told(folder: Path) -> None:
    with LabelStore(folder) as store:
        for number in range(100):
            store.put(answered(number, raw="x" * 1000), [])
    with (folder / "store.sqlite").open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(40960))
    with pytest.raises(UserError, match="is damaged"), LabelStore(folder) as store:
        list(store.rows())


def test_reviews_and_purges_need_no_torch() -> None:
    code = "import sys, lantern_pl.labelling.purge; print(sorted({'torch', 'pyarrow', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def _put_until_it_fails(folder: Path, raw: str) -> str:
    """Put rows until one fails; returns what was said, and how many were said to be committed."""
    store = LabelStore(folder)
    futures: list[Future[None]] = []
    with pytest.raises(UserError) as refused:
        futures.extend(store.put(answered(number, raw=raw), [ATTEMPT]) for number in range(100_000))
    done = [future.exception() is None for future in futures]
    committed = done.index(False)
    assert not any(done[committed:])
    assert {str(future.exception()) for future in futures[committed:]} == {str(refused.value)}
    assert store.get("key-0") == answered(0, raw=raw)
    assert store.get(f"key-{committed}") is None
    store.close()
    return f"{committed} {refused.value}"


def _limit_file_size(folder: Path, raw: str) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
    return _put_until_it_fails(folder, raw)


def _limit_pages(folder: Path, raw: str) -> str:
    connect = sqlite3.connect

    def limited(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.execute("PRAGMA max_page_count = 500")
        return connection

    sqlite3.connect = limited  # type: ignore[assignment]
    return _put_until_it_fails(folder, raw)


@pytest.mark.parametrize(
    ("work", "said"),
    [(_limit_file_size, "disk I/O error|database or disk is full"), (_limit_pages, "is full.*make room on the disk")],
)
def test_a_full_disk_loses_nothing_that_was_committed(folder: Path, work: Any, said: str) -> None:
    message = fork_and_hear(work, folder, "SECRET " * 100)
    count, _, words = message.partition(" ")
    committed = int(count)
    assert committed > 100
    assert "SECRET" not in words
    assert "those before are kept" in words
    assert re.search(said, words)
    with LabelStore(folder) as store:
        kept = {row.key for row in store.rows()}
        assert kept >= {f"key-{number}" for number in range(committed)}
        assert store.totals().attempts == {"ok": len(kept)}
        assert store.totals().answers == len(kept)
        store.put(answered(-1), []).result()  # there is room again
    with sqlite3.connect(folder / "store.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


_MANY = """
import asyncio, sqlite3, sys, tempfile, time
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from lantern_pl.labelling.store import Answered, LabelStore

COUNT = 20_000
ATTEMPT = SimpleNamespace(started=1.0, seconds=1.0, outcome="ok")

def row(number):
    return Answered(
        key=sha256(b"%d" % number).hexdigest(), stage="judge", subject=f"p{number}", job_id=f"j{number}",
        candidate_id=f"c{number}", pair_id=f"p{number}", sample=0, state="ok", reason=None, raw="r" * 1500,
        parsed={"explanation": "e" * 1000}, finish_reason="stop", prompt_tokens=900, completion_tokens=300, cost=0.001,
        repairs=0, teacher="t", seconds=1.0)

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

async def ask(store, first, end):
    for number in range(first, end, 64):
        assert store.get(row(number).key) is None
        await asyncio.wrap_future(store.put(row(number), [ATTEMPT]))

async def ask_64_at_once(store):
    await asyncio.gather(*(ask(store, first, 4000) for first in range(64)))
    before = resident()
    await asyncio.gather(*(ask(store, 4000 + first, COUNT) for first in range(64)))
    return before, resident()

def bare(rows):  # rows a second that SQLite alone writes here and now, by commits of the same size
    with tempfile.TemporaryDirectory(dir=sys.argv[2]) as folder:
        connection = sqlite3.connect(folder + "/bare.sqlite", isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (key PRIMARY KEY, raw)")
        began = time.perf_counter()
        for first in range(0, COUNT, 64):
            connection.execute("BEGIN")
            texts = [(each.key, each.raw + each.parsed["explanation"]) for each in rows[first : first + 64]]
            connection.executemany("INSERT INTO t VALUES (?, ?)", texts)
            connection.execute("COMMIT")
        return COUNT / (time.perf_counter() - began)

with LabelStore(Path(sys.argv[1])) as store:
    print(*asyncio.run(ask_64_at_once(store)))
    for turn in range(1, 4):
        rows = [row(number + turn * COUNT) for number in range(COUNT)]
        began = time.perf_counter()
        for each in rows:
            last = store.put(each, [ATTEMPT])
        last.result()
        rate = COUNT / (time.perf_counter() - began)
        print(rate, bare(rows))
"""


@pytest.mark.slow
@pytest.mark.alone
def test_memory_stays_flat_and_5_000_rows_a_second_are_written(folder: Path, record: Record) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _MANY, folder, folder.parent], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert ran.returncode == 0, ran.stderr
    memory, *turns = [tuple(map(float, line.split())) for line in ran.stdout.splitlines()]
    before, after = memory
    print(f"{before:.1f} MiB after 4,000 rows, {after:.1f} after 20,000; rows/s, and those of bare SQLite: {turns}")
    assert after - before < 4
    # A machine on which SQLite alone is slow, or that is busy with other things, can't show it.
    assert max(rate / min(5000, bare / 3) for rate, bare in turns) >= 1
    best, bare = max(turns)
    record(
        "Rows that the label store writes, each on the disk before it counts",
        found=f"{best:,.0f} rows/s ({best / bare:.0%} of bare SQLite's)",
        goal="5,000 rows/s, or a third of bare SQLite's",
    )
    record("Memory of the label store", found=f"{after - before:+.1f} MiB from 4,000 to 20,000 rows", goal="less than 4 MiB")
