"""Students without a Trainer around them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lantern_pl.data.pair import Pair
from lantern_pl.data.records import read_pairs
from lantern_pl.depth_pruning import DepthPruning
from lantern_pl.divergences.contract import WeightedDivergence
from lantern_pl.divergences.first_party import JS, KL
from lantern_pl.students import DecoderStudent
from lantern_pl.tasks import Task
from lantern_pl.teachers.local_model import HFTeacher


@pytest.fixture(scope="session")
def pairs(pairs_file: Path) -> list[Pair]:
    return read_pairs(str(pairs_file), Task())


@pytest.fixture(scope="session")
def teacher(small_lm: str) -> HFTeacher:
    return HFTeacher(small_lm, max_new_tokens=8).to(torch.device("cpu"))


@pytest.fixture
def make_decoder(small_lm: str, teacher: HFTeacher) -> Callable[..., DecoderStudent]:
    """A two-layer decoder student with half KL, half JS, and a little cross entropy."""

    def make(**changes: Any) -> DecoderStudent:
        arguments: dict[str, Any] = {
            "model": small_lm,
            "layers": DepthPruning(keep=2),
            "teacher": teacher,
            "mixture": [WeightedDivergence(KL(), 0.5), WeightedDivergence(JS(0.3), 0.5)],
            "cross_entropy": 0.2,
            "temperature": 2.0,
            "max_new_tokens": 4,
        }
        student = DecoderStudent(**(arguments | changes))
        student.task = Task()
        return student

    return make
