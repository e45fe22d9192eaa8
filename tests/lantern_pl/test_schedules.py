"""Numbers that change in the course of a fit: their values, what they do to the loss, and a resume that goes on."""

import csv
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Ran

from lantern_pl.errors import UserError
from lantern_pl.schedules import Progress, Schedule, extremes, value_at

Lantern = Callable[..., Ran]


def _values(schedule: Schedule, steps: int = 5) -> list[float]:
    return [schedule.at(Progress(step, steps, epoch=step // 2, epochs=3)) for step in range(steps)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(2.0, 1.0), [2.0, 1.75, 1.5, 1.25, 1.0]),
        (Schedule(0.0, 1.0, "cosine"), [0.0, (1 - math.sqrt(0.5)) / 2, 0.5, (1 + math.sqrt(0.5)) / 2, 1.0]),
        (Schedule(0.0, 1.0, "constant", length=3), [0.0, 0.0, 0.0, 1.0, 1.0]),
        (Schedule(0.0, 1.0, length=2), [0.0, 0.5, 1.0, 1.0, 1.0]),
        (Schedule(0.0, 1.0, unit="epoch"), [0.0, 0.0, 0.5, 0.5, 1.0]),
        (Schedule(0.0, 1.0, unit="epoch", length=1), [0.0, 0.0, 1.0, 1.0, 1.0]),
    ],
)
def test_values(schedule: Schedule, expected: list[float]) -> None:
    assert _values(schedule) == pytest.approx(expected)


def test_a_fit_of_one_step_has_the_start_value() -> None:
    assert Schedule(2.0, 1.0).at(Progress(0, 1, 0, 1)) == 2.0
    assert value_at(0.7, Progress(0, 1, 0, 1)) == 0.7
    assert extremes(Schedule(2.0, 1.0)) == (1.0, 2.0)


@pytest.mark.parametrize("wrong", [{"start": math.nan, "end": 1.0}, {"start": 0.0, "end": 1.0, "length": 0}])
def test_what_is_no_schedule(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="schedule"):
        Schedule(**wrong)  # type: ignore[arg-type]


def logged(run: Path, *names: str) -> list[tuple[float, ...]]:
    with (run / "csv" / "version_0" / "metrics.csv").open() as file:
        return [tuple(float(row[name]) for name in names) for row in csv.DictReader(file) if row.get(names[0])]


SCHEDULED = (
    "--model.mixture=[{divergence: {class_path: lantern_pl.divergences.js}, weight: {start: 1, end: 0}},"
    " {divergence: {class_path: lantern_pl.divergences.kl}, weight: {start: 0, end: 2, shape: constant, length: 2}}]",
    "--model.temperature={start: 3, end: 1}",
    "--model.cross_entropy={start: 0, end: 0.5}",
    "--trainer.max_steps=4",
    "--trainer.log_every_n_steps=1",
    "--trainer.accumulate_grad_batches=2",
)


def test_each_step_has_the_loss_of_its_own_numbers(lantern: Lantern, tiny_decoder_config: Path, tmp_path: Path) -> None:
    ran = lantern("fit", "--config", tiny_decoder_config, *SCHEDULED)
    assert ran.code == 0, ran.err
    names = ("loss", "js", "kl", "cross_entropy", "temperature", "weight_js", "weight_kl", "weight_cross_entropy")
    rows = logged(tmp_path / "run", *(f"train/{name}" for name in names))
    assert [row[4] for row in rows] == pytest.approx([3, 7 / 3, 5 / 3, 1])
    assert [row[5] for row in rows] == pytest.approx([1, 2 / 3, 1 / 3, 0], abs=1e-6)
    assert [row[6] for row in rows] == [0, 0, 2, 2]
    for loss, js, kl, ce, temperature, js_weight, kl_weight, ce_weight in rows:
        assert loss == pytest.approx(temperature**2 * (js_weight * js + kl_weight * kl) + ce_weight * ce, rel=1e-4)


@pytest.mark.parametrize(("unit", "epochs", "warned"), [("epoch", 1, True), ("epoch", 2, False), ("step", 1, False)])
def test_a_schedule_that_never_leaves_its_start_is_told(
    lantern: Lantern, tiny_decoder_config: Path, unit: str, epochs: int, warned: bool
) -> None:
    number = f"--model.temperature={{start: 2, end: 1, unit: {unit}}}"
    limits = ("--trainer.max_steps=-1", f"--trainer.max_epochs={epochs}", "--trainer.limit_train_batches=2")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ran = lantern("fit", "--config", tiny_decoder_config, number, *limits)
    assert ran.code == 0, ran.err
    assert any("by epochs, of which this fit has one" in str(each.message) for each in caught) == warned


def test_a_resumed_run_goes_on_with_its_numbers(lantern: Lantern, tiny_decoder_config: Path, tmp_path: Path) -> None:
    # Of a length of its own: a fit that ends earlier isn't the same fit.
    fit = ("fit", "--config", tiny_decoder_config, "--model.temperature={start: 3, end: 1, length: 4}")
    every = ("--trainer.log_every_n_steps=1", "--model.optimization.schedule=constant", "--model.optimization.warmup=0")
    assert lantern(*fit, *every, "--trainer.max_steps=4", "--run_dir", tmp_path / "whole").code == 0
    assert lantern(*fit, *every, "--trainer.max_steps=2").code == 0
    assert lantern(*fit, *every, "--trainer.max_steps=4", "--ckpt_path=last").code == 0
    whole = [*zip(*logged(tmp_path / "whole", "train/temperature", "train/loss"), strict=True)]
    with (tmp_path / "run" / "csv" / "version_1" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/loss")]
    assert whole[0] == pytest.approx([3, 2.5, 2, 1.5])
    assert [float(row["train/temperature"]) for row in rows] == pytest.approx([2, 1.5])
    assert [float(row["train/loss"]) for row in rows] == pytest.approx(whole[1][2:], rel=1e-5)


def test_figures_of_validation_are_at_the_last_values(lantern: Lantern, decoder_config: Path, tmp_path: Path) -> None:
    """Else the divergence at validation would fall or rise because the temperature does."""
    plain = ("--model.temperature=1", "--trainer.max_steps=1", "--model.optimization.learning_rate=1e-30")
    assert lantern("fit", "--config", decoder_config, *plain, "--run_dir", tmp_path / "plain").code == 0
    scheduled = (*plain[1:], "--model.temperature={start: 3, end: 1}")
    assert lantern("fit", "--config", decoder_config, *scheduled).code == 0
    (plainly,), (as_scheduled,) = (logged(tmp_path / run, "val/js")[0] for run in ("plain", "run"))
    assert as_scheduled == pytest.approx(plainly, rel=1e-4)
    assert plainly > 1e-3


def test_epochs_are_those_that_max_steps_leaves(lantern: Lantern, tiny_decoder_config: Path, tmp_path: Path) -> None:
    by_epoch = "--model.temperature={start: 3, end: 1, unit: epoch}"
    short = ("--trainer.limit_train_batches=2", "--trainer.max_epochs=1000", "--trainer.max_steps=6")
    ran = lantern("fit", "--config", tiny_decoder_config, by_epoch, *short, "--trainer.log_every_n_steps=1")
    assert ran.code == 0, ran.err
    assert [value for (value,) in logged(tmp_path / "run", "train/temperature")] == pytest.approx([3, 3, 2, 2, 1, 1])


def test_the_weight_of_hidden_states_is_scheduled_too(lantern: Lantern, tiny_decoder_config: Path, tmp_path: Path) -> None:
    scheduled = "--model.hidden_states.weight={start: 2, end: 0}"
    more = ("--model.cross_entropy=0", "--trainer.max_steps=3", "--trainer.log_every_n_steps=1")
    ran = lantern("fit", "--config", tiny_decoder_config, scheduled, *more)
    assert ran.code == 0, ran.err
    rows = logged(tmp_path / "run", "train/loss", "train/js", "train/hidden_states", "train/weight_hidden_states")
    assert [row[3] for row in rows] == pytest.approx([2, 1, 0])
    for loss, js, hidden, weight in rows:
        assert loss == pytest.approx(js + weight * hidden, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model.temperature={start: 1, end: 0}"], "above 0"),
        (["--model.temperature={start: 1}"], "end"),
        (["--model.temperature={start: 2, end: 1, shape: steep}"], "shape"),
        (["--model.cross_entropy={start: -1, end: 1}"], "0 or more"),
        (["--model.mixture=[{divergence: {class_path: lantern_pl.divergences.js}, label: weight_x}]"], "weight_x"),
    ],
)
def test_schedules_that_cant_be_are_refused(
    lantern: Lantern, tiny_decoder_config: Path, arguments: list[str], said: str
) -> None:
    ran = lantern("fit", "--config", tiny_decoder_config, *arguments)
    assert ran.code == 2
    assert said in ran.err
