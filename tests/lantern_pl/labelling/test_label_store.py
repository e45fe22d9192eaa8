"""The label store: what is put is found, once, and every attempt and its cost is accounted for."""

import asyncio
import math
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from store_samples import ATTEMPT, answered, decision

from lantern_pl.errors import UserError
from lantern_pl.labelling import group_commits
from lantern_pl.labelling.store import LabelStore, Totals
from lantern_pl.teachers.chat import Attempt


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "labels"


@pytest.fixture
def slow_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows wait for their commit until something hurries it."""
    monkeypatch.setattr(group_commits, "WINDOW", 60.0)


ODD = "a\x00b \ud800 \u2028 \u202e żółć 履歴書 😀"


def test_a_row_comes_back_as_it_was(folder: Path) -> None:
    rows = [
        answered(0, raw=ODD, parsed={"text": ODD, "numbers": [1, 2.5, None, True], "b": {"a": "z"}}, cost=None, sample=3),
        answered(1, state="quarantined", raw="", finish_reason="", repairs=2, seconds=0.0, cost=0.0),
        answered(2, stage="facts", subject="candidate-2", job_id=None, pair_id=None, prompt_tokens=2**63 - 1),
    ]
    attempts = [Attempt(1.5, 0.5, "http 429"), Attempt(2.5, 0.125, "ok")]
    with LabelStore(folder) as store:
        for row in rows:
            store.put(row, attempts).result()
        assert [store.get(row.key) for row in rows] == rows
    with LabelStore(folder, create=False) as store:
        assert [store.get(row.key) for row in rows] == rows
        assert list(store.rows()) == rows
        assert store.attempts("key-0") == attempts
        assert store.get("key-9") is None
        assert store.attempts("key-9") == []


def test_a_row_is_found_before_it_is_committed(folder: Path, slow_groups: None) -> None:
    with LabelStore(folder) as store:
        future = store.put(answered(0), [])
        assert store.get("key-0") == answered(0)
        assert not future.done()
        assert list(store.rows()) == []
        store.decide(decision(0))
        assert future.done()
        assert list(store.rows()) == [answered(0)]


@pytest.mark.parametrize("together", [True, False], ids=["one commit", "several commits"])
@pytest.mark.parametrize(
    ("states", "kept"),
    [
        (["ok", "ok"], 0),
        (["ok", "quarantined"], 0),
        (["quarantined", "ok"], 1),
        (["quarantined", "quarantined"], 1),
        (["quarantined", "ok", "quarantined", "ok"], 1),
    ],
)
def test_the_first_ok_row_stays(folder: Path, slow_groups: None, states: list[str], kept: int, together: bool) -> None:
    rows = [answered(0, state=state, raw=f"answer {number}", repairs=number) for number, state in enumerate(states)]
    with LabelStore(folder) as store:
        for row in rows:
            store.put(row, [ATTEMPT])
            if not together:
                store.decide(decision(0))  # which has all before it committed
        assert store.get("key-0") == rows[kept]
    with LabelStore(folder) as store:
        assert list(store.rows()) == [rows[kept]]
        assert store.get("key-0") == rows[kept]
        assert len(store.attempts("key-0")) == len(states)


def test_a_waiting_row_does_not_hide_a_committed_ok_one(folder: Path, slow_groups: None) -> None:
    with LabelStore(folder) as store:
        store.put(answered(0), [])
        store.decide(decision(0))
        store.put(answered(0, state="quarantined"), [])
        assert store.get("key-0") == answered(0)


def test_rows_by_stage_and_state_in_the_order_of_their_coming(folder: Path) -> None:
    order = [(number * 7919) % 1000 for number in range(1000)]
    rows = [answered(n, state="ok" if n % 4 else "quarantined", stage="judge" if n % 2 else "explain") for n in order]
    with LabelStore(folder) as store:
        for row in rows:
            store.put(row, [])
        store.decide(decision(0))
        assert list(store.rows()) == rows
        assert list(store.rows("judge")) == [row for row in rows if row.stage == "judge"]
        assert list(store.rows(state="quarantined")) == [row for row in rows if row.state == "quarantined"]
        assert list(store.rows("explain", "ok")) == [row for row in rows if (row.stage, row.state) == ("explain", "ok")]
        assert store.counts() == {
            ("explain", "ok", None): 250,
            ("explain", "quarantined", "truncated"): 250,
            ("judge", "ok", None): 500,
        }


def test_rows_may_be_put_while_others_are_read(folder: Path) -> None:
    with LabelStore(folder) as store:
        for number in range(600):
            store.put(answered(number), [])
        store.decide(decision(0))
        seen = []
        for row in store.rows():
            seen.append(row.key)
            if len(seen) % 100 == 0:
                store.put(answered(0), []).result()
        assert seen == [f"key-{number}" for number in range(600)]


def test_totals_are_all_that_was_ever_spent(folder: Path) -> None:
    with LabelStore(folder) as store:
        assert store.totals() == Totals(0, 0, 0, 0.0, 0, {})
        store.put(answered(0, cost=None), []).result()
        assert store.totals() == Totals(1, 100, 10, None, 1, {})
        store.put(answered(1, state="quarantined", cost=0.25), [Attempt(1, 1, "http 429"), ATTEMPT])
        store.put(answered(1, cost=0.5), [ATTEMPT])  # replaces
        store.put(answered(1, cost=1.0), [ATTEMPT])  # is replaced, but was paid
        store.put(answered(2, state="quarantined", cost=2.0), [Attempt(1, 1, "timeout")])
        assert store.forget_quarantined() == 1
        store.purge("candidate-0")
        spent = Totals(5, 500, 50, 3.75, 1, {"http 429": 1, "ok": 3, "timeout": 1})
        assert store.totals() == spent
    with LabelStore(folder) as store:
        assert store.totals() == spent


def test_forgotten_rows_count_as_unanswered(folder: Path, slow_groups: None) -> None:
    with LabelStore(folder) as store:
        store.put(answered(0), [])
        store.put(answered(1, state="quarantined"), [ATTEMPT])
        assert store.forget_quarantined() == 1
        assert (store.get("key-0"), store.get("key-1")) == (answered(0), None)
        assert store.attempts("key-1") == [ATTEMPT]
        store.put(answered(1), [ATTEMPT])
        assert store.get("key-1") == answered(1)
    with LabelStore(folder) as store:
        assert store.attempts("key-1") == [ATTEMPT, ATTEMPT]
        assert store.counts() == {("judge", "ok", None): 2}


def test_decisions_are_kept_in_order_and_none_is_replaced(folder: Path) -> None:
    decisions = [
        decision(1, verdict="edit", level="high", explanation=ODD, note="n"),
        decision(0, reviewer="bob", verdict="reject", rule="min_agreement"),
        decision(1),
        decision(1),
    ]
    with LabelStore(folder) as store:
        store.decide(decisions[0])
        store.decide(*decisions[1:])
        assert store.decisions() == decisions
    with LabelStore(folder) as store:
        assert store.decisions() == decisions


def test_decisions_are_made_together_or_not_at_all(folder: Path) -> None:
    with LabelStore(folder) as store:
        with pytest.raises(UserError, match="can't be used"):
            store.decide(decision(0), decision(1, note=object()))
        store.decide(decision(2))
        assert store.decisions() == [decision(2)]


@pytest.mark.parametrize("fields", [{"verdict": "maybe"}, {"verdict": "edit"}])
def test_a_decision_that_says_nothing_is_refused(folder: Path, fields: dict[str, Any]) -> None:
    with LabelStore(folder) as store:
        with pytest.raises(ValueError, match=r"verdict|edit"):
            store.decide(decision(0), decision(1, **fields))
        assert store.decisions() == []


@pytest.mark.parametrize(
    "fields",
    [
        {"state": "good"},
        {"reason": "why"},
        {"state": "quarantined", "reason": None},
        {"parsed": None},
        {"parsed": {"share": math.nan}},
        {"subject": "someone else"},
        {"candidate_id": None},
        {"job_id": None},
        {"prompt_tokens": 2**63},
        {"completion_tokens": -1},
        {"seconds": math.nan},
        {"cost": math.inf},
    ],
    ids=str,
)
def test_a_row_that_is_none_is_refused_alone(folder: Path, fields: dict[str, Any]) -> None:
    with LabelStore(folder) as store:
        before = store.put(answered(0), [])
        with pytest.raises(ValueError, match=r"."):
            store.put(answered(1, **fields), [])
        store.put(answered(2), []).result()
        before.result()
        assert [row.key for row in store.rows()] == ["key-0", "key-2"]


def test_an_attempt_without_times_is_refused(folder: Path) -> None:
    with LabelStore(folder) as store, pytest.raises(ValueError, match="finite"):
        store.put(answered(0), [Attempt(math.nan, 0.0, "ok")])


def test_a_cancelled_wait_does_not_take_the_row_back(folder: Path, slow_groups: None) -> None:
    async def run(store: LabelStore) -> None:
        waiting = asyncio.ensure_future(asyncio.wrap_future(store.put(answered(0), [])))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.to_thread(store.decide, decision(0))
        later = asyncio.wrap_future(store.put(answered(1), []))
        await asyncio.to_thread(store.decide, decision(0))
        await later

    with LabelStore(folder) as store:
        asyncio.run(run(store))
        assert [row.key for row in store.rows()] == ["key-0", "key-1"]


def test_several_threads(folder: Path) -> None:
    futures: list[Future[None]] = []

    def put(first: int) -> None:
        for number in range(first, 1000, 2):
            futures.append(store.put(answered(number % 500, raw=str(number)), [ATTEMPT]))
            assert store.get(f"key-{number % 500}") is not None

    with LabelStore(folder) as store:
        threads = [threading.Thread(target=put, args=(first,)) for first in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for future in futures:
            future.result()
        assert len(futures) == 1000
        assert store.counts() == {("judge", "ok", None): 500}
        assert store.totals().attempts == {"ok": 1000}
