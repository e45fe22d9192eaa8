"""Files of a run as `lantern test` and `lantern audit` write them, for reports to read: plausible figures, real texts."""

from random import Random
from typing import Any

from lantern_pl.data.sample import make_pairs

LEVELS = ["low", "medium", "high"]
ATTACK = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>{{7*7}}<b>bold</b>"
"""What a stranger's text may hold: were it taken for HTML, the page would have another title."""


def figure(value: float | None, n: int = 48, half: float = 0.07) -> dict[str, Any]:
    """A figure with its interval."""
    return {
        "value": value,
        "low": None if value is None else value - half,
        "high": None if value is None else value + half,
        "n": n,
    }


def model(right: int, wrong: int, shift: float, rng: Random, explains: bool) -> dict[str, Any]:
    """A model that is right on `right` of each level's pairs, and wrong on `wrong`."""
    accuracy = right / (right + wrong)
    figures = {
        "accuracy": figure(accuracy),
        "macro_f1": figure(accuracy - 0.03),
        "quadratic_kappa": figure(accuracy - 0.1),
        "ece": figure(0.05 + shift, half=0.03),
        "brier": figure(0.4 + shift, half=0.05),
    }
    if explains:
        figures |= {
            "rouge_l": figure(0.42 - shift, n=32),
            "valid_format": figure(0.97 - shift, n=32, half=0.02),
            "evidence_verbatim": figure(0.9 - 2 * shift, n=32),
            "words": figure(41.0, n=32, half=3.0),
        }
    each = wrong // 2
    return {
        "about": "HFTeacher, 81.4M parameters",
        "figures": figures,
        "per_level": {level: {"precision": figure(accuracy), "recall": figure(accuracy)} for level in LEVELS},
        "confusion": [
            [right, each, wrong - each],
            [each, right, wrong - each],
            [wrong - each, each, right],
        ],
        "reliability": [
            {
                "low": at / 10,
                "high": (at + 1) / 10,
                "count": count,
                "confidence": (at + 0.5) / 10 if count else None,
                "accuracy": min(1.0, max(0.0, (at + 0.5) / 10 - shift + rng.uniform(-0.06, 0.06))) if count else None,
            }
            for at, count in enumerate([0, 0, 0, 4, 7, 9, 8, 9, 7, 4])
        ],
    }


def figures_of(
    kind: str = "decoder", *, right: int = 11, samples: int = 4, pairs: int = 48, seed: int = 0
) -> dict[str, Any]:
    """test.json of a student with a teacher and the same student fine-tuned alone."""
    rng = Random(seed)
    explains = kind == "decoder"
    models = {
        "student": model(right, 16 - right, 0.06, rng, explains),
        "teacher": model(13, 3, 0.02, rng, explains),
        "sft": model(9, 7, 0.12, rng, explains),
    }
    divergences = {"student": (0.31, 0.09, 0.2), "sft": (0.74, 0.17, 0.33)}
    for name, values in divergences.items() if explains else ():
        models[name]["figures"] |= {
            key: figure(value, half=0.05) for key, value in zip(("kl", "js", "tvd"), values, strict=True)
        }
    kept = figure(right / 13, half=0.08)
    return {
        "format": 1,
        "kind": kind,
        "levels": LEVELS,
        "pairs": pairs,
        "data": {"path": "data/held_out/pairs.jsonl", "sha256": "ab" * 32, "explained": 32 if explains else 0},
        "loss": {"kl": 0.31, "cross_entropy": 1.9, "broken": float("nan")},
        "settings": {"bootstrap": 1000},
        "models": models,
        "retention": {
            "accuracy": {"of_teacher": kept, "of_gap": figure((right - 9) / 4, half=0.3)},
            "quadratic_kappa": {
                "of_teacher": kept,
                "of_gap": None,
                "why": "the teacher isn't better than the student without it",
            },
            "ece": {"of_teacher": None, "of_gap": None, "why": "less is better"},
        },
        "samples": [sample(row, explains) for row in make_pairs(samples, seed=5)] if samples else [],
        "seconds": 12.5,
    }


def sample(row: dict[str, Any], explains: bool) -> dict[str, Any]:
    """A pair with answers: the teacher's quotes stand in the texts, the student also invents one, the third has no form."""
    quote = " ".join(row["candidate_text"].split()[3:7])
    asked = " ".join(row["job_text"].split()[-4:])
    if explains:
        answers = {
            "student": f'Fit: {row["level"]}\nThe candidate says "{quote}" and "ten years on the moon".',
            "teacher": f'Fit: {row["level"]}\nThe job wants "{asked}", and there is "{quote}".',
            "sft": "The candidate is a candidate of the candidate and the candidate",
        }
    else:
        answers = {"student": "high (0.62)", "teacher": "low (0.91)"}
    return {
        "pair_id": row["pair_id"],
        "job_text": row["job_text"],
        "candidate_text": row["candidate_text"],
        "annotation": {"level": row["level"], "explanation": row["explanation"]},
        "answers": answers,
    }


def audited() -> dict[str, Any]:
    """audit.json with one finding of each kind."""
    return {
        "format": 1,
        "models": ["student", "teacher"],
        "student": "student",
        "teacher": "teacher",
        "pairs": 400,
        "settings": {},
        "findings": [
            {
                "kind": "flag",
                "about": "student, age cues",
                "text": "Scores fall by 0.04 (0.02 to 0.06) where a year of birth is named.",
            },
            {"kind": "clear", "about": "student, first names", "text": "No list moves a score by more than 0.01."},
            {
                "kind": "insufficient data",
                "about": "impact ratio by race",
                "text": "0.86 (0.61 to 1.20): 1,300 a group would tell.",
            },
        ],
        "tables": [
            {
                "title": "Swaps of first names",
                "columns": ["list", "pairs", "shift", "interval"],
                "rows": [["en, sex", 400, 0.0041, "-0.003 to 0.011"], ["de, sex", 400, -0.002, ""]],
                "note": "A shift above 0 favours the first group.",
            }
        ],
    }
