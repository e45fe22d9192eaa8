"""Retention: shares of the teacher and of its lead, on the same resamples, and none where they'd mean nothing."""

import numpy as np
import pytest

from lantern_pl.evaluation.bootstrap import Bootstrap, Estimate, mean
from lantern_pl.evaluation.retention import retention

BOOTSTRAP = Bootstrap(400)


def share(rate: float, seed: int, count: int = 300) -> np.ndarray:
    return (np.random.default_rng(seed).random(count) < rate).astype(float)


def of(**values: np.ndarray) -> dict[str, Estimate]:
    return BOOTSTRAP.estimates({name: mean(column) for name, column in values.items()}, range(300))


def test_shares_are_those_of_the_values() -> None:
    student, teacher, sft = (of(accuracy=share(rate, seed)) for seed, rate in enumerate((0.8, 0.9, 0.6)))
    kept = retention(student, teacher, sft)["accuracy"]
    s, t, b = (each["accuracy"].value or 0 for each in (student, teacher, sft))
    assert kept["of_teacher"]["value"] == pytest.approx(s / t, abs=1e-5)
    assert kept["of_gap"]["value"] == pytest.approx((s - b) / (t - b), abs=1e-5)
    for figure in (kept["of_teacher"], kept["of_gap"]):
        assert figure["low"] < figure["value"] < figure["high"]
    assert "why" not in kept


def test_resamples_are_shared() -> None:
    # A student that is right where the teacher is has kept all of it, in every resample.
    values = share(0.7, 0)
    kept = retention(of(accuracy=values), of(accuracy=values), of(accuracy=share(0.3, 1)))["accuracy"]
    assert kept["of_teacher"] == {"value": 1, "low": 1, "high": 1, "n": 300}
    assert kept["of_gap"] == {"value": 1, "low": 1, "high": 1, "n": 300}


def test_no_lead_no_share_of_it() -> None:
    student, teacher, sft = (of(accuracy=share(0.7, seed)) for seed in range(3))
    kept = retention(student, teacher, sft)["accuracy"]
    assert kept["of_gap"] is None
    assert "isn't better than the student without it" in kept["why"]
    assert kept["of_teacher"]["value"] == pytest.approx(1, abs=0.2)


def test_a_teacher_at_zero_has_nothing_to_keep() -> None:
    kept = retention(of(quadratic_kappa=share(0.5, 0)), of(quadratic_kappa=share(0.5, 1) - 0.5), None)["quadratic_kappa"]
    assert (kept["of_teacher"], kept["of_gap"]) == (None, None)
    assert "isn't above 0" in kept["why"]
    assert "evaluation.sft" in kept["why"]


def test_of_errors_only_the_closed_gap_is_said() -> None:
    student, teacher, sft = (of(brier=share(rate, seed)) for seed, rate in enumerate((0.3, 0.2, 0.6)))
    kept = retention(student, teacher, sft)["brier"]
    assert kept["of_teacher"] is None
    s, t, b = (each["brier"].value or 0 for each in (student, teacher, sft))
    assert kept["of_gap"]["value"] == pytest.approx((b - s) / (b - t), abs=1e-5)
    # A teacher whose error is larger has no lead.
    assert retention(student, sft, teacher)["brier"]["of_gap"] is None


def test_without_a_teacher_the_reason_is_said_and_neutral_figures_have_none() -> None:
    kept = retention(of(accuracy=share(0.5, 0), words=share(0.5, 1), kl=share(0.5, 2)), None, None)
    assert set(kept) == {"accuracy"}
    assert kept["accuracy"] == {"of_teacher": None, "of_gap": None, "why": "the teacher has no such figure"}
