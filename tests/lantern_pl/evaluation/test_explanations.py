"""Explanations: what is quoted and whether it stands there, and figures that their definitions give."""

import sys
from dataclasses import replace
from subprocess import run

import numpy as np
import pytest

from lantern_pl.data.pair import Pair
from lantern_pl.evaluation.asking import Written
from lantern_pl.evaluation.bootstrap import Bootstrap
from lantern_pl.evaluation.explanation_checks import Quote, check_explanation
from lantern_pl.evaluation.explanations import check_all, distinct, explanation_statistics
from lantern_pl.labelling.evidence import quoted
from lantern_pl.tasks import Task

JOB = "We need Python, SQL and Docker. Five years of experience."
CANDIDATE = "I ran Python services for six years.\nBachelor's degree in physics, and some  SQL."
TASK = Task()


@pytest.mark.parametrize(
    ("text", "passages"),
    [
        ('Meets Python: "ran Python services". Lacks "Docker".', ["ran Python services", "Docker"]),
        ("Shows 'six years' and the candidate's \"SQL\".", ["six years", "SQL"]),
        ("Has a 'Bachelor's degree' and years' work.", ["Bachelor's degree"]),
        ("„Hallo“, «nous», “curly” and ‘it’s’", ["Hallo", "nous", "curly", "it’s"]),
        ("It's what they're asked: managers' and others' work.", []),
        ('A screen of 24" wide, nothing closes it', []),
        ('A quote "doesn\'t go\nover lines" here', []),
        ('Empty "" and " " are none', []),
    ],
)
def test_passages_within_quotation_marks(text: str, passages: list[str]) -> None:
    assert quoted(text) == passages


def test_quotes_are_looked_for_in_both_texts_word_by_word() -> None:
    text = (
        'Fit: medium\nMeets "ran Python services," and "some SQL"; "Five years" is asked, "ran Java" invented, "ytho" cut.'
    )
    check = check_explanation(text, JOB, CANDIDATE, TASK)
    assert (check.valid_format, check.level) == (True, "medium")
    assert check.explanation is not None
    assert check.explanation.startswith("Meets")
    assert check.quotes == (
        Quote("ran Python services,", "candidate"),
        Quote("some SQL", "candidate"),  # white space may differ
        Quote("Five years", "job"),
        Quote("ran Java", None),
        Quote("ytho", None),
    )
    assert check.verbatim == 3 / 5


def test_an_answer_without_the_form_is_checked_for_quotes_all_the_same() -> None:
    check = check_explanation('I think "Python" is good', JOB, CANDIDATE, TASK)
    assert (check.valid_format, check.level, check.explanation) == (False, None, None)
    assert check.quotes == (Quote("Python", "candidate"),)
    assert check_explanation("Fit: splendid\nAll met.", JOB, CANDIDATE, TASK).valid_format is False
    assert check_explanation("Fit: high\nAll met.", JOB, CANDIDATE, TASK).verbatim is None


def test_the_check_needs_no_torch() -> None:
    script = "import sys, lantern_pl.evaluation.explanation_checks; sys.exit('torch' in sys.modules)"
    assert run([sys.executable, "-c", script], timeout=60).returncode == 0


def figures(texts: list[str], encoder: list[str] | None = None, **changes: object) -> dict[str, float | None]:
    pair = Pair("p", "j", "c", JOB, CANDIDATE, "high", 'Meets Python: "ran Python services".')
    pairs = [replace(pair, pair_id=str(at)) for at in range(len(texts))]
    answers = [replace(Written(text, 10 + at, at == 0), **changes) for at, text in enumerate(texts)]  # type: ignore[arg-type]
    statistics = explanation_statistics(answers, check_all(answers, pairs, TASK), pairs, encoder)
    estimates = Bootstrap(100).estimates(statistics, range(len(texts)))
    return {name: estimate.value for name, estimate in estimates.items()} | {
        f"n {name}": estimate.n for name, estimate in estimates.items()
    }


def test_figures_are_means_over_the_answers_that_they_apply_to() -> None:
    found = figures(
        [
            'Fit: high\nMeets Python: "ran Python services".',
            'Fit: low\nInvented "ten years of Docker", but "six years".',
            "no form at all",
        ],
        encoder=["high", "high", "low"],
    )
    assert found["valid_format"] == pytest.approx(2 / 3)
    # Of the two that say a level.
    assert (found["level_right"], found["n level_right"]) == (0.5, 2)
    assert (found["level_consistent"], found["n level_consistent"]) == (0.5, 2)
    assert found["quoting"] == pytest.approx(2 / 3)
    # Of the two that quote: all, and a half.
    assert (found["evidence_verbatim"], found["n evidence_verbatim"]) == (0.75, 2)
    # The job asks Python, SQL and Docker.
    assert found["skills_named"] == pytest.approx((1 / 3 + 1 / 3 + 0) / 3)
    assert found["tokens"] == 11
    assert found["ended"] == pytest.approx(1 / 3)
    assert found["words"] == pytest.approx((5 + 8 + 4) / 3)
    # The explanation of the first is the annotated one; the others are something.
    assert 1 / 3 <= (found["rouge_1"] or 0) < 1
    assert figures(['Fit: high\nMeets Python: "ran Python services".'])["rouge_2"] == pytest.approx(1)


def test_what_applies_to_no_answer_is_no_figure() -> None:
    found = figures(["no form"], tokens=None, ended=None)
    assert "tokens" not in found
    assert "ended" not in found
    assert "level_consistent" not in found
    assert "evidence_verbatim" not in found


def test_distinct_counts_over_all_texts_together() -> None:
    texts = [["a", "b"], ["a", "c"], ["a"]]
    assert distinct(texts).of(np.ones((1, 3))) == pytest.approx([3 / 5])
    assert distinct(texts).of(np.array([[3.0, 0.0, 0.0], [0.0, 1.0, 2.0]])) == pytest.approx([2 / 6, 2 / 4])
    many = [[f"{text} {word}" for word in range(5)] for text in range(40)]
    found = Bootstrap(200).estimates({"it": distinct(many)}, range(40))["it"]
    # All are different: a resample, which repeats some, must not pull the interval off.
    assert found.value == 1
    assert found.low is not None
    assert found.low <= 1 <= found.high  # type: ignore[operator]
