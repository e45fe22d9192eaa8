"""A signal set of a tiny teacher, made by the command once, and copied for each test that harms it."""

import shutil
from pathlib import Path

import pytest

from lantern_pl.cli import main


def cache(config: Path, *arguments: object) -> int:
    return main(["cache", "--config", str(config), *map(str, arguments)])


@pytest.fixture(scope="session")
def cache_config(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path, pairs_file: Path) -> Path:
    """A config of `lantern cache` that takes a few seconds; `signals` is to be given."""
    path = tmp_path_factory.mktemp("cache") / "cache.yaml"
    path.write_text(f"""\
teacher: {{class_path: lantern_pl.teachers.hf, init_args: {{model: {tiny_lm}}}}}
pairs: {pairs_file}
signals: {path.parent}/signals
max_length: 320
k: 8
pairs_per_shard: 16
batch_size: 8
sample: 2
""")
    return path


@pytest.fixture(scope="session")
def whole_set(cache_config: Path) -> Path:
    """Token and level signals of 48 pairs, in three shards, exactly as they were. Not to be changed."""
    folder = cache_config.parent / "whole"
    assert cache(cache_config, "--signals", folder, "--log_probs", "f32") == 0
    return folder


@pytest.fixture
def signals(whole_set: Path, tmp_path: Path) -> Path:
    """A copy of the set, to be harmed."""
    return Path(shutil.copytree(whole_set, tmp_path / "signals"))
