"""Level figures: torchmetrics' on the pairs, and on every resample as if its pairs were given one by one."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_auroc, multiclass_calibration_error

from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.evaluation.bootstrap import Bootstrap
from lantern_pl.evaluation.levels import (
    annotated_levels,
    confusion_matrix,
    level_estimates,
    level_statistics,
    level_values,
    of_each_level,
    reliability,
)
from lantern_pl.tasks import Task

BINS = 10


def some(count: int, levels: int, seed: int, ties: bool = False, certain: bool = False) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    right = torch.randint(levels, (count,))
    logits = torch.randn(count, levels) + torch.nn.functional.one_hot(right, levels)
    probs = logits.softmax(-1)
    if ties:  # few different scores, as a rubric gives them
        probs = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.1, 0.1, 0.8]])[torch.randint(3, (count,))]
    if certain:
        probs[: count // 3] = torch.nn.functional.one_hot(probs[: count // 3].argmax(-1), levels).float()
    return probs, right


@pytest.mark.parametrize("case", ["plain", "ties", "certain", "five levels", "a level is missing", "few"])
def test_each_resample_has_the_figures_that_torchmetrics_gives_for_its_pairs(case: str) -> None:
    probs, right = some(
        count=9 if case == "few" else 60,
        levels=5 if case == "five levels" else 3,
        seed=1,
        ties=case == "ties",
        certain=case == "certain",
    )
    if case == "a level is missing":
        right[right == 1] = 2
    statistics = level_statistics(probs, right, BINS)
    weights = np.concatenate([np.ones((1, len(right))), *Bootstrap(25, seed=5).weights(range(len(right)))])
    found = {name: statistic.of(weights) for name, statistic in statistics.items()}
    for row, weight in enumerate(weights):
        drawn = np.repeat(np.arange(len(right)), weight.astype(int))
        for name, value in level_values(probs[drawn], right[drawn], BINS).items():
            assert found[name][row] == pytest.approx(value, abs=2e-6, nan_ok=True), (name, row)


def test_auroc_is_torchmetrics_own_where_every_level_is_there_and_leaves_out_one_that_is_not() -> None:
    probs, right = some(60, 3, seed=2)
    assert level_values(probs, right, BINS)["auroc"] == pytest.approx(float(multiclass_auroc(probs, right, 3)), abs=1e-6)
    right[right == 1] = 2
    of_each = multiclass_auroc(probs, right, 3, average="none")
    assert float(of_each[1]) == 0  # which isn't how well it is told from the others
    assert level_values(probs, right, BINS)["auroc"] == pytest.approx(float(of_each[[0, 2]].mean()), abs=1e-6)


def test_brier_and_a_single_level() -> None:
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.0, 1.0]])
    found = level_values(probs, torch.tensor([0, 0]), BINS)
    assert found["brier"] == pytest.approx(((0.3**2 + 0.2**2 + 0.1**2) + (1 + 1)) / 2)
    assert np.isnan(found["auroc"])
    estimates = level_estimates(probs, torch.tensor([0, 0]), BINS, Bootstrap(100), range(2))
    assert estimates["auroc"].as_json() == {"value": None, "low": None, "high": None, "n": 2}


def test_a_resample_without_figure_is_left_out_of_the_interval() -> None:
    # One pair of the level in six: a third of all resamples lacks it, and has no AUROC at all.
    probs, right = torch.tensor([[0.9, 0.1]] * 5 + [[0.2, 0.8]]), torch.tensor([0, 0, 0, 0, 0, 1])
    found = level_estimates(probs, right, BINS, Bootstrap(400), range(len(right)))["auroc"]
    assert 0.2 < np.isnan(found.draws).mean() < 0.5
    assert (found.value, found.low, found.high) == (1, 1, 1)


def test_precision_and_recall_of_each_level() -> None:
    chosen = torch.tensor([0, 0, 0, 1, 1, 0])
    probs = torch.nn.functional.one_hot(chosen, 3).float()
    right = torch.tensor([0, 0, 1, 1, 0, 2])
    found = of_each_level(probs, right, ["low", "medium", "high"], Bootstrap(200), range(len(right)))
    assert found["low"]["precision"].value == pytest.approx(2 / 4)
    assert (found["low"]["precision"].n, found["low"]["recall"].n) == (4, 3)
    assert found["low"]["recall"].value == pytest.approx(2 / 3)
    assert found["medium"]["precision"].value == pytest.approx(1 / 2)
    # Never chosen: it has no precision. It was annotated once, and missed.
    assert (found["high"]["precision"].value, found["high"]["recall"].value) == (None, 0)
    low = found["low"]["recall"]
    assert (low.units, low.low) == (3, None)
    thrice = of_each_level(probs.repeat(3, 1), right.repeat(3), ["low", "medium", "high"], Bootstrap(200), range(18))
    low = thrice["low"]["recall"]
    assert low.low is not None
    assert low.low < 2 / 3 < low.high  # type: ignore[operator]
    assert confusion_matrix(probs, right) == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]


def test_reliability_bins_hold_all_pairs_and_explain_the_calibration_error() -> None:
    probs, right = some(200, 3, seed=3)
    bins = reliability(probs, right, BINS)
    assert [bin_["low"] for bin_ in bins] == pytest.approx([at / 10 for at in range(10)])
    assert sum(bin_["count"] for bin_ in bins) == 200
    by_bins = sum(b["count"] / 200 * abs(b["accuracy"] - b["confidence"]) for b in bins if b["count"])
    assert by_bins == pytest.approx(float(multiclass_calibration_error(probs, right, 3, n_bins=BINS)), abs=1e-6)
    assert bins[0] == {"low": 0.0, "high": 0.1, "count": 0, "confidence": None, "accuracy": None}
    certain = reliability(torch.tensor([[1.0, 0.0], [0.95, 0.05]]), torch.tensor([0, 1]), BINS)
    assert (certain[-1]["count"], certain[-1]["accuracy"]) == (2, 0.5)


@pytest.mark.parametrize("sharpened", [1.0, 1.5, 3.0])
def test_the_interval_of_the_calibration_error_holds_the_truth(sharpened: float) -> None:
    """80 pairs make ten bins' distances larger than they are, and a resample does so again: percentiles would be above the
    truth in most of these samples, in all of them for a model that is calibrated."""

    def drawn(count: int) -> tuple[Tensor, Tensor]:
        logits = torch.randn(count, 3)
        return (sharpened * logits).softmax(-1), torch.multinomial(logits.softmax(-1), 1)[:, 0]

    torch.manual_seed(0)
    truth = level_values(*drawn(400_000), BINS)["ece"]
    held = 0
    for seed in range(100):
        probs, right = drawn(80)
        statistics = {"ece": level_statistics(probs, right, BINS)["ece"]}
        found = Bootstrap(200, seed).estimates(statistics, range(80))["ece"]
        assert found.low is not None
        assert 0 <= found.low <= found.value <= found.high  # type: ignore[operator]
        held += found.low <= truth <= found.high  # type: ignore[operator]
    assert held >= 80


def test_the_annotated_level_is_the_given_one_else_the_most_voted_one() -> None:
    def pair(level: str | None, probs: tuple[float, ...] | None) -> Pair:
        return Pair("p", "j", "c", "job", "candidate", level, None, probs)

    pairs = [pair("high", (1.0, 0.0, 0.0)), pair(None, (0.2, 0.5, 0.3))]
    assert annotated_levels(pairs, Task()).tolist() == [2, 1]
    with pytest.raises(UserError, match="'p' has no level"):
        annotated_levels([pair(None, None)], Task())
