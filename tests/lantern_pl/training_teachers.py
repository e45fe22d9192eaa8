"""Configs of tiny students with a teacher that is asked in the run, or whose signals lie on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from support import Ran

MAX_LENGTH = 320


def record_signals(lantern: Callable[..., Ran], tiny_lm: Path, pairs: Path, folder: Path) -> dict[str, Any]:
    """The cached teacher of what the tiny causal LM says about pairs."""
    options = ("--pairs", pairs, "--signals", folder, f"--max_length={MAX_LENGTH}", "--k=8", "--batch_size=8")
    ran = lantern("cache", "--teacher", "lantern_pl.teachers.hf", f"--teacher.model={tiny_lm}", *options)
    assert ran.code == 0, ran.err
    return {"class_path": "lantern_pl.teachers.cached", "init_args": {"signals": str(folder)}}


def teach(config: Path, teacher: dict[str, Any]) -> None:
    """Give the student of a config this teacher."""
    written = yaml.safe_load(config.read_text())
    written["model"]["init_args"]["teacher"] = teacher
    written["data"]["init_args"]["max_length"] = MAX_LENGTH
    config.write_text(yaml.safe_dump(written))


def online(tiny_lm: Path) -> dict[str, Any]:
    return {"class_path": "lantern_pl.teachers.hf", "init_args": {"model": str(tiny_lm), "max_new_tokens": 4}}
