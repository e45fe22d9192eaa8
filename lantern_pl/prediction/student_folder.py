"""`lantern predict --student FOLDER`: the config that a student's own folder amounts to, so that nobody has to write one."""

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lantern_pl.errors import CommandParser, UserError
from lantern_pl.export.onnx_runtime import INTERFACE, read_interface
from lantern_pl.model_files import read_manifest
from lantern_pl.pair_classifier import HEAD_CONFIG, is_classifier

USAGE = """\
lantern predict --student FOLDER --pairs FILE --out FOLDER [--KEY VALUE ...]
       lantern predict --config FILE [--KEY VALUE ...]

The first form needs no config: the student's folder says what it is. All keys below go with both forms. --engine ray is
--prediction.engine ray, and so on: the workers of a Ray cluster answer."""

_SHORT = re.compile(r"--(engine(=.*)?|ray\..+)")
"""Options that other commands have under the same name."""


@contextmanager
def as_config(arguments: list[str]) -> Iterator[list[str]]:
    """The arguments of `lantern predict` with --student, --pairs and --out made into a config, and with the whole names of
    what may be said shortly; others as they are.

    Raises UserError where the folder is no student's.
    """
    parser = CommandParser(prog="lantern predict", add_help=False, allow_abbrev=False)
    for name in ("student", "pairs", "out"):
        parser.add_argument(f"--{name}")
    arguments = [f"--prediction.{word[2:]}" if _SHORT.fullmatch(word) else word for word in arguments]
    given, rest = parser.parse_known_args(arguments[1:])
    if given.student is None:
        if given.pairs or given.out:
            raise UserError(
                "lantern predict: --pairs and --out go with --student FOLDER; with a config they are "
                "--data.init_args.path and --prediction.out."
            )
        yield arguments
        return
    for name in ("pairs", "out"):
        if getattr(given, name) is None and not {"-h", "--help"} & set(rest):
            raise UserError(f"lantern predict --student needs --{name} too: {USAGE.splitlines()[0]}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(json.dumps(config_of(given.student, given.pairs, given.out)))  # JSON is YAML
        yield [arguments[0], "--config", str(file), *rest]


def config_of(student: str, pairs: str, out: str) -> dict[str, Any]:
    """What LightningCLI takes for a student's folder."""
    manifest = read_manifest(student) or {}
    exported = read_interface(Path(student)) if (Path(student) / INTERFACE).is_file() else {}
    task = manifest.get("task") or exported.get("task") or {}
    model: dict[str, Any] = {"model": student}
    if is_classifier(student):
        head = json.loads((Path(student) / HEAD_CONFIG).read_text())
        model |= {"levels": head["levels"], "pooling": head["pooling"], "head_depth": head["depth"]}
        task = {**task, "levels": head["levels"]}
    if new_tokens := manifest.get("student", {}).get("max_new_tokens") or exported.get("max_new_tokens"):
        model["max_new_tokens"] = new_tokens
    data: dict[str, Any] = {"path": pairs, "task": task}
    max_length = manifest.get("data", {}).get("max_length") or exported.get("max_length")
    if max_length is not None:
        data["max_length"] = max_length
    kind = "EncoderStudent" if is_classifier(student) else "DecoderStudent"
    return {
        "model": {"class_path": f"lantern_pl.students.{kind}", "init_args": model},
        "data": {"class_path": "lantern_pl.data.PairDataModule", "init_args": data},
        "prediction": {"out": out},
    }
