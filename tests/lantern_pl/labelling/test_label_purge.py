"""A purge: no byte of a person is left in a labels folder, and all others stay as they are."""

import json
import os
import random
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from store_samples import ATTEMPT, answered, decision

from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.labelling import group_commits
from lantern_pl.labelling.export import export
from lantern_pl.labelling.labels import NoLabel
from lantern_pl.labelling.purge import purge
from lantern_pl.labelling.store import Answered, LabelStore, Purged

CANARY = "Zażółć-canary-7f3a"


def _canary(number: int, rng: random.Random, **fields: Any) -> Answered:
    text = CANARY + "".join(rng.choices("abc ", k=rng.randint(0, 9000)))
    row = answered(number, raw=text, **fields)
    return row if row.parsed is None else answered(number, raw=text, parsed={"explanation": text}, **fields)


def _filled(folder: Path) -> LabelStore:
    """A store in which candidate-7 is in two pairs and speaks everywhere, among many others."""
    rng = random.Random(0)
    numbers = list(range(400))
    rng.shuffle(numbers)
    store = LabelStore(folder)
    for number in numbers:
        if number == 7:
            for attempt in range(3):
                store.put(_canary(7, rng, state="quarantined"), [ATTEMPT]).result()
                store.put(answered(1000 + attempt, raw="x" * 5000), [ATTEMPT])
            store.put(_canary(7, rng), [ATTEMPT]).result()
            facts = {"stage": "facts", "subject": "candidate-7", "job_id": None, "pair_id": None, "key": "facts-7"}
            store.put(_canary(7, rng, **facts), [ATTEMPT])
            store.put(_canary(7, rng, key="other", pair_id="pair-other", subject="pair-other", job_id="job-9"), [])
            store.put(_canary(7, rng, state="quarantined", key="explain", stage="explain"), [ATTEMPT])
        else:
            store.put(answered(number, raw=f"raw {number} " * rng.randint(1, 900)), [ATTEMPT])
    store.decide(decision(7, note=CANARY), decision(6), decision(7, verdict="edit", explanation=CANARY * 50))
    return store


def _found(folder: Path, words: str = CANARY) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and words.encode() in path.read_bytes()}


@pytest.mark.parametrize("place", ["store.sqlite-wal", "store.sqlite"])
def test_no_byte_of_a_purged_person_is_left_in_the_store(tmp_path: Path, place: str) -> None:
    store = _filled(tmp_path / "labels")
    if place == "store.sqlite":
        store.close()
        store = LabelStore(tmp_path / "labels")
    with store:
        assert place in _found(store.folder)
        others = [row for row in store.rows() if row.candidate_id != "candidate-7"]
        assert len(others) == 402
        assert store.purge("candidate-7") == Purged(answers=4, attempts=6, decisions=2)
        for words in (CANARY, "candidate-7\0", "pair-other", "facts-7"):
            assert _found(store.folder, words) == set()  # also while the store is open
        assert list(store.rows()) == others
        assert store.decisions() == [decision(6)]
        assert store.attempts("key-7") == []
        assert store.attempts("key-8") == [ATTEMPT]
    assert _found(store.folder) == set()
    with sqlite3.connect(store.folder / "store.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


@pytest.mark.parametrize("seed", [2, 3])
def test_no_byte_is_left_where_rows_were_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """SQLite moves rows between pages as they grow, and overwrites what it deletes, not what it has moved."""
    monkeypatch.setattr(group_commits, "WINDOW", 60.0)  # groups of the same size each time
    rng = random.Random(seed)
    with LabelStore(tmp_path / "labels") as store:
        for _ in range(4):
            for number in rng.sample(range(600), 600):
                fields = {"candidate_id": "candidate-0"} if number % 10 == 0 else {}
                raw = (CANARY if fields else "x" * len(CANARY)) * rng.randint(1, 50)
                store.put(answered(number, state="quarantined", raw=raw, **fields), [ATTEMPT])
        assert store.purge("candidate-0") == Purged(60, 240, 0)
        assert not _found(store.folder)


def test_what_was_purged_before_the_space_was_swept_is_swept_by_the_next_purge(tmp_path: Path) -> None:
    """As after an interruption: rows that were replaced or forgotten leave traces, too."""
    with LabelStore(tmp_path / "labels") as store:
        store.put(answered(0, state="quarantined", raw=CANARY), []).result()
        store.forget_quarantined()
        assert _found(store.folder)
        store.purge("somebody else")
        assert not _found(store.folder)


def test_a_purged_person_does_not_come_back(tmp_path: Path) -> None:
    with _filled(tmp_path / "labels") as store:
        store.purge("candidate-7")
    with LabelStore(tmp_path / "labels") as store:
        assert store.is_purged("candidate-7")
        assert store.is_purged("candidate-7", "candidate")
        assert not store.is_purged("candidate-7", "job")
        assert store.is_purged("pair-other", "pair")
        assert not any(map(store.is_purged, ("candidate-8", "job-1", "job-9", "pair-8")))
        for row in (answered(7), answered(8, pair_id="pair-7", subject="pair-7"), answered(8, candidate_id="candidate-7")):
            with pytest.raises(UserError, match="was purged from"):
                store.put(row, [])
        with pytest.raises(UserError, match="'pair-other' was purged"):
            store.decide(decision(8), decision(0, pair_id="pair-other"))
        assert store.decisions() == [decision(6)]
        assert store.get("key-7") is None
        assert store.purge("candidate-7") == Purged(0, 0, 0)


def test_a_row_that_waits_is_purged_too(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels") as store:
        store.put(answered(7, raw=CANARY), [ATTEMPT])
        assert store.purge("pair-7") == Purged(1, 1, 0)
        assert store.get("key-7") is None
        assert not _found(store.folder)


@pytest.mark.parametrize(
    ("subject", "left"),
    [
        ("job-1", ["key-0", "key-2", "key-3", "facts-1"]),
        ("pair-1", ["key-0", "key-2", "key-3", "key-4", "requirements", "facts-1"]),
        ("candidate-1", ["key-0", "key-2", "key-3", "key-4", "requirements"]),
    ],
)
def test_jobs_candidates_and_pairs(tmp_path: Path, subject: str, left: list[str]) -> None:
    with LabelStore(tmp_path / "labels") as store:
        for number in range(5):
            store.put(answered(number), [])
        of_job = {"subject": "job-1", "candidate_id": None, "pair_id": None}
        store.put(answered(1, key="requirements", stage="requirements", **of_job), [])
        store.put(answered(1, key="facts-1", stage="facts", subject="candidate-1", job_id=None, pair_id=None), [])
        store.purge(subject)
        assert [row.key for row in store.rows()] == left


def test_pairs_that_only_decisions_or_exports_name(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels") as store:
        store.put(answered(3), [ATTEMPT])
        store.decide(decision(1), decision(2), decision(3), decision(4))
        assert store.purge("pair-1") == Purged(0, 0, 1)
        assert store.purge("stranger", pairs=["pair-2", "pair-3"]) == Purged(1, 1, 2)
        assert store.decisions() == [decision(4)]
        assert store.get("key-3") is None
        assert store.is_purged("pair-3", "pair")


def test_pairs_that_were_never_asked_about_go_from_the_quarantine(tmp_path: Path) -> None:
    """The store doesn't know them: what the pair is made of was no label."""
    pairs = [Pair(f"job-3--{name}", "job-3", name, "We look for someone.", "I am one.") for name in ("c-1", "c-2")]
    with LabelStore(tmp_path) as store:
        store.put(answered(0, subject="c-1", stage="facts", candidate_id="c-1", job_id=None, pair_id=None), [])
        export(tmp_path, pairs, [NoLabel("facts: truncated")] * 2, ["low"], {"teacher": {"name": "t"}})
    purge(tmp_path, "c-1")
    rows = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [row["pair_id"] for row in rows] == ["job-3--c-2"]


def test_an_id_of_two_kinds_needs_saying_which(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels") as store:
        store.put(answered(0, job_id="7", candidate_id="8"), [])
        store.put(answered(1, job_id="9", candidate_id="7"), [])
        with pytest.raises(UserError, match="'7' is the id of a candidate and of a job: say which"):
            store.purge("7")
        assert not store.is_purged("7")
        assert store.purge("7", "candidate") == Purged(1, 0, 0)
        assert (store.is_purged("7", "candidate"), store.is_purged("7", "job")) == (True, False)
        store.put(answered(2, job_id="7", candidate_id="8"), []).result()
        with pytest.raises(UserError, match="candidate and of a job"):  # remembered from the purge
            store.purge("7")


def test_an_unknown_id_is_remembered_for_every_kind(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels") as store:
        assert store.purge("stranger") == Purged(0, 0, 0)
    with LabelStore(tmp_path / "labels") as store:
        assert store.is_purged("stranger", "job")
        with pytest.raises(UserError, match="The candidate 'stranger' was purged"):
            store.put(answered(0, candidate_id="stranger"), [])


def test_a_reader_that_keeps_the_log_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LabelStore(tmp_path / "labels") as store:
        store.put(answered(7, raw=CANARY), []).result()
        store.put(answered(8), []).result()
        other = sqlite3.connect(store.folder / "store.sqlite", isolation_level=None)
        other.execute("BEGIN")
        other.execute("SELECT * FROM units").fetchone()
        store._writer.execute("PRAGMA busy_timeout = 100")
        with pytest.raises(UserError, match="Another program reads"):
            store.purge("pair-7")
        other.close()
        store.purge("pair-7")
        assert not _found(store.folder)


# Exports


def _json(row: object) -> str:
    return json.dumps(row, ensure_ascii=False)


def _export(folder: Path) -> None:
    """The exports of a labels folder: parquet in row groups, JSONL with blank lines and odd spacing, a folder in it."""
    rows = [
        {
            "pair_id": f"pair-{number}",
            "job_id": f"job-{number % 3}",
            "candidate_id": f"candidate-{number}",
            "candidate_text": f"{CANARY} text" if number == 7 else f"text {number}",
            "level": "low",
            "confidence": None if number % 2 else 0.5,
            "votes": {"low": 1.0, "high": None},
            "requirements": [{"requirement": "r", "evidence": CANARY if number == 7 else "e"}],
            "flags": [],
        }
        for number in range(20)
    ]
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata({"made": "by a test"})
    pyarrow.parquet.write_table(table, folder / "labels.parquet", row_group_size=6, compression="zstd")
    pyarrow.parquet.write_table(table.slice(10), folder / "others.parquet", compression="none")
    pyarrow.parquet.write_table(
        table.drop_columns(["pair_id", "job_id", "candidate_id"]).slice(10), folder / "noids.parquet"
    )
    lines = [_json(row) for row in rows]
    (folder / "seed.jsonl").write_text("\n\n".join(lines).replace(":", " :  ") + "\n")
    (folder / "quarantine.jsonl").write_text(
        _json({"pair_id": "pair-other", "reason": CANARY}) + "\n" + _json({"pair_id": "pair-8"}) + "\r\n"
    )
    (folder / "inner").mkdir()
    (folder / "inner" / "decisions.jsonl").write_text(
        _json({"resume_id": "candidate-7", "pair_id": "pair-new", "note": CANARY}) + "\n{}"
    )
    (folder / "inner" / "later.jsonl").write_text(_json({"pair_id": "pair-new", "note": CANARY}))
    (folder / ".seed.jsonl.x7d9").write_text(CANARY)
    (folder / ".labels.parquet.x7d9").write_text(CANARY)
    (folder / "labels.part").write_text(CANARY)
    (folder / "quarantine.jsonl.part").write_text(CANARY)
    (folder / "manifest.json").write_text("{}")


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    folder = tmp_path / "labels"
    _filled(folder).close()
    _export(folder)
    return folder


def test_exports_are_written_anew_without_the_person(labels: Path) -> None:
    before = pyarrow.parquet.read_table(labels / "labels.parquet")
    seed = (labels / "seed.jsonl").read_bytes()
    same = {
        path: (path.stat().st_ino, path.read_bytes()) for path in [*labels.glob("o*.parquet"), *labels.glob("n*.parquet")]
    }
    assert len(same) == 2
    with LabelStore(labels) as store:
        store.decide(decision(0, pair_id="pair-new", note=CANARY))  # which no row names

    purged = purge(labels, "candidate-7")

    assert _found(labels) == set()
    files = {"labels.parquet": 1, "seed.jsonl": 1, "quarantine.jsonl": 1}
    files |= {"inner/decisions.jsonl": 1, "inner/later.jsonl": 1}
    assert purged == Purged(answers=4, attempts=6, decisions=3, files=files)
    assert str(purged).startswith("4 answers, 6 attempts, 3 decisions, 1 rows of inner/decisions.jsonl, ")
    after = pyarrow.parquet.ParquetFile(labels / "labels.parquet")
    assert after.read().equals(before.filter(pyarrow.array([number != 7 for number in range(20)])), check_metadata=True)
    assert [after.metadata.row_group(group).num_rows for group in range(4)] == [6, 5, 6, 2]
    assert after.metadata.row_group(0).column(0).compression == "ZSTD"
    lines = seed.splitlines(keepends=True)
    assert (labels / "seed.jsonl").read_bytes() == b"".join(line for line in lines if CANARY.encode() not in line)
    assert (labels / "quarantine.jsonl").read_bytes() == b'{"pair_id": "pair-8"}\r\n'
    assert (labels / "inner" / "decisions.jsonl").read_bytes() == b"{}"
    assert (labels / "inner" / "later.jsonl").read_bytes() == b""
    assert {path: (path.stat().st_ino, path.read_bytes()) for path in same} == same
    left = {"lock", "store.sqlite", "manifest.json", "inner", "others.parquet", "noids.parquet"}
    assert {path.name for path in labels.iterdir()} == left | {"labels.parquet", "seed.jsonl", "quarantine.jsonl"}
    assert stat.S_IMODE((labels / "seed.jsonl").stat().st_mode) == 0o600

    assert purge(labels, "candidate-7") == Purged(0, 0, 0, {})


def test_all_rows_of_a_file_may_go(labels: Path) -> None:
    for number in range(20):
        purge(labels, f"pair-{number}")
    table = pyarrow.parquet.read_table(labels / "labels.parquet")
    assert table.num_rows == 0
    assert "votes" in table.column_names
    assert purge(labels, "pair-0").files == {}
    assert (labels / "seed.jsonl").read_bytes().strip() == b""


def test_a_purge_of_the_store_alone_is_ended_by_the_next(labels: Path) -> None:
    with LabelStore(labels) as store:
        store.purge("candidate-7")
    assert "labels.parquet" in _found(labels)
    purge(labels, "nobody")
    assert _found(labels) == set()


def test_numbers_are_ids_too(labels: Path) -> None:
    (labels / "more.jsonl").write_text('{"candidate_id": 7, "job_id": 8}\n{"candidate_id": 8, "job_id": 7}\n')
    with pytest.raises(UserError, match="'7' is the id of a candidate and of a job: say which"):
        purge(labels, "7")
    assert purge(labels, "7", "candidate").files == {"more.jsonl": 1}
    assert (labels / "more.jsonl").read_text() == '{"candidate_id": 8, "job_id": 7}\n'


def test_what_cannot_be_read_is_told_after_the_rest_is_purged(labels: Path) -> None:
    with (labels / "seed.jsonl").open("a") as file:
        file.write(f'{{"pair_id": "pair-7", "text": "{CANARY}\n["{CANARY}"]\n')
    (labels / "torn.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(UserError) as caught:
        purge(labels, "candidate-7")
    said = str(caught.value)
    assert [line.strip().removeprefix(str(labels)) for line in said.splitlines()[1:-1]] == [
        "/seed.jsonl:40",
        "/seed.jsonl:41",
        "/torn.parquet",
    ]
    assert CANARY not in said
    assert _found(labels) == {"seed.jsonl"}
    (labels / "torn.parquet").unlink()
    lines = (labels / "seed.jsonl").read_text().splitlines(keepends=True)
    (labels / "seed.jsonl").write_text("".join(line for line in lines if CANARY not in line))
    purge(labels, "candidate-7")
    assert _found(labels) == set()


def test_links_are_not_followed(labels: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"candidate_id": "candidate-7"}\n')
    (labels / "mine.jsonl").symlink_to(tmp_path / "mine.jsonl")
    purge(labels, "candidate-7")
    assert (labels / "mine.jsonl").is_symlink()
    assert (tmp_path / "mine.jsonl").read_text() == '{"candidate_id": "candidate-7"}\n'


def test_an_export_that_cannot_be_written_stays_whole(labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (labels / "labels.parquet").read_bytes()

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        with pytest.raises(UserError, match="No space left on device"):
            purge(labels, "candidate-7")
    assert (labels / "labels.parquet").read_bytes() == before
    purge(labels, "candidate-7")
    assert _found(labels) == set()


def test_predictions_and_signal_sets_that_are_named_go_too(labels: Path, tmp_path: Path) -> None:
    answers, signals, other = tmp_path / "answers", tmp_path / "signals", tmp_path / "other"
    answers.mkdir()
    rows = [{"pair_id": f"p{at}", "candidate_id": f"candidate-{at}", "explanation": f"{CANARY} {at}"} for at in (7, 8)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), answers / "part-00000.parquet")
    signals.mkdir()
    for name in ("shard-00000.safetensors", "head.safetensors", ".shard-00001.safetensors.x1"):
        (signals / name).write_bytes(CANARY.encode())
    (signals / "manifest.json").write_text(json.dumps({"teacher": {}, "shards": []}))
    purged = purge(labels, "candidate-7", predictions=[answers], signals=[signals])
    assert pyarrow.parquet.read_table(answers / "part-00000.parquet").to_pylist() == rows[1:]
    assert not signals.exists()
    assert purged.files[str(answers / "part-00000.parquet")] == 1
    assert purged.files[str(signals)] == 4
    purge(labels, "candidate-7", predictions=[answers], signals=[signals])

    other.mkdir()
    for name, content in (("manifest.json", '{"kind": "labels"}'), ("head.safetensors", "a model")):
        (other / name).write_text(content)
        with pytest.raises(UserError, match="holds no signal set"):
            purge(labels, "candidate-7", signals=[other])
        assert (other / name).exists()
        (other / name).unlink()


def test_a_folder_without_store_or_in_use(tmp_path: Path, labels: Path) -> None:
    with pytest.raises(UserError, match="holds no label store"):
        purge(tmp_path, "candidate-7")
    with LabelStore(labels), pytest.raises(UserError, match="in use by process"):
        purge(labels, "candidate-7")
