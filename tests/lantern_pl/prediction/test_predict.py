"""`lantern predict`: shards of answers that go on after any end, whatever the input and however many devices."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from recording import Record
from support import PEAK_OF_LANTERN, Ran

from lantern_pl.data.records import read_pairs
from lantern_pl.tasks import Task

Lantern = Callable[..., Ran]
QUIET = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")


def command(student: Path, pairs: Path, out: Path, *options: object) -> list[str]:
    given = ["predict", "--student", student, "--pairs", pairs, "--out", out, "--prediction.shard_rows=16", *QUIET, *options]
    return [str(word) for word in given]


def parts(folder: Path) -> dict[str, str]:
    """Name and content of each shard."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("part-*.parquet"))}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "_manifest.json").read_text())
    return found


@pytest.fixture(scope="module")
def whole(encoder_student: Path, many_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run without any interruption has written about `many_pairs`."""
    from lantern_pl.cli import main

    out = tmp_path_factory.mktemp("predictions") / "whole"
    assert main(command(encoder_student, many_pairs, out)) == 0
    return out


def test_answers_are_the_classifiers_in_the_order_of_the_file(whole: Path, encoder_student: Path, many_pairs: Path) -> None:
    from lantern_pl.teachers.classifier import EncoderTeacher

    pairs = read_pairs(many_pairs, Task())
    teacher = EncoderTeacher(str(encoder_student))
    expected = torch.cat([teacher.level_probs(pairs[start : start + 20], Task()).probs for start in range(0, 200, 20)])
    rows = rows_of(whole)
    assert [row["row"] for row in rows] == list(range(200))
    for name in ("pair_id", "job_id", "candidate_id"):
        assert [row[name] for row in rows] == [getattr(pair, name) for pair in pairs]
    probs = torch.tensor([list(row["level_probs"].values()) for row in rows])
    torch.testing.assert_close(probs, expected, atol=1e-5, rtol=0)
    levels = ["low", "medium", "high"]
    assert [row["level"] for row in rows] == [levels[best] for best in probs.argmax(-1).tolist()]
    assert len({row["level"] for row in rows}) > 1
    scores = torch.tensor([row["score"] for row in rows])
    torch.testing.assert_close(scores, probs[:, 1] / 2 + probs[:, 2], atol=1e-5, rtol=0)


def test_the_folder_is_typed_parquet_for_its_owner_without_texts(whole: Path, many_pairs: Path) -> None:
    import datasets
    import pandas as pd

    level_probs = pa.struct([(level, pa.float32()) for level in ("low", "medium", "high")])
    for path in whole.glob("part-*.parquet"):
        file = pq.ParquetFile(path)
        assert dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True)) == {
            **{"row": pa.int64(), "pair_id": pa.string(), "job_id": pa.string(), "candidate_id": pa.string()},
            **{"level": pa.string(), "level_probs": level_probs, "score": pa.float32()},
        }
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert {path.stat().st_mode & 0o777 for path in whole.iterdir()} == {0o600}
    assert whole.stat().st_mode & 0o777 == 0o700
    first = json.loads(many_pairs.read_text().splitlines()[0])
    table = "".join(map(str, rows_of(whole))) + (whole / "_manifest.json").read_text()
    assert first["pair_id"] in table
    assert first["job_text"][:30] not in table
    assert first["candidate_text"][:20] not in table
    # Other readers take the folder as one table.
    assert len(pd.read_parquet(whole)) == 200
    cache = str(whole.parent / "cache")
    assert datasets.load_dataset(str(whole), cache_dir=cache)["train"]["row"][:] == list(range(200))


def test_the_same_command_again_answers_nothing_twice(
    whole: Path, encoder_student: Path, many_pairs: Path, tmp_path: Path, lantern: Lantern, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lantern_pl.students import EncoderStudent

    out = tmp_path / "out"
    shutil.copytree(whole, out)
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    asked: list[int] = []
    real = EncoderStudent.predict_step
    monkeypatch.setattr(
        EncoderStudent, "predict_step", lambda self, portion, i: asked.append(portion.shard) or real(self, portion, i)
    )
    ran = lantern(*command(encoder_student, many_pairs, out))
    assert ran.code == 0, ran.err
    assert asked == []
    assert f"13 of 13 shards are in {out} already." in ran.err
    # Damaged, gone, and a file that no run has noted: those and no others are made again.
    (out / "part-00003.parquet").write_bytes((out / "part-00004.parquet").read_bytes())
    (out / "part-00007.parquet").unlink()
    (out / ".part-00008.parquet.half").write_text("half")
    ran = lantern(*command(encoder_student, many_pairs, out))
    assert ran.code == 0, ran.err
    assert f"{out}/part-00003.parquet isn't what was written: it is made again." in ran.err
    assert f"{out}/part-00007.parquet is gone: it is made again." in ran.err
    assert set(asked) == {3, 7}
    assert parts(out) == parts(whole)
    assert {path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp} == {
        out / "part-00003.parquet",
        out / "part-00007.parquet",
    }
    assert {path.name for path in out.iterdir()} == {*parts(whole), "_manifest.json"}


@pytest.mark.parametrize(
    "trials", [pytest.param(1, id="few"), pytest.param(30, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(3000)])]
)
def test_kills_at_any_moment_cost_no_row(
    trials: int, whole: Path, encoder_student: Path, many_pairs: Path, tmp_path: Path, record: Record
) -> None:
    script = Path(__file__).parent / "predict_and_kill.py"
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, script, str(trials), str(out), *command(encoder_student, many_pairs, out)],
        capture_output=True, text=True, timeout=2900, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(outcomes) == trials
    assert all(outcome["parts"] == parts(whole) for outcome in outcomes)
    assert any(0 < found < 13 for outcome in outcomes for found in outcome["found"]), "no kill came amid the shards"
    kills = sum(len(outcome["found"]) for outcome in outcomes)
    record(
        "SIGKILL of `lantern predict` at random moments, then the same command",
        found=f"{trials} runs, {kills} kills: every shard byte for byte that of an uninterrupted run",
        goal="no row lost or answered twice",
    )


def test_two_processes_write_the_same(whole: Path, encoder_student: Path, many_pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--trainer.devices=2", "--trainer.strategy=ddp", "--data.num_workers=1")
    done = subprocess.run(
        [Path(sys.executable).parent / "lantern", *command(encoder_student, many_pairs, out, *options)],
        capture_output=True, text=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert parts(out) == parts(whole)
    assert manifest(out) == manifest(whole)
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}


@pytest.mark.parametrize("form", ["parquet", "folder of parquet", "folder of jsonl", "saved"])
def test_every_kind_of_input_gives_the_same_answers(
    form: str, whole: Path, encoder_student: Path, many_pairs: Path, tmp_path: Path, lantern: Lantern
) -> None:
    lines = many_pairs.read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines]
    if form == "parquet":  # with more than one row group, none of whose ends is one of a shard
        data = tmp_path / "pairs.parquet"
        pq.write_table(pa.Table.from_pylist(rows), data, row_group_size=70)
    elif form == "folder of parquet":
        data = tmp_path / "pairs"
        data.mkdir()
        for number, cut in enumerate((0, 5, 101)):
            end = (5, 101, 200)[number]
            pq.write_table(pa.Table.from_pylist(rows[cut:end]), data / f"{number}.parquet")
    elif form == "folder of jsonl":
        data = tmp_path / "pairs"
        data.mkdir()
        (data / "a.jsonl").write_text("\n".join(lines[:37]))
        (data / "b.jsonl").write_text("".join(lines[37:]))
    else:
        import datasets

        data = tmp_path / "pairs"
        datasets.Dataset.from_list(rows).save_to_disk(str(data))
    out = tmp_path / "out"
    ran = lantern(
        *command(encoder_student, data, out, "--data.num_workers=2" if form == "parquet" else "--seed_everything=1")
    )
    assert ran.code == 0, ran.err
    assert parts(out) == parts(whole)


def test_bad_rows_stop_the_run_or_are_left_out(
    whole: Path, encoder_student: Path, many_pairs: Path, tmp_path: Path, lantern: Lantern
) -> None:
    lines = many_pairs.read_text().splitlines()
    lines[20] = "not JSON with a secret"
    lines[21] = json.dumps({"job_text": "a secret job"})
    # What isn't the pair's texts and ids isn't read, and so can't be wrong.
    lines[22] = json.dumps({**json.loads(lines[22]), "level": "of another task", "votes": 3})
    for number in range(112, 128):  # a whole shard
        lines[number] = "[]"
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n\n".join(lines))  # blank lines aren't rows
    out = tmp_path / "out"
    ran = lantern(*command(encoder_student, data, out))
    assert ran.code == 2
    assert "2 of the rows can't be read" in ran.err
    assert f"{data}:41: isn't valid JSON" in ran.err
    assert f"{data}:43: candidate_text (or resume_text) is missing" in ran.err
    assert "--prediction.on_bad_row skip" in ran.err
    assert list(parts(out)) == ["part-00000.parquet"]
    ran = lantern(*command(encoder_student, data, out, "--prediction.on_bad_row=skip"))
    assert ran.code == 0, ran.err
    assert "1 of 13 shards are in" in ran.err
    assert "18 rows were left out: see _rejects.jsonl there." in ran.err
    bad = {20, 21, *range(112, 128)}
    rows_of_whole = rows_of(whole)
    answers = rows_of(out)
    assert [row["row"] for row in answers] == [row for row in range(200) if row not in bad]
    # In a shard without some of its rows the batches are others, and so is the rounding.
    for row in answers:
        expected = rows_of_whole[row["row"]]
        assert row["pair_id"] == expected["pair_id"]
        assert row["level_probs"] == pytest.approx(expected["level_probs"], abs=1e-5)
    rejects = [json.loads(line) for line in (out / "_rejects.jsonl").read_text().splitlines()]
    assert [reject["row"] for reject in rejects] == sorted(bad)
    assert rejects[0]["place"] == f"{data}:41"
    everything = "".join(path.read_text(errors="replace") for path in out.iterdir())
    assert "secret" not in everything + ran.err


def test_another_input_student_task_or_setting_is_refused(
    whole: Path, encoder_student: Path, many_pairs: Path, tmp_path: Path, lantern: Lantern
) -> None:
    changed = tmp_path / "changed.jsonl"
    changed.write_text(many_pairs.read_text().replace("a", "e", 1))
    other = tmp_path / "student"
    shutil.copytree(encoder_student, other)
    from safetensors.torch import load_file, save_file

    weights = load_file(other / "head.safetensors")
    save_file({name: tensor + 1e-3 for name, tensor in weights.items()}, other / "head.safetensors")
    before = {path: path.read_bytes() for path in whole.iterdir()}
    for arguments, names in (
        ((encoder_student, changed, whole), ("input.sha256 there is",)),
        ((other, many_pairs, whole), ("student.weights there is 'sha256 ",)),
        ((encoder_student, many_pairs, whole, "--data.max_length=200"), ("settings.max_length there is 512, here 200",)),
        ((encoder_student, many_pairs, whole, "--prediction.shard_rows=8"), ("settings.shard_rows there is 16, here 8",)),
        ((encoder_student, many_pairs, whole, "--prediction.limit=30"), ("input.rows there is 200, here 30",)),
        ((encoder_student, many_pairs, whole, "--data.task.prompt={job_text}{candidate_text}"), ("task.prompt there is",)),
    ):
        ran = lantern(*command(*arguments))
        assert ran.code == 2
        for said in (*names, f"answers about '{many_pairs}'", "another folder by --prediction.out"):
            assert said in ran.err
    assert {path: path.read_bytes() for path in whole.iterdir()} == before
    # The same content elsewhere is the same.
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(many_pairs.read_bytes())
    assert lantern(*command(encoder_student, moved, whole)).code == 0


def test_a_folder_of_other_things_is_left_alone(
    encoder_student: Path, many_pairs: Path, tmp_path: Path, lantern: Lantern
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    ran = lantern(*command(encoder_student, many_pairs, tmp_path))
    assert ran.code == 2
    assert "holds other things already, such as 'notes.txt'" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_full_disk_keeps_whole_shards(
    whole: Path, encoder_student: Path, many_pairs: Path, tmp_path: Path, lantern: Lantern, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    real = os.fsync
    calls = iter(range(1000))

    def full(descriptor: int) -> None:
        if next(calls) == 11:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        ran = lantern(*command(encoder_student, many_pairs, out))
    assert ran.code == 2
    assert "No space left on device" in ran.err
    assert 0 < len(parts(out)) < 13
    assert lantern(*command(encoder_student, many_pairs, out)).code == 0
    assert parts(out) == parts(whole)


def test_a_limit_answers_the_first_rows(
    whole: Path, encoder_student: Path, many_pairs: Path, tmp_path: Path, lantern: Lantern
) -> None:
    out = tmp_path / "out"
    assert lantern(*command(encoder_student, many_pairs, out, "--prediction.limit=32")).code == 0
    assert rows_of(out) == rows_of(whole)[:32]
    ran = lantern(*command(encoder_student, many_pairs, tmp_path / "other", "--trainer.limit_predict_batches=2"))
    assert ran.code == 2
    assert "--prediction.limit" in ran.err


def test_pairs_with_the_same_id_are_each_answered(
    encoder_student: Path, many_pairs: Path, tmp_path: Path, lantern: Lantern
) -> None:
    data = tmp_path / "twice.jsonl"
    data.write_text(many_pairs.read_text().splitlines()[0] + "\n")
    data.write_text(data.read_text() * 3)
    assert lantern(*command(encoder_student, data, tmp_path / "out")).code == 0
    rows = rows_of(tmp_path / "out")
    assert [row["row"] for row in rows] == [0, 1, 2]
    assert len({row["pair_id"] for row in rows}) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--student", "{student}", "--out", "{out}"], "needs --pairs too"),
        (["--pairs", "x.jsonl", "--out", "{out}"], "--pairs and --out go with --student FOLDER"),
        (["--student", "{out}/none", "--pairs", "{pairs}", "--out", "{out}"], "There is no model folder"),
        (["--student", "{student}", "--pairs", "{out}/none.jsonl", "--out", "{out}"], "none.jsonl isn't there"),
        (["--student", "{student}", "--pairs", "{pairs}", "--out", "{out}", "--prediction.shard_rows=0"], "at least 1"),
    ],
)
def test_what_a_user_got_wrong_is_said(
    arguments: list[str], said: str, encoder_student: Path, many_pairs: Path, tmp_path: Path, lantern: Lantern
) -> None:
    places = {"student": encoder_student, "pairs": many_pairs, "out": tmp_path / "out"}
    ran = lantern("predict", *(word.format(**places) for word in arguments))
    assert ran.code == 2
    assert said in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_memory_does_not_grow_with_the_file(encoder_student: Path, tmp_path: Path, record: Record) -> None:
    peaks = {}
    for count in (4_000, 200_000):
        data = tmp_path / f"{count}.jsonl"
        with data.open("w") as file:
            for number in range(count):
                file.write(
                    json.dumps({"pair_id": number, "job_text": "A job.", "candidate_text": f"Number {number}."}) + "\n"
                )
        arguments = command(encoder_student, data, tmp_path / f"out-{count}", "--data.eval_batch_size=256")
        done = subprocess.run(
            [sys.executable, "-c", PEAK_OF_LANTERN, *arguments, "--prediction.shard_rows=2000"],
            capture_output=True, text=True, timeout=2900, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        peaks[count] = int(done.stdout.split()[-1]) / 1024
    assert peaks[200_000] < peaks[4_000] + 100, peaks
    record(
        "Peak memory of `lantern predict`",
        found=f"{peaks[4_000]:.0f} MiB for 4,000 pairs, {peaks[200_000]:.0f} MiB for 200,000",
        goal="at most 100 MiB more",
    )
