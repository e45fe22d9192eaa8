"""`lantern test` as a user runs it: its files, its tables, and what it refuses."""

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from support import Ran

from lantern_pl.data import PairDataModule
from lantern_pl.data.records import read_pairs
from lantern_pl.evaluation.full_test import _read_student
from lantern_pl.model_files import weights_identity
from lantern_pl.teachers.contract import Assignment
from lantern_pl.teachers.local_model import HFTeacher

Lantern = Callable[..., Ran]
RUBRIC = {"class_path": "lantern_pl.teachers.rubric"}
FEW = ["--evaluation.bootstrap=100", "--evaluation.samples=2"]


def numbers(found: Any) -> list[Any]:
    """All figures in it, wherever they stand."""
    if isinstance(found, dict):
        own = [found] if {"value", "low", "high", "n"} <= set(found) else []
        return own + [figure for part in found.values() for figure in numbers(part)]
    return [figure for part in found for figure in numbers(part)] if isinstance(found, list) else []


def change(config: Path, **changes: Any) -> None:
    whole = yaml.safe_load(config.read_text())
    for key, value in changes.items():
        place = whole
        *parents, last = key.split("__")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    config.write_text(yaml.safe_dump(whole))


@pytest.fixture
def encoder_run(tiny_encoder_config: Path, lantern: Lantern) -> Path:
    change(tiny_encoder_config, model__init_args__teacher=RUBRIC, data__init_args__test_fraction=0.4)
    ran = lantern("fit", "--config", tiny_encoder_config)
    assert ran.code == 0, ran.err
    return tiny_encoder_config.parent / "run"


def test_an_encoder_is_held_against_its_teacher_and_a_student_without(
    encoder_run: Path, tiny_encoder_config: Path, tmp_path: Path, lantern: Lantern
) -> None:
    sft = lantern("fit", "--config", tiny_encoder_config, "--model.teacher=null", "--model.mixture=[]",
                  f"--run_dir={tmp_path / 'sft'}", "--seed_everything=1")  # fmt: skip
    assert sft.code == 0, sft.err
    # The run's own config, as it was resolved.
    ran = lantern("test", "--config", encoder_run / "config.yaml", "--ckpt_path", "last",
                  f"--evaluation.sft={tmp_path / 'sft'}", *FEW)  # fmt: skip
    assert ran.code == 0, ran.err
    assert "the checkpoint has" not in "".join(line for line in ran.err.splitlines(True) if "evaluation" in line)
    path = encoder_run / "test.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert {
        "format",
        "kind",
        "levels",
        "pairs",
        "data",
        "loss",
        "settings",
        "models",
        "retention",
        "samples",
        "seconds",
    } <= set(found)
    assert (found["format"], found["kind"], found["levels"]) == (1, "encoder", ["low", "medium", "high"])
    assert set(found["models"]) == {"student", "teacher", "sft"}
    student, teacher = (found["models"][name] for name in ("student", "teacher"))
    assert set(student["figures"]) == {"accuracy", "macro_f1", "quadratic_kappa", "auroc", "ece", "brier"}
    # The loop of the fit's own validation sees the same pairs with the same weights.
    for name in ("accuracy", "macro_f1", "ece"):
        assert student["figures"][name]["value"] == pytest.approx(found["loss"][name], abs=1e-4)
    # The rubric has annotated the pairs.
    assert teacher["figures"]["accuracy"]["value"] == 1
    for figure in numbers(found["models"]):
        if figure["low"] is not None:
            assert figure["low"] <= figure["high"]
    assert sum(map(sum, student["confusion"])) == found["pairs"]
    assert sum(bin_["count"] for bin_ in student["reliability"]) == found["pairs"]
    assert set(student["per_level"]) == set(found["levels"])
    kept = found["retention"]["accuracy"]
    assert kept["of_teacher"]["value"] == pytest.approx(student["figures"]["accuracy"]["value"], abs=1e-5)
    sample = found["samples"][0]
    assert len(found["samples"]) == 2
    assert sample["answers"]["teacher"].split()[0] == sample["annotation"]["level"]
    assert sample["job_text"]
    rows = pq.read_table(encoder_run / "test_answers.parquet").to_pylist()
    assert len(rows) == 3 * found["pairs"]
    right = [row["level_probs"].index(max(row["level_probs"])) for row in rows if row["model"] == "student"]
    annotated = [found["levels"].index(row["annotated_level"]) for row in rows if row["model"] == "student"]
    hits = sum(one == other for one, other in zip(right, annotated, strict=True))
    assert hits / found["pairs"] == pytest.approx(student["figures"]["accuracy"]["value"], abs=1e-5)
    assert "Kept of the teacher" in ran.out
    assert not list(encoder_run.glob(".student-*"))

    # A fit takes a config with the evaluation's part.
    change(tiny_encoder_config, evaluation={"sft": str(tmp_path / "sft"), "bootstrap": 100})
    shown = lantern("fit", "--config", tiny_encoder_config, "--print_config")
    assert yaml.safe_load(shown.out)["evaluation"]["bootstrap"] == 100
    # Again: what was there is kept.
    again = lantern("test", "--config", tiny_encoder_config, "--ckpt_path=last", "--evaluation.ask_teacher=false",
                    "--data.eval_batch_size=1", "--trainer.limit_test_batches=3")  # fmt: skip
    assert again.code == 0, again.err
    assert json.loads((encoder_run / "test.1.json").read_text()) == found
    few = json.loads(path.read_text())
    assert (set(few["models"]), few["pairs"]) == ({"student", "sft"}, 3)
    assert few["retention"]["accuracy"]["of_teacher"] is None

    # Held against another than the teacher of its loss.
    other = {"class_path": "lantern_pl.teachers.encoder", "init_args": {"model": str(tmp_path / "sft" / "student")}}
    change(tiny_encoder_config, evaluation={"sft": None, "teacher": other, "bootstrap": 100})
    ran = lantern("test", "--config", tiny_encoder_config, "--ckpt_path=last")
    assert ran.code == 0, ran.err
    held = json.loads(path.read_text())
    assert held["models"]["teacher"]["figures"] == found["models"]["sft"]["figures"]
    assert held["settings"]["teacher"]["weights"] == weights_identity(str(tmp_path / "sft" / "student"))


def test_a_decoder_writes_and_is_checked(
    encoder_run: Path, tiny_decoder_config: Path, tmp_path: Path, lantern: Lantern, tiny_lm: Path
) -> None:
    change(tiny_decoder_config, run_dir=str(tmp_path / "decoder"))
    assert lantern("fit", "--config", tiny_decoder_config).code == 0
    judge = {"class_path": "lantern_pl.teachers.hf", "init_args": {"model": str(tiny_lm), "max_new_tokens": 1}}
    change(
        tiny_decoder_config, evaluation={"encoder": str(encoder_run), "judge": judge, "explain_pairs": 3, "bootstrap": 100}
    )
    ran = lantern("test", "--config", tiny_decoder_config, "--ckpt_path=last", f"--evaluation.sft={tmp_path / 'decoder'}")
    assert ran.code == 0, ran.err
    found = json.loads((tmp_path / "decoder" / "test.json").read_text(), parse_constant=pytest.fail)
    assert (found["kind"], found["data"]["explained"]) == ("decoder", 3)
    student, teacher, sft = (found["models"][name]["figures"] for name in ("student", "teacher", "sft"))
    assert {
        "accuracy",
        "rouge_1",
        "rouge_2",
        "rouge_l",
        "valid_format",
        "words",
        "tokens",
        "distinct_1",
        "distinct_2",
    } <= set(student)
    assert {"kl", "js", "tvd", "entropy"} <= set(student)
    assert {"kl", "js", "tvd"} & set(teacher) == set()
    # The folder that it's held against is its own: nothing is as like it.
    assert sft["kl"] == student["kl"]
    assert student["kl"]["value"] > 0
    assert student["tokens"]["value"] == 4
    judged = found["judge"]
    assert judged["against"] == "teacher"
    assert sum(judged["wins"].values()) == 3
    assert set(found["samples"][0]["answers"]) == {"student", "teacher", "sft"}
    rows = pq.read_table(tmp_path / "decoder" / "test_answers.parquet").to_pylist()
    written = [row for row in rows if row["text"] is not None]
    assert len(written) == 9
    assert {row["valid_format"] for row in written} == {False}
    assert "evaluation:" in (tmp_path / "decoder" / "config.yaml").read_text()


def test_a_saved_student_reads_as_much_as_its_teacher(tiny_lm: Path, pairs_file: Path) -> None:
    """Figures of the two would be of different texts otherwise."""
    data = PairDataModule(str(pairs_file), max_length=160)
    (pair, *_) = read_pairs(pairs_file, data.task)
    long = replace(pair, candidate_text=pair.candidate_text * 20)
    student = _read_student("decoder", str(tiny_lm), data)
    taught = HFTeacher(str(tiny_lm))
    taught.accept(Assignment("score_tokens", [], data.task, data.max_length, "", ""))
    assert student._prompts([long], data.task) == taught._prompts([long], data.task)
    assert student._prompts([long], data.task) != HFTeacher(str(tiny_lm))._prompts([long], data.task)


def test_mistakes_are_found_before_anything_is_measured(
    encoder_run: Path, tiny_encoder_config: Path, tiny_decoder_config: Path, tiny_lm: Path, lantern: Lantern
) -> None:
    for option, message in (
        ("--evaluation.sft=nowhere", "'nowhere' is not the folder of an encoder student"),
        ("--evaluation.bootstrap=5", "evaluation.bootstrap is 5"),
        (f"--evaluation.sft={tiny_lm}", "is not the folder of an encoder student"),
        ('--evaluation.judge={"class_path": "lantern_pl.teachers.rubric"}', "the rubric"),
    ):
        ran = lantern("test", "--config", tiny_encoder_config, "--ckpt_path=last", option)
        assert (ran.code, message in ran.err) == (2, True), ran.err
    assert not (encoder_run / "test.json").exists()
    elsewhere = ("--run_dir", encoder_run.with_name("decoder"))
    wrong = lantern("test", "--config", tiny_decoder_config, *elsewhere, f"--evaluation.sft={encoder_run}")
    assert (wrong.code, "is an encoder student" in wrong.err) == (2, True), wrong.err
    helped = lantern("test", "--help")
    assert "Who says which of two explanations is better" in " ".join(helped.out.split())
