"""Tokens per second are those of training alone."""

import csv
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Ran


def test_a_validation_between_two_steps_is_not_in_their_time(
    lantern: Callable[..., Ran], tiny_encoder_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lantern_pl.students import EncoderStudent

    seconds = 3.0
    real = EncoderStudent.update_metrics
    monkeypatch.setattr(EncoderStudent, "update_metrics", lambda *given: time.sleep(seconds) or real(*given))
    every_step = ("--trainer.val_check_interval=1", "--trainer.num_sanity_val_steps=0", "--trainer.max_steps=3")
    ran = lantern("fit", "--config", tiny_encoder_config, *every_step)
    assert ran.code == 0, ran.err
    with (tmp_path / "run" / "csv" / "version_0" / "metrics.csv").open() as file:
        rates = [float(row["train/tokens_per_s"]) for row in csv.DictReader(file) if row["train/tokens_per_s"]]
    assert len(rates) == 3
    most = 6 * 128  # tokens of a batch
    assert all(rate > most / seconds for rate in rates)
