import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lantern_pl.data.pair import Pair
from lantern_pl.data.records import read_pairs
from lantern_pl.data.sample import make_pairs
from lantern_pl.errors import UserError
from lantern_pl.tasks import Task
from lantern_pl.tasks.rubric import Judgement, Rubric
from lantern_pl.teachers.rule_based import RubricTeacher

TASK = Task()
JOB_FIT_OPEN = Path(__file__).parents[4] / "shared" / "data" / "job_fit_open" / "pairs.jsonl"
JOB = """\
Senior Backend Engineer
Must have: Python and Kubernetes.
Docker would be a plus.
At least 5 years of experience."""


def pair(candidate_text: str, job_text: str = JOB, number: int = 0) -> Pair:
    return Pair(str(number), "j", "c", job_text, candidate_text)


def judge(candidate_text: str, job_text: str = JOB, rubric: Rubric | None = None) -> Judgement:
    return (rubric or Rubric()).judge(job_text, candidate_text, TASK.levels)


SAMPLE = [pair(made["candidate_text"], made["job_text"], i) for i, made in enumerate(make_pairs(60, 7))]


def test_each_requirement_has_a_verdict_that_quotes_the_candidate() -> None:
    judged = judge("Senior Backend Engineer. Six years of Python. Looking to learn k8s.")
    assert judged.explanation == (
        'Meets Python: "Six years of Python". Lacks Kubernetes. Lacks the optional Docker. '
        'Meets 5 years: "Six years of Python". Meets senior: "Senior Backend Engineer".'
    )
    # 3 of 3 + 3 for the musts, 0 of 1 for Docker, 2 of 2 for the years, 1 of 1 for the seniority
    assert judged.score == 0.6
    assert judged.level == "medium"


@pytest.mark.parametrize(
    ("candidate", "level", "score"),
    [
        ("Lead Backend Engineer, 9 years. Runs Python and Docker on k8s.", "high", 1.0),
        ("Senior Backend Engineer, 9 years. Runs Python on k8s.", "high", 0.9),
        ("Backend Engineer, 4 years. Runs Python on k8s.", "high", 0.81),
        ("Junior Backend Engineer, one year. Runs Python.", "medium", 0.34),
        ("Ward nurse with 20 years of triage.", "low", 0.25),
        ("", "low", 0.05),
    ],
)
def test_a_better_candidate_has_a_higher_level(candidate: str, level: str, score: float) -> None:
    judged = judge(candidate)
    assert judged.score == pytest.approx(score, abs=0.01)
    assert judged.level == level


def test_quotes_are_verbatim_and_explanations_short() -> None:
    for p in SAMPLE:
        judged = judge(p.candidate_text, p.job_text)
        for quote in re.findall(r'"([^"]*)"', judged.explanation):
            assert quote in p.candidate_text
        assert len(judged.explanation.split()) <= 60


def test_a_long_job_is_summed_up() -> None:
    job = "Skills: Python, SQL, Docker, Kafka, AWS, Go, Rust, React"
    explanation = judge("Python, SQL, Docker, Kafka", job).explanation
    assert explanation.count('"') == 6
    assert "Also meets Kafka." in explanation
    assert explanation.endswith("Lacks AWS, Go, Rust and 1 more.")


def test_a_job_without_requirements_is_neither_fit_nor_unfit() -> None:
    judged = judge("Python", "We are nice.")
    assert judged.level == "medium"
    assert judged.explanation == "The job states no requirement that the rubric knows."


@given(st.floats(0, 1), st.integers(2, 7), st.floats(0.02, 0.5))
def test_the_level_is_the_most_probable_one_and_lies_between_its_thresholds(score: float, count: int, width: float) -> None:
    score = round(score, 4)
    probs = Rubric(width=width).level_probs(score, count)
    assert sum(probs) == pytest.approx(1)
    level = probs.index(max(probs))
    assert level / count <= score + 1e-9
    assert score <= (level + 1) / count + 1e-9


@given(st.floats(0, 0.9), st.floats(0.01, 0.1))
def test_a_higher_score_never_makes_a_higher_level_less_probable(score: float, more: float) -> None:
    rubric = Rubric()
    before, after = rubric.level_probs(score, 4), rubric.level_probs(score + more, 4)
    for k in range(1, 4):
        assert sum(after[k:]) >= sum(before[k:]) - 1e-12


def test_a_score_on_a_threshold_is_torn_between_two_levels_and_falls_to_the_lower() -> None:
    probs = Rubric(thresholds=[0.5]).level_probs(0.5, 2)
    assert probs == (0.5, 0.5)


@pytest.mark.parametrize("levels", [["no", "yes"], ["1", "2", "3", "4", "5"]])
def test_any_number_of_levels(levels: list[str]) -> None:
    task = Task(levels=levels)
    teacher = RubricTeacher()
    probs = teacher.level_probs(SAMPLE, task).probs
    assert probs.shape == (60, len(levels))
    assert [levels[i] for i in probs.argmax(1)] == [said.level for said in teacher.annotate(SAMPLE, task)]


def test_level_probs_and_annotations_agree() -> None:
    teacher = RubricTeacher()
    probs = teacher.level_probs(SAMPLE, TASK).probs
    torch.testing.assert_close(probs.sum(1), torch.ones(60))
    assert [TASK.levels[i] for i in probs.argmax(1)] == [said.level for said in teacher.annotate(SAMPLE, TASK)]
    assert teacher.level_probs([], TASK).probs.shape == (0, 3)


def test_an_answer_does_not_depend_on_the_rest_of_the_batch() -> None:
    teacher = RubricTeacher()
    assert teacher.annotate(SAMPLE, TASK) == [teacher.annotate([p], TASK)[0] for p in SAMPLE]
    alone = torch.cat([teacher.level_probs([p], TASK).probs for p in SAMPLE])
    torch.testing.assert_close(teacher.level_probs(SAMPLE, TASK).probs, alone, rtol=0, atol=0)


def test_an_annotation_has_the_format_of_the_task() -> None:
    for said in RubricTeacher().annotate(SAMPLE, TASK):
        answer = TASK.parse_answer(said.text)
        assert answer is not None
        assert (answer.level, answer.explanation) == (said.level, said.explanation)


def test_it_labels_the_sample_data_as_they_are_labelled() -> None:
    rows = make_pairs(80, 1)
    pairs = [pair(row["candidate_text"], row["job_text"]) for row in rows]
    said = RubricTeacher().annotate(pairs, TASK)
    assert [(s.level, s.explanation) for s in said] == [(row["level"], row["explanation"]) for row in rows]


def test_it_does_only_what_it_says_it_can() -> None:
    teacher = RubricTeacher()
    assert teacher.capabilities == {"annotate", "level_probs"}
    with pytest.raises(UserError, match="can't score_tokens; it can: annotate, level_probs"):
        teacher.score_tokens(None)  # type: ignore[arg-type]


def test_a_user_adds_skills_of_his_own() -> None:
    job = "Must have: glass blowing."
    assert judge("Ten years of lampwork.", job).verdicts == ()
    rubric = Rubric(skills={"Glass Blowing": ["lampwork"]})
    assert judge("Ten years of lampwork.", job, rubric).explanation == ('Meets Glass Blowing: "Ten years of lampwork".')


def test_weights_and_thresholds_count() -> None:
    text = "Senior Backend Engineer. Six years of Python."
    assert judge(text, rubric=Rubric(seniority_weight=0, years_weight=0, nice_weight=0)).score == 0.5
    assert judge(text, rubric=Rubric(thresholds=[0.1, 0.2])).level == "high"
    assert judge(text, rubric=Rubric(width=0.01)).confidence > judge(text, rubric=Rubric(width=0.5)).confidence


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"must_weight": 0}, "must_weight must be above 0"),
        ({"nice_weight": -1}, "must_weight must be above 0, the others 0 or more"),
        ({"years_weight": float("nan")}, "rubric weights"),
        ({"width": 0}, "rubric.width is 0"),
        ({"thresholds": [0.7, 0.3]}, "ascending numbers between 0 and 1"),
        ({"thresholds": [0.3, 0.3]}, "ascending numbers between 0 and 1"),
        ({"thresholds": [0.0, 0.3]}, "ascending numbers between 0 and 1"),
        ({"skills": {"Tea": ["chai", " "]}}, "blank spellings, of 'Tea'"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Rubric(**arguments)


def test_thresholds_for_another_number_of_levels() -> None:
    with pytest.raises(UserError, match="holds 1 numbers, but 3 levels need 2"):
        RubricTeacher(Rubric(thresholds=[0.5])).level_probs(SAMPLE, TASK)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Rubric)])
def test_the_cache_key_sees_every_setting(field: str) -> None:
    changed = {"thresholds": [0.4, 0.7], "skills": {"Tea": []}}.get(field, 0.5)
    other = RubricTeacher(dataclasses.replace(Rubric(), **{field: changed}))
    assert other.cache_key() != RubricTeacher().cache_key()
    json.dumps(other.identity())


def test_answers_and_cache_key_are_the_same_in_another_process() -> None:
    code = (
        "import json, sys; from lantern_pl.teachers.rule_based import *; teacher = RubricTeacher();"
        "said = teacher.annotate([Pair(*fields) for fields in json.load(sys.stdin)], Task());"
        "print(json.dumps([teacher.cache_key(), *(s.text for s in said)]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        input=json.dumps([dataclasses.astuple(p) for p in SAMPLE]),
        capture_output=True,
        text=True,
        check=True,
    )
    teacher = RubricTeacher()
    assert json.loads(run.stdout) == [teacher.cache_key(), *(s.text for s in teacher.annotate(SAMPLE, TASK))]


@pytest.mark.skipif(not JOB_FIT_OPEN.exists(), reason="the job_fit_open pairs aren't here")
def test_it_beats_guessing_on_the_labels_of_a_language_model() -> None:
    pairs = read_pairs(JOB_FIT_OPEN, TASK)
    said = RubricTeacher().annotate(pairs, TASK)
    right = sum(s.level == p.level for s, p in zip(said, pairs, strict=True)) / len(pairs)
    most_common = max(sum(p.level == level for p in pairs) for level in TASK.levels) / len(pairs)
    assert right > most_common + 0.03
