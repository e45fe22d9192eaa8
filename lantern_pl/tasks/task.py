"""A task as data: ordered levels, a prompt, and an answer that can be read back."""

import re
from dataclasses import dataclass, field
from string import Formatter
from typing import TypedDict

from lantern_pl.errors import UserError

JOB_FIT_PROMPT = """\
Judge how well the candidate fits the job. Answer with the fit level ({levels}), then explain it by the job's \
requirements, quoting the candidate.

Job:
{job_text}

Candidate:
{candidate_text}"""

JOB_FIT_ANSWER = "Fit: {level}\n{explanation}"


class RequirementVerdict(TypedDict):
    """One of the job's requirements: how far the candidate meets it, and the candidate's words for that, if any."""

    requirement: str
    kind: str
    """must, nice, or another that the teacher tells apart; empty if it doesn't."""
    verdict: str
    """met, partly or unmet."""
    evidence: str
    """Verbatim from the candidate's text, or empty."""


@dataclass(frozen=True)
class Answer:
    """A completion that was read back: a known level and the explanation that follows it."""

    level: str
    explanation: str


@dataclass(frozen=True)
class Task:
    """The question that teachers and students answer about a (candidate, job) pair. The defaults are job-person fit."""

    levels: list[str] = field(default_factory=lambda: ["low", "medium", "high"])
    """Names of the fit levels, ordered from the worst fit to the best."""
    prompt: str = JOB_FIT_PROMPT
    """What the model is asked. Must hold {job_text} and {candidate_text}; may hold {levels}."""
    answer: str = JOB_FIT_ANSWER
    """What the model should answer. Must hold {level} and, after it, {explanation}."""

    def __post_init__(self) -> None:
        if len(self.levels) < 2 or len(set(self.levels)) != len(self.levels) or not all(self.levels):
            raise UserError(f"task.levels is {self.levels!r}: give at least two different, non-empty names, worst first")
        self._check_template("prompt", self.prompt, required={"job_text", "candidate_text"}, optional={"levels"})
        fields = self._check_template("answer", self.answer, required={"level", "explanation"}, optional=set())
        if fields != ["level", "explanation"]:
            raise UserError(
                "task.answer must hold {level} and then {explanation}, each once: the level is what is never truncated"
            )

    @staticmethod
    def _check_template(name: str, template: str, required: set[str], optional: set[str]) -> list[str]:
        """The fields in their order."""
        try:
            parts = [(field, spec, conversion) for _, field, spec, conversion in Formatter().parse(template)]
        except ValueError as error:
            raise UserError(f"task.{name} is not a valid template ({error}); write {{{{ for a literal brace") from error
        found = [field for field, _, _ in parts if field is not None]
        if not required <= set(found) or set(found) - required - optional:
            raise UserError(
                f"task.{name} holds the fields {sorted(set(found))}; it must hold {sorted(required)}"
                + (f" and may hold {sorted(optional)}" if optional else "")
            )
        if any(spec or conversion for _, spec, conversion in parts):
            raise UserError(
                f"task.{name} formats a field: leave out what follows its name, as in {{level!r}} or {{level:>9}}"
            )
        return found

    def render_prompt(self, job_text: str, candidate_text: str) -> str:
        """The question about one pair, before any chat template."""
        return self.prompt.format(levels=", ".join(self.levels), job_text=job_text, candidate_text=candidate_text)

    def render_answer(self, level: str, explanation: str) -> str:
        """The completion that says `level` and `explanation`."""
        return self.answer.format(level=level, explanation=explanation)

    def answer_opening(self, level: str) -> str:
        """How an answer with this level begins, up to where the explanation stands."""
        before, between, _ = self.answer_literals()
        return before + level + between

    @property
    def answer_prefix(self) -> str:
        """What every answer begins with, up to where the level stands, without trailing white space."""
        return self.answer_literals()[0].rstrip()

    def verbalised_levels(self) -> list[str]:
        """The continuations of `answer_prefix` that name each level, in order."""
        gap = self.answer_literals()[0][len(self.answer_prefix) :]
        return [gap + level for level in self.levels]

    def closed_levels(self) -> list[str]:
        """The same with what follows a level in an answer: there, none is the beginning of another."""
        return [name + self.answer_literals()[1] for name in self.verbalised_levels()]

    def parse_answer(self, text: str) -> Answer | None:
        """Read a completion back; None if it doesn't have the format, names no known level, or explains nothing."""
        before, between, after = self.answer_literals()
        levels = "|".join(re.escape(level) for level in sorted(self.levels, key=len, reverse=True))
        pattern = f"{_loose(before.lstrip())}({levels}){_loose(between)}(.*?){_loose(after.rstrip())}"
        match = re.fullmatch(pattern, text.strip(), flags=re.DOTALL)
        if match is None or not match[2].strip():
            return None
        return Answer(level=match[1], explanation=match[2].strip())

    def answer_literals(self) -> tuple[str, str, str]:
        """What stands in `answer` before the level, between level and explanation, and after it."""
        literals = [""]
        for literal, name, _, _ in Formatter().parse(self.answer):
            literals[-1] += literal
            if name is not None:
                literals.append("")
        before, between, after = literals
        return before, between, after


def _loose(literal: str) -> str:
    """A pattern for literal text in which any white space matches any other: models differ in line ends."""
    return r"\s+".join(re.escape(part) for part in re.split(r"\s+", literal))
