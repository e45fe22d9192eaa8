"""A transparent rubric for job fit: a verdict for each requirement, a score, a level, an explanation.

Torch-free, so that light commands can use it; `RubricTeacher` makes a teacher of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lantern_pl.errors import UserError
from lantern_pl.tasks.job_fit import SENIORITY, SKILLS
from lantern_pl.tasks.reading import Claims, Requirement, Vocabulary, read_candidate, read_job

RUBRIC_VERSION = 1
"""Raised whenever the same texts would get other verdicts: it is part of the teacher's identity."""

_UNSTATED_RANK = list(SENIORITY).index("mid-level")
_MAX_QUOTES = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far one requirement is met, 0..1, and the candidate's words that show it."""

    requirement: Requirement
    credit: float
    evidence: str | None


@dataclass(frozen=True)
class Judgement:
    """What the rubric says of a pair: a score in [0, 1], its level, and why. `probs` is in the order of the levels."""

    score: float
    level: str
    probs: tuple[float, ...]
    verdicts: tuple[Verdict, ...]
    explanation: str

    @property
    def confidence(self) -> float:
        """The probability of `level`."""
        return max(self.probs)


@dataclass(frozen=True)
class Rubric:
    """How requirements add up. The score is the weighted mean of their credits."""

    must_weight: float = 3.0
    """Weight of a skill that the job must have."""
    nice_weight: float = 1.0
    """Weight of a skill that is nice to have."""
    years_weight: float = 2.0
    """Weight of the years of experience; fewer years than asked earn their share."""
    seniority_weight: float = 1.0
    """Weight of the seniority; one level too low earns half."""
    thresholds: list[float] | None = None
    """Scores that part the levels, ascending in (0, 1), one fewer than levels. By default they part [0, 1] equally."""
    width: float = 0.08
    """How fuzzy a threshold is: this far beyond it, a level is e times as probable as its neighbour. Above 0."""
    skills: dict[str, list[str]] = field(default_factory=dict)
    """Skills to know beside the built-in ones: name -> other spellings."""

    def __post_init__(self) -> None:
        weights = (self.must_weight, self.nice_weight, self.years_weight, self.seniority_weight)
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or self.must_weight == 0:
            raise UserError(f"rubric weights are {weights}: must_weight must be above 0, the others 0 or more")
        if not (math.isfinite(self.width) and self.width > 0):
            raise UserError(f"rubric.width is {self.width}: give a number above 0")
        if self.thresholds is not None and (
            sorted(set(self.thresholds)) != self.thresholds or not all(0 < threshold < 1 for threshold in self.thresholds)
        ):
            raise UserError(f"rubric.thresholds is {self.thresholds}: give ascending numbers between 0 and 1")

        blank = [name for name, forms in self.skills.items() if not all(form.strip() for form in (name, *forms))]
        if blank:
            raise UserError(f"rubric.skills has blank spellings, of {blank[0]!r}: leave them out")

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The built-in skills and the user's own; the user's spelling wins."""
        return Vocabulary({**SKILLS, **self.skills})

    def judge(self, job_text: str, candidate_text: str, levels: Sequence[str]) -> Judgement:
        """Judge one pair of texts. Raises UserError where the thresholds don't part that number of levels."""
        return self.judge_read(read_job(job_text, self.vocabulary), read_candidate(candidate_text, self.vocabulary), levels)

    def judge_read(self, requirements: Sequence[Requirement], claims: Claims, levels: Sequence[str]) -> Judgement:
        """Judge texts that were read already, for callers that meet each text in many pairs."""
        verdicts = tuple(_verdict(requirement, claims) for requirement in requirements)
        weights = [getattr(self, f"{verdict.requirement.kind}_weight") for verdict in verdicts]
        total = sum(weights)
        credit = sum(weight * verdict.credit for weight, verdict in zip(weights, verdicts, strict=True))
        # Rounded, so that a score doesn't hang on the order of a floating-point sum.
        score = round(credit / total, 4) if total else 0.5
        probs = self.level_probs(score, len(levels))
        return Judgement(
            score=score,
            level=levels[probs.index(max(probs))],
            probs=probs,
            verdicts=verdicts,
            explanation=explain(verdicts),
        )

    def level_probs(self, score: float, count: int) -> tuple[float, ...]:
        """A distribution over `count` levels by the adjacent-category logit model.

        Source: Agresti, Categorical Data Analysis, section 8.3.
        log(P(k) / P(k-1)) = (score - threshold_k) / width, so the most probable level is the one between whose
        thresholds the score lies; a score on a threshold belongs to the lower level.
        """
        thresholds = [k / count for k in range(1, count)] if self.thresholds is None else self.thresholds
        if len(thresholds) != count - 1:
            raise UserError(
                f"rubric.thresholds holds {len(thresholds)} numbers, but {count} levels need {count - 1} between them"
            )
        logits = [0.0]
        for threshold in thresholds:
            logits.append(logits[-1] + (score - threshold) / self.width)
        top = max(logits)
        masses = [math.exp(logit - top) for logit in logits]
        total = sum(masses)
        return tuple(mass / total for mass in masses)


def _verdict(requirement: Requirement, claims: Claims) -> Verdict:
    if requirement.kind == "years":
        if claims.years is None:
            return Verdict(requirement, 0.0, None)
        share = claims.years.amount / requirement.amount if requirement.amount else 1.0
        return Verdict(requirement, min(1.0, share), claims.years.evidence)
    if requirement.kind == "seniority":
        # A title without a word of seniority is commonly read as mid-level.
        rank = _UNSTATED_RANK if claims.seniority is None else claims.seniority.amount
        credit = 1.0 if rank >= requirement.amount else 0.5 if rank == requirement.amount - 1 else 0.0
        return Verdict(requirement, credit, claims.seniority.evidence if claims.seniority else None)
    evidence = claims.evidence(requirement.name)
    return Verdict(requirement, float(evidence is not None), evidence)


def explain(verdicts: Sequence[Verdict]) -> str:
    """Compact text with a verdict for each requirement, quoting the candidate; long jobs are summed up, not listed."""
    if not verdicts:
        return "The job states no requirement that the rubric knows."
    skills = [verdict for verdict in verdicts if verdict.requirement.kind in ("must", "nice")]
    met = [verdict for verdict in skills if verdict.credit]
    sentences = [f'Meets {verdict.requirement.name}: "{verdict.evidence}".' for verdict in met[:_MAX_QUOTES]]
    if met[_MAX_QUOTES:]:
        sentences.append(f"Also meets {_listed(met[_MAX_QUOTES:])}.")
    for kind, words in (("must", "Lacks"), ("nice", "Lacks the optional")):
        lacking = [verdict for verdict in skills if not verdict.credit and verdict.requirement.kind == kind]
        if lacking:
            sentences.append(f"{words} {_listed(lacking)}.")
    for verdict in verdicts:
        if verdict.requirement.kind in ("years", "seniority"):
            asked = verdict.requirement.name
            if verdict.evidence is None:
                sentences.append(f"{asked.capitalize()} asked, none stated.")
            else:
                word = "Meets" if verdict.credit == 1 else "Falls short of"
                sentences.append(f'{word} {asked}: "{verdict.evidence}".')
    return " ".join(sentences)


def _listed(verdicts: Sequence[Verdict]) -> str:
    """Up to three names, and how many more there are."""
    names = [verdict.requirement.name for verdict in verdicts]
    names = names if len(names) <= 3 else [*names[:3], f"{len(names) - 3} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
