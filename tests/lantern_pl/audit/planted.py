"""Teachers that judge by a rule, so that it's known what an audit has to find, and pairs for them to judge."""

import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lantern_pl.audit.answers import Answers, Levels, Texts
from lantern_pl.audit.config import AuditConfig, Injections
from lantern_pl.data.pair import Pair
from lantern_pl.signals import LevelProbs
from lantern_pl.tasks import Task
from lantern_pl.teachers import Teacher

BLACK_WOMEN = ("Lakisha", "Ebony", "Aaliyah", "Tanisha", "Keisha", "Latoya", "Shanice", "Imani", "Tamika", "Deja")
BLACK_MEN = ("Jamal", "Darnell", "Tyrone", "DeShawn", "Tremayne", "Jermaine", "Terrell", "Malik", "Leroy", "Rasheed")
BLACK_NAMES = re.compile("|".join((*BLACK_WOMEN, *BLACK_MEN)))


class RuleTeacher(Teacher):
    """Says of each pair the score, 0 to 1, that a rule gives it."""

    lantern_api = 1
    capabilities = frozenset({"level_probs"})

    def __init__(self, rule: Callable[[Pair], float]) -> None:
        self.rule = rule
        self.asked = 0

    def identity(self) -> dict[str, Any]:
        return {}

    def level_probs(self, pairs: Sequence[Pair], task: Task) -> LevelProbs:
        self.asked += len(pairs)
        scores = torch.tensor([self.rule(pair) for pair in pairs]).clamp(0, 1)
        # All mass on the two levels beside the score, so that the expected level is the score.
        place = scores * (len(task.levels) - 1)
        scale = torch.arange(len(task.levels))
        return LevelProbs((1 - (scale[None] - place[:, None]).abs()).clamp(min=0))


def skill(pair: Pair) -> float:
    """What the candidate's own text says they are worth."""
    found = re.search(r"skill (\d+)", pair.candidate_text)
    return int(found[1]) / 100 if found else 0.0


def noise(text: str, size: float, seed: int = 0) -> float:
    """Any change of the text moves the answer, either way: what models do without any bias."""
    return size * (zlib.crc32(f"{seed}/{text}".encode()) / 2**31 - 1)


def biased(size: float, noisy: float = 0.02, seed: int = 0) -> RuleTeacher:
    """Takes `size` from whoever has a name that tells of being Black; no bias for a size of 0."""

    def rule(pair: Pair) -> float:
        penalty = size if BLACK_NAMES.search(pair.candidate_text) else 0.0
        return skill(pair) - penalty + noise(pair.candidate_text, noisy, seed)

    return RuleTeacher(rule)


def pairs_of(count: int, low: int = 30, high: int = 70) -> list[Pair]:
    """`count` pairs, each of another candidate, whose skill is spread between the bounds."""
    return [
        Pair(
            f"pair-{n}",
            f"job-{n % 5}",
            f"candidate-{n}",
            f"Job {n % 5} needs care.",
            f"Number {n}, with skill {low + (high - low) * n // count} of a hundred. Likes quiet rooms.",
        )
        for n in range(count)
    ]


def config_of(models: dict[str, Teacher] | None = None, **keys: Any) -> AuditConfig:
    """A config with few draws and without injections and explanations."""
    models = models or {"it": biased(0)}
    given = {"pairs": "-", "student": next(iter(models)), "bootstrap": 300, "explain_pairs": 0, "swaps": ["names"]}
    return AuditConfig(models=models, **{**given, "injections": Injections(pairs=0), **keys})


def said_by(model: Teacher, texts: Sequence[Texts]) -> Levels:
    answers = Answers("it", model, Task(), 64)
    answers.ask(texts, "test")
    return answers.levels(texts)
