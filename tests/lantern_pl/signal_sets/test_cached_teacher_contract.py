"""What the framework relies on in any teacher, of each kind of signal set."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from lantern_pl.data.featurize import DecoderFeaturizer
from lantern_pl.data.pair import Pair
from lantern_pl.data.records import read_pairs
from lantern_pl.signal_sets import command
from lantern_pl.signal_sets.config import CacheConfig, Mode
from lantern_pl.signals import TokenBatch
from lantern_pl.tasks import Task
from lantern_pl.teachers import Teacher
from lantern_pl.teachers.from_disk import CachedTeacher
from lantern_pl.teachers.local_model import HFTeacher
from lantern_pl.testing import TeacherContract
from lantern_pl.text import load_tokenizer


class _Recorded(TeacherContract):
    """It's asked about what was recorded: it refuses all else."""

    mode: Mode
    model: str
    signals: str
    recorded: Sequence[Pair]

    @pytest.fixture(autouse=True, scope="class")
    def _record(
        self, request: pytest.FixtureRequest, tiny_lm: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        it, model, folder = request.cls, str(tiny_lm), str(tmp_path_factory.mktemp("recorded") / "signals")
        it.model, it.signals, it.recorded = model, folder, read_pairs(pairs_file, Task())[:3]
        config = CacheConfig(HFTeacher(model), str(pairs_file), folder, mode=it.mode, limit=3, sample=0)
        command._cache(config, Console())

    def make(self) -> Teacher:
        return CachedTeacher(self.signals)

    def pairs(self) -> Sequence[Pair]:
        return self.recorded

    def batch(self) -> TokenBatch:
        featurizer = DecoderFeaturizer(load_tokenizer(self.model), Task(), 512)
        return featurizer.collate([featurizer.encode(pair) for pair in self.recorded]).tokens


class TestCachedTopK(_Recorded):
    mode = "top_k"


class TestCachedSamples(_Recorded):
    mode = "sampled"


class TestCachedHiddenStates(_Recorded):
    mode = "hidden"
