"""`lantern compare`: its figures are those that their definitions give."""

import json
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from support import Ran

from lantern_pl.data.pair import Pair
from lantern_pl.data.records import read_pairs
from lantern_pl.evaluation.model_table import level_figures
from lantern_pl.tasks import Task

Lantern = Callable[..., Ran]


@pytest.fixture
def pairs(pairs_file: Path) -> list[Pair]:
    return read_pairs(pairs_file, Task())


def test_level_figures_are_those_of_their_definitions(pairs: list[Pair]) -> None:
    torch.manual_seed(0)
    probs = torch.rand(len(pairs), 3).softmax(-1)
    found = level_figures(probs, pairs, Task())
    levels = Task().levels
    chosen = probs.argmax(-1).tolist()
    right = [levels.index(pair.level or "") for pair in pairs]
    n = len(pairs)
    assert found["accuracy"] == pytest.approx(sum(c == r for c, r in zip(chosen, right, strict=True)) / n)
    # Cohen's kappa with squared weights: 1 - what they are apart over what they would be by chance.
    apart = sum((c - r) ** 2 for c, r in zip(chosen, right, strict=True)) / n
    chance = sum((c - r) ** 2 for c in chosen for r in right) / n**2
    assert found["quadratic_kappa"] == pytest.approx(1 - apart / chance, abs=1e-5)
    kl = sum(
        p * math.log(p / q)
        for pair, row in zip(pairs, probs.tolist(), strict=True)
        for p, q in zip(pair.level_probs or (), row, strict=True)
        if p
    )
    assert found["kl_of_levels"] == pytest.approx(kl / n, rel=1e-3)


def test_without_annotated_distributions_there_is_no_divergence(pairs: list[Pair]) -> None:
    bare = [replace(pair, level_probs=None) for pair in pairs]
    assert level_figures(torch.full((len(pairs), 3), 1 / 3), bare, Task())["kl_of_levels"] is None


def test_teachers_and_students_stand_in_one_table(
    lantern: Lantern, tmp_path: Path, pairs_file: Path, small_lm: str, tiny_encoder: Path
) -> None:
    made = lantern(
        "fit", "--model=lantern_pl.students.EncoderStudent", f"--model.model={tiny_encoder}",
        "--model.levels=[low,medium,high]", "--data=lantern_pl.data.PairDataModule", f"--data.path={pairs_file}",
        "--data.max_length=128", f"--run_dir={tmp_path / 'run'}", "--trainer.max_steps=1", "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    )  # fmt: skip
    assert made.code == 0, made.err
    some = tmp_path / "some.jsonl"
    some.write_text("".join(f"{line}\n" for line in pairs_file.read_text().splitlines()[:4]))
    hf = {"class_path": "lantern_pl.teachers.hf", "init_args": {"model": small_lm, "max_new_tokens": 4}}
    encoder = {"class_path": "lantern_pl.teachers.encoder", "init_args": {"model": str(tmp_path / "run" / "student")}}
    rubric = {"class_path": "lantern_pl.teachers.rubric"}
    config = tmp_path / "compare.yaml"
    out = tmp_path / "out" / "figures.json"
    config.write_text(
        yaml.safe_dump(
            {
                "pairs": str(some),
                "models": {"decoder": hf, "again": deepcopy(hf), "encoder": encoder, "rules": rubric},
                "token_teacher": "decoder",
                "explain_pairs": 2,
                "out": str(out),
            }
        )
    )
    ran = lantern("compare", "--config", config)
    assert ran.code == 0, ran.err
    assert "4 held-out pairs, 2 of them explained" in " ".join(ran.out.split())
    figures = json.loads(out.read_text())["models"]
    # The rubric has annotated the pairs: nothing can be nearer to them.
    assert figures["rules"]["accuracy"] == 1
    assert figures["rules"]["rouge_l"] == pytest.approx(1)
    # The file tells only its confidence in the level, not how it shares out the rest.
    assert figures["rules"]["kl_of_levels"] < figures["decoder"]["kl_of_levels"]
    assert figures["decoder"]["kl_per_token"] == pytest.approx(0, abs=1e-5)
    assert figures["again"]["accuracy"] == figures["decoder"]["accuracy"]
    assert figures["encoder"]["kl_per_token"] is None
    assert "rouge_l" not in figures["encoder"]
    assert figures["decoder"]["parameters"] > figures["encoder"]["parameters"] > 0
    assert figures["decoder"]["levels_per_s"] > 0

    # The same of another field of the job: the rubric, which made the labels, finds no requirements there.
    rows = [{**json.loads(line), "reduced_job_text": "A job."} for line in some.read_text().splitlines()]
    some.write_text("".join(json.dumps(row) + "\n" for row in rows))
    only_rules = ("--models", "{rules: {class_path: lantern_pl.teachers.rubric}}", "--out", out)
    assert lantern("compare", "--pairs", some, *only_rules, "--job_text_field=reduced_job_text").code == 0
    assert json.loads(out.read_text())["models"]["rules"]["accuracy"] < 1


def test_mistakes_are_said_in_one_message(lantern: Lantern, tmp_path: Path, pairs_file: Path) -> None:
    rubric = "{rules: {class_path: lantern_pl.teachers.rubric}}"
    wrong = lantern("compare", "--pairs", pairs_file, "--models", rubric, "--token_teacher=ruls")
    assert (wrong.code, "token_teacher is 'ruls'" in wrong.err) == (2, True)
    bare = tmp_path / "bare.jsonl"
    bare.write_text(json.dumps({"job_text": "A job.", "candidate_text": "A person."}) + "\n")
    none = lantern("compare", "--pairs", bare, "--models", rubric)
    assert (none.code, "has no annotated pairs" in none.err) == (2, True)
