"""`--engine ray` on a real cluster of three nodes: the same commands leave the same as on the local engine."""

import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from http_chat import RubricServer
from support import Ran

from lantern_pl.data.sample import make_pairs

Lantern = Callable[..., Ran]


def on(cluster: Any, *more: object) -> list[object]:
    return ["--engine=ray", f"--ray.address={cluster.address}", "--ray.workers=2", *more]


def predict(student: Path, pairs: Path, out: Path, *options: object) -> list[object]:
    quiet = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--prediction.shard_rows=32")
    return ["predict", "--student", student, "--pairs", pairs, "--out", out, *quiet, *options]


def parts(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("part-*.parquet"))}


def test_predictions_are_those_of_one_process(
    lantern: Lantern, cluster: Any, encoder_student: Path, many_pairs: Path, tmp_path: Path
) -> None:
    """What one engine has begun the other goes on with."""
    local, out = tmp_path / "local", tmp_path / "ray"
    ran = lantern(*predict(encoder_student, many_pairs, local))
    assert ran.code == 0, ran.err
    whole = parts(local)
    assert len(whole) == 7
    shutil.copytree(local, out)
    for shard in (0, 1, 3, 5, 6):
        (out / f"part-{shard:05}.parquet").unlink()
    ran = lantern(*predict(encoder_student, many_pairs, out, *on(cluster)))
    assert ran.code == 0, ran.err
    assert "2 of 7 shards are in" in ran.err + ran.out
    assert "200 answers are in" in ran.err + ran.out
    assert parts(out) == whole
    assert json.loads((out / "_manifest.json").read_text()) == json.loads((local / "_manifest.json").read_text())

    (out / "part-00003.parquet").unlink()
    ran = lantern(*predict(encoder_student, many_pairs, out))
    assert "6 of 7 shards are in" in ran.err + ran.out, ran.err
    assert parts(out) == whole


@pytest.fixture
def cache_config(tmp_path: Path, tiny_lm: Path, pairs_file: Path) -> Path:
    """Of texts that are longer than max_length, which each worker's teacher must know of too."""
    path, pairs = tmp_path / "cache.yaml", tmp_path / "long.jsonl"
    rows = map(json.loads, pairs_file.read_text().splitlines())
    pairs.write_text("".join(json.dumps({**row, "candidate_text": row["candidate_text"] * 4}) + "\n" for row in rows))
    path.write_text(f"""\
teacher: {{class_path: lantern_pl.teachers.hf, init_args: {{model: {tiny_lm}}}}}
pairs: {pairs}
signals: {tmp_path}/signals
max_length: 320
k: 8
log_probs: f32
pairs_per_shard: 12
sample: 2
""")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_signals_are_those_of_one_process(
    lantern: Lantern, cluster: Any, cache_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte; and an interrupted set goes on, whichever of its files there are."""
    from lantern_pl.signal_sets.writer import SetWriter

    local, out = tmp_path / "local", tmp_path / "ray"
    assert lantern("cache", "--config", cache_config, "--signals", local).code == 0

    add = SetWriter.add

    def interrupt(self: SetWriter, number: int, *arrays: Any) -> None:
        if number in (0, 2):
            add(self, number, *arrays)
        elif number == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SetWriter, "add", interrupt)
        assert lantern("cache", "--config", cache_config, "--signals", out).code == 130
    assert sorted(path.name for path in out.iterdir()) == [
        "shard-00000.safetensors",
        "shard-00002.safetensors",
        "unfinished.json",
    ]
    ran = lantern("cache", "--config", cache_config, "--signals", out, *on(cluster))
    assert ran.code == 0, ran.err
    assert "24 pairs to ask about" in ran.out
    assert contents(out) == contents(local)


@pytest.fixture
def server() -> Iterator[RubricServer]:
    server = RubricServer()
    yield server
    server.close()


@pytest.fixture
def label_config(tmp_path: Path, server: RubricServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """40 pairs, and a teacher behind HTTP."""
    monkeypatch.setenv("LANTERN_ALLOW_IMPORTS", "http_chat,rubric_chat,ray_teachers")
    path, pairs = tmp_path / "label.yaml", tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(pair) + "\n" for pair in make_pairs(40, seed=7)))
    teacher = {"class_path": "http_chat.HTTPChat", "init_args": {"url": server.url}}
    keys = {"pairs": str(pairs), "labels": str(tmp_path / "labels"), "teacher": teacher, "guide": {"stages": "single"}}
    path.write_text(yaml.safe_dump(keys))
    return path


def rows(labels: Path) -> list[tuple[Any, ...]]:
    """The store's answers without how long they took."""
    with sqlite3.connect(labels / "store.sqlite") as store:
        assert store.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        query = "SELECT key, stage, pair_id, sample, state, reason, raw, parsed FROM answers JOIN units ON units.id = unit"
        return sorted(store.execute(query).fetchall())


def test_labels_are_those_of_one_process(
    lantern: Lantern, cluster: Any, label_config: Path, server: RubricServer, tmp_path: Path
) -> None:
    """Each question is asked once, whichever engine began; the report counts what the other one has left."""
    label = ("label", "--config", label_config, "--yes")
    assert lantern(*label, "--labels", tmp_path / "local").code == 0
    whole = server.asked.copy()
    assert whole.total() == 40
    server.asked.clear()
    assert lantern(*label, "--labels", tmp_path / "ray", "--limit=10").code == 0
    ran = lantern(*label, "--labels", tmp_path / "ray", *on(cluster))
    assert ran.code == 0, ran.err
    assert server.asked == whole
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")
    tables = [pq.read_table(tmp_path / engine / "labels.parquet") for engine in ("ray", "local")]
    assert tables[0].equals(tables[1])
    (stage,) = json.loads((tmp_path / "ray" / "report.json").read_text())["stages"].values()
    assert (stage["asked"], stage["cached"]) == (30, 10)
    again = lantern(*label, "--labels", tmp_path / "ray")
    assert again.code == 0
    assert server.asked == whole


def test_a_teacher_that_cannot_be_used_is_said_as_ever(lantern: Lantern, cluster: Any, label_config: Path) -> None:
    ran = lantern("label", "--config", label_config, "--yes", "--teacher=ray_teachers.NoSuchModel", *on(cluster))
    assert ran.code == 2
    assert ran.err.count("lantern: There is no model 'x' at that server.") == 1
    assert "Traceback" not in ran.err + ran.out


def test_what_a_worker_fails_with_holds_no_text(lantern: Lantern, cluster: Any, label_config: Path) -> None:
    """A fault of a plugin in its worker: where it was, and nothing of what it was asked."""
    ran = lantern("label", "--config", label_config, "--yes", "--teacher=ray_teachers.Faulty", *on(cluster))
    assert ran.code == 2
    assert "Faulty fails: ValueError at" in ran.err
    assert "ray_teachers.py:" in ran.err
    assert "Traceback" not in ran.err + ran.out
    job = make_pairs(40, seed=7)[0]["job_text"]
    assert job[:20] not in ran.err + ran.out


def test_ray_is_imported_only_where_it_is_the_engine() -> None:
    commands = "lantern_pl.labelling.command, lantern_pl.signal_sets.command, lantern_pl.lightning_cli"
    subprocess.run([sys.executable, "-c", f"import sys, {commands}; assert 'ray' not in sys.modules"], check=True)


def test_without_ray_it_says_what_to_install(lantern: Lantern, label_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    ran = lantern("label", "--config", label_config, "--yes", "--engine=ray")
    assert ran.code == 2
    assert "pip install 'lantern-pl[ray]'" in ran.err


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("--ray.workers=0", "ray.workers is 0"),
        ("--ray.cpus_per_worker=0", "ray.cpus_per_worker is 0"),
        ("--ray.gpus_per_worker=-1", "ray.gpus_per_worker is -1"),
    ],
)
def test_settings_that_cannot_be_are_named(lantern: Lantern, label_config: Path, given: str, named: str) -> None:
    ran = lantern("label", "--config", label_config, "--yes", "--engine=ray", given)
    assert ran.code == 2
    assert named in ran.err


def test_a_variable_that_is_not_set_and_a_cluster_without_room_are_named(
    lantern: Lantern, label_config: Path, cluster: Any
) -> None:
    label = ("label", "--config", label_config, "--yes", *on(cluster))
    ran = lantern(*label, "--ray.env=[NO_SUCH_KEY]")
    assert ran.code == 2
    assert "ray.env names NO_SUCH_KEY, which isn't set here" in ran.err
    ran = lantern(*label, "--ray.gpus_per_worker=1")
    assert ran.code == 2
    assert "No machine of the Ray cluster has room" in ran.err
