"""Estimates, intervals and p values held against plain computations and simulations."""

import itertools
import math

import numpy as np
import pytest
from planted import config_of, pairs_of
from scipy import stats
from sklearn.metrics import confusion_matrix

from lantern_pl.audit import amplification
from lantern_pl.audit.findings import Comparison, correct
from lantern_pl.audit.groups import Grouping, groupings
from lantern_pl.audit.intervals import cluster_mean, difference, enough_units, holm, paired_rates, rate_ratio, wilson
from lantern_pl.audit.rates import Outcomes, calibration_error, figures_by_group, rate_comparisons, uncompared

RNG = np.random.default_rng(0)


def outcomes_of(selected: list[float], candidates: list[int], annotated: list[int] | None = None) -> Outcomes:
    score = np.array(selected, dtype=float)
    known = np.array(annotated if annotated is not None else [-1] * len(score))
    return Outcomes(score, score > 0.5, known, lowest=2, levels=3, candidates=np.array(candidates))


def test_what_cant_be_compared_is_said() -> None:
    """A model that selects nobody, and a group that is alone, aren't cleared by silence."""
    two = Grouping("sex", ["woman"] * 5 + ["man"] * 5, {}, 0)
    one = Grouping("race", ["Black"] * 10, {}, 0)
    found = outcomes_of([0.05 * n for n in range(6)] + [0.0] * 4, list(range(10)))
    made = rate_comparisons("m", found, [two, one], config_of())
    alone = "There are no two groups to compare."
    assert dict(uncompared("m", found, [two, one], made)) == {
        "m, selection rate by sex": "It selects nobody, so that nobody is selected less often.",
        "m, selection rate by race": alone,
        "m, scoring rate by race": alone,
    }
    annotated = outcomes_of([0.9] * 10, list(range(10)), [2] * 10)
    rest = uncompared("m", annotated, [one], rate_comparisons("m", annotated, [one], config_of()))
    assert [why for _, why in rest] == [alone] * 5


def test_means_of_single_pairs_are_welchs() -> None:
    first, second = RNG.normal(0, 1, 30), RNG.normal(0.3, 2, 20)
    found = difference(cluster_mean(first, np.arange(30)), cluster_mean(second, np.arange(20)), 0.95)
    naive = stats.ttest_ind(first, second, equal_var=False)
    # The linearised variance has n - 1 in its denominator, as Welch's.
    assert found.value == pytest.approx(first.mean() - second.mean())
    assert found.p == pytest.approx(naive.pvalue, rel=1e-6)
    assert (found.low, found.high) == pytest.approx(tuple(naive.confidence_interval(0.95)), rel=1e-6)


def test_pairs_of_one_candidate_are_not_independent() -> None:
    values = RNG.normal(size=25)
    once = cluster_mean(values, np.arange(25))
    tenfold = cluster_mean(np.repeat(values, 10), np.repeat(np.arange(25), 10))
    assert tenfold.variance == pytest.approx(once.variance)
    assert (tenfold.units, tenfold.pairs) == (25, 250)


def test_a_rate_of_nothing_has_an_error_all_the_same() -> None:
    found = cluster_mean(np.zeros(10), np.arange(10))
    assert found.value == 0
    assert found.variance > 0
    assert found.at_edge


def test_an_impact_ratio_is_the_naive_one_with_katzs_error() -> None:
    a, b = np.repeat([1.0, 0.0], [30, 70]), np.repeat([1.0, 0.0], [60, 60])
    found = rate_ratio(cluster_mean(a, np.arange(100)), cluster_mean(b, np.arange(120)), 0.95)
    assert found.value == pytest.approx(0.3 / 0.5)
    katz = math.sqrt(0.7 / (0.3 * 99) + 0.5 / (0.5 * 119))
    assert found.error == pytest.approx(katz, rel=1e-9)
    assert found.low < 0.6 < found.high


def test_holm_is_holms() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_wilson_is_scipys() -> None:
    for count, n in ((0, 20), (3, 20), (20, 20)):
        naive = stats.binomtest(count, n).proportion_ci(0.95, method="wilson")
        assert wilson(count, n, 0.95) == pytest.approx((naive.low, naive.high), abs=1e-9)
    assert wilson(0, 0, 0.95) == (0.0, 1.0)


@pytest.mark.parametrize("counts", [(36, 12, 2, 0), (20, 10, 4, 16), (10, 12, 9, 19), (0, 20, 0, 30), (0, 0, 0, 40)])
def test_paired_rates_are_newcombes_and_mcnemars(counts: tuple[int, int, int, int]) -> None:
    """The intervals of both rates, put together as their correlation says; that is moved towards 0 where it's positive."""
    first, second = (np.repeat(values, counts) for values in ([True, True, False, False], [True, False, True, False]))
    n, only_first, only_second = sum(counts), counts[1], counts[2]
    found = paired_rates(first, second, 0.95)
    rates, ends = [], []
    for rate in (first, second):
        interval = stats.binomtest(int(rate.sum()), n).proportion_ci(0.95, method="wilson")
        rates.append(rate.mean())
        ends.append((interval.low, interval.high))
    constant = first.std() == 0 or second.std() == 0
    phi = 0.0 if constant else np.corrcoef(first, second)[0, 1]
    if phi > 0:
        agree = counts[0] * counts[3] - only_first * only_second
        phi *= max(agree - n / 2, 0) / agree
    value = rates[0] - rates[1]
    down, up = (rates[0] - ends[0][0], ends[1][1] - rates[1]), (ends[0][1] - rates[0], rates[1] - ends[1][0])
    low, high = (math.sqrt(a * a + b * b - 2 * phi * a * b) for a, b in (down, up))
    assert found.value == pytest.approx((only_first - only_second) / n)
    assert (found.low, found.high) == pytest.approx((value - low, value + high))
    discordant = only_first + only_second
    assert found.p == pytest.approx(stats.binomtest(only_first, discordant).pvalue if discordant else 1)


def test_paired_rates_cover_the_truth() -> None:
    inside = 0
    for _ in range(400):
        both = RNG.random(40)
        first, second = both < 0.3, (both < 0.2) | (RNG.random(40) < 0.05)
        truth = 0.3 - (0.2 + 0.8 * 0.05)
        found = paired_rates(first, second, 0.95)
        inside += found.low <= truth <= found.high
    assert inside >= 370  # 380 are expected


def test_enough_units_see_what_they_should() -> None:
    assert enough_units(0.01, 0.95) == 299
    assert 0.99**299 < 0.05 < 0.99**298


def test_figures_by_group_are_counts() -> None:
    n = 300
    annotated, score = RNG.integers(0, 3, n), RNG.random(n)
    found = Outcomes(score, score > 0.6, annotated, 2, 3, np.arange(n))
    labels = RNG.choice(["x", "y"], n).tolist()
    figures = figures_by_group(found, Grouping("g", labels, {}, 0))
    for name in ("x", "y"):
        mine = np.array([label == name for label in labels])
        (tn, fp), (fn, tp) = confusion_matrix(annotated[mine] == 2, score[mine] > 0.6)
        assert figures[name]["selection rate"] == pytest.approx((score[mine] > 0.6).mean())
        assert figures[name]["scoring rate"] == pytest.approx((score[mine] > np.median(score)).mean())
        assert figures[name]["true positive rate"] == pytest.approx(tp / (tp + fn))
        assert figures[name]["false positive rate"] == pytest.approx(fp / (fp + tn))
        assert figures[name]["mean annotation"] == pytest.approx((annotated[mine] / 2).mean())


def test_calibration_error_is_the_weighted_distance_of_bins() -> None:
    right, said = RNG.integers(0, 3, 200) / 2, RNG.random(200)
    naive = 0.0
    for low in range(10):
        inside = [k for k in range(200) if low / 10 <= said[k] < (low + 1) / 10]
        if inside:
            naive += len(inside) / 200 * abs(np.mean(said[inside]) - np.mean(right[inside]))
    assert calibration_error(right, said) == pytest.approx(naive)


def test_rates_that_differ_are_flagged_and_equal_ones_cleared() -> None:
    labels = ["x"] * 400 + ["y"] * 400
    grouping = [Grouping("g", labels, {}, 0)]
    candidates = list(range(800))

    def kind_of(x: int, y: int) -> tuple[str, Comparison]:
        selected = [1.0] * x + [0.0] * (400 - x) + [1.0] * y + [0.0] * (400 - y)
        made = rate_comparisons("it", outcomes_of(selected, candidates), grouping, config_of())
        correct(made)
        found = next(each for each in made if "selection" in each.about)
        return found.kind(0.95), found

    kind, found = kind_of(100, 200)
    assert kind == "flag"
    assert found.estimate.value == pytest.approx(0.5)
    assert "x: selection rate 0.250 against 0.500 of y, an impact ratio of 0.50" in found.sentence
    assert kind_of(300, 304)[0] == "clear"
    assert kind_of(150, 170)[0] == "insufficient data"


def test_a_gap_is_not_cleared_by_copies_of_few_candidates() -> None:
    """What 20 candidates can't show, 50 pairs of each don't show either."""
    labels = ["x"] * 500 + ["y"] * 500
    selected = [1.0, 0.0] * 500
    made = rate_comparisons(
        "it", outcomes_of(selected, [n // 50 for n in range(1000)], [2] * 1000), [Grouping("g", labels, {}, 0)], config_of()
    )
    correct(made)
    gaps = [each for each in made if each.measure == "gap"]
    assert gaps
    assert {each.kind(0.95) for each in gaps} == {"insufficient data"}


def test_amplified_rates_are_differences_of_gaps() -> None:
    labels = ["x"] * 200 + ["y"] * 200
    teacher = outcomes_of([1.0, 0.0] * 200, list(range(400)))
    student = outcomes_of([0.0] * 160 + [1.0] * 40 + [1.0, 0.0] * 100, list(range(400)))
    made = amplification.of_rates(student, teacher, [Grouping("g", labels, {}, 0)], config_of())
    correct(made)
    assert len(made) == 1
    assert made[0].gaps == pytest.approx((-0.3, 0.0))
    assert made[0].estimate.value == pytest.approx(0.3)
    change = np.array([0.0] * 160 + [1.0] * 40) - np.array([1.0, 0.0] * 100)
    assert made[0].estimate.error == pytest.approx(change.std(ddof=1) / math.sqrt(200), rel=0.1)
    assert made[0].kind(0.95) == "flag"


def test_errors_are_amplified_at_equal_selection_rates() -> None:
    """Of x, the student turns down whom it should select and selects as many whom it shouldn't; its teacher errs alike."""
    labels = ["x"] * 200 + ["y"] * 200
    right = ([2] * 100 + [0] * 100) * 2
    fair = [1.0, 0.0] * 200
    unfair = [0.0] * 100 + [1.0] * 100 + [1.0, 0.0] * 100
    student, teacher = (outcomes_of(selected, list(range(400)), right) for selected in (unfair, fair))
    made = amplification.of_rates(student, teacher, [Grouping("g", labels, {}, 0)], config_of())
    correct(made)
    found = {one.key[1].removesuffix(": g"): one for one in made}
    assert found.keys() == {"selection rate", "true positive rate", "false positive rate", "score minus annotation"}
    assert found["selection rate"].estimate.value == 0
    gaps = {"true positive rate": (-0.5, 0.0), "false positive rate": (0.5, 0.0)}
    for what, both in gaps.items():
        assert found[what].gaps == pytest.approx(both)
        assert found[what].estimate.value == pytest.approx(0.5)
        assert found[what].estimate.units == 100
        assert found[what].kind(0.95) == "flag"


def test_selection_rates_that_are_turned_round_are_flagged() -> None:
    """The student selects 30 % of x and 70 % of y, its teacher the other way round."""
    labels = ["x"] * 200 + ["y"] * 200
    few, many = [0.0] * 140 + [1.0] * 60, [0.0] * 60 + [1.0] * 140
    student, teacher = (outcomes_of(selected, list(range(400))) for selected in (few + many, many + few))
    (made,) = amplification.of_rates(student, teacher, [Grouping("g", labels, {}, 0)], config_of())
    correct([made])
    assert made.gaps == pytest.approx((-0.4, 0.4))
    assert made.estimate.value == pytest.approx(0.4)
    assert made.kind(0.95) == "flag"


def test_groupings_cross_and_leave_out_small_groups() -> None:
    pairs = pairs_of(100)
    sex = ["woman", "man"] * 50
    race = ["rare"] + [None] * 9 + ["a"] * 45 + ["b"] * 45
    found = {each.attribute: each for each in groupings({"sex": sex, "race": race}, pairs, 0.02)}
    assert found["race"].small == {"rare": pytest.approx(1 / 91)}
    assert found["race"].unknown == 9
    assert found["race"].labels[:10] == [None] * 10
    assert set(found["sex × race"].labels) - {None} == {
        f"{a} × {b}" for a, b in itertools.product(("woman", "man"), ("a", "b"))
    }
