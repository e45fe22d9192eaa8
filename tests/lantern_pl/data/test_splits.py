import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lantern_pl.data.pair import Pair
from lantern_pl.data.records import normalised, read_pairs
from lantern_pl.data.splits import Splits, split_pairs
from lantern_pl.errors import UserError
from lantern_pl.tasks import Task

JOB_FIT_OPEN = Path(__file__).parents[4] / "shared" / "data" / "job_fit_open" / "pairs.jsonl"


def pair(job: int, candidate: int, **fields: str) -> Pair:
    made = {
        "pair_id": f"{job}-{candidate}",
        "job_id": f"j{job}",
        "candidate_id": f"c{candidate}",
        "job_text": f"job {job}",
        "candidate_text": f"candidate {candidate}",
    }
    return Pair(**(made | fields))


def blocks(count: int, jobs: int = 2, candidates: int = 4) -> list[Pair]:
    return [pair(b * jobs + j, b * candidates + c) for b in range(count) for j in range(jobs) for c in range(candidates)]


def parts(splits: Splits) -> tuple[list[Pair], list[Pair], list[Pair]]:
    return splits.train, splits.val, splits.test


def sizes(splits: Splits) -> tuple[int, ...]:
    return tuple(len(part) for part in (*parts(splits), splits.dropped))


def assert_no_leak(splits: Splits) -> None:
    seen: dict[tuple[str, str], set[int]] = defaultdict(set)
    for number, part in enumerate(parts(splits)):
        for p in part:
            seen["job id", p.job_id].add(number)
            seen["job text", normalised(p.job_text)].add(number)
            seen["candidate id", p.candidate_id].add(number)
            seen["candidate text", normalised(p.candidate_text)].add(number)
    assert all(len(splits_of_one) == 1 for splits_of_one in seen.values())


def components(pairs: Sequence[Pair]) -> int:
    """The naive count: merge sets of names until none share one."""
    merged: list[set[str]] = []
    for p in pairs:
        names = {
            f"j{p.job_id}",
            f"jt{normalised(p.job_text)}",
            f"c{p.candidate_id}",
            f"ct{normalised(p.candidate_text)}",
        }
        joined = [group for group in merged if group & names]
        merged = [group for group in merged if not group & names] + [names.union(*joined)]
    return len(merged)


# Few jobs, candidates and texts, so that ids and texts collide and components of every shape come up.
graphs = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 15), st.integers(0, 15)), min_size=1, max_size=40
).map(
    lambda rows: [
        pair(j, c, pair_id=str(i), job_text=f"Job  {jt}" if i % 2 else f"job {jt}", candidate_text=f"candidate {ct}")
        for i, (j, c, jt, ct) in enumerate(rows)
    ]
)
fractions = st.sampled_from([(0.1, 0.1), (0.2, 0.0), (0.0, 0.3), (0.3, 0.3), (0.05, 0.15)])


@settings(deadline=None, max_examples=150)
@given(graphs, fractions, st.integers(0, 3), st.randoms(use_true_random=False))
def test_no_job_and_no_candidate_is_in_two_splits(
    pairs: list[Pair], fractions: tuple[float, float], seed: int, rng: random.Random
) -> None:
    wanted = 1 + sum(fraction > 0 for fraction in fractions)
    try:
        splits = split_pairs(pairs, *fractions, seed)
    except UserError:
        # With a component for each split there is always a way.
        assert components(pairs) < wanted
        return
    assert_no_leak(splits)
    assert sorted((*splits.train, *splits.val, *splits.test, *splits.dropped), key=lambda p: p.pair_id) == sorted(
        pairs, key=lambda p: p.pair_id
    )
    for part, fraction in zip(parts(splits)[1:], fractions, strict=True):
        assert bool(part) == (fraction > 0)
    assert splits.train
    assert split_pairs(rng.sample(pairs, len(pairs)), *fractions, seed) == splits


@settings(deadline=None, max_examples=30)
@given(st.integers(10, 60), st.integers(0, 5))
def test_small_blocks_are_split_whole(count: int, seed: int) -> None:
    splits = split_pairs(blocks(count), 0.1, 0.1, seed)
    assert not splits.dropped
    for part in parts(splits)[1:]:
        assert 0.05 <= len(part) / (8 * count) <= 0.2


def test_few_blocks_are_still_split_whole() -> None:
    assert sizes(split_pairs(blocks(5), 0.1, 0.1, 0)) == (24, 8, 8, 0)


def test_another_seed_is_another_split() -> None:
    pairs = blocks(20)
    tests = {tuple(p.pair_id for p in split_pairs(pairs, 0.1, 0.1, seed).test) for seed in range(5)}
    assert len(tests) > 1


@pytest.mark.parametrize(("val", "test"), [(0.1, 0.1), (0.15, 0.15), (0.2, 0.0), (0.05, 0.05)])
def test_one_dense_component_is_cut_near_the_fractions_and_keeps_what_it_can(val: float, test: float) -> None:
    splits = split_pairs(blocks(1, jobs=40, candidates=12), val, test, 0)
    assert_no_leak(splits)
    kept = sum(sizes(splits)[:3])
    assert kept / 480 > 0.35
    for part, fraction in ((splits.val, val), (splits.test, test)):
        assert fraction / 2 <= len(part) / kept <= fraction * 2


def test_a_loose_component_loses_little() -> None:
    # A long chain: every pair shares its job with the one before and its candidate with the one after.
    pairs = [pair(i // 2, (i + 1) // 2) for i in range(400)]
    splits = split_pairs(pairs, 0.1, 0.1, 0)
    assert len(splits.dropped) <= 40
    assert len(splits.test) >= 20


def test_only_the_component_that_is_too_big_is_cut() -> None:
    big = blocks(1, jobs=20, candidates=20)
    small = [pair(1000 + i, 1000 + i) for i in range(20)]
    splits = split_pairs(big + small, 0.1, 0.1, 0)
    assert splits.dropped
    assert {p.pair_id for p in splits.dropped} <= {p.pair_id for p in big}


def test_one_text_under_two_ids_is_one_candidate() -> None:
    pairs = blocks(20)
    twins = [pair(500 + i, 500 + i, candidate_text=f" CANDIDATE {4 * i} ") for i in range(20)]
    splits = split_pairs(pairs + twins, 0.2, 0.2, 0)
    assert_no_leak(splits)
    assert not splits.dropped


def test_one_id_with_two_texts_is_one_job() -> None:
    pairs = blocks(20)
    edited = [pair(2 * i, 500 + i, job_text=f"job {2 * i}, second edition") for i in range(20)]
    assert_no_leak(split_pairs(pairs + edited, 0.2, 0.2, 0))


def test_all_pairs_of_one_job_cannot_be_split() -> None:
    with pytest.raises(UserError, match=r"the val split \(10%\) would be empty: 30 pairs of 1 jobs and 30 candidates"):
        split_pairs(blocks(1, jobs=1, candidates=30), 0.1, 0.1, 0)


def test_no_pairs() -> None:
    with pytest.raises(UserError, match=r"train split .* would be empty"):
        split_pairs([], 0.1, 0.1, 0)


@pytest.mark.parametrize("bad", [(0.5, 0.5), (-0.1, 0.1), (0.1, 1.0), (float("nan"), 0.1), (0.1, float("inf")), (0.9, 0.2)])
def test_fractions_that_leave_no_training_data(bad: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="whose sum is below 1"):
        split_pairs(blocks(10), *bad, 0)


def test_the_split_is_the_same_in_another_process() -> None:
    code = (
        "from tests_pairs import blocks; from lantern_pl.data.splits import split_pairs;"
        "print([p.pair_id for p in split_pairs(blocks(1, 9, 9), 0.2, 0.2, 3).train])"
    ).replace("tests_pairs", Path(__file__).stem)
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parent)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert runs == {f"{[p.pair_id for p in split_pairs(blocks(1, 9, 9), 0.2, 0.2, 3).train]}\n"}


@pytest.mark.skipif(not JOB_FIT_OPEN.exists(), reason="the job_fit_open pairs aren't here")
def test_a_real_data_set_of_one_component() -> None:
    splits = split_pairs(read_pairs(JOB_FIT_OPEN, Task()), 0.1, 0.1, 0)
    assert_no_leak(splits)
    assert min(sizes(splits)[1:3]) >= 10
