"""The bootstrap: intervals cover, resamples are shared, and it is quick."""

import time

import numpy as np
import pytest
from scipy import stats

from lantern_pl.data.pair import Pair
from lantern_pl.evaluation.bootstrap import (
    FEWEST,
    LEVEL,
    Bootstrap,
    Statistic,
    drawn_of,
    estimate,
    mean,
    ratio,
    share_outside,
    units_of,
)
from lantern_pl.evaluation.retention import retention

NAN = float("nan")


def test_weights_are_draws_with_replacement_and_the_same_each_time() -> None:
    blocks = list(Bootstrap(300, seed=3).weights(range(40)))
    weights = np.concatenate(blocks)
    assert weights.shape == (300, 40)
    assert (weights.sum(1) == 40).all()
    # A pair is missing from a resample with probability (1 - 1/n)^n.
    assert (weights == 0).mean() == pytest.approx((1 - 1 / 40) ** 40, abs=0.02)
    assert (weights == np.concatenate(list(Bootstrap(300, seed=3).weights(range(40))))).all()
    assert (weights != np.concatenate(list(Bootstrap(300, seed=4).weights(range(40))))).any()


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(Bootstrap(50).weights(range(30))))
    monkeypatch.setattr("lantern_pl.evaluation.bootstrap._BLOCK", 100)
    parts = list(Bootstrap(50).weights(range(30)))
    assert len(parts) > 10
    assert (np.concatenate(parts) == whole).all()


def test_a_mean_has_the_interval_that_its_standard_error_gives() -> None:
    values = np.random.default_rng(0).normal(2.0, 1.0, 400)
    found = Bootstrap(4000).estimates({"it": mean(values)}, range(400))["it"]
    error = values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error * 2)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error * 2)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        values = (generator.random(80) < 0.7).astype(float)
        found = Bootstrap(200, seed).estimates({"it": mean(values)}, range(80))["it"]
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.7 <= found.high
    assert 0.89 <= held / 200 <= 0.99


def test_pairs_of_a_job_are_drawn_together() -> None:
    jobs = ["a", "b", "a", "c", "b", "a"]
    weights = np.concatenate(list(Bootstrap(200).weights(jobs)))
    assert (weights[:, [0, 0, 1]] == weights[:, [2, 5, 4]]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()
    # A job that stands ten times as often as others says no more of other jobs than they do.
    generator = np.random.default_rng(0)
    of_jobs = generator.normal(size=60)
    apart, together = (
        Bootstrap(2000).estimates({"it": mean(values)}, names)["it"]
        for values, names in (
            (of_jobs, range(60)),
            (np.repeat(of_jobs, 10), np.repeat(np.arange(60), 10).tolist()),
        )
    )
    assert (together.low, together.high) == pytest.approx((apart.low, apart.high))


@pytest.mark.parametrize("jobs", [7, 10, 30])
def test_intervals_hold_the_truth_as_often_where_pairs_of_a_job_are_alike(jobs: int) -> None:
    """Drawn one by one, pairs of which half is the job's would give intervals that hold it in less than 70 of 100."""
    generator = np.random.default_rng(jobs)
    names = np.repeat(np.arange(jobs), 8)
    held = 0
    for seed in range(200):
        values = generator.normal(size=jobs)[names] + generator.normal(size=8 * jobs)
        found = Bootstrap(400, seed).estimates({"it": mean(values)}, names.tolist())["it"]
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0 <= found.high
    assert 0.9 <= held / 200 <= 0.99


def test_too_few_jobs_give_no_interval() -> None:
    """Also where the test has many, of which few have the figure: all draws would be the same, or nearly."""
    values = np.array([1.0, 0.0, 1.0, 1.0, *[NAN] * 20, 0.5])
    names = ["a", "a", "a", "a", *range(20), "b"]
    found = Bootstrap(100).estimates({"it": mean(values), "all": mean(np.arange(25.0))}, names)
    assert found["it"].as_json() == {"value": 0.7, "low": None, "high": None, "n": 5}
    assert (found["it"].units, found["all"].units) == (2, 22)
    assert found["all"].low is not None
    kept = retention({"accuracy": found["it"]}, {"accuracy": found["it"]}, None)["accuracy"]
    assert kept["of_teacher"] is None
    assert f"fewer than {FEWEST} jobs" in kept["why"]


def test_candidates_are_drawn_where_jobs_are_too_few() -> None:
    def pairs(jobs: int) -> list[Pair]:
        return [Pair(str(n), f"j{n % jobs}", f"c{n}", "job", "candidate") for n in range(20)]

    assert (drawn_of(pairs(FEWEST)), drawn_of(pairs(FEWEST - 1))) == ("jobs", "candidates")
    assert units_of(pairs(FEWEST), "jobs")[:2] == ["j0", "j1"]
    assert units_of(pairs(FEWEST), "candidates") == [f"c{n}" for n in range(20)]


@pytest.mark.parametrize("units", [FEWEST, 8, 20, 1000])
def test_the_share_outside_is_that_of_student_s_t(units: int) -> None:
    t = stats.t.ppf((1 + LEVEL) / 2, units - 1)
    assert share_outside(units) == pytest.approx(stats.norm.cdf(-t * (units / (units - 1)) ** 0.5), rel=0.02)


def test_pairs_without_a_value_are_left_out_and_sizes_weigh() -> None:
    values, sizes = np.array([1.0, NAN, 3.0, 5.0]), np.array([1.0, 100.0, 1.0, 2.0])
    found = Bootstrap(200).estimates({"plain": mean(values), "sized": mean(values, sizes)}, range(4))
    assert (found["plain"].value, found["plain"].n) == (3.0, 3)
    assert found["sized"].value == pytest.approx(14 / 4)
    statistic = mean(values, sizes)
    drawn_twice = np.array([[2.0, 1.0, 0.0, 1.0], [0.0, 4.0, 0.0, 0.0]])
    assert statistic.of(drawn_twice) == pytest.approx([(2 + 10) / 4, NAN], nan_ok=True)


def test_what_is_not_defined_is_none() -> None:
    nothing = Bootstrap(200).estimates({"it": mean(np.array([NAN, NAN]))}, range(2))["it"]
    assert nothing.as_json() == {"value": None, "low": None, "high": None, "n": 0}
    one = Bootstrap(200).estimates({"it": mean(np.array([0.25]))}, range(1))["it"]
    assert one.as_json() == {"value": 0.25, "low": None, "high": None, "n": 1}
    none_at_all = Bootstrap(200).estimates({"it": mean(np.array([]))}, range(0))["it"]
    assert none_at_all.value is None
    some = estimate(1.0, np.array([1.0, NAN, 2.0, np.inf]), 9, FEWEST)
    assert some.low is not None
    assert 1 <= some.low <= some.high <= 2  # type: ignore[operator]


def test_an_interval_that_resampling_moves_is_moved_back() -> None:
    # The largest value: a resample never has a larger one.
    values = np.arange(50.0)

    def largest(weights: np.ndarray) -> np.ndarray:
        return np.where(weights > 0, values, -1).max(1)

    moved = Bootstrap(500).estimates({"it": Statistic(largest, np.ones(50, bool), recentre=True)}, range(50))["it"]
    assert moved.draws.mean() == pytest.approx(49)


def test_ratio_says_when_there_is_nothing_to_divide_by() -> None:
    assert ratio(np.array([1.0, 0.0, 2.0]), np.array([0.0, 0.0, 4.0])) == pytest.approx([NAN, NAN, 0.5], nan_ok=True)


def test_a_thousand_resamples_of_all_level_figures_take_about_a_second() -> None:
    import torch

    from lantern_pl.evaluation.levels import level_estimates

    torch.manual_seed(0)
    probs, right = torch.randn(500, 3).softmax(-1), torch.randint(3, (500,))
    seconds = []
    for _ in range(2):
        began = time.process_time()
        level_estimates(probs, right, 10, Bootstrap(1000), range(500))
        seconds.append(time.process_time() - began)
    assert min(seconds) < 2
