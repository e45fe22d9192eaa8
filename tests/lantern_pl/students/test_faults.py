"""A loss or gradient that isn't finite changes no weight, and its origin is named."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lantern_kernels import MixtureOutput
from support import Ran

from lantern_pl.checkpoints import newest_good, read_checkpoint
from lantern_pl.signals import Hidden
from lantern_pl.teachers.local_model import HFTeacher

Lantern = Callable[..., Ran]
RUN = ("--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0", "--trainer.max_steps=4")


@pytest.fixture
def bad_from(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Have the teacher give NaN from one question on, up to another."""

    def spoil(first: int, last: int) -> None:
        asked = 0
        real = HFTeacher.score_tokens

        def score(self: HFTeacher, batch: Any) -> Hidden:
            nonlocal asked
            asked += 1
            signal = real(self, batch)
            return replace(signal, hidden=signal.hidden * float("nan")) if first <= asked <= last else signal

        monkeypatch.setattr(HFTeacher, "score_tokens", score)

    return spoil


def steps(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(next(run.glob("csv/*/metrics.csv")).open()))


def saved(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = read_checkpoint(newest_good(run / "checkpoints")[0])["state_dict"]
    return state


def test_a_teacher_that_goes_bad_is_named_and_the_weights_are_those_before(
    lantern: Lantern, tiny_decoder_config: Path, tmp_path: Path, bad_from: Callable[[int, int], None]
) -> None:
    bad_from(3, 10_000)
    ran = lantern("fit", "--config", tiny_decoder_config, *RUN)
    assert ran.code == 2
    assert "Step 2: The teacher" in ran.err
    assert "NaN" in ran.err
    assert all(values.isfinite().all() for values in saved(tmp_path / "run").values())


def test_pairs_and_terms_are_named_where_the_teacher_is_right(
    lantern: Lantern, tiny_decoder_config: Path, tmp_path: Path, bad_from: Callable[[int, int], None]
) -> None:
    bad_from(3, 3)  # when it's asked again, all is well
    ran = lantern("fit", "--config", tiny_decoder_config, *RUN)
    assert ran.code == 2
    assert "Step 2:" in ran.err
    assert "isn't finite for the pairs 'job-" in ran.err
    assert "not_finite: skip" in ran.err


def test_steps_are_skipped_and_counted_where_the_user_wants_that(
    lantern: Lantern, tiny_decoder_config: Path, tmp_path: Path, bad_from: Callable[[int, int], None]
) -> None:
    bad_from(2, 2)
    ran = lantern("fit", "--config", tiny_decoder_config, *RUN, "--model.optimization.not_finite=skip")
    assert ran.code == 0, ran.err
    counts = [row["train/skipped_steps"] for row in steps(tmp_path / "run") if row.get("train/skipped_steps")]
    assert [float(count) for count in counts] == [0, 1, 1, 1]
    assert all(values.isfinite().all() for values in saved(tmp_path / "run").values())


def test_a_skipped_step_changes_no_weight_at_all(
    lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by momentum or weight decay, either."""
    from lantern_pl.students import EncoderStudent

    real = EncoderStudent.summed_loss
    seen: list[torch.Tensor] = []

    def spoilt(self: EncoderStudent, batch: Any) -> Any:
        output, rows = real(self, batch)
        seen.append(torch.cat([parameter.detach().flatten() for parameter in self.parameters()]))
        return MixtureOutput(output.loss * float("inf") if len(seen) == 3 else output.loss, output.terms), rows

    monkeypatch.setattr(EncoderStudent, "summed_loss", spoilt)
    skip = "--model.optimization={not_finite: skip, weight_decay: 0.1}"
    ran = lantern("fit", "--config", tiny_encoder_config, *RUN, skip)
    assert ran.code == 0, ran.err
    assert not torch.equal(seen[1], seen[2])
    assert torch.equal(seen[2], seen[3])


def test_a_gradient_alone_that_is_not_finite_stops_too(
    lantern: Lantern, tiny_encoder_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lantern_pl.students import EncoderStudent

    real = EncoderStudent.summed_loss

    def spoilt(self: EncoderStudent, batch: Any) -> Any:
        output, rows = real(self, batch)
        parameter = next(self.parameters())
        bad = parameter * 0
        bad.register_hook(lambda gradient: gradient * float("nan"))
        return MixtureOutput(output.loss + bad.sum(), output.terms), rows

    monkeypatch.setattr(EncoderStudent, "summed_loss", spoilt)
    ran = lantern("fit", "--config", tiny_encoder_config, *RUN)
    assert ran.code == 2
    assert "the loss or its gradient isn't finite" in ran.err
