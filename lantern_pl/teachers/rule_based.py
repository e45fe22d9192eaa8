"""The `rubric` teacher: rules in place of a model."""

import functools
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from lantern_pl.data.pair import Pair
from lantern_pl.signals import Annotation, LevelProbs
from lantern_pl.tasks import Task
from lantern_pl.tasks.reading import read_candidate, read_job
from lantern_pl.tasks.rubric import RUBRIC_VERSION, Judgement, Rubric, Verdict
from lantern_pl.tasks.task import RequirementVerdict
from lantern_pl.teachers.contract import Teacher

_DEFAULT = Rubric()


class RubricTeacher(Teacher):
    """A transparent rule-based baseline: finds the job's requirements in the candidate's text, word by word.

    It needs no model and says the same of the same texts forever, which makes it the offline default and a plain lower
    bar for LLM teachers. It is a baseline, not a judgement of anyone: it knows words, not what they mean.

    Args:
        rubric: how requirements add up to a score, and the score to a level.
    """

    lantern_api = 1
    capabilities = frozenset({"annotate", "level_probs"})
    price = (0.0, 0.0)

    def __init__(self, rubric: Rubric = _DEFAULT) -> None:
        self.rubric = rubric

    def identity(self) -> dict[str, Any]:
        return {"version": RUBRIC_VERSION, **asdict(self.rubric)}

    def annotate(self, pairs: Sequence[Pair], task: Task) -> list[Annotation]:
        return [
            Annotation(
                text=task.render_answer(judgement.level, judgement.explanation),
                level=judgement.level,
                explanation=judgement.explanation,
                level_probs=judgement.probs,
                requirements=tuple(_verdict(verdict) for verdict in judgement.verdicts),
            )
            for judgement in self._judge(pairs, task)
        ]

    def level_probs(self, pairs: Sequence[Pair], task: Task) -> LevelProbs:
        rows = [judgement.probs for judgement in self._judge(pairs, task)]
        return LevelProbs(torch.tensor(rows).reshape(len(rows), len(task.levels)))

    def _judge(self, pairs: Sequence[Pair], task: Task) -> list[Judgement]:
        # A text comes in many pairs; reading it is the costly part.
        job = functools.cache(lambda text: read_job(text, self.rubric.vocabulary))
        candidate = functools.cache(lambda text: read_candidate(text, self.rubric.vocabulary))
        return [self.rubric.judge_read(job(pair.job_text), candidate(pair.candidate_text), task.levels) for pair in pairs]


def _verdict(verdict: Verdict) -> RequirementVerdict:
    return {
        "requirement": verdict.requirement.name,
        "kind": verdict.requirement.kind,
        "verdict": "met" if verdict.credit == 1 else "partly" if verdict.credit else "unmet",
        "evidence": verdict.evidence or "",
    }
